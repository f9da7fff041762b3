"""Splits a cohort into training, validation and test so that no patient is in two of them.

MONAI's own splitters know no groups. The folds come from scikit-learn's `StratifiedGroupKFold`.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from monai_basisprune.data.cohort import Case, Cohort
from monai_basisprune.errors import CohortError, ConfigurationError

__all__ = ["SECTIONS", "check_fractions", "split_cohort"]

SECTIONS = ("training", "validation", "test")
_MOST_FOLDS = 20
_TRIALS = 500


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Check the shares of the sections.

    Raises:
        ConfigurationError: when they are not three numbers above 0 that add up to 1.
    """
    shares = tuple(float(value) for value in fractions)
    if len(shares) != len(SECTIONS) or not all(0 < value < 1 for value in shares) or not math.isclose(sum(shares), 1.0):
        raise ConfigurationError(
            f"fractions must be three numbers above 0 that add up to 1 ({', '.join(SECTIONS)}), found {list(shares)}"
        )
    return shares


def _counts(cases: Sequence[Case], classes: int) -> np.ndarray:
    return np.bincount([case.label for case in cases], minlength=classes)


def _check_sections(cohort: Cohort, sections: Mapping[str, Sequence[Case]]) -> None:
    """Refuse sections without a class, and patients in two sections."""
    problems = []
    places: dict[str, set[str]] = defaultdict(set)
    for section, cases in sections.items():
        for name, count in zip(cohort.class_names, _counts(cases, len(cohort.class_names)), strict=True):
            if not count:
                problems.append(f"section {section}: has no case of class '{name}' among {len(cases)}")
        for case in cases:
            places[case.patient_id].add(section)
    for patient, where in places.items():
        if len(where) > 1:
            names = ", ".join(section for section in SECTIONS if section in where)
            problems.append(f"patient {patient} (hashed): has images in {names}; all must be in one section")
    if problems:
        patients = ", ".join(f"{count} of '{name}'" for name, count in cohort.patients_per_class.items())
        raise CohortError(
            f"The cohort cannot be split into {len(SECTIONS)} sections with every class in each and no patient in two. "
            f"Found patients: {patients}; needed: at least {len(SECTIONS)} of each class. Add patients or correct the "
            "split column.",
            problems,
        )


def _allocate(folds: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Give folds to sections; of many random ways, take the one whose counts are nearest to the shares.

    Args:
        folds: images (fold, class) with a last column of all images.
        shares: wanted share of each section.
        rng: source of the ways.

    Returns:
        Section index of each fold.
    """
    count = len(folds)
    sizes = [max(1, math.floor(share * count)) for share in shares]
    while sum(sizes) != count:
        short = [share * count - size for share, size in zip(shares, sizes, strict=True)]
        if sum(sizes) < count:
            sizes[int(np.argmax(short))] += 1
        else:
            sizes[int(np.argmin([gap if size > 1 else math.inf for gap, size in zip(short, sizes, strict=True)]))] -= 1
    pattern = np.repeat(np.arange(len(shares)), sizes)
    total = folds.sum(axis=0)
    best, best_cost = pattern, math.inf
    for _ in range(_TRIALS):
        ways = rng.permutation(pattern)
        sums = np.stack([folds[ways == section].sum(axis=0) for section in range(len(shares))])
        gaps = np.abs(sums / total - np.asarray(shares)[:, None])
        cost = float(gaps.max() + 0.1 * gaps.mean() + 10 * (sums == 0).sum())
        if cost < best_cost - 1e-12:
            best, best_cost = ways, cost
    return best


def split_cohort(cohort: Cohort, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> dict[str, list[Case]]:
    """Split a cohort, disjoint by patient and stratified by label; the same seed gives the same split under any salt.

    The cohort is cut into up to 20 folds by scikit-learn's `StratifiedGroupKFold`, and the folds are given to the
    sections so that images, and images of each class, come nearest to `fractions`. A patient with images of several
    classes stays in one section. A cohort with a split column keeps that split.

    Args:
        cohort: what :func:`read_cohort` returns.
        fractions: shares of images for training, validation, test; each above 0, adding up to 1.
        seed: seed of the shuffle.

    Returns:
        Cases under "training", "validation" and "test".

    Raises:
        CohortError: when a section cannot hold every class; says how many patients there are and are needed.
        ConfigurationError: when the fractions are impossible.
    """
    shares = check_fractions(fractions)
    cases = cohort.cases
    if cohort.has_sections:
        fixed = {name: [case for case in cases if case.section == name] for name in SECTIONS}
        _check_sections(cohort, fixed)
        return fixed
    too_few = [name for name, count in cohort.patients_per_class.items() if count < len(SECTIONS)]
    if too_few or cohort.patient_count < len(SECTIONS):
        found = ", ".join(f"{count} of '{name}'" for name, count in cohort.patients_per_class.items())
        raise CohortError(
            f"The cohort of {cohort.patient_count} patients cannot be split by patient into {len(SECTIONS)} sections. "
            f"Found patients: {found}; needed: at least {len(SECTIONS)} of each class, one for each section. "
            "Add patients of the rare class."
        )
    labels = np.array([case.label for case in cases])
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(case.patient_id, len(numbers)) for case in cases])
    largest = max(cohort.cases_per_class.values())
    folds = min(_MOST_FOLDS, cohort.patient_count, largest)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Fewer cases of a class than folds is fine here: folds are joined into sections, which are checked below.
        warnings.simplefilter("ignore", UserWarning)
        parts = [held for _, held in splitter.split(np.zeros(len(cases)), labels, groups)]
    counts = np.stack([np.bincount(labels[part], minlength=len(cohort.class_names)) for part in parts])
    table = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
    ways = _allocate(table, shares, np.random.default_rng(seed))
    sections = {
        name: [
            cases[i] for i in sorted(int(j) for part, way in zip(parts, ways, strict=True) if way == k for j in part)
        ]
        for k, name in enumerate(SECTIONS)
    }
    _check_sections(cohort, sections)
    return sections
