"""How well the mean AUC of several classes is known, counted by patient."""

from __future__ import annotations

import numpy as np

from ._inputs import Cohort, FloatArray
from ._networks import ClassCohorts
from .delong import PatientTerms, analytic_covariance, patient_sums
from .intervals import ROUNDING, Spread, moderate

__all__ = ["mean_spread"]


def mean_spread(cohort: ClassCohorts) -> tuple[Spread, str]:
    """Return the mean AUC of each network over all classes, how well it is known, and how that was found.

    Each patient contributes to the AUCs of all classes: as a case of one, as one of the rest of the others. To first
    order the mean AUC is the mean of these terms (Obuchowski, "Nonparametric analysis of clustered ROC curve data",
    Biometrics 53, 1997, for one class), so its covariance is the sum over patients of the products of their terms,
    summed over the classes before. This holds for classes that exclude each other, for findings that occur together,
    and for several cases of a patient. The terms of each class are steadied as those of one AUC are, see
    ``intervals.moderate``. Classes that a network separates perfectly show no variance; the interval of its mean AUC
    reaches lower by Newcombe's score interval for their share of the mean.
    """
    count = len(cohort.classes)
    columns = cohort.classes[0].scores.shape[1]
    mean, terms = np.zeros(columns), np.zeros((cohort.patients, columns))
    perfect: list[list[Cohort]] = [[] for _ in range(columns)]
    parts: list[tuple[FloatArray, int]] = []
    for one in cohort.classes:
        auc, sums = patient_sums(one)
        scale = _scale(one, auc, sums[0][0], sums[1][0])
        mean += auc / count
        for total, has in sums:
            size = int(has.sum())
            term = total * scale * np.sqrt(size / (size - 1)) / count
            terms += term
            parts.append((term, size))
        for column in np.flatnonzero(1 - auc < ROUNDING):
            perfect[column].append(one)
    identity = np.eye(columns)
    return Spread(
        auc=np.clip(mean, 0.0, 1.0),
        covariance=terms.T @ terms,
        freedom=np.array([_freedom(parts, identity[k]) for k in range(columns)]),
        contrast_freedom=_freedom(parts, identity[-1] - identity[0]),
        positives=cohort.positive_patients,
        negatives=cohort.negative_patients,
        unseen=tuple(_unseen(classes, cohort) for classes in perfect),
    ), (
        f"mean of {count} AUCs, each class against the rest; analytic variance over patients (after Obuchowski)"
        + ("" if cohort.patients_given else " (every case counted as a patient of its own)")
    )


def _scale(cohort: Cohort, auc: FloatArray, positive: FloatArray, negative: FloatArray) -> FloatArray:
    """Return by how much the terms of one class are widened or narrowed to have the moderated variance."""
    terms = PatientTerms(
        auc,
        positive[np.bincount(cohort.codes[cohort.labels], minlength=cohort.patients) > 0],
        negative[np.bincount(cohort.codes[~cohort.labels], minlength=cohort.patients) > 0],
        positive.T @ negative,
        patients=cohort.patients,
    )
    plain = analytic_covariance(terms)
    before, after = np.diag(plain), np.diag(moderate(plain, terms).covariance)
    return np.sqrt(np.divide(after, before, out=np.ones_like(before), where=before > ROUNDING**2))


def _unseen(perfect: list[Cohort], cohort: ClassCohorts) -> tuple[float, int, int]:
    """Return the share of the classes that are perfectly separated, and the patients that their mean rests on."""
    if not perfect:
        return 0.0, 0, 0
    part = ClassCohorts(tuple(perfect))
    return len(perfect) / len(cohort.classes), part.positive_patients, part.negative_patients


def _freedom(parts: list[tuple[FloatArray, int]], contrast: FloatArray) -> float:
    """Return Satterthwaite's degrees of freedom of a sum over the positive and the negative patients of all classes."""
    above = below = 0.0
    for terms, size in parts:
        variance = float(np.square(terms @ contrast).sum())
        above += variance
        below += variance**2 / (size - 1)
    return above**2 / below if below > 0 else float("inf")
