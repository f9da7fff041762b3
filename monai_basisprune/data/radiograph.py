"""Reads a DICOM radiograph into numbers of one meaning: [0, 1], brighter is denser, rows first.

MONAI's readers ignore MONOCHROME1, VOI LUT and window, and transpose. Here the order of DICOM's gray scale pipeline
(PS3.4 N.2) is kept: stored values, modality LUT or rescale, VOI LUT or window, then inversion, once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform
from pydicom.dataset import Dataset

from monai_basisprune.data.elements import (
    ImageProblemError,
    element_text,
    parse_dicom,
    read_attributes,
    sop_instance_uid,
)
from monai_basisprune.data.pixels import display_values, header_problems, modality_values, padding_mask, stored_values
from monai_basisprune.errors import CohortError

__all__ = ["LoadRadiographd", "RadiographInfo", "read_radiograph", "render_radiograph"]

_MOST_LEVELS = 1 << 16


@dataclass(frozen=True)
class RadiographInfo:
    """How the numbers of one radiograph came about.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        bits_stored: bits of a stored value.
        photometric_interpretation: "MONOCHROME1" or "MONOCHROME2".
        inverted: whether the gray scale was turned round (MONOCHROME1, or PresentationLUTShape INVERSE).
        modality_transform: "none", "LUT" or "rescale".
        display_transform: "VOI LUT", "window LINEAR", "window LINEAR_EXACT", "window SIGMOID" or "full range".
        low: modality value that maps to 0 before inversion; NaN for a VOI LUT.
        high: modality value that maps to 1 before inversion; NaN for a VOI LUT.
        padded_pixels: number of pixels marked as padding, which are black.
        pixel_spacing: (row, column) in mm, or ``None``.
    """

    rows: int
    columns: int
    bits_stored: int
    photometric_interpretation: str
    inverted: bool
    modality_transform: str
    display_transform: str
    low: float
    high: float
    padded_pixels: int
    pixel_spacing: tuple[float, float] | None


def render_radiograph(dataset: Dataset) -> tuple[npt.NDArray[np.float32], RadiographInfo]:
    """Render a parsed data set; the one path that both the preflight and the training take.

    Args:
        dataset: a parsed DICOM data set.

    Returns:
        As :func:`read_radiograph`.

    Raises:
        ImageProblemError: naming every header problem, or the first one of the pixels; not the image.
    """
    if problems := header_problems(dataset):
        raise ImageProblemError("; ".join(problems))
    stored = stored_values(dataset)
    lowest = min(int(stored.min()), 0)
    if int(stored.max()) - lowest < _MOST_LEVELS:  # far fewer values than pixels: each is computed once
        # PyTorch counts and looks up integers of 32 bits as they are, NumPy would copy them to 64
        places = torch.from_numpy(stored - lowest if lowest else stored).flatten()
        counts = torch.bincount(places).numpy()
        levels = np.flatnonzero(counts) + lowest
    else:
        places, counts, levels = None, np.zeros(0, np.int64), stored
    padding = padding_mask(dataset, levels)
    if padding.all():
        raise ImageProblemError("holds nothing but pixel padding")
    values, modality_transform = modality_values(dataset, levels)
    shown, display_transform, low, high = display_values(dataset, values, ~padding)
    photometric = element_text(dataset, "PhotometricInterpretation")
    # DX files say both MONOCHROME1 and INVERSE, older ones only the first: either means one inversion.
    inverted = photometric == "MONOCHROME1" or element_text(dataset, "PresentationLUTShape") == "INVERSE"
    image = (1.0 - shown if inverted else shown).astype(np.float32)
    image[padding] = 0.0
    if not np.isfinite(image).all():
        raise ImageProblemError("has values that are NaN or infinite")
    padded = int(counts[levels - lowest][padding].sum()) if places is not None else int(padding.sum())
    if places is not None:
        table = np.zeros(len(counts), np.float32)
        table[levels - lowest] = image
        image = torch.index_select(torch.from_numpy(table), 0, places).numpy().reshape(stored.shape)
    info = RadiographInfo(
        rows=image.shape[0],
        columns=image.shape[1],
        bits_stored=int(dataset.BitsStored),
        photometric_interpretation=photometric,
        inverted=inverted,
        modality_transform=modality_transform,
        display_transform=display_transform,
        low=low,
        high=high,
        padded_pixels=padded,
        pixel_spacing=read_attributes(dataset).get("pixel_spacing"),
    )
    return image, info


def read_radiograph(path: str | PathLike[str]) -> tuple[npt.NDArray[np.float32], RadiographInfo]:
    """Read one DICOM radiograph (CR, DX or any single-frame gray image).

    Without a VOI LUT or a window, 0 and 1 are the smallest and largest value of the image itself, padding left out.
    Of several VOI LUTs or windows the first counts; a VOI LUT goes before a window. Pixel padding is black.

    Args:
        path: the file.

    Returns:
        The image, float32 of shape (rows, columns) in [0, 1], brighter is denser; and how it came about.

    Raises:
        CohortError: when the file cannot be used; names the SOPInstanceUID, never the path or the patient.
    """
    name = "the file (no SOPInstanceUID could be read)"
    try:
        dataset = parse_dicom(Path(path))
        name = f"the image with SOPInstanceUID {sop_instance_uid(dataset)}" if sop_instance_uid(dataset) else name
        return render_radiograph(dataset)
    except ImageProblemError as error:
        raise CohortError(f"A radiograph was asked for, but {name} {error}.") from None
    except Exception as error:  # whatever pydicom stumbles over; its own words may quote the file
        raise CohortError(
            f"A radiograph was asked for, but {name} cannot be rendered ({type(error).__name__}); export it again."
        ) from None


class LoadRadiographd(MapTransform):
    """Dictionary transform that replaces the path of a DICOM radiograph by its image; see :func:`read_radiograph`.

    The image is a float32 tensor of shape (1, rows, columns) in [0, 1], brighter is denser: a `MetaTensor` without
    the path or any text of the file (paths can hold names), or a plain tensor when meta tracking is off.

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
            A new dictionary with images in place of the paths.

        Raises:
            CohortError: when a file cannot be used.
        """
        output = dict(data)
        for key in self.key_iterator(output):
            try:
                image, _ = read_radiograph(output[key])
            except CohortError as error:
                case = f" (case_id {data['case_id']})" if "case_id" in data else ""
                raise CohortError(f"{error}{case}") from None
            tensor = torch.from_numpy(image).unsqueeze(0)
            output[key] = MetaTensor(tensor, meta={"original_channel_dim": 0}) if get_track_meta() else tensor
        return output
