"""AUC of several classes: one against the rest, or several findings in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ._inputs import (
    Cohort,
    check_confidence,
    check_finite,
    check_resamples,
    read_array,
    read_cohort,
    read_patients,
)
from ._networks import read_truth
from .auc import AUCInterval, auc_interval
from .bootstrap import bootstrap_auc
from .comparison import AUCComparison, compare_auc
from .estimates import Design, Estimate, bootstrap_estimate, estimate_from_draws
from .multiplicity import holm

__all__ = ["ClassAUC", "ClassAUCs", "ClassComparison", "accuracy", "auc_by_class", "compare_classes"]


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


@dataclass(frozen=True)
class ClassComparison:
    """The AUCs of two networks for one class against the rest.

    Attributes:
        name: name of the class.
        cases: number of cases.
        positive_cases: number of cases of the class.
        original: AUC of the reference network, or None where ``reason`` says why not.
        pruned: AUC of the candidate network, or None.
        difference: their comparison, or None.
        adjusted_p_value: two-sided p-value against "both AUCs are equal", after Holm's correction over the classes.
        reason: why nothing was computed, or None.
    """

    name: str
    cases: int
    positive_cases: int
    original: AUCInterval | None
    pruned: AUCInterval | None
    difference: AUCComparison | None
    adjusted_p_value: float | None
    reason: str | None

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
    truth = read_truth(labels, values.shape)
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


def compare_classes(
    labels: Any,
    reference: Any,
    candidate: Any,
    class_names: Sequence[str],
    patients: Any = None,
    margin: float = 0.01,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[ClassComparison]:
    """Compare the AUCs of two networks for each class against the rest, so that no class can lose behind the mean.

    Args:
        labels: as for :func:`auc_by_class`.
        reference: scores of the reference network, shape ``(n, classes)``.
        candidate: scores of the candidate network for the same cases in the same order.
        class_names: name of each class.
        patients: the patient of each case. None counts every case as a patient of its own.
        margin: largest loss of AUC that is accepted.
        confidence: confidence level of the intervals, which are not corrected for the number of classes.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        one entry for each class, in the order of the names; with a reason for a class that has no AUC.

    Raises:
        ValueError: if an argument cannot be used, or no class has an AUC.

    Example:
        >>> scores = [[5, 1, 0], [1, 4, 0], [0, 1, 3], [4, 2, 1], [2, 3, 4], [0, 2, 9]]
        >>> found = compare_classes([0, 1, 2, 0, 1, 2], scores, scores, ["normal", "benign", "malign"])
        >>> [(one.name, one.difference.difference) for one in found]
        [('normal', 0.0), ('benign', 0.0), ('malign', 0.0)]
    """
    settings: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    before = auc_by_class(labels, reference, class_names, patients, **settings)
    after = auc_by_class(labels, candidate, class_names, patients, **settings)
    first, second = read_array(reference, "reference"), read_array(candidate, "candidate")
    truth = read_truth(labels, first.shape)
    found: list[ClassComparison] = []
    for index, (original, pruned) in enumerate(zip(before.classes, after.classes, strict=True)):
        column = truth[:, index]
        entry = ClassComparison(
            original.name, len(column), int(column.sum()), None, None, None, None, original.reason or None
        )
        if original.interval is not None:
            difference = compare_auc(column, first[:, index], second[:, index], patients, margin, **settings)
            entry = replace(entry, original=original.interval, pruned=pruned.interval, difference=difference)
        found.append(entry)
    p_values = {
        one.name: one.difference.p_value_difference
        for one in found
        if one.difference is not None and one.difference.p_value_difference is not None
    }
    adjusted = {test.name: test.adjusted_p_value for test in holm(p_values)} if p_values else {}
    return [replace(one, adjusted_p_value=adjusted.get(one.name)) for one in found]


def accuracy(
    labels: Any, scores: Any, patients: Any = None, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Compute the share of cases whose class has the largest score, with an interval by patient.

    Args:
        labels: number of the class of each case, from 0, shape ``(n,)``.
        scores: shape ``(n, classes)``.
        patients: the patient of each case. None counts every case as a patient of its own.
        confidence: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if shapes differ, a label is no class, or a score is not finite.

    Example:
        >>> accuracy([0, 1, 2, 1], [[3, 1, 1], [0, 2, 1], [0, 1, 4], [5, 2, 1]]).value
        0.75
    """
    values = read_array(scores, "scores")
    truth = read_array(labels, "labels")
    if values.ndim != 2 or truth.ndim != 1:
        raise ValueError(f"accuracy needs labels (n,) and scores (n, classes), found {truth.shape} and {values.shape}")
    check_finite(values, "scores")
    right = read_truth(truth, values.shape)[np.arange(len(truth)), values.argmax(axis=1)].astype(np.float64)
    codes = np.arange(len(truth), dtype=np.intp) if patients is None else read_patients(patients, len(truth))
    design = Design(
        codes=codes,
        patients_given=patients is not None,
        units=int(codes.max()) + 1,
        confidence=check_confidence(confidence),
        resamples=check_resamples(resamples),
        seed=seed,
    )
    return bootstrap_estimate(lambda weights: right @ weights / weights.sum(axis=0), design, "accuracy")
