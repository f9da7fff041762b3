"""Joins a folder of PNG and JPEG pictures with their labels into a split datalist, or says everything that is wrong."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_basisprune.data.cohort import Case, Cohort
from monai_basisprune.data.datalist import FORMAT_VERSION, split_hash, write_datalist
from monai_basisprune.data.identifiers import known
from monai_basisprune.data.image_classes import ImageLabel, ImageLabels, LabelSettings
from monai_basisprune.data.image_files import ImageRecord, inspect_pictures, list_pictures
from monai_basisprune.data.image_labels import read_image_labels
from monai_basisprune.data.preflight import check_on_problem
from monai_basisprune.data.pseudonyms import load_or_create_salt, pseudonym
from monai_basisprune.data.splits import SECTIONS, check_fractions, split_cohort
from monai_basisprune.data.strata import check_findings, strata_of
from monai_basisprune.errors import CohortError

__all__ = ["prepare_image_datalist"]


def prepare_image_datalist(
    root: Path,
    output_file: Path,
    settings: LabelSettings,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    on_problem: str = "raise",
    progress: bool = True,
    image_paths: bool = True,
    labels: ImageLabels | None = None,
    split_source: str | None = None,
) -> dict[str, Any]:
    """Read all pictures of a folder and their labels, report all problems at once, split and write a datalist.

    The split is by patient where a column or a pattern names the patients. Without, each picture counts as a patient
    of its own, which the datalist says under ``patients_known``.

    Args:
        root: folder of the pictures.
        output_file: the datalist (JSON); beside it stands the secret of the hashes, see :func:`.prepare_datalist`.
        settings: how labels are read.
        fractions: shares of training, validation and test; unused where the labels say the sections.
        seed: seed of the split.
        on_problem: "raise", or "skip" to leave out what has problems, with a warning.
        progress: whether to show a progress bar.
        image_paths: whether the file holds the paths of the pictures; what is returned always does.
        labels: labels that are known already, such as those of a MedMNIST file.
        split_source: where a split that the labels hold comes from, in words.

    Returns:
        the datalist: sections, ``class_names``, ``label_kind``, ``patients_known``, ``split_sha256`` and others.

    Raises:
        CohortError: with every problem.
        ConfigurationError: when an argument cannot be used.
    """
    shares = check_fractions(fractions)
    check_on_problem(on_problem)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    salt = load_or_create_salt(output_file.parent)
    table = [] if settings.labels_file is None else [root / settings.labels_file, Path(settings.labels_file)]
    paths, problems, left_out = list_pictures(root, table)
    if not paths:
        problems.append(f"dataset_dir: is empty, no pictures among {left_out} files; check the path")
        raise CohortError("The cohort cannot be used.", problems)
    found = read_image_labels(root, paths, settings) if labels is None else labels
    fatal = list(found.problems)
    known.remember(one.patient for one in found.images.values() if one.patient)
    records = inspect_pictures(root, paths, progress)
    removable = [f"{record.name}: {record.problem}" for record in records if record.problem]
    usable = [record for record in records if not record.problem]
    if found.unlabeled and not fatal:
        without = set(found.unlabeled)
        removable += [f"{record.name}: has no row in the labels table" for record in usable if record.path in without]
        usable = [record for record in usable if record.path not in without]
    copies = 0
    if not fatal:
        usable, trouble, copies = _without_copies(usable, found.images)
        removable += trouble
    patients = {one.patient != "" for one in found.images.values()}
    if len(patients) > 1:
        fatal.append("labels: some images have a patient and some have none; name all or none")
    listed = problems + fatal + removable
    if listed and (fatal or on_problem == "raise"):
        advice = "" if fatal else ", or pass on_problem='skip' to leave out the files concerned"
        raise CohortError(
            f"The cohort cannot be used: {len(listed)} problems were found in {len(records)} files before any "
            f"training. Correct them{advice}.",
            listed,
        )
    if listed:
        lines = "\n".join(f"  - {line}" for line in listed)
        warnings.warn(f"left out of the datalist, {len(listed)} problems:\n{lines}", UserWarning, stacklevel=2)
    if copies:
        warnings.warn(
            f"{copies} exact copies of another picture with the same label were left out", UserWarning, stacklevel=2
        )
    if patients == {False}:
        warnings.warn(
            "No column and no pattern names the patients, so each image counts as a patient of its own: the intervals "
            "are too narrow, and a patient can be in two sections, if that is not so.",
            UserWarning,
            stacklevel=2,
        )
    datalist = _split(usable, found, settings.label_kind, shares, seed, salt, split_source)
    datalist["skipped_problems"] = len(listed)
    write_datalist(datalist, output_file, image_paths)
    return datalist


def _without_copies(
    records: Sequence[ImageRecord], labels: Mapping[str, ImageLabel]
) -> tuple[list[ImageRecord], list[str], int]:
    """Leave out exact copies that agree; those that do not are problems."""
    groups: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        groups[record.digest].append(record)
    kept, problems, copies = [], [], 0
    for group in groups.values():
        places = ", ".join(f"#{record.position}" for record in group)
        own = [labels[record.path] for record in group]
        if len({one.label for one in own}) > 1:
            problems.append(f"files {places} of the sorted list: hold the same image with different labels; decide")
        elif len({(one.patient, one.section) for one in own}) > 1:
            problems.append(
                f"files {places} of the sorted list: hold the same image for several patients or sections; keep one"
            )
        else:
            kept.append(group[0])
            copies += len(group) - 1
    return sorted(kept, key=lambda record: record.position), problems, copies


def _split(
    records: Sequence[ImageRecord],
    found: ImageLabels,
    label_kind: str,
    shares: Sequence[float],
    seed: int,
    salt: bytes,
    split_source: str | None,
) -> dict[str, Any]:
    ordered = sorted(records, key=lambda record: record.digest)  # independent of names and of the salt
    own = [found.images[record.path] for record in ordered]
    patients = [one.patient or f"image {record.digest}" for record, one in zip(ordered, own, strict=True)]
    strata, names = strata_of([one.label for one in own], found.class_names, patients)
    cases = tuple(
        Case(
            image=record.path,
            label=stratum,
            case_id=pseudonym(salt, "case", record.digest),
            patient_id=pseudonym(salt, "patient", patient),
            sop_instance_uid="",
            section=one.section,
            image_sha256=record.digest,
        )
        for record, one, patient, stratum in zip(ordered, own, patients, strata, strict=True)
    )
    cohort = Cohort(cases, names)
    sections = split_cohort(cohort, shares, seed)
    labels = {case.case_id: one.label for case, one in zip(cases, own, strict=True)}
    items = {
        name: [{**case.to_item(), "label": _plain(labels[case.case_id])} for case in sections[name]]
        for name in SECTIONS
    }
    if label_kind == "multi":
        check_findings(items, found.class_names)
    fixed = cohort.has_sections
    return {
        "format_version": FORMAT_VERSION,
        "class_names": list(found.class_names),
        "label_kind": label_kind,
        "patients_known": any(one.patient for one in own),
        "split_source": (split_source or "labels table") if fixed else "random",
        "fractions": None if fixed else list(shares),
        "seed": None if fixed else seed,
        "split_sha256": split_hash(items),
        **items,
    }


def _plain(label: int | tuple[int, ...]) -> int | list[int]:
    return list(label) if isinstance(label, tuple) else label
