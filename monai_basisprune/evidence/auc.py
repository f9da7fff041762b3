"""The area under the ROC curve of one network, or the mean of several, with an interval that respects patients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ._inputs import Cohort, FloatArray, check_confidence, check_resamples
from ._networks import ClassCohorts, read_networks
from .bootstrap import bootstrap_auc
from .delong import analytic_covariance, auc_of_columns, patient_terms
from .intervals import ROUNDING, Spread, moderate, single_interval
from .mean_auc import mean_spread

__all__ = ["AUCInterval", "auc_interval"]

MINIMUM_PATIENTS = 2  # of each class: a variance needs two


@dataclass(frozen=True)
class AUCInterval:
    """An AUC and its confidence interval.

    Attributes:
        auc: area under the ROC curve, ties count one half; of several classes, the mean of each against the rest.
        low: lower end of the interval, or None if it is not computable (``method`` says why).
        high: upper end of the interval, or None.
        confidence: confidence level of the interval.
        method: how the interval was computed, in words for a report.
        standard_error: standard error of the AUC that the interval uses, or None where there is none.
        cases: number of cases.
        positive_cases: number of cases with label 1; None for several classes.
        patients: number of patients, or None if the caller gave none.
        positive_patients: number of patients with at least one positive case, or None; None for several classes.
    """

    auc: float
    low: float | None
    high: float | None
    confidence: float
    method: str
    standard_error: float | None
    cases: int
    positive_cases: int | None
    patients: int | None
    positive_patients: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def auc_interval(
    labels: Any,
    scores: Any,
    patients: Any = None,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> AUCInterval:
    """Compute the AUC of a network and its confidence interval; of several classes, the mean of their AUCs.

    The interval is built on the logit scale, where it cannot leave [0, 1] (Pepe, "The statistical evaluation of
    medical tests", 2003, chapter 5). Its variance comes from DeLong's formula if every patient has one case, and
    else from a bootstrap that draws whole patients; for few patients it is steadied and used with a t quantile (see
    ``intervals.moderate``). Where no variance can be seen, as for perfectly separated classes (AUC of 1), it is the
    score interval of Newcombe, Stat. Med. 25 (2006), method 5, on the numbers of patients. Measured coverage is in
    ``docs/results/evidence_coverage.json``.

    With a column of scores for each of several classes, the AUC is the mean of the AUCs of each class against the
    rest, every class with the same weight; see ``mean_auc.mean_spread`` for its variance.

    Args:
        labels: shape ``(n,)``, 0 or 1 (bool, int or float; a list, numpy array or tensor); for several classes the
            number of the class, or shape ``(n, classes)`` with 0 or 1 for each finding.
        scores: shape ``(n,)``, higher for positive; probabilities or logits. Shape ``(n, classes)`` for several.
        patients: the patient of each case. None counts every case as a patient of its own, which makes the interval
            too narrow if that is not so.
        confidence: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap; the same seed gives the same interval.

    Raises:
        ValueError: if lengths differ, a score is not finite, a label is no class, or a class is absent or alone.

    Example:
        >>> result = auc_interval([0, 0, 0, 1, 1, 1], [0.1, 0.4, 0.3, 0.35, 0.8, 0.9])
        >>> round(result.auc, 3), round(result.low, 3), round(result.high, 3)
        (0.889, 0.144, 0.997)
    """
    cohort = read_networks(labels, {"scores": scores}, patients)
    confidence = check_confidence(confidence)
    resamples = check_resamples(resamples)
    auc = float(np.clip(aucs_of(cohort)[0], 0.0, 1.0))
    low, high, error, method = _interval(cohort, confidence, resamples, seed)
    return AUCInterval(
        auc=auc,
        low=low,
        high=high,
        confidence=confidence,
        method=method,
        standard_error=error,
        cases=cohort.cases,
        patients=cohort.patients if cohort.patients_given else None,
        **positive_counts(cohort),
    )


def aucs_of(cohort: Cohort | ClassCohorts) -> FloatArray:
    """Return the AUC of each network, shape ``(k,)``; of several classes, the mean of their AUCs."""
    if isinstance(cohort, ClassCohorts):
        return np.mean([auc_of_columns(one.labels, one.scores) for one in cohort.classes], axis=0, dtype=np.float64)
    return auc_of_columns(cohort.labels, cohort.scores)


def positive_counts(cohort: Cohort | ClassCohorts) -> dict[str, int | None]:
    """Return the numbers of positive cases and of positive patients; several classes have no such number."""
    if isinstance(cohort, ClassCohorts):
        return {"positive_cases": None, "positive_patients": None}
    positive = cohort.positive_patients if cohort.patients_given else None
    return {"positive_cases": cohort.positive_cases, "positive_patients": positive}


def too_few_patients(cohort: Cohort | ClassCohorts) -> str:
    """Return why no interval can be computed, or an empty text."""
    if isinstance(cohort, ClassCohorts):
        reasons = [(index, too_few_patients(one)) for index, one in enumerate(cohort.classes)]
        return next((f"{reason} of class {index}" for index, reason in reasons if reason), "")
    unit = "patient(s)" if cohort.patients_given else "case(s)"
    positive, negative = cohort.positive_patients, cohort.negative_patients
    if min(positive, negative) >= MINIMUM_PATIENTS:
        return ""
    return (
        f"not computable: an interval needs at least {MINIMUM_PATIENTS} positive and {MINIMUM_PATIENTS} negative "
        f"{unit}, found {positive} and {negative}"
    )


def auc_spread(cohort: Cohort | ClassCohorts, resamples: int, seed: int) -> tuple[Spread | None, str]:
    """Return how well the AUCs of all columns are known, and how that was found; None and a reason if it cannot be."""
    reason = too_few_patients(cohort)
    if reason:
        return None, reason
    if isinstance(cohort, ClassCohorts):
        return mean_spread(cohort)
    terms = patient_terms(cohort)
    if not cohort.clustered:
        note = "" if cohort.patients_given else " (every case counted as a patient of its own)"
        return moderate(analytic_covariance(terms), terms), f"DeLong{note}"
    areas = bootstrap_auc(cohort, resamples, seed)
    areas = areas[~np.isnan(areas[:, 0])]
    method = f"patient-clustered bootstrap, {resamples} resamples, seed {seed}"
    if len(areas) < resamples:
        method += f", {resamples - len(areas)} with one class only left out"
    if len(areas) < resamples / 2:
        return None, f"not computable: most resamples held one class only ({method})"
    return moderate(np.atleast_2d(np.cov(areas, rowvar=False)), terms), method


def _interval(
    cohort: Cohort | ClassCohorts, confidence: float, resamples: int, seed: int
) -> tuple[float | None, float | None, float | None, str]:
    """Return low, high, standard error and method of the AUC of the first column."""
    spread, method = auc_spread(cohort, resamples, seed)
    if spread is None:
        return None, None, None, method
    low, high = single_interval(spread, 0, confidence)
    error = float(np.sqrt(spread.covariance[0, 0]))
    unit = "patients" if cohort.patients_given else "cases"
    if spread.perfect(0):
        return low, high, None, f"Newcombe score interval on the numbers of {unit}: the classes are perfectly separated"
    if error <= ROUNDING:
        return low, high, None, f"Newcombe score interval on the numbers of {unit}: the scores show no variance"
    return low, high, error, f"{method}, moderated t, logit scale"
