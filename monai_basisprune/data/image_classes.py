"""Names of classes of pictures, and what is known of one picture and of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_basisprune.errors import ConfigurationError

__all__ = [
    "LABEL_KINDS",
    "ImageLabel",
    "ImageLabels",
    "LabelSettings",
    "check_image_classes",
    "class_index",
    "name_classes",
]

LABEL_KINDS = ("single", "multi")
"""Whether an image is of one class, or has any number of findings."""

_MOST_CLASSES, _LONGEST_NAME = 100, 80
_MOST_QUOTED = 10
_NUMBER = re.compile(r"\d{1,9}(?:\.0*)?")


@dataclass(frozen=True)
class LabelSettings:
    """How labels are to be read.

    Attributes:
        label_kind: "single" or "multi".
        class_names: names of the classes in the order of their indices; None for those that are found, sorted.
        labels_file: the table; None for ``labels.csv`` in the folder, or the names of folders where there is none.
        image_column: column of images; None for the first there is of ``image`` and ``file``.
        label_column: column of labels; None for ``label``, or for one column for each finding where there is none.
        patient_column: column of patients; None for ``patient_id`` where there is one.
        patient_pattern: regular expression with one group that finds the patient in the path of a file.
    """

    label_kind: str = "single"
    class_names: Sequence[str] | None = None
    labels_file: str | Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    patient_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.label_kind not in LABEL_KINDS:
            raise ConfigurationError(f"label_kind must be one of {LABEL_KINDS}, got {self.label_kind!r}.")
        if self.class_names is not None:
            check_image_classes(self.class_names)
        if self.patient_pattern is not None:
            try:
                groups = re.compile(self.patient_pattern).groups
            except re.error as error:
                raise ConfigurationError(f"patient_pattern is no regular expression: {error}.") from None
            if groups != 1:
                raise ConfigurationError(
                    f"patient_pattern must have one group, the patient, as in '(\\d+)_'; it has {groups}."
                )


@dataclass(frozen=True)
class ImageLabel:
    """What is known of one image.

    Attributes:
        label: index of the class, or 0 and 1 for each finding.
        patient: as written; empty where it is not known.
        section: "training", "validation", "test" or None.
    """

    label: int | tuple[int, ...]
    patient: str = field(default="", repr=False)
    section: str | None = None


@dataclass(frozen=True)
class ImageLabels:
    """The labels of a folder of pictures.

    Attributes:
        class_names: names of the classes.
        images: label of each image, by its path relative to the folder.
        problems: everything that is wrong, one line each.
        unlabeled: images without a label.
    """

    class_names: tuple[str, ...] = ()
    images: dict[str, ImageLabel] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = field(default=(), repr=False)


def check_image_classes(class_names: Sequence[str]) -> tuple[str, ...]:
    """Check names of classes, which stand in reports and configurations.

    Raises:
        ConfigurationError: unless they are 2 to 100 different short texts.
    """
    if isinstance(class_names, str):
        raise ConfigurationError("class_names must be a list of names, found one text; write ['healthy','ill']")
    names = tuple(str(name).strip() for name in class_names)
    if not 2 <= len(names) <= _MOST_CLASSES or len({name.casefold() for name in names}) < len(names):
        raise ConfigurationError(
            f"class_names must be 2 to {_MOST_CLASSES} different names, found {len(names)}, of which "
            f"{len({name.casefold() for name in names})} differ"
        )
    wrong = [name for name in names if not name or not name.isprintable() or name[0] in "$@%"]
    if wrong or max(map(len, names)) > _LONGEST_NAME:
        raise ConfigurationError(
            f"class_names must be printable texts of 1 to {_LONGEST_NAME} characters that do not start with $, @ or %"
        )
    return names


def name_classes(found: Sequence[str], settings: LabelSettings, what: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, and what is wrong with those that were found."""
    if settings.class_names is None:
        ordered = sorted(found, key=lambda name: (0, int(float(name)), "") if _NUMBER.fullmatch(name) else (1, 0, name))
        try:
            return check_image_classes(ordered), []
        except ConfigurationError as error:
            return (), [f"{what}: {error}; pass class_names"]
    names = check_image_classes(settings.class_names)
    unknown = [name for name in found if class_index(name, names) < 0]
    if not unknown:
        return names, []
    # a wrong column could hold names of patients: many values are not quoted
    shown = ", ".join(repr(name[:24]) for name in unknown) if len(unknown) <= _MOST_QUOTED else "withheld"
    return names, [f"{what}: {len(unknown)} outside the classes ({shown}); known are {', '.join(names)}"]


def class_index(text: str, names: Sequence[str]) -> int:
    """Return the index of a class by its name in any case, or by its number where no name is one; -1 if it is none."""
    folded = [name.casefold() for name in names]
    if text.casefold() in folded:
        return folded.index(text.casefold())
    if _NUMBER.fullmatch(text) and not any(_NUMBER.fullmatch(name) for name in names):
        return int(float(text)) if int(float(text)) < len(names) else -1
    return -1
