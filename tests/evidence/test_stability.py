from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_basisprune.evidence import (
    ChosenSpread,
    LayerOverlap,
    chance_jaccard,
    chosen_spread,
    curve_band,
    jaccard,
    layer_overlap,
)


def test_band_holds_what_all_repeats_say_of_a_target():
    curves = [[(0.0, 0.9), (0.5, 0.8), (0.9, 0.6)], [(0.0, 0.7), (0.5, 0.9)], [(0.5, 0.7), (0.0, 0.8)]]
    band = curve_band(curves)
    assert [point.target for point in band.points] == [0.0, 0.5]
    for point, aucs in zip(band.points, ([0.9, 0.7, 0.8], [0.8, 0.9, 0.7]), strict=True):
        assert point.mean == pytest.approx(sum(aucs) / 3)
        assert (point.low, point.high, point.repeats) == (min(aucs), max(aucs), 3)
    assert "share patients, so this range is no confidence interval" in band.method
    assert "1 target ratios that only one repeat reached are left out" in band.method


def test_one_repeat_gives_no_band_but_the_reason():
    band = curve_band([[(0.0, 0.9)]])
    assert (band.points, band.method) == (
        [],
        "not computable, because a band needs at least two repeats and there is 1",
    )
    band = curve_band([[(0.1, 0.9)], [(0.2, 0.9)]])
    assert (band.points, band.method) == ([], "not computable, because no target ratio was reached by two repeats")


@pytest.mark.parametrize("point", [(0.5, float("nan")), (float("nan"), 0.5), (0.5, float("inf"))])
def test_no_number_is_refused(point):
    with pytest.raises(ValueError, match=r"repeat 1 has a target of .* both must be finite"):
        curve_band([[(0.0, 0.9)], [point]])
    with pytest.raises(ValueError, match="must be finite numbers"):
        chosen_spread([0.5, point[0] + point[1]])


def test_two_points_at_a_target_are_refused():
    with pytest.raises(ValueError, match="repeat 0 has two points at one target"):
        curve_band([[(0.5, 0.9), (0.5, 0.8)], [(0.5, 0.8)]])


def test_spread():
    assert chosen_spread([0.9, 0.5, 0.6, 0.8]) == ChosenSpread(pytest.approx(0.7), 0.5, 0.9)
    assert chosen_spread([0.5]) == ChosenSpread(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one repeat"):
        chosen_spread([])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n))))
def test_chance_is_the_mean_over_all_pairs_of_sets(sizes):
    total, first, second = sizes
    one = range(first)  # by symmetry one fixed set is enough
    others = list(itertools.combinations(range(total), second))
    assert chance_jaccard(first, second, total) == pytest.approx(
        statistics.fmean(jaccard(one, other) for other in others), abs=1e-12
    )


def test_chance_with_many_bases_and_with_all():
    assert chance_jaccard(200, 200, 2000) == pytest.approx(0.1 / 1.9, rel=0.02)
    assert chance_jaccard(16, 16, 16) == 1.0
    assert chance_jaccard(4, 16, 16) == 0.25


@pytest.mark.parametrize("sizes", [(0, 1, 4), (1, 5, 4)])
def test_impossible_sets_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot be drawn from 4"):
        chance_jaccard(*sizes)
    with pytest.raises(ValueError, match="two empty sets"):
        jaccard([], [])


def test_overlap_is_the_mean_over_pairs_of_repeats():
    kept = [{"a": [0, 1], "b": [0]}, {"a": [1, 2], "b": [0]}, {"a": [0, 1], "b": [0]}]
    first, second = layer_overlap(kept, {"a": 4, "b": 3})
    assert first.jaccard == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert first.by_chance == pytest.approx(chance_jaccard(2, 2, 4))
    assert second == LayerOverlap("b", 1.0, pytest.approx(1 / 3), None)


def test_overlap_says_why_there_is_none():
    kept = [{"a": [0, 1], "b": [0]}, {"a": [1, 2]}]
    first, second = layer_overlap(kept, {"a": 4, "b": 3}, {"a": "other weights"})
    assert first == LayerOverlap("a", None, None, "other weights")
    assert second.jaccard is None
    assert second.reason == "not computable, because the layer is not decomposed in every repeat"
    (alone,) = layer_overlap(kept[:1], {"a": 4})
    assert alone.reason == "not computable, because an overlap needs at least two repeats and there is 1"
