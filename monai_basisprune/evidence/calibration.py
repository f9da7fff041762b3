"""Whether predicted probabilities mean what they say: Brier score, calibration error, reliability diagram."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ._inputs import Cohort, FloatArray, IntArray, check_confidence, check_resamples, read_cohort
from .estimates import Design, Estimate, bootstrap_estimate

__all__ = ["ReliabilityPoints", "brier_score", "calibration_error", "reliability_points"]


@dataclass(frozen=True)
class ReliabilityPoints:
    """Points of a reliability diagram, one for each bin that holds cases.

    Attributes:
        mean_probability: mean predicted probability in the bin.
        positive_fraction: fraction of positive cases in the bin.
        cases: number of cases in the bin.
        lower_edges: lower edge of the bin.
        upper_edges: upper edge of the bin.
    """

    mean_probability: list[float]
    positive_fraction: list[float]
    cases: list[int]
    lower_edges: list[float]
    upper_edges: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def brier_score(
    labels: Any,
    probabilities: Any,
    patients: Any = None,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Compute the mean squared difference between probability and label; 0 is best, 0.25 is a constant 0.5.

    Brier, "Verification of forecasts expressed in terms of probability", Mon. Weather Rev. 78 (1950), for two classes
    with one term for each case.

    Args:
        labels: shape ``(n,)``, 0 or 1.
        probabilities: predicted probability of the positive class, shape ``(n,)``, from 0 to 1.
        patients: the patient of each case. None counts every case as a patient of its own.
        confidence: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if a probability lies outside [0, 1], or the labels or probabilities cannot be used.

    Example:
        >>> round(brier_score([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]).value, 3)
        0.045
    """
    cohort = _read(labels, probabilities, patients)
    loss = np.square(cohort.scores[:, 0] - cohort.labels)
    design = _design(cohort, confidence, resamples, seed)
    return bootstrap_estimate(lambda weights: loss @ weights / weights.sum(axis=0), design, "Brier score")


def calibration_error(
    labels: Any,
    probabilities: Any,
    patients: Any = None,
    confidence: float = 0.95,
    *,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Compute the expected calibration error of the probability of the positive class.

    In bins of equal width of the probability: the distance between mean probability and fraction of positive cases,
    averaged over all cases (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", AAAI 2015). Chance alone makes it larger than 0, the more so the fewer cases a bin holds
    (Kumar, Liang and Ma, "Verified uncertainty calibration", NeurIPS 2019), so compare it only between networks on the
    same cases and with the same bins. The interval describes the spread of the number, it does not remove that bias.

    Args:
        labels: shape ``(n,)``, 0 or 1.
        probabilities: predicted probability of the positive class, shape ``(n,)``, from 0 to 1.
        patients: the patient of each case. None counts every case as a patient of its own.
        confidence: confidence level.
        bins: number of bins.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if a probability lies outside [0, 1], or the labels or probabilities cannot be used.

    Example:
        >>> round(calibration_error([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]).value, 3)
        0.2
    """
    cohort = _read(labels, probabilities, patients)
    place = _bin(cohort, bins)
    excess = np.zeros((bins, cohort.cases))
    excess[place, np.arange(cohort.cases)] = cohort.scores[:, 0] - cohort.labels

    def error(weights: FloatArray) -> FloatArray:
        value: FloatArray = np.abs(excess @ weights).sum(axis=0) / weights.sum(axis=0)
        return value

    design = _design(cohort, confidence, resamples, seed)
    return bootstrap_estimate(error, design, f"expected calibration error, {bins} bins of equal width")


def reliability_points(labels: Any, probabilities: Any, *, bins: int = 10) -> ReliabilityPoints:
    """Compute the points of a reliability diagram (DeGroot and Fienberg, Statistician 32, 1983).

    Args:
        labels: shape ``(n,)``, 0 or 1.
        probabilities: predicted probability of the positive class, shape ``(n,)``, from 0 to 1.
        bins: number of bins of equal width; a bin holds its upper edge, and the first also 0.

    Raises:
        ValueError: if a probability lies outside [0, 1], or the labels or probabilities cannot be used.

    Example:
        >>> reliability_points([0, 0, 1, 1], [0.1, 0.3, 0.75, 0.85], bins=2).mean_probability
        [0.2, 0.8]
    """
    cohort = _read(labels, probabilities, None)
    place = _bin(cohort, bins)
    cases = np.bincount(place, minlength=bins)
    filled = np.flatnonzero(cases)
    mean, fraction = (
        np.bincount(place, weights=values, minlength=bins)[filled] / cases[filled]
        for values in (cohort.scores[:, 0], cohort.labels.astype(np.float64))
    )
    return ReliabilityPoints(
        mean_probability=mean.tolist(),
        positive_fraction=fraction.tolist(),
        cases=cases[filled].tolist(),
        lower_edges=(filled / bins).tolist(),
        upper_edges=((filled + 1) / bins).tolist(),
    )


def _read(labels: Any, probabilities: Any, patients: Any) -> Cohort:
    cohort = read_cohort(labels, {"probabilities": probabilities}, patients)
    outside = int(((cohort.scores < 0) | (cohort.scores > 1)).sum())
    if outside:
        raise ValueError(
            f"probabilities must lie from 0 to 1, found {outside} of {cohort.cases} outside, from "
            f"{cohort.scores.min():g} to {cohort.scores.max():g}; apply a sigmoid or softmax to logits first"
        )
    return cohort


def _bin(cohort: Cohort, bins: int) -> IntArray:
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, such as 10, found {bins}")
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(edges, cohort.scores[:, 0], side="left")


def _design(cohort: Cohort, confidence: float, resamples: int, seed: int) -> Design:
    return Design(
        codes=cohort.codes,
        patients_given=cohort.patients_given,
        units=cohort.patients,
        confidence=check_confidence(confidence),
        resamples=check_resamples(resamples),
        seed=seed,
    )
