from __future__ import annotations

import pickle

import pytest

import monai_basisprune as mbp
from monai_basisprune import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_is_listed_public_and_caught_by_those_who_know_nothing_of_this_package(kind):
    assert kind.__name__ in errors.__all__
    assert getattr(mbp, kind.__name__) is kind
    assert issubclass(kind, mbp.BasisPruneError)
    assert kind is mbp.BasisPruneError or issubclass(kind, ValueError)
    with pytest.raises(mbp.BasisPruneError, match="the words of the error"):
        raise kind("the words of the error")


@pytest.mark.parametrize("kind", KINDS)
def test_errors_come_back_from_other_processes_with_their_words(kind):
    again = pickle.loads(pickle.dumps(kind("what was asked")))
    assert type(again) is kind
    assert str(again) == "what was asked"


def test_a_cohort_error_carries_every_problem_in_a_line_of_its_own():
    error = errors.CohortError("3 cases cannot be used.", (f"case {n}: no label" for n in range(3)))
    assert error.problems == ("case 0: no label", "case 1: no label", "case 2: no label")
    assert pickle.loads(pickle.dumps(error)).problems == error.problems
    assert str(error).splitlines() == ["3 cases cannot be used.", *(f"  - {problem}" for problem in error.problems)]
    assert errors.CohortError("The table is empty.").problems == ()
    assert str(errors.CohortError("The table is empty.")) == "The table is empty."


@pytest.mark.parametrize(
    ("count", "most", "shown"),
    [
        (0, 2, ""),
        (2, 2, "  - 0\n  - 1"),
        (3, 2, "  - 0\n  - 1\n  - and 1 more"),
        (9, 2, "  - 0\n  - 1\n  - and 7 more"),
    ],
)
def test_a_long_list_is_cut_and_says_how_much_more_there_is(count, most, shown):
    assert errors.shortened_list([str(number) for number in range(count)], most) == shown


def test_forty_lines_are_shown_unless_told_otherwise():
    lines = errors.shortened_list(tuple(f"layer {number}" for number in range(45))).splitlines()
    assert len(lines) == 41
    assert lines[39:] == ["  - layer 39", "  - and 5 more"]
