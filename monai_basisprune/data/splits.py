"""Splits a cohort into training, validation and test so that no patient is in two of them.

MONAI's own splitters know no groups. The folds come from scikit-learn's `StratifiedGroupKFold`.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from monai_basisprune.data.cohort import Case, Cohort
from monai_basisprune.errors import CohortError, ConfigurationError

__all__ = ["SECTIONS", "check_folds", "check_fractions", "divide_training", "fold_cohort", "split_cohort"]

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


def check_folds(folds: int | None, fold: int | None) -> None:
    """Check the number of folds, and which of them is meant; None for both means no folds.

    Raises:
        ConfigurationError: when only one is given, there are fewer than 3, one for each section, or no such fold.
    """
    if folds is None and fold is None:
        return
    if folds is None or fold is None:
        raise ConfigurationError(
            f"folds and fold belong together: got folds {folds!r} and fold {fold!r}. Pass both, as in --folds 5 "
            f"--fold 0, or run `repeat` for all of them."
        )
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < len(SECTIONS):
        raise ConfigurationError(
            f"folds must be a whole number from {len(SECTIONS)}, one fold for the test, one for validation and the "
            f"others for training; got {folds!r}"
        )
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds:
        raise ConfigurationError(f"fold must be a whole number from 0 to {folds - 1}, got {fold!r}")


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
    parts = _parts(cases, min(_MOST_FOLDS, cohort.patient_count, max(cohort.cases_per_class.values())), seed)
    sections = dict(zip(SECTIONS, _join(parts, cases, len(cohort.class_names), shares, seed), strict=True))
    _check_sections(cohort, sections)
    return sections


def _parts(cases: Sequence[Case], folds: int, seed: int) -> list[np.ndarray]:
    """Return the positions of the cases of each fold, by scikit-learn's splitter."""
    from sklearn.model_selection import StratifiedGroupKFold  # here, since inference comes without scikit-learn

    labels = np.array([case.label for case in cases])
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(case.patient_id, len(numbers)) for case in cases])
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Fewer cases of a class than folds is fine here: what comes of the folds is checked by its users.
        warnings.simplefilter("ignore", UserWarning)
        return [held for _, held in splitter.split(np.zeros(len(cases)), labels, groups)]


def _join(
    parts: Sequence[np.ndarray], cases: Sequence[Case], classes: int, shares: Sequence[float], seed: int
) -> list[list[Case]]:
    """Join folds to sections of the wanted shares."""
    counts = np.stack([_counts([cases[i] for i in part], classes) for part in parts])
    table = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
    ways = _allocate(table, shares, np.random.default_rng(seed))
    return [
        [cases[i] for i in sorted(int(j) for part, way in zip(parts, ways, strict=True) if way == k for j in part)]
        for k in range(len(shares))
    ]


def divide_training(
    cohort: Cohort, sections: Mapping[str, Sequence[Case]], fractions: Sequence[float], seed: int
) -> dict[str, list[Case]]:
    """Divide the cases that are not for the test anew into training and validation, by patient and stratified.

    Args:
        cohort: the cohort.
        sections: its sections, as :func:`split_cohort` returns them; the test cases stay as they are.
        fractions: shares of training, validation and test; only the first two count.
        seed: seed of the division.

    Raises:
        CohortError: when a section cannot hold every class.
        ConfigurationError: when the fractions are impossible.
    """
    shares = check_fractions(fractions)[:2]
    held = {case.case_id for case in sections["test"]}
    rest = [case for case in cohort.cases if case.case_id not in held]
    left = Cohort(tuple(rest), cohort.class_names)
    if min(left.patients_per_class.values()) < 2:
        found = ", ".join(f"{count} of '{name}'" for name, count in left.patients_per_class.items())
        raise CohortError(
            f"The patients that are not for the test cannot be divided into training and validation. Left are {found}; "
            "needed: at least 2 of each class. Add patients or make the share of the test smaller."
        )
    folds = min(_MOST_FOLDS, left.patient_count, max(left.cases_per_class.values()))
    training, validation = _join(
        _parts(rest, folds, seed), rest, len(cohort.class_names), [share / sum(shares) for share in shares], seed
    )
    divided = {"training": training, "validation": validation, "test": list(sections["test"])}
    _check_sections(cohort, divided)
    return divided


def fold_cohort(cohort: Cohort, folds: int, fold: int, seed: int = 0) -> dict[str, list[Case]]:
    """Split a cohort by patient-level folds: one for the test, the next one for validation, the others for training.

    Over all folds, each patient is once in the test section. The folds are those of scikit-learn's
    `StratifiedGroupKFold`; the same seed gives the same folds under any salt.

    Args:
        cohort: what :func:`read_cohort` returns, without a split column.
        folds: number of folds, at least 3.
        fold: which one is the test, from 0; validation is the one behind it, the first one behind the last.
        seed: seed of the folds, the same for all of them.

    Returns:
        Cases under "training", "validation" and "test".

    Raises:
        CohortError: when a class has fewer patients than there are folds, when any fold lacks a class, or when the
            table has a split column.
        ConfigurationError: when there is no such fold.
    """
    check_folds(folds, fold)
    if cohort.has_sections:
        raise CohortError(
            f"The labels table has a split column, and {folds} folds were asked for: remove the column, or leave out "
            "folds."
        )
    found = ", ".join(f"{count} of '{name}'" for name, count in cohort.patients_per_class.items())
    if min(cohort.patients_per_class.values()) < folds:
        raise CohortError(
            f"The cohort of {cohort.patient_count} patients cannot be cut into {folds} folds. Found patients: {found}; "
            f"needed: at least {folds} of each class, one for each fold. Add patients of the rare class, or use fewer "
            "folds."
        )
    parts = [[cohort.cases[i] for i in sorted(map(int, part))] for part in _parts(cohort.cases, folds, seed)]
    problems = [
        f"fold {number}: has no case of class '{name}' among {len(part)}"
        for number, part in enumerate(parts)
        for name, count in zip(cohort.class_names, _counts(part, len(cohort.class_names)), strict=True)
        if not count
    ]
    if problems:
        raise CohortError(
            f"The cohort cannot be cut into {folds} folds with every class in each. Found patients: {found}. Use fewer "
            "folds or another seed, or add patients.",
            problems,
        )
    following = (fold + 1) % folds
    chosen = {"test": parts[fold], "validation": parts[following]}
    held = {case.case_id for part in chosen.values() for case in part}
    sections = {"training": [case for case in cohort.cases if case.case_id not in held]} | chosen
    _check_sections(cohort, sections)
    return {name: sections[name] for name in SECTIONS}
