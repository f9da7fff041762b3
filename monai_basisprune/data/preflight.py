"""Reads every file of a folder before any training, pixels included, and says everything that is wrong with them.

Names of problems are SOPInstanceUIDs, or the position in the sorted list of files: file names can hold patient names.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_basisprune.data.elements import (
    ImageProblemError,
    element_text,
    is_uid,
    parse_dicom,
    parse_header,
    read_attributes,
    sop_instance_uid,
)
from monai_basisprune.data.identifiers import known, remember_dataset
from monai_basisprune.data.pixels import header_problems
from monai_basisprune.data.radiograph import render_radiograph
from monai_basisprune.errors import CohortError, ConfigurationError

__all__ = [
    "FileRecord",
    "Problem",
    "cross_check",
    "inspect_file",
    "inspect_files",
    "list_files",
    "refuse_folder",
    "walk_files",
]

IGNORED_SUFFIXES = (
    *(".csv", ".tsv", ".txt", ".json", ".md", ".log", ".xml", ".html", ".pdf", ".yaml", ".yml", ".xlsx"),
    *(".pt", ".pth", ".ts", ".svg"),  # results, where their folder lies inside that of the images
)
IGNORED_NAMES = ("dicomdir", "salt", "curve.png", "license", "readme", "thumbs.db", "desktop.ini")
VOLUME_MODALITIES = ("CT", "MR", "PT")
_MOST_WORKERS = 4


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        subject: what it is about, by SOPInstanceUID, position in the sorted list, or line of the table.
        text: what was found and what to do.
        positions: files that must be left out because of it; empty when it concerns none.
        fatal: whether leaving files out cannot help.
    """

    subject: str
    text: str
    positions: tuple[int, ...] = ()
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True)
class FileRecord:
    """What one file says about itself; identifying values are kept out of ``repr``.

    Attributes:
        position: place in the sorted list of files, from 1.
        path: path relative to the folder, with forward slashes.
        size: bytes.
        digest: SHA-256 of SOPInstanceUID, size and displayed pixels; empty when they were not, or could not be read.
        sop_instance_uid: ``None`` when it could not be read.
        series: SeriesInstanceUID.
        instance_number: as written.
        modality: as written.
        patient_id: PatientID as written.
        birth_date: PatientBirthDate as written.
        attributes: see `read_attributes`.
        problems: sentences without a subject.
    """

    position: int
    path: str = field(repr=False)
    size: int
    digest: str = ""
    sop_instance_uid: str | None = None
    series: str = field(default="", repr=False)
    instance_number: str = ""
    modality: str = ""
    patient_id: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)
    attributes: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The SOPInstanceUID, or a neutral name."""
        if self.sop_instance_uid:
            return f"SOPInstanceUID {self.sop_instance_uid}"
        return f"file #{self.position} of the sorted list ({self.size} bytes)"


def check_on_problem(on_problem: str) -> None:
    """Check the word that says what to do with files that cannot be used.

    Raises:
        ConfigurationError: unless it is "raise" or "skip".
    """
    if on_problem not in ("raise", "skip"):
        raise ConfigurationError(f"on_problem must be 'raise' or 'skip', found {on_problem!r}")


def list_files(dataset_dir: Path, ignored: Iterable[Path] = ()) -> tuple[list[Path], int]:
    """List the files of a folder and its subfolders that should be images.

    Hidden files and folders, tables, texts, DICOMDIR and the like are left out (`IGNORED_SUFFIXES`, `IGNORED_NAMES`).

    Args:
        dataset_dir: the folder.
        ignored: more files to leave out, such as the table of labels.

    Returns:
        Absolute paths sorted by relative path, and how many files were left out.

    Raises:
        CohortError: when a subfolder cannot be listed.
    """
    others = {path.resolve() for path in ignored}
    found: list[Path] = []
    left_out = 0
    for path in walk_files(dataset_dir):
        lower = path.name.lower()
        if (
            lower.startswith(".")
            or lower in IGNORED_NAMES
            or lower.endswith(IGNORED_SUFFIXES)
            or path.resolve() in others
        ):
            left_out += 1
        else:
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(dataset_dir).as_posix()), left_out


def walk_files(dataset_dir: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders but hidden ones; links are followed, each folder is seen once.

    Raises:
        CohortError: when a subfolder cannot be listed.
    """
    seen = set()
    for folder, folders, names in os.walk(dataset_dir, onerror=refuse_folder, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:  # a link back to a folder above
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def refuse_folder(error: OSError) -> None:
    """Raise: a folder that is skipped in silence would be a cohort that is smaller than its owner thinks.

    Raises:
        CohortError: always.
    """
    raise CohortError(f"A subfolder of dataset_dir cannot be listed ({type(error).__name__}); check its permissions.")


def inspect_file(dataset_dir: Path, path: Path, position: int, pixels: bool = True) -> FileRecord:
    """Read one file, decode and render its pixels, and forget them again.

    Args:
        dataset_dir: the folder.
        path: the file in it.
        position: its place in the sorted list, from 1.
        pixels: whether to decode them; without, only the header is read.

    Returns:
        What it says about itself, its problems among that; nothing is raised.
    """
    relative = path.relative_to(dataset_dir).as_posix()
    size = path.stat().st_size if path.is_file() else 0
    try:
        dataset = parse_dicom(path) if pixels else parse_header(path)
    except ImageProblemError as error:
        return FileRecord(position, relative, size, problems=(str(error),))
    remember_dataset(dataset)
    uid = sop_instance_uid(dataset)
    problems = list(header_problems(dataset))
    if uid is None:
        problems.append("has no valid SOPInstanceUID")
    digest = ""
    if pixels and not problems:
        try:
            image, _ = render_radiograph(dataset)
            digest = hashlib.sha256(f"{uid} {image.shape}".encode() + image.tobytes()).hexdigest()
        except ImageProblemError as error:
            problems.append(str(error))
        except Exception as error:  # one odd file must not hide the problems of the others
            problems.append(f"cannot be rendered ({type(error).__name__}); export it again")
    series = element_text(dataset, "SeriesInstanceUID")
    return FileRecord(
        position=position,
        path=relative,
        size=size,
        digest=digest,
        sop_instance_uid=uid,
        series=series if is_uid(series) else "",
        instance_number=element_text(dataset, "InstanceNumber"),
        modality=element_text(dataset, "Modality"),
        patient_id=element_text(dataset, "PatientID"),
        birth_date=element_text(dataset, "PatientBirthDate"),
        attributes=read_attributes(dataset),
        problems=tuple(problems),
    )


def inspect_files(
    dataset_dir: Path, paths: Sequence[Path], progress: bool = True, pixels: bool = True
) -> list[FileRecord]:
    """Read every file in a small pool of threads.

    Args:
        dataset_dir: the folder.
        paths: files in it, sorted.
        progress: whether to show a progress bar on the error stream.
        pixels: whether to decode them; without, only the headers are read.

    Returns:
        One record for each path, in order.
    """
    known.remember_files(path.relative_to(dataset_dir) for path in paths)
    workers = max(1, min(_MOST_WORKERS, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="preflight") as pool:
        records = pool.map(lambda item: inspect_file(dataset_dir, item[1], item[0], pixels), enumerate(paths, start=1))
        return list(tqdm(records, total=len(paths), desc="preflight", unit="file", disable=not progress))


def _groups(records: Iterable[FileRecord], key: Callable[[FileRecord], Hashable]) -> list[list[FileRecord]]:
    """Group by a key, empty keys left out; only groups of two and more."""
    groups: dict[Hashable, list[FileRecord]] = defaultdict(list)
    for record in records:
        if value := key(record):
            groups[value].append(record)
    return [group for group in groups.values() if len(group) > 1]


def cross_check(records: Sequence[FileRecord]) -> list[Problem]:
    """Find what only shows when files are compared.

    Two files with one SOPInstanceUID are a problem. Files that share a series are not, for radiographs: several
    views of one visit often do. They are when the modality makes volumes (CT, MR, PT) and InstanceNumber differs:
    those are slices, and a slice has no label of its own.

    Args:
        records: all files of the cohort.

    Returns:
        Problems, those of single files first, in the order of the sorted list.
    """
    problems = [Problem(record.name, text, (record.position,)) for record in records for text in record.problems]
    for group in _groups(records, lambda record: record.sop_instance_uid):
        places = ", ".join(f"#{record.position}" for record in group)
        digests = {record.digest for record in group}
        same = "images that were not compared" if "" in digests else "the same image"
        same = "different images" if len(digests - {""}) > 1 else same
        problems.append(
            Problem(
                group[0].name,
                f"is duplicated: {len(group)} files ({places} of the sorted list) share it and hold {same}; keep one",
                tuple(record.position for record in group),
            )
        )
    slices = [record for record in records if record.modality in VOLUME_MODALITIES]
    for group in _groups(slices, lambda record: record.series):
        if len({record.instance_number for record in group}) > 1:
            problems.append(
                Problem(
                    group[0].name,
                    f"is one of {len(group)} slices of a {group[0].modality} series; one file must be one radiograph, "
                    "so take the series out",
                    tuple(record.position for record in group),
                )
            )
    return problems
