"""Scores of several classes for each case: checked, and counted as one class would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._inputs import Cohort, FloatArray, check_finite, read_array, read_cohort

__all__ = ["ClassCohorts", "read_networks", "read_truth"]


@dataclass(frozen=True)
class ClassCohorts:
    """Checked labels and scores of ``n`` cases of several classes or findings.

    Attributes:
        classes: the cases once for each class, labeled as of it or not; every class has both.
    """

    classes: tuple[Cohort, ...]

    @property
    def cases(self) -> int:
        """Number of cases."""
        return self.classes[0].cases

    @property
    def patients(self) -> int:
        """Number of patients, or of cases if no patients were given."""
        return self.classes[0].patients

    @property
    def patients_given(self) -> bool:
        """Whether the caller named patients."""
        return self.classes[0].patients_given

    @property
    def scores(self) -> FloatArray:
        """The scores of all classes below each other, shape ``(n * classes, k)``."""
        return np.concatenate([cohort.scores for cohort in self.classes])

    @property
    def positive_patients(self) -> int:
        """Number of positive patients of one class that would give its AUC the spread of the mean of all."""
        return effective_count([cohort.positive_patients for cohort in self.classes], self.patients)

    @property
    def negative_patients(self) -> int:
        """The same of negative patients."""
        return effective_count([cohort.negative_patients for cohort in self.classes], self.patients)

    @property
    def disjoint_pairs(self) -> int:
        """The same of pairs of patients, without using a patient twice."""
        return effective_count([cohort.disjoint_pairs for cohort in self.classes], self.patients // 2)


def effective_count(counts: Sequence[int], most: int) -> int:
    """Return the size of one group whose mean spreads as the mean over groups of these sizes, at most a number."""
    return min(most, round(len(counts) ** 2 / sum(1 / count for count in counts)))


def read_networks(labels: Any, scores: dict[str, Any], patients: Any) -> Cohort | ClassCohorts:
    """Check the arguments as :func:`read_cohort` does, or for each class where the scores have a column for each."""
    columns = {name: read_array(values, name) for name, values in scores.items()}
    shapes = {name: array.shape for name, array in columns.items()}
    if all(len(shape) < 2 or shape[1] == 1 for shape in shapes.values()):
        return read_cohort(labels, columns, patients)
    shape = next(iter(shapes.values()))
    if any(other != shape for other in shapes.values()) or len(shape) != 2 or not shape[1]:
        found = ", ".join(f"{name} {other}" for name, other in shapes.items())
        raise ValueError(f"scores must have one shape, (n,) for one finding or (n, classes) for several, found {found}")
    for name, array in columns.items():
        check_finite(array, name)
    truth = read_truth(labels, shape)
    absent = [
        f"class {index} ({int(column.sum())} of {len(column)} cases)"
        for index, column in enumerate(truth.T)
        if int(column.sum()) in (0, len(column))
    ]
    if absent:
        raise ValueError(
            f"the mean AUC of {shape[1]} classes is not computable, because these lack positive or negative cases: "
            f"{', '.join(absent)}; check how the data were split. A mean over the other classes would be another number"
        )
    return ClassCohorts(
        tuple(
            read_cohort(column, {name: array[:, index] for name, array in columns.items()}, patients)
            for index, column in enumerate(truth.T)
        )
    )


def read_truth(labels: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return labels of shape ``(n, classes)``, from numbers of classes or from 0 and 1 for each finding."""
    array: FloatArray = read_array(labels, "labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and len(array) == shape[0]:
        allowed = np.arange(shape[1])
        what = f"the number of a class, 0 to {shape[1] - 1}"
    elif array.shape == shape:
        allowed, what = np.arange(2), "0 or 1 for each class"
    else:
        raise ValueError(f"labels must have shape ({shape[0]},) or {shape} to fit the scores, found {array.shape}")
    wrong = array[~np.isin(array, allowed)]
    if wrong.size:
        found = ", ".join(f"{value:g}" for value in np.unique(wrong)[:5])
        raise ValueError(f"labels must be {what}, found {wrong.size} other value(s): {found}")
    return array == 1 if array.ndim == 2 else array[:, None] == allowed
