"""Joins a folder of DICOM radiographs with a table of labels into a cohort that can be trained on, or says why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from monai_basisprune.data.identifiers import known
from monai_basisprune.data.labels import LabelRow, LabelTable, check_class_names, read_labels
from monai_basisprune.data.matching import check_patients, check_rows, match_rows
from monai_basisprune.data.preflight import (
    FileRecord,
    Problem,
    check_on_problem,
    cross_check,
    inspect_files,
    list_files,
)
from monai_basisprune.data.pseudonyms import keyed_salt, pseudonym
from monai_basisprune.errors import CohortError

__all__ = ["Case", "Cohort", "find_labels", "read_cohort", "read_known_labels", "settle_cohort"]

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class Case:
    """One radiograph with its label. What identifies a patient is hashed, or kept out of ``repr`` and of every file.

    Attributes:
        image: path relative to the folder of the cohort, with forward slashes.
        label: class index.
        case_id: salted hash of the SOPInstanceUID.
        patient_id: salted hash of the patient id.
        sop_instance_uid: in memory only.
        section: "training", "validation" or "test" when the table says so, else ``None``.
        sex: "F", "M", "O" or ``None``.
        age: whole years, 90 for 90 and older, or ``None``.
        manufacturer: one of a list of known ones, "other" or ``None``.
        view_position: known code, "other" or ``None``.
        pixel_spacing: (row, column) in mm or ``None``.
        image_sha256: SHA-256 of the SOPInstanceUID, the size and the displayed pixels, to tell later that it is this
            image.
    """

    image: str = field(repr=False)
    label: int
    case_id: str
    patient_id: str
    sop_instance_uid: str = field(repr=False)
    section: str | None = None
    sex: str | None = None
    age: int | None = None
    manufacturer: str | None = None
    view_position: str | None = None
    pixel_spacing: tuple[float, float] | None = None
    image_sha256: str | None = None

    def to_item(self) -> dict[str, Any]:
        """Return what a datalist holds of this case: JSON types, attributes only where present."""
        item: dict[str, Any] = {
            "image": self.image,
            "label": self.label,
            "case_id": self.case_id,
            "patient_id": self.patient_id,
        }
        for name in ("sex", "age", "manufacturer", "view_position", "image_sha256"):
            if (value := getattr(self, name)) is not None:
                item[name] = value
        if self.pixel_spacing is not None:
            item["pixel_spacing"] = list(self.pixel_spacing)
        return item


@dataclass(frozen=True)
class Cohort:
    """Cases that passed the preflight.

    Attributes:
        cases: in the order of SOPInstanceUIDs, so independent of file names and of the salt.
        class_names: the name of each class index.
        skipped: problems of what was left out with ``on_problem="skip"``, one line each.
        notes: harmless findings, one line each.
    """

    cases: tuple[Case, ...]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cases_per_class(self) -> dict[str, int]:
        """Number of images of each class."""
        counts = Counter(case.label for case in self.cases)
        return {name: counts[index] for index, name in enumerate(self.class_names)}

    @property
    def patients_per_class(self) -> dict[str, int]:
        """Number of patients with at least one image of each class; a patient may count in several."""
        pairs = Counter(label for label, _ in {(case.label, case.patient_id) for case in self.cases})
        return {name: pairs[index] for index, name in enumerate(self.class_names)}

    @property
    def patient_count(self) -> int:
        """Number of patients."""
        return len({case.patient_id for case in self.cases})

    @property
    def has_sections(self) -> bool:
        """Whether the table says which section each case belongs to."""
        return bool(self.cases) and all(case.section is not None for case in self.cases)


def find_labels(root: Path, labels_file: str | Path | None) -> tuple[Path | None, list[Problem]]:
    """Return the table of labels, by default ``labels.csv`` in the folder, or why there is none."""
    if labels_file is None:
        if (root / LABELS_FILE).is_file():
            return root / LABELS_FILE, []
        others = sum(1 for path in root.glob("*.csv") if path.is_file())
        text = f"no labels table: {LABELS_FILE} was looked for in dataset_dir, which holds {others} other .csv files"
        return None, [Problem("labels table", f"{text}; add it or pass labels_file", fatal=True)]
    for path in (root / labels_file, Path(labels_file)):
        if path.is_file():
            return path, []
    text = "no labels table: the labels_file that was passed exists neither as such nor relative to dataset_dir"
    return None, [Problem("labels table", text, fatal=True)]


def _build(
    records: Sequence[FileRecord], rows: dict[int, list[LabelRow]], patients: dict[int, str], salt: bytes
) -> tuple[Case, ...]:
    cases = []
    for record in records:
        label, uid = rows[record.position][0].label, record.sop_instance_uid
        assert label is not None
        assert uid is not None
        cases.append(
            Case(
                image=record.path,
                label=label,
                case_id=pseudonym(salt, "case", uid),
                patient_id=pseudonym(salt, "patient", patients[record.position]),
                sop_instance_uid=uid,
                section=rows[record.position][0].section,
                image_sha256=record.digest,
                **record.attributes,
            )
        )
    return tuple(sorted(cases, key=lambda case: [int(part) for part in case.sop_instance_uid.split(".")]))


def read_cohort(
    dataset_dir: str | Path,
    labels_file: str | Path | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    salt: str | bytes | None = None,
    on_problem: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Cohort:
    """Read every file of a folder, pixels included, join it with a table of labels, and report all problems at once.

    Args:
        dataset_dir: folder of DICOM files, subfolders included.
        labels_file: the table; by default ``labels.csv`` in `dataset_dir`. A relative path is looked for there first.
        class_names: names of the classes; their order gives the index.
        image_column: column with a path relative to `dataset_dir` or a SOPInstanceUID; by default the first there is
            of ``image``, ``file``, ``SOPInstanceUID``.
        label_column: column with a class name or index; by default ``label``.
        patient_column: column with the patient; by default ``patient_id`` where there is one. Where it is blank or
            absent, PatientID of the file counts.
        salt: secret of at least 16 bytes for the hashes. By default random, so hashes differ from call to call;
            `prepare_datalist` keeps one in a file.
        on_problem: "raise", or "skip" to leave out what has problems and list it in `Cohort.skipped`.
        progress: whether to show a progress bar.

    Returns:
        The cohort.

    Raises:
        CohortError: with every problem; also under "skip" when what remains cannot be used.
        ConfigurationError: when an argument cannot be used.
    """
    names = check_class_names(class_names)
    check_on_problem(on_problem)
    secret = keyed_salt(salt)
    root = Path(dataset_dir)
    if not root.is_dir():
        raise CohortError("dataset_dir is not a folder; pass the folder that holds the DICOM files.")
    table_path, problems = find_labels(root, labels_file)
    paths, left_out = list_files(root, () if table_path is None else (table_path,))
    table = read_known_labels(table_path, names, image_column, label_column, patient_column)
    problems += [Problem("labels table", text, fatal=True) for text in table.problems]
    if not paths:
        text = f"is empty: no DICOM files among {left_out} files; check the path"
        problems.append(Problem("dataset_dir", text, fatal=True))
    records = inspect_files(root, paths, progress)
    problems += cross_check(records)
    rows: dict[int, list[LabelRow]] = {}
    notes = [f"{left_out} files that are not images were ignored"] if left_out else []
    patients: dict[int, str] = {}
    if table.rows:
        rows, row_problems = match_rows(table, records)
        problems += row_problems
        for record in records:
            own = rows.get(record.position, [])
            more, fewer = check_rows(record, own)
            problems += more
            notes += fewer
            patient = own[0].patient_id if own and own[0].patient_id else record.patient_id
            patients[record.position] = patient
            if not own and not record.problems:
                problems.append(Problem(record.name, "has no row in the labels table; add one", (record.position,)))
            elif own and not patient and record.sop_instance_uid:
                text = "has no patient: PatientID is blank and the table has no patient_id; without it patients leak"
                problems.append(Problem(record.name, f"{text} between sections", (record.position,)))
        problems += check_patients(records, patients)
    bad = {position for problem in problems for position in problem.positions}
    cases = () if not table.rows else _build([r for r in records if r.position not in bad], rows, patients, secret)
    cohort = Cohort(cases, names, tuple(str(problem) for problem in problems), tuple(notes))
    return settle_cohort(cohort, problems, len(records), on_problem, bool(table.rows and records))


def read_known_labels(
    path: Path | None,
    class_names: Sequence[str],
    image_column: str | None,
    label_column: str | None,
    patient_column: str | None,
) -> LabelTable:
    """Read the table of labels, and remember the patients and files that it names, which no message may show.

    Args:
        path: the table; None for an empty one.
        class_names: names of the classes.
        image_column: column with the image.
        label_column: column with the class.
        patient_column: column with the patient.
    """
    if path is None:
        return LabelTable()
    table = read_labels(path, class_names, image_column, label_column, patient_column)
    known.remember(row.patient_id for row in table.rows if row.patient_id)
    known.remember_files(row.image for row in table.rows)
    return table


def settle_cohort(cohort: Cohort, problems: list[Problem], count: int, on_problem: str, labeled: bool) -> Cohort:
    """Return a cohort, or raise all of its problems.

    Args:
        cohort: the cases without problems.
        problems: what is wrong with the others, and with the table.
        count: number of files.
        on_problem: "raise" or "skip".
        labeled: whether there are files, and labels of them.

    Raises:
        CohortError: when there are problems and `on_problem` is "raise", or what remains cannot be used.
    """
    if labeled:
        text = f"has no usable case of a class that class_names holds; found {cohort.cases_per_class}"
        if not all(cohort.cases_per_class.values()):
            missing = ", ".join(name for name, cases in cohort.cases_per_class.items() if not cases)
            problems.append(
                Problem("cohort", f"{text}; missing: {missing}; one class alone cannot be learned", fatal=True)
            )
    fatal = any(problem.fatal for problem in problems)
    if problems and (on_problem == "raise" or fatal):
        what = "cannot be used even with the files concerned left out" if on_problem == "skip" else "cannot be used"
        advice = "" if fatal or on_problem == "skip" else ", or pass on_problem='skip' to leave out the files concerned"
        raise CohortError(
            f"The cohort {what}: {len(problems)} problems were found in {count} files before any training. "
            f"Correct them{advice}.",
            [str(problem) for problem in problems],
        )
    return cohort
