"""How far the results of repeats agree: their curves, what they chose, and which bases they kept."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = [
    "BandPoint",
    "ChosenSpread",
    "CurveBand",
    "LayerOverlap",
    "chance_jaccard",
    "chosen_spread",
    "curve_band",
    "jaccard",
    "layer_overlap",
]


@dataclass(frozen=True)
class BandPoint:
    """The AUC of all repeats at one target ratio.

    Attributes:
        target: the share that was to be removed.
        mean: mean AUC.
        low: lowest AUC.
        high: highest AUC.
        repeats: number of repeats that reached the target.
    """

    target: float
    mean: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class CurveBand:
    """The curves of all repeats as one.

    Attributes:
        points: one for each target ratio that at least two repeats reached, rising.
        method: what the band is and is not, in words for a report; or why there is none.
    """

    points: list[BandPoint]
    method: str


@dataclass(frozen=True)
class ChosenSpread:
    """The share that the repeats chose to remove.

    Attributes:
        median: the median.
        minimum: the smallest.
        maximum: the largest.
    """

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class LayerOverlap:
    """How far the repeats keep the same bases of one layer.

    Attributes:
        layer: dotted name.
        jaccard: size of the intersection of the kept bases divided by that of the union, mean over all pairs of
            repeats; or None.
        by_chance: the same for as many bases drawn at random, or None.
        reason: why there is no overlap, or None.
    """

    layer: str
    jaccard: float | None
    by_chance: float | None
    reason: str | None = None


def curve_band(curves: Sequence[Sequence[tuple[float, float]]]) -> CurveBand:
    """Return mean, lowest and highest AUC of repeats at each target ratio.

    Args:
        curves: for each repeat its pairs of target ratio and AUC.

    Raises:
        ValueError: if a number is not finite, or a repeat has two points at one target.

    >>> band = curve_band([[(0.0, 0.8), (0.5, 0.7)], [(0.0, 0.9), (0.5, 0.9)]])
    >>> band.points[1]
    BandPoint(target=0.5, mean=0.8, low=0.7, high=0.9, repeats=2)
    """
    by_target: dict[float, list[float]] = {}
    for index, curve in enumerate(curves):
        targets = [target for target, _ in curve]
        if len(set(targets)) < len(targets):
            raise ValueError(f"repeat {index} has two points at one target: {targets}.")
        for target, auc in curve:
            if not (math.isfinite(target) and math.isfinite(auc)):
                raise ValueError(f"repeat {index} has a target of {target} with an AUC of {auc}: both must be finite.")
            by_target.setdefault(target, []).append(auc)
    if len(curves) < 2:
        return CurveBand([], f"not computable, because a band needs at least two repeats and there is {len(curves)}")
    points = [
        BandPoint(float(target), float(statistics.fmean(aucs)), float(min(aucs)), float(max(aucs)), len(aucs))
        for target, aucs in sorted(by_target.items())
        if len(aucs) > 1
    ]
    if not points:
        return CurveBand([], "not computable, because no target ratio was reached by two repeats")
    left_out = len(by_target) - len(points)
    uneven = any(point.repeats < len(curves) for point in points)
    return CurveBand(
        points,
        f"Mean, lowest and highest validation AUC of {len(curves)} repeats at each target ratio. The repeats "
        "share patients, so this range is no confidence interval."
        + (
            " Where not all repeats have a network at a target, only those that do are counted, so mean and range can "
            "change from one target to the next without any change of the networks."
            if uneven
            else ""
        )
        + (f" {left_out} target ratios that only one repeat reached are left out." if left_out else ""),
    )


def chosen_spread(reductions: Sequence[float]) -> ChosenSpread:
    """Return median, minimum and maximum of the shares that the repeats removed.

    Raises:
        ValueError: if there are none, or one is not finite.

    >>> chosen_spread([0.9, 0.5, 0.8])
    ChosenSpread(median=0.8, minimum=0.5, maximum=0.9)
    """
    if not reductions or not all(math.isfinite(value) for value in reductions):
        raise ValueError(f"the chosen shares of at least one repeat must be finite numbers, got {list(reductions)}.")
    return ChosenSpread(float(statistics.median(reductions)), float(min(reductions)), float(max(reductions)))


def jaccard(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the size of the intersection divided by that of the union.

    Raises:
        ValueError: if both are empty.

    >>> jaccard([0, 1, 2], [1, 2, 3])
    0.5
    """
    union = set(first) | set(second)
    if not union:
        raise ValueError("two empty sets have no Jaccard index.")
    return len(set(first) & set(second)) / len(union)


def chance_jaccard(first: int, second: int, total: int) -> float:
    """Return the Jaccard index to expect of two random sets.

    The size of the intersection follows the hypergeometric distribution; the mean is taken of the index itself.

    Args:
        first: number of elements of the first set.
        second: number of elements of the second set.
        total: number of elements to draw from.

    Raises:
        ValueError: if a set is empty or larger than what it is drawn from.

    >>> chance_jaccard(1, 1, 4)
    0.25
    """
    if not (1 <= first <= total and 1 <= second <= total):
        raise ValueError(
            f"sets of {first} and {second} elements cannot be drawn from {total}: from 1 to all are needed."
        )
    common = np.arange(max(0, first + second - total), min(first, second) + 1)
    probabilities = stats.hypergeom(total, first, second).pmf(common)
    return float(np.sum(probabilities * common / (first + second - common)) / np.sum(probabilities))


def layer_overlap(
    kept_bases: Sequence[Mapping[str, Sequence[int]]],
    max_ranks: Mapping[str, int],
    not_comparable: Mapping[str, str] | None = None,
) -> list[LayerOverlap]:
    """Compare which bases of each layer the repeats kept.

    Args:
        kept_bases: for each repeat, by layer, the numbers of the bases that it kept.
        max_ranks: number of bases of the full decomposition, by layer.
        not_comparable: layers whose bases are not the same ones in all repeats, with the reason.

    Returns:
        one :class:`LayerOverlap` for each layer of ``max_ranks``, in that order.
    """
    reasons = not_comparable or {}
    found = []
    for layer, max_rank in max_ranks.items():
        reason = reasons.get(layer)
        if reason is None and len(kept_bases) < 2:
            reason = f"not computable, because an overlap needs at least two repeats and there is {len(kept_bases)}"
        if reason is None and not all(repeat.get(layer) for repeat in kept_bases):
            reason = "not computable, because the layer is not decomposed in every repeat"
        if reason is not None:
            found.append(LayerOverlap(layer, None, None, reason))
            continue
        pairs = list(itertools.combinations([repeat[layer] for repeat in kept_bases], 2))
        found.append(
            LayerOverlap(
                layer,
                float(statistics.fmean(jaccard(a, b) for a, b in pairs)),
                float(statistics.fmean(chance_jaccard(len(a), len(b), max_rank) for a, b in pairs)),
            )
        )
    return found
