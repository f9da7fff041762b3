"""Joins a folder of PNG and JPEG pictures with their labels into a split datalist, or says everything that is wrong."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_basisprune.data.cohort import Case, Cohort
from monai_basisprune.data.datalist import FORMAT_VERSION, split_hash, write_datalist
from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.data.identifiers import known
from monai_basisprune.data.image_labels import ImageLabel, ImageLabels, LabelSettings, read_image_labels
from monai_basisprune.data.images import decode_picture, read_limited
from monai_basisprune.data.preflight import IGNORED_NAMES, IGNORED_SUFFIXES, check_on_problem
from monai_basisprune.data.pseudonyms import load_or_create_salt, pseudonym
from monai_basisprune.data.splits import SECTIONS, check_fractions, split_cohort
from monai_basisprune.data.strata import check_findings, strata_of
from monai_basisprune.errors import CohortError

__all__ = ["ImageRecord", "inspect_pictures", "list_pictures", "place_pictures", "prepare_image_datalist"]

_MOST_WORKERS = 4


@dataclass(frozen=True)
class ImageRecord:
    """What one file is.

    Attributes:
        position: place in the sorted list of files, from 1.
        path: path relative to the folder, with forward slashes.
        size: bytes.
        file_sha256: SHA-256 of the file; empty where it could not be read.
        digest: SHA-256 of the shape and the decoded pixels; empty where they could not be.
        problem: a sentence without a subject, or None.
    """

    position: int
    path: str = field(repr=False)
    size: int
    file_sha256: str = ""
    digest: str = ""
    problem: str | None = None

    @property
    def name(self) -> str:
        """A neutral name: those of files can name patients."""
        return f"file #{self.position} of the sorted list ({self.size} bytes)"


def list_pictures(root: Path, ignored: Sequence[Path] = ()) -> tuple[list[str], list[str], int]:
    """List the files of a folder and its subfolders that should be pictures; links are not followed.

    Args:
        root: the folder.
        ignored: files to leave out, such as the table of labels.

    Returns:
        sorted paths relative to the folder, problems, and how many files were left out: tables, texts, hidden ones.

    Raises:
        CohortError: when a subfolder cannot be listed.
    """
    others = {path.resolve() for path in ignored}
    found: list[str] = []
    links, left_out = 0, 0

    def refuse(error: OSError) -> None:
        raise CohortError(
            f"A subfolder of dataset_dir cannot be listed ({type(error).__name__}); check its permissions."
        )

    for folder, folders, names in os.walk(root, onerror=refuse):
        links += sum(os.path.islink(os.path.join(folder, name)) for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            lower = name.lower()
            if path.is_symlink():
                continue
            ours = lower in IGNORED_NAMES or path.resolve() in others
            if ours or name.startswith(".") or lower.endswith(IGNORED_SUFFIXES):
                left_out += 1
            else:
                found.append(path.relative_to(root).as_posix())
    problems = []
    if links:
        problems.append(
            f"dataset_dir: holds {links} symbolic links, which could lead outside and are not followed; put the files "
            "themselves there"
        )
    return sorted(found), problems, left_out


def inspect_pictures(root: Path, paths: Sequence[str], progress: bool = True) -> list[ImageRecord]:
    """Decode every picture in a small pool of threads, and forget it again; nothing is raised for a bad one.

    Args:
        root: the folder.
        paths: paths relative to it.
        progress: whether to show a progress bar on the error stream.
    """
    known.remember_files(Path(path).name for path in paths)
    workers = max(1, min(_MOST_WORKERS, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="preflight") as pool:
        records = pool.map(lambda item: _inspect(root, item[1], item[0]), enumerate(paths, start=1))
        return list(tqdm(records, total=len(paths), desc="preflight", unit="file", disable=not progress))


def _inspect(root: Path, path: str, position: int) -> ImageRecord:
    size = 0
    try:
        size = (root / path).stat().st_size
        content = read_limited(root / path)
        sha256 = hashlib.sha256(content).hexdigest()
        image = decode_picture(content)
    except ImageProblemError as error:
        return ImageRecord(position, path, size, problem=str(error))
    except OSError as error:
        return ImageRecord(position, path, size, problem=f"cannot be read ({type(error).__name__})")
    digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
    return ImageRecord(position, path, size, sha256, digest)


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


def place_pictures(items: Sequence[Mapping[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Return items of a datalist with the paths of their pictures, which are found by their content.

    Raises:
        CohortError: naming by case id those that are not in the folder.
    """
    paths, _, _ = list_pictures(root)
    places = {record.digest: record.path for record in inspect_pictures(root, paths, progress=False) if record.digest}
    missing = [f"case {item['case_id']}" for item in items if item["image_sha256"] not in places]
    if missing:
        raise CohortError("dataset_dir does not hold these pictures of the datalist; is it the right folder?", missing)
    return [{**item, "image": places[item["image_sha256"]]} for item in items]
