"""Checks of what a caller hands in; every function of this room reads its arguments through these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Cohort", "check_confidence", "check_margin", "read_array", "read_cohort", "read_labels", "read_patients"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Cohort:
    """Checked labels and scores of ``n`` cases.

    Attributes:
        labels: shape ``(n,)``, True for a positive case; both classes are present.
        scores: shape ``(n, k)``, finite; one column for each network.
        codes: shape ``(n,)``, the patient of each case as a number from 0; the case's own number if none were given.
        patients_given: whether the caller named patients.
    """

    labels: npt.NDArray[np.bool_]
    scores: FloatArray
    codes: IntArray
    patients_given: bool

    @property
    def cases(self) -> int:
        """Number of cases."""
        return len(self.labels)

    @property
    def positive_cases(self) -> int:
        """Number of cases with label 1."""
        return int(self.labels.sum())

    @property
    def patients(self) -> int:
        """Number of patients, or of cases if no patients were given."""
        return int(self.codes.max()) + 1

    @property
    def positive_patients(self) -> int:
        """Number of patients with at least one positive case."""
        return len(np.unique(self.codes[self.labels]))

    @property
    def negative_patients(self) -> int:
        """Number of patients with at least one negative case."""
        return len(np.unique(self.codes[~self.labels]))

    @property
    def clustered(self) -> bool:
        """Whether some patient has more than one case."""
        return self.patients < self.cases

    @property
    def disjoint_pairs(self) -> int:
        """Number of pairs of a positive and a negative patient that can be formed without using a patient twice."""
        return min(self.positive_patients, self.negative_patients, self.patients // 2)


def read_array(values: Any, name: str) -> FloatArray:
    """Return numbers as a float64 array: from a list, a numpy array or a torch tensor on any device."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu().double().numpy()
    elif not isinstance(values, np.ndarray):
        values = _ordered(values, name)
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O" and not any(isinstance(value, (str, bytes, complex)) for value in array.ravel()):
            array = array.astype(np.float64)
        if array.dtype.kind not in "bifu":
            raise TypeError(f"found {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in a list, numpy array or tensor, but {error}") from error
    return array.astype(np.float64)


def read_labels(labels: Any, name: str = "labels") -> npt.NDArray[np.bool_]:
    """Return binary labels of shape ``(n,)``; both classes must be present."""
    array = _as_column(read_array(labels, name), name)
    if array.size == 0:
        raise ValueError(f"{name} are empty: at least one positive and one negative case are needed")
    wrong = array[(array != 0) & (array != 1)]  # NaN is unequal to both
    if wrong.size:
        found = ", ".join(f"{v:g}" for v in np.unique(wrong)[:5])
        raise ValueError(
            f"{name} must be 0 (negative) or 1 (positive), found {wrong.size} other value(s): {found}; "
            "turn the finding into 0/1 first, or use auc_by_class for several classes"
        )
    positive = int(array.sum())
    if positive in (0, array.size):
        raise ValueError(
            f"only one class is present: all {array.size} {name} are {int(positive > 0)}; "
            "both positive and negative cases are needed, check how the data were split"
        )
    return array.astype(np.bool_)


def read_scores(scores: Any, cases: int, name: str) -> FloatArray:
    """Return finite scores of shape ``(n,)``."""
    array = _as_column(read_array(scores, name), name)
    if array.size != cases:
        raise ValueError(f"{name} and labels differ in length: {array.size} {name} for {cases} labels")
    check_finite(array, name)
    return array


def check_finite(array: FloatArray, name: str) -> None:
    """Refuse NaN and infinite values, with their numbers."""
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nan or infinite:
        raise ValueError(
            f"{name} hold {nan} NaN and {infinite} infinite value(s) of {array.size}: a network that returns them has "
            "failed on these cases; find out why instead of leaving them out"
        )


def read_patients(patients: Any, cases: int) -> IntArray:
    """Return patients as numbers from 0, in order of first appearance.

    Values are compared as they are (``1`` is not ``"1"``), so that no two patients are merged by a conversion.
    """
    if hasattr(patients, "detach"):
        patients = patients.detach().cpu().numpy()
    values = patients.reshape(-1).tolist() if isinstance(patients, np.ndarray) else _ordered(patients, "patients")
    values = [value.item() if hasattr(value, "item") else value for value in values]  # tensors are not equal by value
    if len(values) != cases:
        raise ValueError(f"patients and labels differ in length: {len(values)} patients for {cases} labels")
    missing = sum(_is_missing(value) for value in values)
    if missing:
        raise ValueError(f"{missing} of {cases} cases have no patient (None, NaN or an empty text): name all or none")
    numbers: dict[Any, int] = {}
    try:
        return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), dtype=np.intp, count=cases)
    except TypeError as error:
        raise ValueError(f"patients must be one text or number for each case, but {error}") from error


def read_cohort(labels: Any, scores: dict[str, Any], patients: Any) -> Cohort:
    """Check labels, the scores of one or more networks by argument name, and patients together."""
    truth = read_labels(labels)
    columns = [read_scores(column, len(truth), name) for name, column in scores.items()]
    codes = np.arange(len(truth), dtype=np.intp) if patients is None else read_patients(patients, len(truth))
    return Cohort(truth, np.stack(columns, axis=1), codes, patients is not None)


def check_confidence(confidence: float) -> float:
    """Return the confidence level if it lies between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, such as 0.95, found {confidence}")
    return float(confidence)


def check_margin(margin: float) -> float:
    """Return the non-inferiority margin if it is a number from 0 up to 1."""
    if not 0 <= margin < 1:
        raise ValueError(
            f"margin is the largest loss of AUC that is accepted, 0 or more and below 1, such as 0.01; found {margin}"
        )
    return float(margin)


def check_resamples(resamples: int) -> int:
    """Return the number of bootstrap resamples if it is large enough to estimate a variance."""
    if resamples < 100:
        raise ValueError(f"resamples must be 100 or more (2000 is usual), found {resamples}")
    return int(resamples)


def _as_column(array: FloatArray, name: str) -> FloatArray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,) or (n, 1), found {array.shape}; pass one class at a time")
    return array


def _ordered(values: Any, name: str) -> list[Any]:
    """Return the values in their order; refuse what has none, such as a dictionary."""
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise ValueError(
            f"{name} must be a list, numpy array or tensor in the order of the cases, found {type(values)}"
        )
    return list(values)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )
