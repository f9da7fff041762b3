"""The ROC curve, and the sensitivity at a specificity that a reader asks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ._inputs import Cohort, FloatArray, IntArray, check_confidence, check_resamples, read_cohort
from .estimates import Design, Estimate, bootstrap_estimate

__all__ = ["OperatingPoint", "ROCCurve", "roc_curve_points", "sensitivity_at_specificity"]


@dataclass(frozen=True)
class ROCCurve:
    """Points of an ROC curve, from (0, 0) to (1, 1).

    Attributes:
        false_positive_rate: 1 - specificity at each point.
        true_positive_rate: sensitivity at each point.
        thresholds: scores from which on a case is called positive; None at (0, 0), where no case is.
    """

    false_positive_rate: list[float]
    true_positive_rate: list[float]
    thresholds: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class OperatingPoint(Estimate):
    """A sensitivity (``value``, ``low``, ``high``) and where on the ROC curve it is taken.

    Attributes:
        specificity: the specificity that was asked for.
        attained_specificity: the specificity at the threshold; at least the one that was asked for.
        threshold: a case is called positive from this score on; None if no case can be.
    """

    specificity: float
    attained_specificity: float
    threshold: float | None


def roc_curve_points(labels: Any, scores: Any) -> ROCCurve:
    """Compute the ROC curve, without points in the middle of straight segments.

    Args:
        labels: shape ``(n,)``, 0 or 1.
        scores: shape ``(n,)``, higher for positive.

    Raises:
        ValueError: if the labels or scores cannot be used, see :func:`auc_interval`.

    Example:
        >>> roc_curve_points([0, 1, 0, 1], [0.1, 0.4, 0.35, 0.8]).true_positive_rate
        [0.0, 1.0, 1.0]
    """
    cohort = read_cohort(labels, {"scores": scores}, None)
    order, starts = _groups(cohort)
    called = np.append(starts, cohort.cases)[::-1]  # the highest scores come first
    totals = []
    for mask in (~cohort.labels, cohort.labels):
        below = np.concatenate([[0], np.cumsum(mask[order])])[called]
        totals.append(mask.sum() - below)
    false, true = totals
    bends = np.ones(len(called), dtype=bool)
    bends[1:-1] = np.diff(false)[:-1] * np.diff(true)[1:] != np.diff(false)[1:] * np.diff(true)[:-1]
    values = [None, *cohort.scores[order[starts[::-1]], 0].tolist()]
    return ROCCurve(
        (false[bends] / false[-1]).tolist(),
        (true[bends] / true[-1]).tolist(),
        [value for value, bend in zip(values, bends, strict=True) if bend],
    )


def sensitivity_at_specificity(
    labels: Any,
    scores: Any,
    specificity: float,
    patients: Any = None,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> OperatingPoint:
    """Compute the largest sensitivity at which the specificity is at least the wanted one.

    The threshold is chosen on the same cases, and anew in every resample, so that its uncertainty is part of the
    interval. A sensitivity on other data at a threshold that was fixed before needs no such care.

    Args:
        labels: shape ``(n,)``, 0 or 1.
        scores: shape ``(n,)``, higher for positive.
        specificity: wanted specificity, above 0 and up to 1.
        patients: the patient of each case. None counts every case as a patient of its own, which makes the interval
            too narrow if that is not so.
        confidence: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if the specificity lies outside (0, 1], or the labels or scores cannot be used.

    Example:
        >>> sensitivity_at_specificity([0, 0, 0, 0, 1, 1], [1, 2, 3, 5, 4, 6], 0.75).value
        1.0
    """
    if not 0 < specificity <= 1:
        raise ValueError(f"specificity must be above 0 and at most 1, such as 0.9, found {specificity}")
    cohort = read_cohort(labels, {"scores": scores}, patients)
    order, starts = _groups(cohort)
    negative, positive = ~cohort.labels[order], cohort.labels[order]

    def find(weights: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return the group of equal scores at the threshold, the sensitivity and the specificity of each column."""
        ordered = weights[order]
        below = []
        for mask in (negative, positive):
            total = np.zeros((cohort.cases + 1, weights.shape[1]))
            np.cumsum(ordered * mask[:, None], axis=0, out=total[1:])
            below.append(total[np.append(starts, cohort.cases)])
        negatives, positives = below
        columns = np.arange(weights.shape[1])
        group = np.argmax(negatives >= specificity * negatives[-1] - 1e-9, axis=0)
        with np.errstate(invalid="ignore"):
            sensitivity = 1 - positives[group, columns] / positives[-1]
            attained = negatives[group, columns] / negatives[-1]
        return group, np.where(negatives[-1] > 0, sensitivity, np.nan), attained

    design = Design(
        codes=cohort.codes,
        patients_given=cohort.patients_given,
        units=min(cohort.positive_patients, cohort.negative_patients),
        confidence=check_confidence(confidence),
        resamples=check_resamples(resamples),
        seed=seed,
    )
    found = bootstrap_estimate(
        lambda weights: find(weights)[1], design, f"sensitivity at a specificity of {specificity:g}"
    )
    group, _, attained = find(np.ones((cohort.cases, 1)))
    threshold = float(cohort.scores[order[starts[group[0]]], 0]) if group[0] < len(starts) else None
    return OperatingPoint(
        **asdict(found), specificity=float(specificity), attained_specificity=float(attained[0]), threshold=threshold
    )


def _groups(cohort: Cohort) -> tuple[IntArray, IntArray]:
    """Return the order of the scores, ascending, and where in it each group of equal scores starts."""
    column = cohort.scores[:, 0]
    order = np.argsort(column, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(column[order]) > 0]))
    return order, starts
