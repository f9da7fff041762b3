"""Reads every volume of a folder before any training, voxels included, and says everything that is wrong with them.

Names of problems are SeriesInstanceUIDs, or the position in the sorted list of volumes: names of files and folders can
hold names of patients.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.data.identifiers import known
from monai_basisprune.data.preflight import FileRecord, Problem, walk_files
from monai_basisprune.data.volume import is_slice, parse_volume, volume_digest
from monai_basisprune.data.volume_geometry import MOST_VOXELS, resampled_shape, turned_to_ras
from monai_basisprune.data.volume_nifti import NIFTI_SUFFIXES
from monai_basisprune.data.volume_series import SeriesProblemError
from monai_basisprune.files import sha256_of

__all__ = ["VolumeRecord", "cross_check_volumes", "find_volumes", "inspect_volume", "inspect_volumes"]

_MOST_WORKERS = 2  # a volume can take gigabytes


@dataclass(frozen=True)
class VolumeRecord(FileRecord):
    """What one volume says about itself; identifying values are kept out of ``repr``.

    Attributes:
        file_sha256: SHA-256 of a NIfTI file; empty for a series.
        shape: number of voxels along each axis, turned to RAS; empty when it could not be read.
        spacing: distance between voxels in mm, along the same axes.
        lowest: value of its lowest voxel; NaN when it could not be read.
        highest: value of its highest voxel.
    """

    file_sha256: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    lowest: float = math.nan
    highest: float = math.nan

    @property
    def name(self) -> str:
        """The SeriesInstanceUID, or a neutral name."""
        if self.series:
            return f"SeriesInstanceUID {self.series}"
        return f"volume #{self.position} of the sorted list ({self.size} bytes)"

    @property
    def case_name(self) -> str:
        """What stands for the volume in a table of predictions: the SeriesInstanceUID, or the SHA-256 of the file."""
        return self.series or self.file_sha256


def find_volumes(dataset_dir: Path, ignored: Iterable[Path] = ()) -> tuple[list[Path], int]:
    """List the volumes of a folder and its subfolders: NIfTI files, and folders that hold DICOM files.

    Hidden files and folders, tables, texts and the like are left out.

    Args:
        dataset_dir: the folder.
        ignored: more files to leave out, such as the table of labels.

    Returns:
        Paths sorted by relative path, and how many files were left out.

    Raises:
        CohortError: when a subfolder cannot be listed.
    """
    others = {path.resolve() for path in ignored}
    found: set[Path] = set()
    left_out = 0
    for path in walk_files(dataset_dir):
        if path.name.startswith(".") or path.resolve() in others:
            left_out += 1
        elif path.name.lower().endswith(NIFTI_SUFFIXES):
            found.add(path)
        elif is_slice(path.name):
            found.add(path.parent)
        else:
            left_out += 1
    return sorted(found, key=lambda path: path.relative_to(dataset_dir).as_posix()), left_out


def inspect_volume(
    dataset_dir: Path,
    path: Path,
    position: int,
    spacing: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
) -> VolumeRecord:
    """Read one volume and forget its voxels again.

    Args:
        dataset_dir: the folder.
        path: the volume in it.
        position: its place in the sorted list, from 1.
        spacing: spacing in mm to which volumes will be resampled; ``None`` for their own.
        window: lowest and highest value of the window through which voxels will be seen; ``None`` for all values.

    Returns:
        What it says about itself, its problems among that; nothing is raised.
    """
    relative = path.relative_to(dataset_dir).as_posix()
    single = path.is_file()
    size = path.stat().st_size if single else 0
    try:
        volume = parse_volume(path)
    except SeriesProblemError as error:
        series = "" if error.header is None else error.header.series
        return VolumeRecord(
            position, relative, size, sop_instance_uid=series or None, series=series, problems=(str(error),)
        )
    except ImageProblemError as error:
        return VolumeRecord(position, relative, size, problems=(str(error),))
    except Exception as error:  # one odd volume must not hide the problems of the others
        text = f"cannot be read ({type(error).__name__}); export it again"
        return VolumeRecord(position, relative, size, problems=(text,))
    shape, own, problems = *turned_to_ras(volume.values.shape, volume.affine), []
    if math.prod(resampled_shape(shape, own, spacing)) > MOST_VOXELS:
        text = f"would have more than {MOST_VOXELS} voxels at the spacing that was asked for"
        problems.append(f"{text}; choose a wider one")
    lowest, highest = float(volume.values.min()), float(volume.values.max())
    if window is not None and (highest <= window[0] or lowest >= window[1]):
        problems.append(
            f"shows nothing in the window from {window[0]:g} to {window[1]:g}, its values run from {lowest:g} to "
            f"{highest:g}; choose another window, or another intensity if it is no CT in Hounsfield units"
        )
    header = volume.series
    return VolumeRecord(
        position=position,
        path=relative,
        size=size,
        digest=volume_digest(volume),
        sop_instance_uid=None if header is None else header.series,
        series="" if header is None else header.series,
        modality="" if header is None else header.modality,
        patient_id="" if header is None else header.patient_id,
        birth_date="" if header is None else header.birth_date,
        attributes={} if header is None else header.attributes,
        problems=tuple(problems),
        file_sha256=sha256_of(path) if single else "",
        shape=shape,
        spacing=own,
        lowest=lowest,
        highest=highest,
    )


def inspect_volumes(
    dataset_dir: Path,
    paths: Sequence[Path],
    spacing: Sequence[float] | None = None,
    progress: bool = True,
    window: Sequence[float] | None = None,
) -> list[VolumeRecord]:
    """Read every volume in a small pool of threads.

    Args:
        dataset_dir: the folder.
        paths: volumes in it, sorted.
        spacing: see :func:`inspect_volume`.
        progress: whether to show a progress bar on the error stream.
        window: see :func:`inspect_volume`.

    Returns:
        One record for each path, in order.
    """
    known.remember_files(path.relative_to(dataset_dir) for path in paths if path != dataset_dir)
    workers = max(1, min(_MOST_WORKERS, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="preflight") as pool:
        records = pool.map(
            lambda item: inspect_volume(dataset_dir, item[1], item[0], spacing, window), enumerate(paths, start=1)
        )
        return list(tqdm(records, total=len(paths), desc="preflight", unit="volume", disable=not progress))


def cross_check_volumes(records: Sequence[VolumeRecord]) -> list[Problem]:
    """Find what only shows when volumes are compared: copies of one volume, and one series in two folders.

    Args:
        records: all volumes of the cohort.

    Returns:
        Problems, those of single volumes first, in the order of the sorted list.
    """
    problems = [Problem(record.name, text, (record.position,)) for record in records for text in record.problems]
    same = _groups(records, lambda record: record.digest)
    for group in same:
        places = ", ".join(f"#{record.position}" for record in group)
        text = f"is duplicated: {len(group)} volumes ({places} of the sorted list) hold the same voxels; keep one"
        problems.append(Problem(group[0].name, text, tuple(record.position for record in group)))
    reported = {tuple(record.position for record in group) for group in same}
    for group in _groups(records, lambda record: record.series):
        positions = tuple(record.position for record in group)
        if positions not in reported:
            places = ", ".join(f"#{position}" for position in positions)
            text = f"is in {len(group)} folders ({places} of the sorted list) that differ; put the series into one"
            problems.append(Problem(group[0].name, text, positions))
    return problems


def _groups(records: Iterable[VolumeRecord], key: Callable[[VolumeRecord], str]) -> list[list[VolumeRecord]]:
    groups: dict[str, list[VolumeRecord]] = defaultdict(list)
    for record in records:
        if value := key(record):
            groups[value].append(record)
    return [group for group in groups.values() if len(group) > 1]
