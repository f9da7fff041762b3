"""Cases with several findings, each put into one class, for splitters that know one label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from monai_basisprune.errors import CohortError

__all__ = ["NO_FINDING", "check_findings", "strata_of"]

NO_FINDING = "no finding"
_SECTIONS = ("training", "validation", "test")
_FEWEST = len(_SECTIONS)  # one patient for each


def strata_of(
    labels: Sequence[Any], class_names: Sequence[str], patients: Sequence[str], fewest: int = _FEWEST
) -> tuple[list[int], tuple[str, ...]]:
    """Return the class of each case, or the rarest of its findings.

    scikit-learn's splitters stratify by one label. The rarest finding of a case is the one that a section lacks most
    easily. Cases without any come under a name of their own; what is left of a finding with fewer patients than there
    are sections joins the largest group.

    Args:
        labels: index of the class, or 0 and 1 for each finding, of each case.
        class_names: names of classes or findings.
        patients: the patient of each case.
        fewest: how many patients a group needs to stay alone.

    Returns:
        the number of the group of each case, and the names of the groups.

    Example:
        >>> strata_of([[1, 0], [1, 1], [1, 0], [0, 0]], ["common", "rare"], "abcd", fewest=1)
        ([0, 1, 0, 2], ('common', 'rare', 'no finding'))
    """
    if not labels or not isinstance(labels[0], (list, tuple)):
        return list(labels), tuple(class_names)
    counts = [sum(row[index] for row in labels) for index in range(len(class_names))]
    none = len(class_names)
    found = [min((i for i, one in enumerate(row) if one), key=lambda i: (counts[i], i), default=none) for row in labels]
    sizes = Counter(group for group, _ in set(zip(found, patients, strict=True)))
    largest = max(sizes, key=lambda group: (sizes[group], -group))
    found = [group if sizes[group] >= fewest else largest for group in found]
    kept = sorted(set(found))
    names = [*class_names, NO_FINDING]
    return [kept.index(group) for group in found], tuple(names[group] for group in kept)


def check_findings(sections: Mapping[str, Sequence[Mapping[str, Any]]], class_names: Sequence[str]) -> None:
    """Refuse sections in which a finding is never or always there, since it would have no AUC.

    Raises:
        CohortError: listing all of them.
    """
    problems = [
        f"section {section}: finding '{name}' is in {count} of {len(sections[section])} images"
        for section in _SECTIONS
        for index, name in enumerate(class_names)
        if (count := sum(item["label"][index] for item in sections[section])) in (0, len(sections[section]))
    ]
    if problems:
        raise CohortError(
            "The cohort cannot be split into three sections in which every finding is there and absent. Add patients, "
            "leave the finding out of class_names, or use another seed.",
            problems,
        )
