"""How many positive patients a validation set needs, asked before the study instead of after it."""

from __future__ import annotations

import math

from scipy import stats

from ._inputs import check_confidence
from .intervals import hanley_mcneil_variance

__all__ = ["required_positive_patients"]

_LARGEST = 10_000_000


def required_positive_patients(
    margin: float,
    expected_auc: float,
    correlation: float,
    negatives_per_positive: float = 1.0,
    *,
    power: float = 0.8,
    confidence: float = 0.95,
) -> int:
    """Approximate the number of positive patients needed to show non-inferiority, if both networks are equally good.

    The test succeeds with the wanted power if ``SE * (z_confidence + z_power) <= margin``, with
    ``SE**2 = 2 * variance * (1 - correlation)`` for two networks of equal variance on the same patients (Obuchowski
    and McClish, "Sample size determination for diagnostic accuracy studies involving binormal ROC curve indices",
    Stat. Med. 16, 1997; Blackwelder, "Proving the null hypothesis in clinical trials", Control. Clin.
    Trials 3, 1982, for the margin). The variance is Hanley and McNeil's (Radiology 143, 1982), with one
    case per patient: several images of a patient help less than as many patients, so count patients. The smallest
    number that suffices is found by search.

    Args:
        margin: the non-inferiority margin, above 0.
        expected_auc: AUC of both networks, between 0.5 and 1.
        correlation: correlation of both AUCs, below 1: about 0.8 to 0.95 for a pruned network and its original. From
            earlier data it is ``covariance[0, 1] / sqrt(covariance[0, 0] * covariance[1, 1])`` of
            :func:`delong_covariance`.
        negatives_per_positive: negative patients for each positive one; 19 for a prevalence of 5 %.
        power: wanted probability of success.
        confidence: confidence level of the two-sided interval that the test uses.

    Raises:
        ValueError: if an argument lies outside its range, or if more than ten million patients would be needed.

    Example:
        >>> required_positive_patients(0.05, 0.9, 0.8)
        65
    """
    if not 0 < margin < 1:
        raise ValueError(
            f"margin must lie between 0 and 1, such as 0.01, found {margin}; no sample shows a margin of 0"
        )
    if not 0.5 <= expected_auc < 1:
        raise ValueError(f"expected_auc must be 0.5 or more and below 1, found {expected_auc}")
    if not -1 <= correlation < 1:
        raise ValueError(
            f"correlation must be -1 or more and below 1, found {correlation}: with 1 the networks are one and the same"
        )
    if not 0 < negatives_per_positive < math.inf:
        raise ValueError(
            f"negatives_per_positive must be above 0, such as 19 for 5 % positive, found {negatives_per_positive}"
        )
    if not 0.5 < power < 1:
        raise ValueError(f"power must lie between 0.5 and 1, such as 0.8, found {power}")
    quantiles = float(stats.norm.ppf(0.5 + check_confidence(confidence) / 2) + stats.norm.ppf(power))

    def negatives(positives: int) -> int:
        return max(2, math.ceil(positives * negatives_per_positive))

    def suffices(positives: int) -> bool:
        variance = hanley_mcneil_variance(expected_auc, positives, negatives(positives))
        return math.sqrt(2 * variance * (1 - correlation)) * quantiles <= margin

    low, high = 1, 2
    while not suffices(high):
        low, high = high, 2 * high
        if high > _LARGEST:
            raise ValueError(f"more than {_LARGEST} positive patients are needed for a margin of {margin}: widen it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
