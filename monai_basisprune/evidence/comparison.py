"""Two networks on the same cases: the difference of their AUCs, and whether the candidate is non-inferior."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ._inputs import Cohort, check_confidence, check_margin, check_resamples
from ._networks import ClassCohorts, read_networks
from .auc import auc_spread, aucs_of, positive_counts, too_few_patients
from .intervals import difference_interval, tail_probability

__all__ = ["AUCComparison", "compare_auc"]

_SAME = 1e-5  # of the range of the scores; recomposing a network changes them by 2e-6: docs/results/core.json


@dataclass(frozen=True)
class AUCComparison:
    """The difference between the AUCs of two networks on the same cases; of several classes, between the mean AUCs.

    Attributes:
        reference_auc: AUC of the reference network.
        candidate_auc: AUC of the candidate network.
        difference: candidate - reference; negative if the candidate is worse.
        low: lower end of the two-sided interval of the difference, or None if it is not computable.
        high: upper end of the interval, or None.
        confidence: confidence level of the two-sided interval.
        margin: largest loss of AUC that is accepted.
        non_inferior: True only if ``low > -margin``. With a confidence of 0.95 this is the one-sided test at 2.5 %.
        p_value: one-sided p-value against "the candidate is worse by the margin or more", or None.
            ``non_inferior`` is the same as ``p_value < (1 - confidence) / 2``.
        p_value_difference: two-sided p-value against "both AUCs are equal", or None.
        unseen_loss: the largest loss of AUC by a rare failure (the candidate misses a kind of patient altogether) of
            which this sample would hold no example with probability ``(1 - confidence) / 2``. No interval from the
            sample can speak about such a failure; a larger sample makes it smaller.
        method: how the interval was computed, in words for a report.
        standard_error: standard error of the difference, or None where there is none.
        cases: number of cases.
        positive_cases: number of cases with label 1; None for several classes.
        patients: number of patients, or None if the caller gave none.
        positive_patients: number of patients with at least one positive case, or None; None for several classes.
    """

    reference_auc: float
    candidate_auc: float
    difference: float
    low: float | None
    high: float | None
    confidence: float
    margin: float
    non_inferior: bool
    p_value: float | None
    p_value_difference: float | None
    unseen_loss: float
    method: str
    standard_error: float | None
    cases: int
    positive_cases: int | None
    patients: int | None
    positive_patients: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class _Evidence:
    """Interval, p-values, standard error and method of a difference."""

    low: float | None
    high: float | None
    p_value: float | None
    p_value_difference: float | None
    standard_error: float | None
    method: str


def compare_auc(
    labels: Any,
    reference: Any,
    candidate: Any,
    patients: Any = None,
    margin: float = 0.01,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> AUCComparison:
    """Compare the AUC of a candidate network, such as a pruned one, with that of its reference, case by case.

    The candidate is non-inferior if the lower end of the two-sided interval of ``candidate - reference`` lies above
    ``-margin``: for 95 % this is the one-sided test at 2.5 % of the guideline ICH E9 (sections 3.3.2 and 5.5).

    The covariance of both AUCs is DeLong's for paired networks (Biometrics 44, 1988) if every patient has one case,
    and else that of a bootstrap that draws whole patients, the same ones for both networks. The interval is taken from
    it on the logit scale with a t quantile (see ``intervals.difference_interval``), because the usual difference plus
    or minus two standard errors is wrong near an AUC of 1. Measured coverage and error rates are in
    ``docs/results/evidence_coverage.json``.

    Where the sample shows no variance of the difference although the scores differ (both networks order all pairs
    alike), an interval of width 0 would claim a certainty that a few patients cannot give. Then the ends are those of
    the exact binomial bound for an event that none of ``k`` disjoint pairs of patients has shown, and that costs a
    whole pair each time. Scores that are equal number by number have a difference of exactly 0.

    Args:
        labels: shape ``(n,)``, 0 or 1; for several classes as in :func:`auc_interval`.
        reference: scores of the reference network, shape ``(n,)``, or ``(n, classes)`` to compare mean AUCs.
        candidate: scores of the candidate network for the same cases in the same order, of the same shape.
        patients: the patient of each case. None counts every case as a patient of its own, which makes the interval
            too narrow if that is not so.
        margin: largest loss of AUC that is accepted; fix it before looking at the data.
        confidence: confidence level of the two-sided interval.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap; the same seed gives the same interval.

    Raises:
        ValueError: if lengths differ, a score is not finite, a label is no class, or a class is absent or alone.

    Example:
        >>> result = compare_auc([0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6], [1, 3, 4, 2, 5, 6], margin=0.05)
        >>> round(result.difference, 3), result.non_inferior
        (-0.111, False)
    """
    cohort = read_networks(labels, {"reference": reference, "candidate": candidate}, patients)
    margin, confidence, resamples = check_margin(margin), check_confidence(confidence), check_resamples(resamples)
    reference_auc, candidate_auc = (float(value) for value in aucs_of(cohort))
    found = _evidence(cohort, candidate_auc - reference_auc, margin, confidence, resamples, seed)
    return AUCComparison(
        reference_auc=reference_auc,
        candidate_auc=candidate_auc,
        difference=candidate_auc - reference_auc,
        low=found.low,
        high=found.high,
        confidence=confidence,
        margin=margin,
        non_inferior=found.low is not None and found.low > -margin,
        p_value=found.p_value,
        p_value_difference=found.p_value_difference,
        unseen_loss=_unseen_loss(cohort, confidence),
        method=found.method,
        standard_error=found.standard_error,
        cases=cohort.cases,
        patients=cohort.patients if cohort.patients_given else None,
        **positive_counts(cohort),
    )


def _evidence(
    cohort: Cohort | ClassCohorts, difference: float, margin: float, confidence: float, resamples: int, seed: int
) -> _Evidence:
    reason = too_few_patients(cohort)
    if reason:
        return _Evidence(None, None, None, None, None, reason)
    reference, candidate = cohort.scores.T
    if difference == 0 and np.allclose(candidate, reference, rtol=0, atol=_SAME * float(np.ptp(reference))):
        exactly = "" if np.array_equal(reference, candidate) else ", up to rounding"
        return _Evidence(0.0, 0.0, float(margin == 0), 1.0, 0.0, f"both networks return the same scores{exactly}")
    spread, method = auc_spread(cohort, resamples, seed)
    if spread is None:
        return _Evidence(None, None, None, None, None, method)
    perfect = spread.perfect(0) or spread.perfect(1)
    if spread.contrast_error == 0 and not perfect:
        return _no_variance(cohort, difference, margin, confidence)

    def ends(level: float) -> tuple[float, float]:
        return difference_interval(spread, level)

    low, high = ends(confidence)
    equal = tail_probability(ends, difference, 0.0)
    kind = "single intervals combined (a network separates the classes perfectly)" if perfect else "logit profile"
    return _Evidence(
        low=low,
        high=high,
        p_value=tail_probability(ends, difference, -margin),
        p_value_difference=min(2 * min(equal, 1 - equal), 1.0),
        standard_error=spread.contrast_error or None,
        method=f"paired {method}, moderated t, {kind}",
    )


def _no_variance(cohort: Cohort | ClassCohorts, difference: float, margin: float, confidence: float) -> _Evidence:
    """Bound a difference that no pair of patients contradicts, by the binomial bound for an event never seen."""
    pairs = cohort.disjoint_pairs
    unseen = _unseen(pairs, confidence)
    needed = (difference + margin) / (1 + difference) if difference > -margin else 0.0
    unit = "patients" if cohort.patients_given else "cases"
    return _Evidence(
        low=difference - unseen * (1 + difference),
        high=difference + unseen * (1 - difference),
        p_value=float((1 - needed) ** pairs),
        p_value_difference=1.0 if difference == 0 else float((1 - abs(difference)) ** pairs),
        standard_error=None,
        method=f"exact bound from {pairs} disjoint pairs of {unit}, because the difference shows no variance",
    )


def _unseen_loss(cohort: Cohort | ClassCohorts, confidence: float) -> float:
    """Return the largest loss of AUC by a failure that the cases may hold no example of, in one class or in all."""
    loss = _unseen(cohort.disjoint_pairs, confidence)
    if isinstance(cohort, ClassCohorts):
        alone = (_unseen(one.disjoint_pairs, confidence) for one in cohort.classes)
        return max(loss, max(alone) / len(cohort.classes))
    return loss


def _unseen(pairs: int, confidence: float) -> float:
    """Return the probability of an event that ``pairs`` independent pairs may all have missed (Clopper-Pearson)."""
    return float(1 - ((1 - confidence) / 2) ** (1 / pairs))
