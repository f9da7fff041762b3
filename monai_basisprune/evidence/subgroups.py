"""Whether two networks differ in groups of patients: by sex, age band, scanner or view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ._inputs import IntArray, check_confidence, check_margin, check_resamples, read_cohort
from .auc import AUCInterval, auc_interval
from .comparison import AUCComparison, compare_auc
from .multiplicity import holm

__all__ = ["AGE_BANDS", "Subgroup", "age_band", "compare_subgroups"]

AGE_BANDS = ((0, "0 to 17"), (18, "18 to 39"), (40, "40 to 59"), (60, "60 to 79"), (80, "80 and older"))
"""First age of each band, in whole years, and its name."""

OTHER, UNKNOWN = "other", "not known"


@dataclass(frozen=True)
class Subgroup:
    """Two networks in one group of cases.

    Attributes:
        attribute: what the cases are grouped by, such as ``"sex"``.
        value: what the cases of this group have in common; with "other" for groups merged to protect patients.
        cases: number of cases.
        positive_cases: number of cases with label 1.
        patients: number of patients, or None if the caller gave none.
        original: AUC of the reference network, or None where ``reason`` says why.
        pruned: AUC of the candidate network, or None.
        difference: the paired comparison of both, or None.
        adjusted_p_value: two-sided p-value against "both AUCs are equal", after Holm's correction over all groups of
            all attributes that could be tested; or None.
        reason: why nothing was computed, or None.
    """

    attribute: str
    value: str
    cases: int
    positive_cases: int
    patients: int | None
    original: AUCInterval | None
    pruned: AUCInterval | None
    difference: AUCComparison | None
    adjusted_p_value: float | None
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def age_band(age: float) -> str:
    """Return the name of the band that an age in years belongs to.

    Raises:
        ValueError: if the age is negative or not a number.

    Example:
        >>> age_band(63)
        '60 to 79'
    """
    if not age >= 0:
        raise ValueError(f"an age must be a number of years from 0 on, found {age}")
    return [name for start, name in AGE_BANDS if age >= start][-1]


def compare_subgroups(
    labels: Any,
    reference: Any,
    candidate: Any,
    attributes: Mapping[str, Sequence[str | None]],
    patients: Any = None,
    margin: float = 0.01,
    *,
    minimum_patients: int = 5,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Subgroup]:
    """Compare the AUCs of two networks in each group of cases, so that a loss in one group cannot hide in the mean.

    So that no patient can be recognized, a group of fewer than `minimum_patients` patients is never shown: such groups
    are merged into ``"other"``. If that is still too small, it is merged into the largest group, whose name then ends
    with ``", and others"``; to leave it out would not help, since it could be worked out by subtraction from the whole
    test set. Where no two groups are left, nothing is shown of the attribute.

    A small group cannot show safety: its interval is wide, and a p-value that is not small says nothing.

    Args:
        labels: shape ``(n,)``, 0 or 1.
        reference: scores of the reference network, shape ``(n,)``.
        candidate: scores of the candidate network for the same cases in the same order, shape ``(n,)``.
        attributes: for each attribute, its value for each case; None where it is not known.
        patients: the patient of each case. None counts every case as a patient of its own.
        margin: largest loss of AUC that is accepted.
        minimum_patients: the smallest number of patients that is shown as a group.
        confidence: confidence level of the intervals.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        one entry for each group, by attribute; one entry with a reason for an attribute that has no two groups.

    Raises:
        ValueError: if an attribute does not have one value for each case, or another argument cannot be used.

    Example:
        >>> groups = compare_subgroups(
        ...     [0, 1] * 10, range(20), range(20), {"sex": ["F"] * 12 + ["M"] * 8}, minimum_patients=5
        ... )
        >>> [(group.value, group.cases, group.difference.difference) for group in groups]
        [('F', 12, 0.0), ('M', 8, 0.0)]
    """
    cohort = read_cohort(labels, {"reference": reference, "candidate": candidate}, patients)
    if minimum_patients < 1:
        raise ValueError(f"minimum_patients must be 1 or more, such as 5, found {minimum_patients}")
    settings = {"confidence": check_confidence(confidence), "resamples": check_resamples(resamples), "seed": seed}
    margin = check_margin(margin)
    wrong = [f"{name}: {len(values)}" for name, values in attributes.items() if len(values) != cohort.cases]
    if wrong:
        raise ValueError(f"attributes must have one value for each of {cohort.cases} cases, found {', '.join(wrong)}")

    groups: list[Subgroup] = []
    for name, given in attributes.items():
        values, reason = _groups(given, cohort.codes, minimum_patients)
        for value in sorted(set(values), key=lambda one: (one == UNKNOWN, one == OTHER, one)):
            place = np.array([one == value for one in values])
            truth, codes = cohort.labels[place], cohort.codes[place]
            found = Subgroup(
                attribute=name,
                value=value,
                cases=int(place.sum()),
                positive_cases=int(truth.sum()),
                patients=len(np.unique(codes)) if cohort.patients_given else None,
                original=None,
                pruned=None,
                difference=None,
                adjusted_p_value=None,
                reason=reason,
            )
            if reason is None:
                own = codes if cohort.patients_given else None
                found = _compare(found, truth, cohort.scores[place], own, margin, settings)
            groups.append(found)
    return _corrected(groups)


def _groups(given: Sequence[str | None], codes: IntArray, minimum: int) -> tuple[list[str], str | None]:
    """Return the group of each case, none of them too small; or one group of all cases and why there is but one."""
    values = [UNKNOWN if value is None else str(value) for value in given]
    if set(values) == {UNKNOWN}:
        return values, "not computable: no case of the test set has this attribute"
    if len(set(values)) == 1:
        return values, "not computable as a group: all cases of the test set have this value"

    def sizes() -> dict[str, int]:
        return {one: len({int(code) for code, value in zip(codes, values, strict=True) if value == one})
                for one in dict.fromkeys(values)}  # fmt: skip

    small = [one for one, size in sizes().items() if size < minimum]
    values = [OTHER if one in small else one for one in values]
    found = sizes()
    if found.get(OTHER, minimum) < minimum and len(found) > 1:
        largest = max((one for one in found if one != OTHER), key=lambda one: (found[one], one))
        values = [f"{largest}, and others" if one in (largest, OTHER) else one for one in values]
    if len(set(values)) == 1:
        reason = f"not shown: only one group would be left, since groups of fewer than {minimum} patients are not shown"
        return ["all"] * len(values), reason
    return values, None


def _compare(
    group: Subgroup, labels: Any, scores: Any, patients: Any, margin: float, settings: Mapping[str, Any]
) -> Subgroup:
    if group.positive_cases in (0, group.cases):
        kind = "positive" if group.positive_cases else "negative"
        return replace(group, reason=f"not computable: all {group.cases} cases are {kind}")
    difference = compare_auc(labels, scores[:, 0], scores[:, 1], patients, margin, **settings)
    if difference.low is None:  # an AUC of a handful of patients without an interval would only mislead
        return replace(group, reason=difference.method)
    original, pruned = (auc_interval(labels, scores[:, column], patients, **settings) for column in (0, 1))
    return replace(group, original=original, pruned=pruned, difference=difference)


def _corrected(groups: list[Subgroup]) -> list[Subgroup]:
    p_values = {
        str(index): group.difference.p_value_difference
        for index, group in enumerate(groups)
        if group.difference is not None and group.difference.p_value_difference is not None
    }
    tests = {test.name: test.adjusted_p_value for test in holm(p_values)} if p_values else {}
    return [replace(group, adjusted_p_value=tests.get(str(index))) for index, group in enumerate(groups)]
