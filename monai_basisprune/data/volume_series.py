"""Puts the slices of one DICOM series together, by their positions, or says why they are no volume.

MONAI's readers merge several series of a folder, drop slices without InstanceNumber, and take the spacing between the
first two slices for all; here each of that is a problem with a name.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from monai_basisprune.data.elements import (
    ImageProblemError,
    element_integer,
    element_text,
    is_uid,
    parse_dicom,
    read_attributes,
    sop_instance_uid,
)
from monai_basisprune.data.identifiers import remember_dataset
from monai_basisprune.data.pixels import header_problems, modality_values, padding_mask, stored_values
from monai_basisprune.data.volume_geometry import geometry_problems, size_problems

__all__ = ["SeriesHeader", "read_series"]

_FEWEST_SLICES = 4
_MOST_UNEVEN = 0.05  # of the distance between slices
_MOST_TILT = 1.0  # degrees
_MOST_BYTES = 2**32
_COMMON = (
    *("Rows", "Columns", "PixelSpacing", "Modality", "FrameOfReferenceUID"),
    *("PhotometricInterpretation", "RescaleType"),
)

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeriesHeader:
    """Who and what a series is of; identifying values are kept out of ``repr``.

    Attributes:
        series: SeriesInstanceUID; empty when it is none.
        patient_id: PatientID as written.
        birth_date: PatientBirthDate as written.
        modality: as written.
        attributes: see `read_attributes`.
    """

    series: str = field(repr=False)
    patient_id: str = field(repr=False)
    birth_date: str = field(repr=False)
    modality: str
    attributes: dict[str, Any]


def read_series(
    paths: Sequence[Path],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], SeriesHeader]:
    """Read the files of one folder as one volume, in the units of the modality (CT: Hounsfield units).

    Args:
        paths: the files, in any order.

    Returns:
        Voxels, float32 of shape (columns, rows, slices); the 4 x 4 affine to mm, RAS; and what the series says.

    Raises:
        SeriesProblemError: when they are no volume; with every reason, and what is known of the series.
    """
    if sum(path.stat().st_size for path in paths) > _MOST_BYTES:
        raise SeriesProblemError(f"is larger than {_MOST_BYTES >> 30} GiB; take out what is not of the series", None)
    datasets, problems = _parse(paths)
    if not datasets:
        raise SeriesProblemError("; ".join(problems), None)
    for dataset in datasets:
        remember_dataset(dataset)
    first = datasets[0]
    uid = element_text(first, "SeriesInstanceUID")
    header = SeriesHeader(
        series=uid if is_uid(uid) else "",
        patient_id=element_text(first, "PatientID"),
        birth_date=element_text(first, "PatientBirthDate"),
        modality=element_text(first, "Modality"),
        attributes={key: value for key, value in read_attributes(first).items() if key != "pixel_spacing"},
    )
    problems += _header_problems(datasets)
    if not problems:
        order, affine, problems = _geometry(datasets)
    if not problems:
        problems = geometry_problems((int(first.Columns), int(first.Rows), len(datasets)), affine)
    if problems:
        raise SeriesProblemError("; ".join(problems), header)
    volume = np.empty((int(first.Columns), int(first.Rows), len(datasets)), dtype=np.float32)
    padded = np.zeros(volume.shape, dtype=bool)
    for place, index in enumerate(order):
        stored = stored_values(datasets[index])
        values, _ = modality_values(datasets[index], stored)
        volume[..., place], padded[..., place] = values.T, padding_mask(datasets[index], stored).T
    if padded.all():
        raise SeriesProblemError("holds nothing but pixel padding", header)
    volume[padded] = volume[~padded].min()
    return volume, affine, header


class SeriesProblemError(ImageProblemError):
    """Why the slices of a folder are no volume, with what is known of their series. Stays inside `data`.

    Args:
        text: the reasons.
        header: what the series says of itself.
    """

    def __init__(self, text: str, header: SeriesHeader | None) -> None:
        super().__init__(text)
        self.header = header


def _parse(paths: Sequence[Path]) -> tuple[list[Dataset], list[str]]:
    datasets, found = [], Counter[str]()
    for path in paths:
        try:
            datasets.append(parse_dicom(path))
        except ImageProblemError as error:
            found[str(error)] += 1
    return datasets, _counted(found, len(paths), "files")


def _counted(found: Counter[str], total: int, what: str = "slices") -> list[str]:
    return [f"has {count} of {total} {what} that cannot be used: each {text}" for text, count in found.items()]


def _header_problems(datasets: Sequence[Dataset]) -> list[str]:
    """List what the headers say against one volume, before any pixel is decoded."""
    total = len(datasets)
    series = Counter(element_text(dataset, "SeriesInstanceUID") for dataset in datasets)
    if len(series) > 1:
        return [
            f"mixes {len(series)} series in one folder ({', '.join(map(str, sorted(series.values())))} slices); put "
            "each series into a folder of its own"
        ]
    if len({element_text(dataset, "PatientID") for dataset in datasets}) > 1:
        return ["mixes files of several patients in one series; export it again"]
    if total < _FEWEST_SLICES:
        return [f"has {total} slices, expected at least {_FEWEST_SLICES}; is the series complete?"]
    problems = _counted(Counter(text for dataset in datasets for text in header_problems(dataset)), total)
    uids = Counter(sop_instance_uid(dataset) or _fingerprint(dataset) for dataset in datasets)
    if copies := sum(uids.values()) - len(uids):
        problems.append(f"holds {copies} slices twice (same SOPInstanceUID); keep one of each")
    for keyword in _COMMON:
        if len({element_text(dataset, keyword) for dataset in datasets}) > 1:
            problems.append(f"has slices that differ in {keyword}; export one series of equal slices")
    plain = sum(_is_unscaled(dataset) for dataset in datasets)
    if plain and (plain < total or element_text(datasets[0], "Modality") == "CT"):
        problems.append(
            f"has {plain} of {total} slices without RescaleSlope and RescaleIntercept, so what their numbers mean is "
            "unknown; export it again"
        )
    if not is_uid(next(iter(series))):
        problems.append("has no valid SeriesInstanceUID")
    rows, columns = (element_integer(datasets[0], keyword) or 0 for keyword in ("Rows", "Columns"))
    return problems + (size_problems((columns, rows, total)) if rows and columns else [])


def _is_unscaled(dataset: Dataset) -> bool:
    return not any(word in dataset for word in ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"))


def _fingerprint(dataset: Dataset) -> str:
    return hashlib.sha256(dataset.get("PixelData", b"")).hexdigest()


def _numbers(dataset: Dataset, keyword: str, count: int) -> list[float] | None:
    """Return an element of several numbers, all finite, or ``None``."""
    try:
        values = [float(part) for part in element_text(dataset, keyword).split("\\")]
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _geometry(datasets: Sequence[Dataset]) -> tuple[list[int], Vectors, list[str]]:
    """Order the slices by position; returns their order, the affine, and what is wrong with the positions."""
    total, nothing = len(datasets), np.eye(4)
    positions = [_numbers(dataset, "ImagePositionPatient", 3) for dataset in datasets]
    directions = [_numbers(dataset, "ImageOrientationPatient", 6) for dataset in datasets]
    spacing = _numbers(datasets[0], "PixelSpacing", 2)
    problems = [
        f"has {missing} of {total} slices without {what}, so their order is unknown; export it again"
        for what, missing in (
            ("position (ImagePositionPatient)", positions.count(None)),
            ("orientation (ImageOrientationPatient)", directions.count(None)),
        )
        if missing
    ]
    if spacing is None or min(spacing) <= 0:
        problems.append("has no PixelSpacing above 0; export it again")
    if problems or spacing is None:
        return [], nothing, problems
    places, turns = np.array(positions, dtype=np.float64), np.array(directions, dtype=np.float64)
    along_row, along_column = turns[0, :3], turns[0, 3:]
    if np.abs(turns - turns[0]).max() > 1e-3:
        return [], nothing, ["has slices of different orientation (a localizer among them?); export one series"]
    normal = np.cross(along_row, along_column)
    if not np.allclose([np.linalg.norm(one) for one in (along_row, along_column, normal)], 1, atol=1e-2):
        return [], nothing, ["has an ImageOrientationPatient that is no rotation; export it again"]
    order = np.argsort(places @ normal, kind="stable").tolist()
    places = places[order]
    if problems := _distance_problems(places, normal):
        return [], nothing, problems
    affine = np.eye(4)
    # the first axis of the array runs along a row of the image, the second along a column
    affine[:3, 0], affine[:3, 1] = along_row * spacing[1], along_column * spacing[0]
    affine[:3, 2], affine[:3, 3] = (places[-1] - places[0]) / (total - 1), places[0]
    return order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, []


def _distance_problems(places: Vectors, normal: Vectors) -> list[str]:
    """Say what is wrong with the distances of ordered slices."""
    steps = np.diff(places, axis=0)
    heights = steps @ normal
    usual = float(np.median(heights))
    if (heights < 1e-3).any():
        return [
            f"has {int((heights < 1e-3).sum())} slices at a position that another one has (several phases or echoes?); "
            "export each as a series of its own"
        ]
    off = np.abs(heights - usual) > _MOST_UNEVEN * usual
    if off.any():
        times = heights[off] / usual
        whole = (np.abs(times - np.rint(times)) <= 2 * _MOST_UNEVEN * np.rint(times)) & (times > 1.5)
        if whole.all():
            missing = int(np.rint(times).sum() - len(times))
            return [f"lacks {missing} slices between those that it has ({usual:.3g} mm apart); export it completely"]
        return [
            f"has uneven distances between slices ({heights.min():.3g} to {heights.max():.3g} mm); export an evenly "
            "spaced reconstruction"
        ]
    lengths = np.linalg.norm(steps, axis=1)
    tilt = math.degrees(math.acos(min(1.0, float((heights / lengths).min()))))
    if tilt > _MOST_TILT:
        return [f"was made with a tilted gantry ({tilt:.1f} degrees); export a reconstruction without tilt"]
    return []
