"""Reads a volume, a NIfTI file or a folder with one DICOM series, into numbers of one meaning, with its affine.

MONAI's readers let a NaN voxel, a missing affine and a mixture of series through without a word. Here one path reads
for the preflight, for training and for inference, and what it gives has been checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.data.preflight import IGNORED_NAMES, IGNORED_SUFFIXES
from monai_basisprune.data.volume_geometry import voxel_spacing
from monai_basisprune.data.volume_nifti import NIFTI_SUFFIXES, read_nifti
from monai_basisprune.data.volume_series import SeriesHeader, read_series
from monai_basisprune.errors import CohortError, ConfigurationError

__all__ = ["LoadVolumed", "Volume", "is_slice", "parse_volume", "read_volume", "slice_files", "volume_digest"]


@dataclass(frozen=True)
class Volume:
    """One gray volume.

    Attributes:
        values: float32 of shape (H, W, D), as stored; of CT series in Hounsfield units.
        affine: 4 x 4 matrix from voxel indices to mm, RAS.
        series: what its DICOM series says; ``None`` for NIfTI, which holds no patient.
    """

    values: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    series: SeriesHeader | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxels along each axis, in mm."""
        return voxel_spacing(self.affine)


def is_slice(name: str) -> bool:
    """Tell by its name whether a file may be a DICOM slice: not hidden, no table, text, result or NIfTI file."""
    lower = name.lower()
    return not (name.startswith(".") or lower in IGNORED_NAMES or lower.endswith((*IGNORED_SUFFIXES, *NIFTI_SUFFIXES)))


def slice_files(folder: Path) -> list[Path]:
    """List the files of a folder that may be slices of a series, by name; files in subfolders are none of them."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if is_slice(entry.name) and entry.is_file())


def parse_volume(path: Path) -> Volume:
    """Read one volume; the one path that both the preflight and the training take.

    Args:
        path: a NIfTI file, or a folder with the slices of one DICOM series.

    Raises:
        ImageProblemError: naming every problem of its header, or those of its voxels; not the volume.
    """
    if path.is_dir():
        files = slice_files(path)
        if not files:
            raise ImageProblemError("is a folder without DICOM files")
        values, affine, series = read_series(files)
        volume = Volume(values, affine, series)
    elif path.name.lower().endswith(NIFTI_SUFFIXES):
        volume = Volume(*read_nifti(path))
    else:
        raise ImageProblemError(
            f"is neither a folder of DICOM slices nor a file ending in {' or '.join(NIFTI_SUFFIXES)}"
        )
    odd = int(volume.values.size - np.isfinite(volume.values).sum())
    if odd:
        raise ImageProblemError(
            f"has {odd} of {volume.values.size} voxels that are NaN or infinite; repair or leave out the volume"
        )
    if volume.values.min() == volume.values.max():
        raise ImageProblemError("is a constant volume (every voxel has one value)")
    return volume


def volume_digest(volume: Volume) -> str:
    """Return the SHA-256 of shape, affine and voxels, which tells a volume under any name and compression."""
    grid = np.round(volume.affine, 3) + 0.0  # no negative zero
    digest = hashlib.sha256(f"{volume.values.shape} {grid.tolist()}".encode())
    digest.update(volume.values.tobytes())
    return digest.hexdigest()


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read one volume: a NIfTI file (``.nii``, ``.nii.gz``), or a folder with the slices of one DICOM series.

    Everything of which a wrong result could come is refused: NaN voxels, a missing, sheared or impossible affine,
    four dimensions, several series in one folder, missing or uneven slices, a tilted gantry.

    Args:
        path: the file or folder.

    Raises:
        CohortError: when it cannot be used; names neither the path nor the patient.
    """
    try:
        return parse_volume(Path(path))
    except ImageProblemError as error:
        raise CohortError(f"A volume was asked for, but it {error}.") from None
    except Exception as error:  # whatever a reader stumbles over; its own words may quote the file
        raise CohortError(
            f"A volume was asked for, but it cannot be read ({type(error).__name__}); export it again."
        ) from None


class LoadVolumed(MapTransform):
    """Dictionary transform that replaces the path of a volume by its voxels; see :func:`read_volume`.

    The volume is a float32 `MetaTensor` of shape (1, H, W, D) with its affine (RAS), and without the path or any text
    of the file (paths can hold names).

    Args:
        keys: keys of the paths.
        allow_missing_keys: whether a missing key is skipped instead of raised.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key of `data`.

        Args:
            data: a dictionary with paths; where it has a ``case_id``, an error names that too.

        Returns:
            A new dictionary with volumes in place of the paths.

        Raises:
            CohortError: when a volume cannot be used.
            ConfigurationError: when MONAI does not keep affines, without which volumes would be turned wrongly.
        """
        if not get_track_meta():
            raise ConfigurationError(
                "Volumes need their affine, and MONAI's meta data are switched off: call "
                "monai.data.set_track_meta(True) before volumes are read."
            )
        output = dict(data)
        for key in self.key_iterator(output):
            try:
                volume = read_volume(output[key])
            except CohortError as error:
                case = f" (case_id {data['case_id']})" if "case_id" in data else ""
                raise CohortError(f"{error}{case}") from None
            tensor = torch.from_numpy(np.ascontiguousarray(volume.values)).unsqueeze(0)
            meta = {"original_channel_dim": 0, MetaKeys.SPACE: SpaceKeys.RAS}
            output[key] = MetaTensor(tensor, affine=torch.as_tensor(volume.affine), meta=meta)
        return output
