"""Joins a folder of volumes with a table of labels into a cohort that can be trained on, or says why not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from monai_basisprune.data.cohort import Case, Cohort, find_labels, read_known_labels, settle_cohort
from monai_basisprune.data.datalist import divide_cohort
from monai_basisprune.data.labels import LabelRow, LabelTable, check_class_names
from monai_basisprune.data.matching import check_patients, check_rows, match_rows
from monai_basisprune.data.preflight import Problem, check_on_problem
from monai_basisprune.data.pseudonyms import keyed_salt, load_or_create_salt, pseudonym
from monai_basisprune.data.splits import check_fractions
from monai_basisprune.data.volume_geometry import resampled_shape
from monai_basisprune.data.volume_preflight import VolumeRecord, cross_check_volumes, find_volumes, inspect_volumes
from monai_basisprune.errors import CohortError

__all__ = ["prepare_volume_datalist", "read_volume_cohort"]

_NO_PATIENT = (
    "has no patient: NIfTI files hold none, PatientID of a series can be blank, and the table has no patient_id; add "
    "that column, or, if no patient has two volumes, pass the column of the image as patient_column"
)


def read_volume_cohort(
    dataset_dir: str | Path,
    labels_file: str | Path | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    salt: str | bytes | None = None,
    on_problem: Literal["raise", "skip"] = "raise",
    spacing: Sequence[float] | None = None,
    volume_size: Sequence[int] | None = None,
    window: Sequence[float] | None = None,
    progress: bool = True,
) -> Cohort:
    """Read every volume of a folder, voxels included, join it with a table of labels, and report all problems at once.

    Args:
        dataset_dir: folder of NIfTI files and of folders with one DICOM series each, subfolders included.
        labels_file: the table; by default ``labels.csv`` in `dataset_dir`. A relative path is looked for there first.
        class_names: names of the classes; their order gives the index.
        image_column: column with the path of a NIfTI file or of the folder of a series, relative to `dataset_dir`, or
            with a SeriesInstanceUID; by default the first there is of ``image``, ``file``, ``SOPInstanceUID``.
        label_column: column with a class name or index; by default ``label``.
        patient_column: column with the patient; by default ``patient_id`` where there is one. Where it is blank or
            absent, PatientID of the series counts. A NIfTI file holds none: to say that each volume is a patient of
            its own, pass the column of the image.
        salt: secret of at least 16 bytes for the hashes. By default random, so hashes differ from call to call.
        on_problem: "raise", or "skip" to leave out what has problems and list it in `Cohort.skipped`.
        spacing: spacing in mm, from left to right, back to front and foot to head, to which volumes will be resampled.
        volume_size: number of voxels that is kept along each axis at that spacing; larger volumes are warned of.
        window: lowest and highest value in Hounsfield units through which volumes will be seen; a volume that shows
            nothing in it is refused, and those that do not look like CT are warned of.
        progress: whether to show a progress bar.

    Returns:
        The cohort, in the order of the content of the volumes.

    Raises:
        CohortError: with every problem; also under "skip" when what remains cannot be used.
        ConfigurationError: when an argument cannot be used.
    """
    names = check_class_names(class_names)
    check_on_problem(on_problem)
    secret = keyed_salt(salt)
    root = Path(dataset_dir)
    if not root.is_dir():
        raise CohortError("dataset_dir is not a folder; pass the folder that holds the volumes.")
    table_path, problems = find_labels(root, labels_file)
    paths, left_out = find_volumes(root, () if table_path is None else (table_path,))
    table = read_known_labels(table_path, names, image_column, label_column, patient_column)
    problems += [Problem("labels table", text, fatal=True) for text in table.problems]
    if not paths:
        text = f"is empty: neither NIfTI files nor folders of DICOM files among {left_out} files; check the path"
        problems.append(Problem("dataset_dir", text, fatal=True))
    records = inspect_volumes(root, paths, spacing, progress, window)
    problems += cross_check_volumes(records)
    notes = [f"{left_out} files that are not images were ignored"] if left_out else []
    rows, more, fewer = _match(table, records) if table.rows else ({}, [], [])
    problems += more
    notes += fewer
    bad = {position for problem in problems for position in problem.positions}
    usable = [record for record in records if record.position not in bad]
    cases = _build(usable, rows, secret) if table.rows else ()
    for note in (_cut_note(usable, spacing, volume_size), _window_note(usable, window)):
        if note:
            warnings.warn(note, UserWarning, stacklevel=2)
    cohort = Cohort(cases, names, tuple(str(problem) for problem in problems), tuple(notes))
    return settle_cohort(cohort, problems, len(records), on_problem, bool(table.rows and records))


def _match(
    table: LabelTable, records: Sequence[VolumeRecord]
) -> tuple[dict[int, list[LabelRow]], list[Problem], list[str]]:
    rows, problems = match_rows(table, records, "SeriesInstanceUID")
    notes: list[str] = []
    patients: dict[int, str] = {}
    for record in records:
        own = rows.get(record.position, [])
        more, fewer = check_rows(record, own)
        problems += more
        notes += fewer
        patients[record.position] = _patient(record, own)
        if record.problems:
            continue
        if not own:
            problems.append(Problem(record.name, "has no row in the labels table; add one", (record.position,)))
        elif not patients[record.position]:
            problems.append(Problem(record.name, _NO_PATIENT, (record.position,)))
    return rows, problems + check_patients(records, patients), notes


def _patient(record: VolumeRecord, rows: Sequence[LabelRow]) -> str:
    return rows[0].patient_id if rows and rows[0].patient_id else record.patient_id


def _build(records: Sequence[VolumeRecord], rows: dict[int, list[LabelRow]], salt: bytes) -> tuple[Case, ...]:
    cases = []
    for record in sorted(records, key=lambda record: record.digest):
        own = rows[record.position]
        assert own[0].label is not None
        cases.append(
            Case(
                image=record.path,
                label=own[0].label,
                case_id=pseudonym(salt, "case", record.case_name),
                patient_id=pseudonym(salt, "patient", _patient(record, own)),
                sop_instance_uid=record.case_name,
                section=own[0].section,
                image_sha256=record.digest,
                **record.attributes,
            )
        )
    return tuple(cases)


def _cut_note(
    records: Sequence[VolumeRecord], spacing: Sequence[float] | None, volume_size: Sequence[int] | None
) -> str:
    """Say how many volumes reach beyond the field that the network sees; empty when none does."""
    if spacing is None or volume_size is None:
        return ""
    larger = 0
    for record in records:
        found = resampled_shape(record.shape, record.spacing, spacing)
        larger += any(one > most for one, most in zip(found, volume_size, strict=True))
    field = " x ".join(f"{one * most:.0f}" for one, most in zip(spacing, volume_size, strict=True))
    text = (
        f"{larger} of {len(records)} volumes are larger than the field that the network sees ({field} mm) and are cut "
        "off at its edges, unless these are empty; make volume_size or spacing larger to keep them whole"
    )
    return text if larger else ""


def _window_note(records: Sequence[VolumeRecord], window: Sequence[float] | None) -> str:
    """Say how many volumes are hardly CT in Hounsfield units, though read through a window; empty when none is."""
    if window is None:
        return ""
    odd = sum(record.modality not in ("", "CT") or record.lowest >= 0 > window[0] for record in records)
    text = (
        f"{odd} of {len(records)} volumes do not look like CT in Hounsfield units (no value below 0, or another "
        f"modality) and are read through the window from {window[0]:g} to {window[1]:g}; for MR, pass --intensity "
        "zscore"
    )
    return text if odd else ""


def prepare_volume_datalist(
    dataset_dir: str | Path,
    output_file: str | Path,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    salt: str | bytes | None = None,
    image_paths: bool = True,
    **cohort: Any,
) -> dict[str, Any]:
    """Read a cohort of volumes, split it and write a MONAI datalist; see :func:`prepare_datalist`.

    Args:
        dataset_dir: folder of the volumes.
        output_file: the datalist (JSON); its folder is made where needed.
        fractions: shares for training, validation, test; unused when the table has a split column.
        seed: seed of the split.
        salt: secret for the hashes instead of the file ``salt`` beside the datalist.
        image_paths: whether the file holds the paths of the images; what is returned always does.
        cohort: further arguments of :func:`read_volume_cohort`.

    Returns:
        What was written, with the paths of the volumes.

    Raises:
        CohortError: when the cohort cannot be used or split.
        ConfigurationError: when an argument cannot be used.
    """
    shares = check_fractions(fractions)
    path = Path(output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = load_or_create_salt(path.parent) if salt is None else salt
    return divide_cohort(read_volume_cohort(dataset_dir, salt=secret, **cohort), path, shares, seed, image_paths)
