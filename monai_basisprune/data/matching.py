"""Matches the rows of a table of labels with files, and checks that rows, files and patients agree."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from monai_basisprune.data.labels import LabelRow, LabelTable
from monai_basisprune.data.preflight import FileRecord, Problem

__all__ = ["check_patients", "check_rows", "match_rows"]


def _key(path: str) -> str:
    """Bring a written path to one form: forward slashes, no leading ./, composed characters."""
    return unicodedata.normalize("NFC", PurePosixPath(path.replace("\\", "/")).as_posix())


def match_rows(
    table: LabelTable, records: Sequence[FileRecord], identifier: str = "SOPInstanceUID"
) -> tuple[dict[int, list[LabelRow]], list[Problem]]:
    """Assign rows to files by path or by their identifier, which the records hold as ``sop_instance_uid``."""
    places: dict[str, list[int]] = defaultdict(list)
    for record in records:
        places[_key(record.path)].append(record.position)
        if record.sop_instance_uid:
            places[record.sop_instance_uid].append(record.position)
    uids = {record.sop_instance_uid for record in records}
    stems = Counter(PurePosixPath(record.path).name for record in records)
    stems.update(PurePosixPath(record.path).stem for record in records)
    matched: dict[int, list[LabelRow]] = defaultdict(list)
    problems = []
    for row in table.rows:
        positions = tuple(places.get(row.image if row.image in uids else _key(row.image), ())) if row.image else ()
        subject = f"labels table, line {row.line}"
        if len(positions) == 1:
            subject = f"{records[positions[0] - 1].name} ({subject})"
        problems += [Problem(subject, text, positions) for text in row.problems]
        for position in positions:
            matched[position].append(row)
        if row.image and not positions:
            hint = " (a file of that name exists in another folder or with another ending)"
            near = hint if stems[PurePosixPath(_key(row.image)).name] else ""
            advice = f"write its path relative to dataset_dir, or its {identifier}"
            problems.append(Problem(subject, f"names an image for which there is no file{near}; {advice}"))
    return matched, problems


def check_rows(record: FileRecord, rows: Sequence[LabelRow]) -> tuple[list[Problem], list[str]]:
    """Check the rows of one file against each other; returns problems and notes."""
    if len(rows) < 2:
        return [], []
    lines = ", ".join(str(row.line) for row in rows)
    problems = []
    for name, values in (
        ("labels", {row.label for row in rows}),
        ("patients", {row.patient_id for row in rows}),
        ("splits", {row.section for row in rows}),
    ):
        if len(values) > 1:
            problems.append(
                Problem(record.name, f"has conflicting {name} in lines {lines} of the labels table", (record.position,))
            )
    notes = [] if problems else [f"{record.name}: has equal rows in lines {lines} of the labels table; counted once"]
    return problems, notes


def check_patients(records: Iterable[FileRecord], patients: dict[int, str]) -> list[Problem]:
    """One patient id must mean one person: birth dates and sexes that are present must agree."""
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        if patients.get(record.position):
            groups[patients[record.position]].append(record)
    problems = []
    for group in groups.values():
        births = {record.birth_date for record in group if record.birth_date}
        sexes = {record.attributes["sex"] for record in group if record.attributes.get("sex") in ("F", "M")}
        found = [name for name, values in (("birth dates", births), ("sexes", sexes)) if len(values) > 1]
        if found:
            problems.append(
                Problem(
                    group[0].name,
                    f"shares its patient id with {len(group) - 1} other files, which differ in {' and '.join(found)}; "
                    "one id must be one person, so correct the ids or add a patient_id column",
                    tuple(record.position for record in group),
                )
            )
    return problems
