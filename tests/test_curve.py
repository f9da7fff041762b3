from __future__ import annotations

import json
import re

import pytest

import monai_basisprune as mbp
from monai_basisprune.curve import SELECTION_RULES, CurvePoint, PruningCurve


def point(bases: int, difference: float | None = None, low: float | None = None, **other) -> CurvePoint:
    fields = {"epoch": 1, "parameters": 10 * bases, "macs": 100 * bases, "auc": {"auc": 0.9}, **other}
    return CurvePoint(
        bases=bases,
        parameter_reduction=1 - bases / 100,
        mac_reduction=1 - bases / 100,
        difference=None if difference is None else {"difference": difference, "low": low},
        **fields,
    )


def test_a_round_is_the_last_evaluation_of_each_size():
    points = [
        point(100, epoch=1),
        point(100, epoch=2),
        point(50, 0.05, epoch=3),
        point(50, -0.02, epoch=4),  # the last one counts, though it is worse
        point(20, -0.1, epoch=5),
    ]
    assert [p.epoch for p in PruningCurve(points).rounds()] == [2, 4, 5]


def test_a_search_that_goes_back_to_larger_networks_has_a_round_for_each_cut():
    points = [
        point(100, epoch=1),
        point(50, -0.2, epoch=2),
        point(75, -0.1, epoch=3),
        point(75, 0.0, epoch=4),
        point(50, 0.0, epoch=5),  # as many bases as the network that failed, but others
        point(40, -0.3, epoch=6),
    ]
    assert [p.epoch for p in PruningCurve(points).rounds()] == [1, 2, 4, 5, 6]
    assert PruningCurve().rounds() == []
    assert PruningCurve(points).unpruned() is points[0]
    assert PruningCurve([point(100, epoch=0), *points]).unpruned() is points[0]


@pytest.mark.parametrize(
    ("differences", "margin", "chosen"),
    [
        ([-0.001, -0.005, -0.2], 0.01, 40),
        ([-0.001, -0.01, -0.2], 0.01, 40),  # the margin itself still fits
        ([-0.001, -0.0101, -0.2], 0.01, 70),
        ([0.3, 0.2, 0.1], 0.01, 10),
        ([-0.2, -0.3, -0.005], 0.01, 10),  # a smaller network that has recovered
        ([-0.2, -0.3, -0.4], 0.01, 100),
        ([-0.001, 0.0, 0.0], 0.0, 10),
    ],
)
def test_the_smallest_network_within_the_margin_is_chosen(differences, margin, chosen):
    points = [point(100), *[point(b, d) for b, d in zip((70, 40, 10), differences, strict=True)]]
    found, reason = PruningCurve(points).smallest(margin)
    assert found.bases == chosen
    if chosen == 100:
        assert f"No pruned network has a validation AUC within {margin:g} of the unpruned network" in reason
        assert "the unpruned one was kept" in reason
    else:
        assert f"whose AUC on validation cases is not lower by more than {margin:g}" in reason


def test_the_interval_rule_asks_that_the_lower_end_fits():
    points = [point(100), point(70, 0.0, -0.005), point(40, 0.0, -0.02), point(10, 0.0, None)]
    found, reason = PruningCurve(points).smallest(0.01, "interval")
    assert found.bases == 70
    assert "whose interval on validation cases shows that it is not worse by more than 0.01 AUC" in reason
    found, reason = PruningCurve([points[0], *points[2:]]).smallest(0.01, "interval")
    assert found.bases == 100
    assert "No pruned network has a validation interval within 0.01" in reason
    assert PruningCurve(points).smallest(0.01)[0].bases == 10
    # an interval that ends at the margin itself does not lie above it
    assert PruningCurve([points[0], point(70, 0.0, -0.01)]).smallest(0.01, "interval")[0].bases == 100


def test_the_smallest_means_by_parameters():
    points = [point(100), point(70, 0.0, parameters=50), point(40, 0.0, parameters=60)]
    assert PruningCurve(points).smallest(0.01)[0].bases == 70


def test_a_difference_that_is_no_number_never_qualifies():
    points = [point(100), point(50, float("nan"))]
    assert PruningCurve(points).smallest(0.01)[0].bases == 100
    assert PruningCurve([points[0], point(50, 0.0, float("nan"))]).smallest(0.01, "interval")[0].bases == 100


def test_without_points_or_with_an_unknown_rule_nothing_is_chosen():
    with pytest.raises(mbp.ConfigurationError, match="The pruning curve is empty: no evaluation was recorded"):
        PruningCurve().smallest(0.01)
    words = f"selection must be one of {SELECTION_RULES}, got 'best'"
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        PruningCurve([point(1)]).smallest(0.01, "best")


def test_a_curve_goes_through_json():
    curve = PruningCurve([point(100), point(50, -0.01, -0.02)])
    again = PruningCurve.from_list(json.loads(json.dumps(curve.to_list())))
    assert again == curve
    assert again.points[1].difference == {"difference": -0.01, "low": -0.02}
    assert PruningCurve().points == []
    assert PruningCurve().points is not PruningCurve().points
