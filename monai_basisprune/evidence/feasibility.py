"""Whether a set of cases can show non-inferiority at all, asked before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._inputs import Cohort, read_array, read_labels, read_patients
from ._networks import read_networks
from .intervals import Spread, difference_interval, hanley_mcneil_variance
from .sample_size import required_positive_patients

__all__ = ["ASSUMED_CORRELATION", "SampleProblem", "patients_by_class", "sample_problem", "several_classes"]

ASSUMED_CORRELATION = 0.95
"""Correlation between the AUCs of the unpruned network and a pruned one that is as good: the favorable end of 0.8 to
0.95, because a set that is too small even so is too small for any network."""


@dataclass(frozen=True)
class SampleProblem:
    """Why a set of cases is too small to show non-inferiority.

    Attributes:
        required_positive_patients: how many would be needed, or None if more than ten million.
        message: the same in words.
    """

    required_positive_patients: int | None
    message: str


def sample_problem(
    margin: float,
    auc: float,
    positives: int,
    negatives: int,
    source: str,
    confidence: float = 0.95,
    several: bool = False,
) -> SampleProblem | None:
    """Say whether a set of cases is too small to show non-inferiority even for a pruned network that is just as good.

    Assumed are two networks of equal AUC whose correlation is :data:`ASSUMED_CORRELATION`, and Hanley and McNeil's
    variance (Radiology 143, 1982). The set is too small if the interval of their difference, computed as that of
    :func:`compare_auc`, still reaches ``-margin``. The number of positive patients that is
    given is that of :func:`required_positive_patients`, with a power of 80 %.

    Args:
        margin: the margin of AUC, above 0.
        auc: AUC of both networks; below 0.5 it counts as 0.5.
        positives: number of patients with a positive case.
        negatives: number of patients with a negative case.
        source: where the AUC comes from, such as ``"assumed"``.
        confidence: confidence level of the interval.
        several: whether the numbers are those of :func:`patients_by_class` for several classes, which the message
            then says.

    Returns:
        the problem, or None if the set is large enough.
    """
    auc = max(auc, 0.5)
    reach = _reach(auc, positives, negatives, confidence)
    if reach < margin:
        return None
    ratio = max(negatives, 1) / max(positives, 1)
    try:
        # an AUC of 1 has no variance in that formula, so the interval itself must be narrow enough as well
        required = required_positive_patients(
            margin, min(auc, 0.995), ASSUMED_CORRELATION, ratio, confidence=confidence
        )
        while _reach(auc, required, max(2, math.ceil(ratio * required)), confidence) >= margin:
            required = math.ceil(1.05 * required)
    except ValueError:
        needed, required_or_none = "more than ten million positive patients", None
    else:
        negative = max(2, math.ceil(ratio * required))
        needed = f"about {required} positive and {negative} negative patients"
        required_or_none = required
    return SampleProblem(
        required_or_none,
        f"The validation set is too small to show that a pruned network is not worse by more than {margin:g} AUC, even "
        f"one that is just as good: with {positives} positive and {negatives} negative patients, the interval of the "
        f"difference would reach {-reach:.3f} (AUC {auc:.3f}, {source}; correlation {ASSUMED_CORRELATION:g}, assumed). "
        f"It would need {needed}."
        + (" Of several classes, these are the numbers of one whose AUC is known as well as their mean." * several),
    )


def patients_by_class(labels: Any, patients: Any = None) -> tuple[int, int]:
    """Count the patients with a positive case and those with a negative one; who has both counts in both.

    Of several classes, it is the numbers of one class that would give its AUC the spread of the mean of all.

    Args:
        labels: shape ``(n,)``, 0 or 1; for several classes the number of the class, or shape ``(n, classes)``.
        patients: the patient of each case; None counts every case as a patient of its own.

    Raises:
        ValueError: if a label is no class, a class is absent or alone, or a case has no patient.

    Example:
        >>> patients_by_class([1, 0, 0, 0], ["a", "a", "b", "b"])
        (1, 2)
    """
    if several_classes(labels):
        array = read_array(labels, "labels")
        classes = array.shape[1] if array.ndim == 2 else int(np.nan_to_num(array, nan=-1.0).max()) + 1
        cohort_of_classes = read_networks(labels, {"scores": np.zeros((len(array), classes))}, patients)
        return cohort_of_classes.positive_patients, cohort_of_classes.negative_patients
    truth = read_labels(labels)
    codes = np.arange(len(truth), dtype=np.intp) if patients is None else read_patients(patients, len(truth))
    cohort = Cohort(truth, np.empty((len(truth), 0)), codes, patients is not None)
    return cohort.positive_patients, cohort.negative_patients


def several_classes(labels: Any) -> bool:
    """Tell whether labels are of more than two classes, or of findings of which each is there or not.

    Args:
        labels: shape ``(n,)``, or ``(n, classes)``.

    Example:
        >>> several_classes([0, 1, 1]), several_classes([0, 1, 2]), several_classes([[0, 1], [1, 1]])
        (False, True, True)
    """
    array = read_array(labels, "labels")
    if array.ndim == 2:
        return bool(array.shape[1] > 1)
    return bool(np.nan_to_num(array, nan=-1.0).max(initial=0) > 1)


def _reach(auc: float, positives: int, negatives: int, confidence: float) -> float:
    """Return how far the interval of the difference between two networks that are equally good reaches below 0."""
    if min(positives, negatives) < 2:
        return 1.0
    variance = hanley_mcneil_variance(auc, positives, negatives)
    freedom = float(positives + negatives - 2)
    spread = Spread(
        auc=np.array([auc, auc]),
        covariance=variance * np.array([[1.0, ASSUMED_CORRELATION], [ASSUMED_CORRELATION, 1.0]]),
        freedom=np.array([freedom, freedom]),
        contrast_freedom=freedom,
        positives=positives,
        negatives=negatives,
    )
    return -difference_interval(spread, confidence)[0]
