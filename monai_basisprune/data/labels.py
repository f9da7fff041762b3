"""Reads a table of labels as people really write them: BOM, semicolons, blanks, names or numbers, repeated rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_basisprune.data.elements import is_uid
from monai_basisprune.data.tables import MOST_BYTES, find_column, read_table
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.reading import read_bytes

__all__ = [
    "LabelRow",
    "LabelTable",
    "check_class_names",
    "parse_label",
    "parse_labels",
    "read_labels",
]

IMAGE_COLUMNS = ("image", "file", "SOPInstanceUID")
LABEL_COLUMNS = ("label",)
PATIENT_COLUMNS = ("patient_id",)
SECTION_COLUMNS = ("split",)
SECTIONS = {
    "training": "training",
    "train": "training",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
_INDEX = re.compile(r"(\d{1,9})(?:\.0*)?")
_MOST_QUOTED = 10


@dataclass(frozen=True)
class LabelRow:
    """One row of the table.

    Attributes:
        line: line of the file, counted from 1.
        image: relative path or SOPInstanceUID, as written.
        label: class index, or ``None`` when the cell is no known label.
        patient_id: as written; empty when there is none.
        section: "training", "validation" or "test"; ``None`` without a split column or when the cell is not one.
        problems: what is wrong with this row.
    """

    line: int
    image: str = field(repr=False)
    label: int | None
    patient_id: str = field(repr=False)
    section: str | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelTable:
    """A table of labels, with what makes all of it unusable.

    Attributes:
        rows: the rows that name an image.
        problems: what is wrong with the table as a whole; no rows then.
        has_sections: whether there is a split column.
    """

    rows: tuple[LabelRow, ...] = ()
    problems: tuple[str, ...] = ()
    has_sections: bool = False


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Check and strip class names.

    Raises:
        ConfigurationError: for a bare string, fewer than two, a repeated or blank name, or a number as the name of a
            class with another index.
    """
    if isinstance(class_names, str):
        raise ConfigurationError("class_names must be a list of names, found one text; write ['negative', 'positive']")
    names = tuple(str(name).strip() for name in class_names)
    if len(names) < 2 or not all(names) or len({name.casefold() for name in names}) != len(names):
        raise ConfigurationError(f"class_names must be at least two different names, found {list(names)}")
    for index, name in enumerate(names):
        match = _INDEX.fullmatch(name)
        if match and int(match[1]) != index:
            raise ConfigurationError(
                f"class_names holds '{name}' for class {index}: a number may only name the class of that index, "
                "since a table may use class indices"
            )
    return names


def parse_label(text: str, class_names: Sequence[str]) -> int | None:
    """Turn a cell into a class index: a class name in any case, or an index such as ``1`` or ``1.0``.

    Args:
        text: the cell.
        class_names: names, checked.

    Returns:
        The index, or ``None`` when it is neither.
    """
    text = text.strip()
    folded = [name.casefold() for name in class_names]
    if text.casefold() in folded:
        return folded.index(text.casefold())
    match = _INDEX.fullmatch(text) if text.isascii() else None
    index = int(match[1]) if match else -1
    return index if 0 <= index < len(class_names) else None


def _looks_like_data(header: Sequence[str], class_names: Sequence[str]) -> bool:
    """Tell whether the first row holds values; its cells must not be quoted then, they may name a patient."""
    return any(
        "^" in cell or "/" in cell or "\\" in cell or "." in cell or is_uid(cell) or cell[:1].isdigit()
        for cell in header
    ) or any(parse_label(cell, class_names) is not None for cell in header)


def parse_labels(
    content: bytes,
    class_names: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
) -> LabelTable:
    """Parse the bytes of a table; see :func:`read_labels`.

    Args:
        content: the bytes of the file.
        class_names: names, checked by :func:`check_class_names`.
        image_column: name of the image column; by default the first there is of image, file, SOPInstanceUID.
        label_column: name of the label column; by default "label".
        patient_column: name of the patient column; by default "patient_id" where there is one.

    Returns:
        The rows, or what makes the table unusable.
    """
    rows, problem = read_table(content)
    if problem:
        return LabelTable(problems=(problem,))
    header = rows[0][1]
    image, image_problem = find_column(header, image_column, IMAGE_COLUMNS, "image")
    label, label_problem = find_column(header, label_column, LABEL_COLUMNS, "label")
    patient, patient_problem = find_column(header, patient_column, PATIENT_COLUMNS, "patient")
    section, section_problem = find_column(header, None, SECTION_COLUMNS, "split")
    optional = [(patient_column, patient_problem), (None, section_problem)]
    missing = [found for found in (image_problem, label_problem) if found]
    missing += [found for asked, found in optional if found and (asked is not None or "occurs" in found)]
    if missing and _looks_like_data(header, class_names):
        return LabelTable(
            problems=(
                "the first row looks like data, not like column names; add a header such as "
                f"'image,label' (looked for an image column {' or '.join(IMAGE_COLUMNS)} and a label column)",
            )
        )
    if missing or image is None or label is None:
        return LabelTable(problems=tuple(missing))
    if len(rows) == 1:
        return LabelTable(problems=("has a header but no rows; add one row for each image",))

    def cell(cells: Sequence[str], column: int | None) -> str:
        return cells[column] if column is not None and column < len(cells) else ""

    unknown = Counter(cell(c, label) for _, c in rows[1:] if parse_label(cell(c, label), class_names) is None)
    # A wrong column could hold patient names: quote only values that repeat, or stand beside known labels.
    total = sum(unknown.values())
    quotable = len(unknown) <= _MOST_QUOTED and (total < len(rows) - 1 or 2 * len(unknown) <= total)
    parsed = []
    for line, cells in rows[1:]:
        problems = []
        value = cell(cells, label)
        index = parse_label(value, class_names)
        if any(cells[len(header) :]):
            problems.append(
                f"has {len(cells)} cells where the header has {len(header)}; quote cells that hold the separator"
            )
        if not cell(cells, image):
            problems.append("names no image")
        if index is None:
            readable = quotable and len(value) <= 24 and "^" not in value and value.isprintable()
            shown = f"'{value}'" if readable else "(value withheld)"
            known = ", ".join(f"'{name}' (or {number})" for number, name in enumerate(class_names))
            problems.append(f"has {'no label' if not value else f'the unknown label {shown}'}; known are {known}")
        written = cell(cells, section)
        if section is not None and written.casefold() not in SECTIONS:
            problems.append("has a blank or unknown split; known are training, validation, test")
        parsed.append(
            LabelRow(
                line=line,
                image=cell(cells, image),
                label=index,
                patient_id=cell(cells, patient),
                section=SECTIONS.get(written.casefold()),
                problems=tuple(problems),
            )
        )
    return LabelTable(rows=tuple(parsed), has_sections=section is not None)


def read_labels(
    labels_file: Path,
    class_names: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
) -> LabelTable:
    """Read a table of labels as CSV with comma, semicolon, tab or bar.

    UTF-8 (with or without BOM), UTF-16 and Windows-1252 are understood. Column names match in any
    case. Arguments as for :func:`parse_labels`.

    Args:
        labels_file: the file.
        class_names: names, checked by :func:`check_class_names`.
        image_column: name of the image column.
        label_column: name of the label column.
        patient_column: name of the patient column.

    Returns:
        The rows, or what makes the table unusable; nothing is raised.
    """
    try:
        content = read_bytes(labels_file, MOST_BYTES)
    except OSError as error:
        return LabelTable(problems=(f"cannot be opened ({type(error).__name__}); pass labels_file",))
    except ValueError as error:
        return LabelTable(problems=(f"cannot be used: {error}; pass the table of labels as labels_file",))
    return parse_labels(content, class_names, image_column, label_column, patient_column)
