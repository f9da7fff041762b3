"""Reads a table with one class of each picture, or with several findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from monai_basisprune.data.image_classes import (
    ImageLabel,
    ImageLabels,
    LabelSettings,
    check_image_classes,
    class_index,
    name_classes,
)
from monai_basisprune.data.labels import IMAGE_COLUMNS, LABEL_COLUMNS, PATIENT_COLUMNS, SECTION_COLUMNS, SECTIONS
from monai_basisprune.data.tables import MOST_BYTES, find_column, read_table
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.reading import read_bytes

__all__ = ["read_image_table"]

_NO_FINDING = "none"


def read_image_table(table: Path, images: Sequence[str], settings: LabelSettings) -> ImageLabels:
    """Read the labels of pictures from a table.

    Args:
        table: the file.
        images: paths of the pictures relative to their folder, with forward slashes.
        settings: how to read it.

    Returns:
        the labels and what is wrong with them; nothing is raised for a table that cannot be used.
    """
    try:
        rows, problem = read_table(read_bytes(table, MOST_BYTES))
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
    problems += [
        f"labels table, line {line}: has {len(cells)} cells where the header has {len(header)}; quote cells that hold "
        "the separator"
        for line, cells in body
        if any(cells[len(header) :])
    ]
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
    classes, wrong = name_classes(list(names), settings, "labels table: labels")
    if wrong:
        return classes, [], problems + wrong
    labels: list[int | tuple[int, ...] | None] = []
    for own in cells:
        indices = [class_index(part, classes) for part in own if part]
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
        # cells that are not known may be blank in most rows: they are a problem to be told, no reason to skip a column
        cells = [[row[index] for _, row in body if row[index]] for index in range(len(header))]
        columns = [
            index
            for index, own in enumerate(cells)
            if index not in taken and own and 2 * sum(cell in truths for cell in own) >= len(own)
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
