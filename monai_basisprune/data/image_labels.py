"""Where the labels of pictures come from: the names of their folders, or a table with one class or several findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from monai_basisprune.data.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    PATIENT_COLUMNS,
    SECTION_COLUMNS,
    SECTIONS,
    find_column,
    read_table,
)
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.reading import read_bytes

__all__ = ["LABEL_KINDS", "ImageLabel", "ImageLabels", "LabelSettings", "check_image_classes", "read_image_labels"]

LABEL_KINDS = ("single", "multi")
"""Whether an image is of one class, or has any number of findings."""

_MOST_BYTES = 64 << 20
_MOST_CLASSES, _LONGEST_NAME = 100, 80
_MOST_QUOTED = 10
_NUMBER = re.compile(r"\d{1,9}(?:\.0*)?")
_NO_FINDING = "none"


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


def read_image_labels(root: Path, images: Sequence[str], settings: LabelSettings) -> ImageLabels:
    """Read the labels of pictures.

    Args:
        root: the folder.
        images: paths relative to it, with forward slashes.
        settings: how to read them.

    Returns:
        the labels and what is wrong with them; nothing is raised for a table or folder that cannot be used.
    """
    table, problem = _find_table(root, settings.labels_file)
    if problem:
        return ImageLabels(problems=(problem,))
    found = _of_folders(images, settings) if table is None else _of_table(table, images, settings)
    if settings.patient_pattern is None or found.problems:
        return found
    pattern = re.compile(settings.patient_pattern)
    named = {path: pattern.search(path) for path in found.images}
    missed = sum(match is None or not match[1] for match in named.values())
    if missed:
        text = f"patient_pattern finds no patient in the paths of {missed} of {len(named)} images"
        return ImageLabels(found.class_names, problems=(f"{text}; correct it, or leave it out",))
    whole = {
        path: ImageLabel(one.label, match[1], one.section)
        for (path, one), match in zip(found.images.items(), named.values(), strict=True)
        if match is not None
    }
    return ImageLabels(found.class_names, whole, (), found.unlabeled)


def _find_table(root: Path, labels_file: str | Path | None) -> tuple[Path | None, str | None]:
    if labels_file is None:
        return (root / "labels.csv" if (root / "labels.csv").is_file() else None), None
    for path in (root / labels_file, Path(labels_file)):
        if path.is_file():
            return path, None
    return None, "labels table: the labels_file that was passed exists neither as such nor relative to dataset_dir"


def _of_folders(images: Sequence[str], settings: LabelSettings) -> ImageLabels:
    if settings.label_kind == "multi":
        text = "labels table: several findings of one image need a table, labels.csv, and there is none"
        return ImageLabels(problems=(f"{text}; add it or pass labels_file",))
    parts = {path: PurePosixPath(path).parts for path in images}
    tops = {own[0].casefold() for own in parts.values() if len(own) > 1}
    divided = bool(tops) and tops <= set(SECTIONS) and all(len(own) > 2 for own in parts.values())
    depth = 1 if divided else 0
    loose = sum(len(own) < depth + 2 for own in parts.values())
    names = sorted({own[depth] for own in parts.values() if len(own) > depth + 1})
    problems = []
    if loose:
        problems.append(
            f"dataset_dir: {loose} images lie in no folder of a class; give each class a folder, or add labels.csv"
        )
    elif len(names) < 2 and settings.class_names is None:
        problems.append(f"dataset_dir: holds {len(names)} folders of classes with images, at least 2 are needed")
    classes, wrong = _classes(names, settings, "folders of classes")
    problems += wrong
    if problems:
        return ImageLabels(classes, problems=tuple(problems))
    found = {
        path: ImageLabel(_index(own[depth], classes), "", SECTIONS[own[0].casefold()] if divided else None)
        for path, own in parts.items()
    }
    return ImageLabels(classes, found)


def _classes(found: Sequence[str], settings: LabelSettings, what: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, and what is wrong with those that were found."""
    if settings.class_names is None:
        ordered = sorted(found, key=lambda name: (0, int(float(name)), "") if _NUMBER.fullmatch(name) else (1, 0, name))
        try:
            return check_image_classes(ordered), []
        except ConfigurationError as error:
            return (), [f"{what}: {error}; pass class_names"]
    names = check_image_classes(settings.class_names)
    unknown = [name for name in found if _index(name, names) < 0]
    if not unknown:
        return names, []
    # a wrong column could hold names of patients: many values are not quoted
    shown = ", ".join(repr(name[:24]) for name in unknown) if len(unknown) <= _MOST_QUOTED else "withheld"
    return names, [f"{what}: {len(unknown)} outside the classes ({shown}); known are {', '.join(names)}"]


def _index(text: str, names: Sequence[str]) -> int:
    """Return the index of a class by its name in any case, or by its number where no name is one; -1 if it is none."""
    folded = [name.casefold() for name in names]
    if text.casefold() in folded:
        return folded.index(text.casefold())
    if _NUMBER.fullmatch(text) and not any(_NUMBER.fullmatch(name) for name in names):
        return int(float(text)) if int(float(text)) < len(names) else -1
    return -1


def _of_table(table: Path, images: Sequence[str], settings: LabelSettings) -> ImageLabels:
    try:
        rows, problem = read_table(read_bytes(table, _MOST_BYTES))
    except OSError as error:
        rows, problem = [], f"cannot be opened ({type(error).__name__})"
    except ValueError as error:
        rows, problem = [], str(error)
    if problem is None and len(rows) == 1:
        problem = "has a header but no rows; add one row for each image"
    if problem is not None:
        return ImageLabels(problems=(f"labels table: {problem}",))
    header, body = rows[0][1], rows[1:]
    asked = (
        ("image", settings.image_column, IMAGE_COLUMNS[:2]),
        ("label", settings.label_column, LABEL_COLUMNS),
        ("patient", settings.patient_column, PATIENT_COLUMNS),
        ("split", None, SECTION_COLUMNS),
    )
    places: dict[str, int | None] = {}
    problems = []
    for role, name, defaults in asked:
        places[role], trouble = find_column(header, name, defaults, role)
        needed = role == "image" or (role == "label" and settings.label_kind == "single") or name is not None
        if trouble and (needed or "occurs" in trouble):
            problems.append(f"labels table: {trouble}")
    body = [(line, [*cells, *[""] * (len(header) - len(cells))]) for line, cells in body]
    if problems or places["image"] is None:
        return ImageLabels(problems=tuple(problems))
    if places["label"] is not None:
        classes, labels, wrong = _label_column(body, places["label"], settings)
    else:
        taken = {place for place in places.values() if place is not None}
        classes, labels, wrong = _finding_columns(header, body, taken, settings)
    found, more = _rows(body, labels, places, images)
    unlabeled = () if wrong or more else tuple(path for path in images if path not in found)
    return ImageLabels(classes, found, (*wrong, *more), unlabeled)


def _label_column(
    body: Sequence[tuple[int, list[str]]], column: int, settings: LabelSettings
) -> tuple[tuple[str, ...], list[int | tuple[int, ...] | None], list[str]]:
    several = settings.label_kind == "multi"
    cells = [[part.strip() for part in re.split("[;|]", row[column])] if several else [row[column]] for _, row in body]
    cells = [[] if several and [part.casefold() for part in own] == [_NO_FINDING] else own for own in cells]
    problems = [
        f"labels table, line {line}: has no label" + (f"; write '{_NO_FINDING}' for no finding" if several else "")
        for (line, _), own in zip(body, cells, strict=True)
        if not all(part and part.casefold() != "nan" for part in own)
    ]
    names = dict.fromkeys(part for own in cells for part in own if part and part.casefold() != "nan")
    classes, wrong = _classes(list(names), settings, "labels table: labels")
    if wrong:
        return classes, [], problems + wrong
    labels: list[int | tuple[int, ...] | None] = []
    for own in cells:
        indices = [_index(part, classes) for part in own if part]
        labels.append(
            tuple(int(index in indices) for index in range(len(classes)))
            if several
            else (indices[0] if indices and indices[0] >= 0 else None)
        )
    return classes, labels, problems


def _finding_columns(
    header: Sequence[str], body: Sequence[tuple[int, list[str]]], taken: set[int], settings: LabelSettings
) -> tuple[tuple[str, ...], list[int | tuple[int, ...] | None], list[str]]:
    truths = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
    if settings.class_names is None:
        columns = [
            index
            for index in range(len(header))
            if index not in taken and 2 * sum(row[index] in truths for _, row in body) >= len(body)
        ]
    else:
        folded = [name.casefold() for name in header]
        missing = [name for name in settings.class_names if folded.count(name.casefold()) != 1]
        if missing:
            return (), [], [f"labels table: has not one column for each of the class_names {missing}"]
        columns = [folded.index(name.casefold()) for name in settings.class_names]
    try:
        classes = check_image_classes([header[index] for index in columns])
    except ConfigurationError as error:
        text = "labels table: needs a column 'label', or a column with 0 and 1 for each of several findings"
        return (), [], [f"{text}: {error}"]
    counts = Counter(header[index] for index in columns for _, row in body if row[index] not in truths)
    problems = [
        f"labels table, column '{name}': {count} cells are neither 0 nor 1 (blank, NaN or uncertain); decide each"
        for name, count in counts.items()
    ]
    if problems:
        return classes, [], problems
    return classes, [tuple(truths[row[index]] for index in columns) for _, row in body], []


def _rows(
    body: Sequence[tuple[int, list[str]]],
    labels: Sequence[int | tuple[int, ...] | None],
    places: dict[str, int | None],
    images: Sequence[str],
) -> tuple[dict[str, ImageLabel], list[str]]:
    known, by_name = set(images), Counter(PurePosixPath(path).name for path in images)
    full = {PurePosixPath(path).name: path for path in images}
    found: dict[str, ImageLabel] = {}
    problems = []
    for (line, row), label in zip(body, labels, strict=False):
        written = row[places["image"] or 0].replace("\\", "/")
        where = f"labels table, line {line}"
        windows = PureWindowsPath(written)
        if written.startswith("/") or windows.drive or ".." in windows.parts:
            problems.append(f"{where}: names a file outside dataset_dir")
            continue
        path = str(PurePosixPath(written))
        if path not in known:
            path = full[path] if by_name[path] == 1 else ""
        if not path:
            problems.append(f"{where}: names no image in dataset_dir")
            continue
        patient = "" if places["patient"] is None else row[places["patient"]]
        if places["patient"] is not None and not patient:
            problems.append(f"{where}: has no patient; without it patients leak between sections")
        section = None if places["split"] is None else SECTIONS.get(row[places["split"]].casefold())
        if places["split"] is not None and section is None:
            problems.append(f"{where}: has a blank or unknown split; known are training, validation, test")
        if label is None:
            continue
        new = ImageLabel(label, patient, section)
        if path in found and found[path] != new:
            problems.append(f"{where}: names an image again, with another label, patient or split; keep one")
        found[path] = new
    return found, problems
