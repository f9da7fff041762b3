from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import monai_basisprune as mbp
from monai_basisprune.curve import CurvePoint, PruningCurve
from monai_basisprune.evidence import compare_auc
from monai_basisprune.evidence.feasibility import sample_problem
from monai_basisprune.search import MetricSearch, check_search

from .networks import same_bits, snapshot, tiny_classifier

TARGETS = [0.5, 0.75, 0.9, 0.95]


def point(epoch: int = 1, reduction: float = 0.5, **difference) -> CurvePoint:
    return CurvePoint(
        epoch=epoch,
        bases=epoch,
        parameters=100,
        macs=100,
        parameter_reduction=reduction,
        mac_reduction=reduction,
        auc={"auc": 0.9},
        difference=difference or None,
    )


def search(**arguments) -> MetricSearch:
    return MetricSearch(**{"budget": mbp.Budget(auc_margin=0.01), "targets": TARGETS, "rule": "point", **arguments})


# --- what is accepted


@pytest.mark.parametrize(
    ("difference", "accepted"),
    [
        ({"difference": -0.01, "low": -0.2}, True),
        ({"difference": -0.0101, "low": -0.02}, False),
        ({"difference": 0.3, "low": None}, True),
        ({"difference": math.nan, "low": None}, False),
        ({"difference": None, "low": None}, False),
        ({}, False),
    ],
)
def test_the_point_rule(difference, accepted):
    one = search()
    assert one.judge(point(**difference)) is accepted
    assert one.outcomes == ["accepted" if accepted else "missed"]
    json.dumps(one.to_record(), allow_nan=False)


def test_the_point_rule_ends_where_a_network_is_shown_to_be_worse():
    for high, outcome in ((-0.0101, "failed"), (-0.01, "missed"), (0.2, "missed"), (None, "missed")):
        one = search()
        one.judge(point(difference=-0.1, low=-0.3, high=high))
        assert one.outcomes == [outcome]


@pytest.mark.parametrize(
    ("difference", "accepted"),
    [
        ({"difference": -0.002, "low": -0.009, "p_value": 0.02}, True),
        ({"difference": 0.05, "low": -0.01, "p_value": 0.025}, False),  # it must lie above the margin
        ({"difference": 0.05, "low": -0.02, "p_value": 0.1}, False),
        ({"difference": 0.05, "low": None, "p_value": None}, False),
        ({"difference": 0.05, "low": math.nan, "p_value": math.nan}, False),
        ({"difference": 0.05, "low": 0.01, "p_value": math.nan}, False),
        ({}, False),
    ],
)
def test_the_interval_rule(difference, accepted):
    one = search(rule="interval")
    assert one.judge(point(confidence=0.95, **difference) if difference else point()) is accepted


def test_the_interval_rule_is_the_non_inferiority_test():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    outcomes = []
    for seed in range(30):
        reference = labels + rng.normal(size=120)
        candidate = reference + rng.normal(scale=0.2, size=120)
        compared = compare_auc(labels, reference, candidate, margin=0.02)
        one = MetricSearch(mbp.Budget(auc_margin=0.02), TARGETS)
        assert one.judge(point(seed, **compared.to_dict())) is compared.non_inferior
        outcomes.append(compared.non_inferior)
    assert 0 < sum(outcomes) < 30  # both happen


def test_each_step_of_the_bisection_is_held_to_its_share_of_the_level():
    good = {"difference": 0.0, "low": -0.005, "confidence": 0.95}
    one = search(rule="interval")
    assert one.judge(point(1, **good, p_value=0.0249))  # a coarse target, at the full 2.5 %
    assert not one.judge(point(2, **{**good, "low": -0.02}, p_value=0.1))
    assert not one.judge(point(3, **good, p_value=0.025 / 3 + 1e-4))
    assert one.judge(point(4, **good, p_value=0.025 / 3 - 1e-4))
    assert one.target == pytest.approx((0.5625 + 0.625) / 2)


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_how_often_a_network_is_chosen_that_is_worse_by_the_margin(shared):
    """All networks beyond the first target are worse by exactly the margin, the hardest case to tell."""
    rng = np.random.default_rng(1)
    runs, wrong, margin, error = 6000, 0, 0.01, 0.003
    for _ in range(runs):
        one = search(rule="interval")
        common = rng.normal()
        while (target := one.target) is not None:
            truth = 0.02 if target <= 0.5 else -margin
            noise = math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal()
            estimate = truth + error * noise
            p_value = 0.5 * math.erfc((estimate + margin) / error / math.sqrt(2))
            low = estimate - 1.959963984540054 * error
            one.judge(point(difference=estimate, low=low, p_value=p_value, confidence=0.95))
        wrong += max(step.target for step in one.steps if step.accepted) > 0.5
    assert wrong / runs < 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / runs)  # the level of both parts together
    assert wrong > 0


# --- what is chosen and said


def finished(outcomes, **arguments) -> tuple[MetricSearch, PruningCurve]:
    one = search(**arguments)
    points = [point(0, 0.0), point(1, 0.0)]
    points[0] = CurvePoint(**{**vars(points[0]), "bases": points[1].bases})
    for epoch, accepted in enumerate(outcomes, 2):
        points.append(point(epoch, one.target, difference=0.0 if accepted else -0.5, low=-0.6, high=-0.4))
        assert one.judge(points[-1]) is accepted
    return one, PruningCurve(points)


def test_the_smallest_that_was_accepted_is_chosen():
    one, curve = finished([True, True, False, True, False, False])
    assert one.target is None
    chosen, reason = one.choose(curve)
    assert chosen.parameter_reduction == 0.825
    assert reason == (
        "The smallest network found by a search over 6 networks whose AUC on validation cases is not lower by more "
        "than 0.01."
    )
    record = one.to_record()
    assert [step["target"] for step in record["steps"]] == pytest.approx([0.5, 0.75, 0.9, 0.825, 0.8625, 0.84375])
    assert set(record["steps"][0]) == {"target", "parameter_reduction", "accepted", "auc", "difference", "low"}
    assert record["required_positive_patients"] is None
    assert "confirmatory figure is that of the test cases" in record["remarks"][-1]


def test_where_none_is_accepted_the_unpruned_network_is_kept_and_that_is_said():
    one, curve = finished([False] * 4)
    chosen, reason = one.choose(curve)
    assert chosen is curve.points[1]
    assert reason == (
        "The search accepted none of the 4 networks that it tried with a margin of 0.01 AUC, so the unpruned one was "
        "kept."
    )


def test_where_all_are_accepted_larger_targets_are_suggested():
    one, curve = finished([True] * 4)
    assert one.choose(curve)[0].parameter_reduction == 0.95
    assert "The largest target, 0.95, was accepted: larger ones may be possible." in one.to_record()["remarks"]


def test_a_search_that_was_stopped_says_so():
    one, curve = finished([True, False])
    assert one.choose(curve)[0].parameter_reduction == 0.5
    assert "The search was stopped before its end; next it would have tried 0.625." in one.to_record()["remarks"]


def test_a_target_that_needs_no_round_is_settled_without_one():
    one, curve = finished([True])
    one.settle(True)
    assert one.target == 0.9
    one.judge(point(3, 0.9, difference=-1.0, high=-0.9))
    one.settle(False)
    assert one.target == pytest.approx(0.75 + 0.15 / 4)
    assert len(one.steps) == 2
    assert one.choose(curve)[0].parameter_reduction == 0.5


def test_the_state_goes_through_json():
    one, _ = finished([True, False, True])
    one.warnings.append("a warning")
    again = search()
    again.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert again.to_record() == one.to_record()
    assert again.target == one.target
    words = "'rule': 'point', 'bisections': 3}, this one has {'auc_margin': 0.01, 'targets': [0.5, 0.75, 0.9, 0.95], "
    with pytest.raises(mbp.PlanMismatchError, match=re.escape(words)):
        search(bisections=4).load_state_dict(one.state_dict())


def test_a_search_that_went_over_to_points_goes_on_so():
    one, again = search(rule="interval"), search(rule="interval")
    one.demand_points_only(sample_problem(0.01, 0.9, 20, 60, "reached before the first cut"))
    again.load_state_dict(one.state_dict())
    assert again.rule == "point"
    with pytest.raises(mbp.PlanMismatchError, match=r"'rule': 'interval', .* this one has .*'rule': 'point'"):
        search(rule="point").load_state_dict(one.state_dict())


def test_going_on_with_points_is_said_in_the_record():
    one = search(rule="interval")
    one.demand_points_only(sample_problem(0.01, 0.9, 20, 60, "reached before the first cut"))
    record = one.to_record()
    assert record["rule"] == one.rule == "point"
    assert record["required_positive_patients"] > 20
    assert (
        "accepted by their AUC alone (rule 'point'), which does not show that they are as good" in record["remarks"][0]
    )


# --- configuration


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget": mbp.Budget(parameters=0.5)}, "A search needs a Budget(auc_margin=...), got Budget(parameters=0.5)"),
        ({"rule": "best"}, "selection must be one of"),
        ({"bisections": -1}, "bisections must be a whole number, at least 0, got -1"),
        ({"bisections": 2.0}, "bisections must be a whole number, at least 0, got 2.0"),
        ({"targets": []}, "must be above 0 and rise"),
        ({"targets": [0.0, 0.5]}, "must be above 0 and rise"),
        ({"targets": [0.5, 0.5]}, "must be above 0 and rise, such as [0.5, 0.75, 0.9]; got [0.5, 0.5]"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments, words):
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        search(**arguments)


def test_all_wrong_settings_are_told_at_once():
    with pytest.raises(mbp.ConfigurationError) as caught:
        check_search(1.5, -1, "ignore", True)
    assert str(caught.value).splitlines() == [
        "auc_margin must be a loss of AUC, above 0 and below 1, got 1.5.",
        "bisections must be a whole number, at least 0, got -1.",
        "on_small_validation must be one of ('point', 'raise'), got 'ignore'.",
        "expected_auc must be at least 0.5 and below 1, got True.",
    ]
    with pytest.raises(mbp.ConfigurationError, match="auc_margin must be a loss of AUC"):
        check_search("0.01")
    with pytest.raises(mbp.ConfigurationError, match=re.escape("curve compares with a margin of 0.02: give both")):
        check_search(0.01, margin=0.02)
    check_search(0.01, 0, "raise", 0.5, margin=0.01)


@pytest.mark.parametrize("margin", [0, 1, -0.01, 1.5])
def test_a_margin_is_a_loss_of_auc(margin):
    with pytest.raises(ValueError, match=re.escape("Budget(auc_margin=...) is a loss of AUC above 0 and below 1")):
        mbp.Budget(auc_margin=margin)


def test_no_single_cut_can_meet_a_margin():
    network = mbp.decompose(tiny_classifier())
    budget = mbp.Budget(auc_margin=0.01)
    assert budget.quantity == "auc_margin"
    before = snapshot(network)
    with pytest.raises(
        mbp.BudgetError, match="no single cut can tell: search for the network with a MetricSearchRounds"
    ):
        mbp.prune_(network, mbp.SingularValueImportance(network).scores(), budget)
    assert same_bits(snapshot(network), before)
