"""AUC and its analytic covariance: DeLong's, and Obuchowski's for several cases per patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ._inputs import Cohort, FloatArray, read_array, read_cohort

__all__ = ["auc_of_columns", "delong_covariance"]


@dataclass(frozen=True)
class PatientTerms:
    """What each patient contributes to the AUC of each network, to first order.

    Attributes:
        auc: shape ``(k,)``, AUC of each column.
        positive: shape ``(positive patients, k)``, terms of the patients' positive cases; they sum to 0.
        negative: shape ``(negative patients, k)``, terms of the patients' negative cases; they sum to 0.
        cross: shape ``(k, k)``, sum over patients of (positive term) x (negative term), for patients with both.
        patients: number of patients.
    """

    auc: FloatArray
    positive: FloatArray
    negative: FloatArray
    cross: FloatArray
    patients: int


def placements(labels: npt.NDArray[np.bool_], scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return how each case is placed among the cases of the other class, from midranks.

    The fast algorithm of Sun and Xu, "Fast implementation of DeLong's algorithm for comparing the areas under
    correlated receiver operating characteristic curves", IEEE Signal Process. Lett. 21 (2014):
    sorting replaces the comparison of all pairs. Ties count one half.

    Args:
        labels: shape ``(n,)``, True for a positive case.
        scores: shape ``(n, k)``.

    Returns:
        shape ``(positives, k)``: fraction of negative cases below each positive one; and shape ``(negatives, k)``:
        fraction of positive cases above each negative one.
    """
    positives, negatives = scores[labels], scores[~labels]
    ranks = stats.rankdata(scores, axis=0)
    above = (ranks[labels] - stats.rankdata(positives, axis=0)) / len(negatives)
    below = 1.0 - (ranks[~labels] - stats.rankdata(negatives, axis=0)) / len(positives)
    return above, below


def auc_of_columns(labels: npt.NDArray[np.bool_], scores: FloatArray) -> FloatArray:
    """Return the AUC (Mann-Whitney, ties count one half) of each column of scores of shape ``(n, k)``."""
    positives = int(labels.sum())
    ranks = stats.rankdata(scores, axis=0)[labels].sum(axis=0)
    area: FloatArray = (ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    return area


def patient_terms(cohort: Cohort) -> PatientTerms:
    """Return the first-order terms of every patient, the building blocks of the analytic variances."""
    auc, ((positive, has_positive), (negative, has_negative)) = patient_sums(cohort)
    return PatientTerms(
        auc, positive[has_positive], negative[has_negative], positive.T @ negative, patients=cohort.patients
    )


def patient_sums(cohort: Cohort) -> tuple[FloatArray, list[tuple[FloatArray, npt.NDArray[np.bool_]]]]:
    """Return the AUC of each column, and for positive and for negative cases the sum of each patient's terms.

    Each sum has shape ``(patients, k)``; beside it stands which patients have such cases.
    """
    above, below = placements(cohort.labels, cohort.scores)
    auc = above.mean(axis=0)
    columns = cohort.scores.shape[1]
    sums = []
    for mask, deviation in ((cohort.labels, above - auc), (~cohort.labels, below - auc)):
        total = np.zeros((cohort.patients, columns))
        np.add.at(total, cohort.codes[mask], deviation / mask.sum())
        sums.append((total, np.bincount(cohort.codes[mask], minlength=cohort.patients) > 0))
    return auc, sums


def analytic_covariance(terms: PatientTerms) -> FloatArray:
    """Return the covariance of the AUCs, shape ``(k, k)``, with every patient as one unit.

    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997): the sums S10, S01 and
    S11. With one case per patient it is the estimator of DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988).
    """
    covariance = np.zeros_like(terms.cross)
    for part in (terms.positive, terms.negative):
        covariance += part.T @ part * (len(part) / (len(part) - 1))
    covariance += (terms.cross + terms.cross.T) * (terms.patients / (terms.patients - 1))
    return covariance


def degrees_of_freedom(terms: PatientTerms, contrast: FloatArray) -> float:
    """Return the effective degrees of freedom of the variance of a contrast of AUCs.

    Satterthwaite's approximation for the variance of positive and negative patients, as in Brunner and Munzel, "The
    nonparametric Behrens-Fisher problem", Biometrical J. 42 (2000). Infinity if there is no variance.
    """
    above = below = 0.0
    for part in (terms.positive, terms.negative):
        variance = float(np.square(part @ contrast).sum()) * len(part) / (len(part) - 1)
        above += variance
        below += variance**2 / (len(part) - 1)
    return above**2 / below if below > 0 else float("inf")


def delong_covariance(labels: Any, scores: Any, patients: Any = None) -> tuple[FloatArray, FloatArray]:
    """Compute the AUC of several networks on the same cases, and the covariance of these AUCs.

    Args:
        labels: shape ``(n,)``, 0 or 1.
        scores: shape ``(n, k)``, one column for each network; ``(n,)`` for one.
        patients: the patient of each case; Obuchowski's clustered estimator if some patient has several cases.

    Returns:
        the AUCs of shape ``(k,)`` and their covariance of shape ``(k, k)``.

    Raises:
        ValueError: if the arguments cannot be used, or if there are fewer than two positive or negative patients.

    Sources: DeLong et al., Biometrics 44 (1988); Sun and Xu, IEEE Signal Process. Lett. 21 (2014); Obuchowski,
    Biometrics 53 (1997).
    """
    array = read_array(scores, "scores")
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or columns.shape[1] == 0:
        raise ValueError(f"scores must have shape (n,) or (n, k) with one column per network, found {array.shape}")
    cohort = read_cohort(labels, {f"scores[:, {k}]": columns[:, k] for k in range(columns.shape[1])}, patients)
    if min(cohort.positive_patients, cohort.negative_patients) < 2:
        raise ValueError(
            "a covariance needs two positive and two negative patients, "
            f"found {cohort.positive_patients} and {cohort.negative_patients}"
        )
    terms = patient_terms(cohort)
    return terms.auc, analytic_covariance(terms)
