"""AUC of several classes: one against the rest, or several findings in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._inputs import Cohort, FloatArray, check_confidence, check_finite, check_resamples, read_array, read_cohort
from .auc import AUCInterval, auc_interval
from .bootstrap import bootstrap_auc
from .estimates import Design, Estimate, estimate_from_draws

__all__ = ["ClassAUC", "ClassAUCs", "auc_by_class"]


@dataclass(frozen=True)
class ClassAUC:
    """The AUC of one class against the rest.

    Attributes:
        name: name of the class.
        interval: AUC and interval, or None if the cases hold only one side of the class.
        reason: why there is no AUC; empty if there is one.
    """

    name: str
    interval: AUCInterval | None
    reason: str


@dataclass(frozen=True)
class ClassAUCs:
    """The AUCs of all classes and their mean.

    Attributes:
        classes: one entry for each class, in the order of the names.
        macro: mean of the AUCs of all classes, each with the same weight, or None if a class has no AUC.
        reason: why there is no mean; empty if there is one.
    """

    classes: list[ClassAUC]
    macro: Estimate | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def auc_by_class(
    labels: Any,
    scores: Any,
    class_names: Sequence[str],
    patients: Any = None,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> ClassAUCs:
    """Compute the AUC of every class against the rest, and their mean, with intervals.

    The intervals of the classes are those of :func:`auc_interval`. That of the mean (Provost and Domingos, "Tree
    induction for probability-based ranking", Mach. Learn. 52, 2003, with equal weights) comes from a bootstrap that
    draws whole patients, the same ones for all classes. A class without positive or without negative cases has no
    AUC; the mean then has none either, because a mean over other classes would be another number.

    Args:
        labels: shape ``(n,)`` with the number of the class, from 0, or ``(n, classes)`` with 0 or 1 for each finding.
        scores: shape ``(n, classes)``.
        class_names: name of each class.
        patients: the patient of each case. None counts every case as a patient of its own.
        confidence: confidence level of each interval; not corrected for the number of classes.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if shapes differ, names repeat, a label is no class, a score is not finite, or no class has an AUC.

    Example:
        >>> scores = [[5, 1, 0], [1, 4, 0], [0, 1, 3], [4, 2, 1], [2, 3, 4], [0, 2, 9]]
        >>> [c.interval.auc for c in auc_by_class([0, 1, 2, 0, 1, 2], scores, ["normal", "benign", "malign"]).classes]
        [1.0, 1.0, 0.875]
    """
    names = [str(name) for name in class_names]
    values = read_array(scores, "scores")
    if len(set(names)) < len(names):
        raise ValueError(f"class_names must differ, found {names}")
    if values.ndim != 2 or values.shape[1] != len(names) or len(names) < 2:
        raise ValueError(
            f"scores must have shape (n, {len(names)}), a column for each of at least two class names {names}, "
            f"found {values.shape}; use auc_interval for one finding"
        )
    check_finite(values, "scores")
    truth = _truth(labels, values.shape)
    classes: list[ClassAUC] = []
    cohorts: list[Cohort] = []
    for name, column, score in zip(names, truth.T, values.T, strict=True):
        positives = int(column.sum())
        if positives in (0, len(column)):
            classes.append(ClassAUC(name, None, f"not computable: {positives} of {len(column)} cases are positive"))
            continue
        interval = auc_interval(column, score, patients, confidence, resamples=resamples, seed=seed)
        classes.append(ClassAUC(name, interval, ""))
        cohorts.append(read_cohort(column, {"scores": score}, patients))
    missing = [entry.name for entry in classes if entry.interval is None]
    if len(missing) == len(names):
        raise ValueError(f"no class has an AUC: none of {names} has both positive and negative cases")
    if missing:
        return ClassAUCs(classes, None, f"not computable: no AUC for {', '.join(missing)}")
    design = Design(
        codes=cohorts[0].codes,
        patients_given=patients is not None,
        units=min(min(cohort.positive_patients, cohort.negative_patients) for cohort in cohorts),
        confidence=check_confidence(confidence),
        resamples=check_resamples(resamples),
        seed=seed,
    )
    # the resamples depend on patients and seed only, so all classes share them
    drawn = np.mean([bootstrap_auc(cohort, resamples, seed)[:, 0] for cohort in cohorts], axis=0)
    mean = float(np.mean([entry.interval.auc for entry in classes if entry.interval is not None]))
    return ClassAUCs(classes, estimate_from_draws(mean, drawn, design, f"mean AUC of {len(names)} classes"), "")


def _truth(labels: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return labels of shape ``(n, classes)``."""
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
