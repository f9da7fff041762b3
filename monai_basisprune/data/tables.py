"""Reads a table that people made with a spreadsheet: rows of text, and its columns by name."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Sequence

__all__ = ["MOST_BYTES", "find_column", "read_table"]

MOST_BYTES = 64 << 20
"""No table of labels is larger."""

_DELIMITERS = (",", ";", "\t", "|")
_MOST_COLUMNS, _MOST_COLUMN_NAME = 500, 200


def _decode(content: bytes) -> str | None:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings: tuple[str, ...] = ("utf-16",)
    else:
        encodings = ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return None


def _split(text: str) -> tuple[list[tuple[int, list[str]]], str | None]:
    """Split into (line, stripped cells) of the rows that are not blank; the second value is what went wrong."""
    lines = text.splitlines()
    skipped = 0
    if lines and re.fullmatch(r"sep=.", lines[0].strip().lower()):  # a hint that Excel writes
        skipped = 1
        text = "\n".join(lines[1:])
    header = next((line for line in text.splitlines() if line.strip(" \t,;|")), "")
    if len(header) > _MOST_COLUMNS * _MOST_COLUMN_NAME:
        return [], f"has a header of {len(header)} characters, which is no list of column names; save it as CSV"
    delimiter = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num + skipped, stripped))
    except csv.Error:
        return [], f"cannot be read as a table near line {reader.line_num + skipped} (a quotation mark is not closed?)"
    return rows, None


def find_column(
    header: Sequence[str], asked: str | None, defaults: Sequence[str], role: str
) -> tuple[int | None, str | None]:
    """Find a column of a table by name, in any case; returns its index, or ``None`` and a problem.

    Args:
        header: the names of the columns.
        asked: the name that the user gave, or None.
        defaults: the names that are looked for then.
        role: what the column is for, in a message; `role`_column is the setting that names it.
    """
    folded = [name.casefold() for name in header]
    for name in (asked.strip(),) if asked is not None else defaults:
        count = folded.count(name.casefold())
        if count > 1:
            return None, f"the {role} column '{name}' occurs {count} times; rename all but one"
        if count:
            return folded.index(name.casefold()), None
    wanted = f"'{asked}'" if asked is not None else " or ".join(f"'{name}'" for name in defaults)
    near = difflib.get_close_matches((asked or defaults[0]).casefold(), folded, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(header[folded.index(name)]) for name in near)}" if near else ""
    return None, (
        f"no {role} column {wanted}; found columns {', '.join(repr(name) for name in header)}{hint}; "
        f"rename the column or pass {role}_column"
    )


def read_table(content: bytes) -> tuple[list[tuple[int, list[str]]], str | None]:
    """Read the bytes of a table as rows of text.

    Args:
        content: the bytes of the file; see :func:`read_labels` for what is understood.

    Returns:
        the line and the stripped cells of each row that is not blank, the header first, and what makes the table
        unusable, or None.
    """
    if content[:2] == b"PK":
        return [], "is an Excel workbook or another archive; save it as CSV"
    text = _decode(content)
    if text is None:
        return [], "is not a text file; save it as CSV (UTF-8)"
    rows, problem = _split(text)
    if problem:
        return [], problem
    if not rows:
        return [], "is empty; it needs a header and one row for each image"
    header = rows[0][1]
    if len(header) > _MOST_COLUMNS or max(map(len, header)) > _MOST_COLUMN_NAME:
        text = f"has {len(header)} columns, the longest name of {max(map(len, header))} characters; a table of labels"
        return [], f"{text} may have {_MOST_COLUMNS}, with names of up to {_MOST_COLUMN_NAME} characters"
    return rows, None
