from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_basisprune.bisection import OUTCOMES, next_target

TARGETS = [0.5, 0.75, 0.9, 0.95]


def run(accepts, targets=TARGETS, bisections=3) -> list[tuple[float, bool]]:
    """Search with a criterion of which one failure is enough; returns what was tried."""
    tried: list[tuple[float, bool]] = []
    while (target := next_target(targets, bisections, [OUTCOMES[0 if ok else 2] for _, ok in tried])) is not None:
        tried.append((target, accepts(target)))
        assert len(tried) <= len(targets) + bisections
    return tried


rising = st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True).map(lambda n: [x / 100 for x in sorted(n)])


@given(rising, st.integers(0, 6), st.floats(0, 1))
def test_a_boundary_is_found_as_by_trying_everything(targets, bisections, boundary):
    tried = run(lambda target: target <= boundary, targets, bisections)
    found = max((target for target, accepted in tried if accepted), default=0.0)
    # every ratio that a search can reach: each step between coarse targets cut into equal parts
    grid = [0.0, *targets]
    parts = 2**bisections
    reachable = [a + (b - a) * part / parts for a, b in itertools.pairwise(grid) for part in range(parts)] + [grid[-1]]
    assert found == pytest.approx(max(ratio for ratio in reachable if ratio <= boundary + 1e-12), abs=1e-9)
    step = max(b - a for a, b in itertools.pairwise(grid)) / parts
    assert found <= boundary
    assert found == targets[-1] or boundary - found <= step + 1e-12


@given(rising, st.integers(0, 6), st.lists(st.booleans(), min_size=12, max_size=12))
def test_whatever_is_accepted_the_steps_close_in(targets, bisections, answers):
    given_answers = iter(answers)
    tried = run(lambda target: next(given_answers), targets, bisections)
    low, high = 0.0, math.inf
    for target, accepted in tried:
        assert low < target < high
        low, high = (target, high) if accepted else (low, target)
    accepted = [target for target, outcome in tried if outcome]
    assert accepted == sorted(accepted)  # the last that was accepted is the smallest network
    coarse = len(list(itertools.takewhile(lambda step: step[1], tried)))
    assert [target for target, _ in tried[: coarse + 1]][: len(targets)] == targets[: coarse + 1]
    assert len(tried) == (len(targets) if coarse >= len(targets) else coarse + 1 + bisections)


def test_all_or_none():
    assert run(lambda target: True) == [(target, True) for target in TARGETS]
    assert [target for target, _ in run(lambda target: False)] == [0.5, 0.25, 0.125, 0.0625]
    assert run(lambda target: False, bisections=0) == [(0.5, False)]


@given(rising, st.integers(0, 5), st.lists(st.sampled_from(OUTCOMES), min_size=12, max_size=12))
def test_what_is_only_missed_does_not_end_the_coarse_targets(targets, bisections, answers):
    outcomes: list[str] = []
    tried: list[float] = []
    while (target := next_target(targets, bisections, outcomes)) is not None:
        tried.append(target)
        outcomes.append(answers[len(outcomes)])
        assert len(tried) <= len(targets) + bisections
    coarse = min(next((i + 1 for i, outcome in enumerate(answers) if outcome == "failed"), 99), len(targets))
    assert tried[:coarse] == targets[:coarse]
    best = max((i + 1 for i in range(coarse) if answers[i] == "accepted"), default=0)
    if best == len(targets):
        assert len(tried) == coarse
    else:
        assert len(tried) == coarse + bisections
        assert all([0.0, *targets][best] < target < targets[best] for target in tried[coarse:])


def test_a_dip_of_the_curve_does_not_hide_what_lies_behind_it():
    assert next_target(TARGETS, 1, ["missed"]) == 0.75
    assert next_target(TARGETS, 1, ["missed", "accepted", "missed", "missed"]) == pytest.approx(0.825)
    assert next_target(TARGETS, 1, ["missed", "accepted", "missed", "missed", "accepted"]) is None
    assert next_target(TARGETS, 1, ["missed"] * 4) == 0.25


@pytest.mark.parametrize("lost", ["missed", "failed"])
def test_a_halving_that_is_not_accepted_goes_down_whichever_way_it_was_lost(lost):
    outcomes = ["accepted", "failed"]
    assert next_target(TARGETS, 3, outcomes) == 0.625
    assert next_target(TARGETS, 3, [*outcomes, lost]) == 0.5625
    assert next_target(TARGETS, 3, [*outcomes, lost, "accepted"]) == 0.59375
    assert next_target(TARGETS, 3, [*outcomes, lost, "accepted", lost]) is None


def test_the_last_coarse_target_that_was_accepted_counts_and_not_one_below_it():
    assert next_target(TARGETS, 1, ["accepted", "missed", "accepted", "failed"]) == pytest.approx(0.925)
    assert next_target(TARGETS, 1, ["missed", "failed"]) == 0.25  # of two that were lost the step below the first


def test_no_halving_follows_where_the_largest_target_was_accepted_or_none_is_asked_for():
    assert next_target([0.5], 5, ["accepted"]) is None
    assert next_target(TARGETS, 5, ["missed", "missed", "missed", "accepted"]) is None
    assert next_target(TARGETS, 0, ["accepted", "failed"]) is None
