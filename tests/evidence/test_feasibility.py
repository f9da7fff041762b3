from __future__ import annotations

import math
import re

import pytest

from monai_basisprune.evidence import required_positive_patients
from monai_basisprune.evidence.feasibility import (
    ASSUMED_CORRELATION,
    patients_by_class,
    sample_problem,
    several_classes,
)


def test_too_few_patients_are_told_with_the_number_that_is_needed():
    problem = sample_problem(0.01, 0.9, 20, 60, "assumed")
    needed = required_positive_patients(0.01, 0.9, ASSUMED_CORRELATION, 3.0)
    assert problem.required_positive_patients == needed
    for words in (
        "too small to show that a pruned network is not worse by more than 0.01 AUC, even one that is just as good",
        "with 20 positive and 60 negative patients, the interval of the difference would reach -0.0",
        "(AUC 0.900, assumed; correlation 0.95, assumed)",
        f"about {needed} positive and {3 * needed} negative patients.",
    ):
        assert words in problem.message
    assert sample_problem(0.01, 0.9, needed, 3 * needed, "assumed") is None


def test_numbers_of_several_classes_are_told_to_be_those_of_one():
    told = "Of several classes, these are the numbers of one whose AUC is known as well as their mean."
    plain, several = (sample_problem(0.01, 0.9, 20, 60, "assumed", several=several) for several in (False, True))
    assert several.message == f"{plain.message} {told}"
    assert [several_classes(labels) for labels in ([0, 1], [2, 0, 1], [[0, 1], [1, 0]], [[1], [0]])] == [
        False, True, True, False,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="found 1 other value"):
        patients_by_class([0, 1, 2, float("nan")])


@pytest.mark.parametrize("auc", [0.2, 0.5, 0.7, 0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize(("positives", "negatives"), [(10, 12), (40, 400), (300, 30)])
def test_what_is_needed_is_enough(auc, positives, negatives):
    problem = sample_problem(0.01, auc, positives, negatives, "assumed")
    if problem is None:
        assert min(positives, negatives) > 12
    else:
        needed = problem.required_positive_patients
        assert needed > positives
        assert sample_problem(0.01, auc, needed, max(2, math.ceil(needed * negatives / positives)), "assumed") is None


def test_a_perfect_network_on_few_patients_shows_nothing():
    assert sample_problem(0.01, 1.0, 20, 20, "reached") is not None
    assert sample_problem(0.01, 1.0, 1000, 1000, "reached") is None


@pytest.mark.parametrize(("positives", "negatives"), [(0, 20), (1, 20), (20, 1), (20, 0)])
def test_one_class_is_always_too_few(positives, negatives):
    assert sample_problem(0.3, 0.9, positives, negatives, "assumed") is not None


def test_more_than_ten_million_patients_are_no_number():
    problem = sample_problem(1e-6, 0.8, 50, 50, "assumed")
    assert problem.required_positive_patients is None
    assert "It would need more than ten million positive patients" in problem.message


def test_patients_are_counted_in_each_class_that_they_have_a_case_of():
    labels, patients = [1, 1, 0, 0, 0, 1], ["a", "a", "a", "b", "c", "d"]
    assert patients_by_class(labels, patients) == (2, 3)
    assert patients_by_class(labels) == (3, 3)


@pytest.mark.parametrize(
    ("labels", "patients", "words"),
    [
        ([0, -1], ["a", "b"], "labels must be 0 (negative) or 1 (positive), found 1 other value(s): -1"),
        ([0.0, math.nan], None, "labels must be 0 (negative) or 1 (positive)"),
        ([1, 1], ["a", "b"], "only one class is present"),
        ([0, 1], ["a", ""], "1 of 2 cases have no patient"),
    ],
)
def test_cases_that_cannot_be_counted_are_refused(labels, patients, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        patients_by_class(labels, patients)
