"""Stored pixel values of a DICOM image, and the tables and formulas that turn them into what a radiologist sees.

Numbers follow DICOM PS3.3: modality LUT and rescale (C.11.1), VOI LUT (C.11.2.1.1), windows (C.11.2.1.2 LINEAR,
C.11.2.1.3 SIGMOID and LINEAR_EXACT), pixel padding (C.7.5.1.1.2). pydicom's own lookup wraps around when a table has
fewer bits than the image, so lookup is done here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, RLELossless

from monai_basisprune.data.codestreams import compressed_problem
from monai_basisprune.data.elements import ImageProblemError, element_integer, element_number, element_text, is_uid

__all__ = ["display_values", "header_problems", "modality_values", "padding_mask", "stored_values"]

_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "ARGB", "CMYK", "HSV")
MOST_PIXELS = 1 << 26
"""More than any detector or film scanner gives, and little enough to be decoded on a small computer."""

_WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.signedinteger[Any]]
Mask = npt.NDArray[np.bool_]


def _syntax_problem(dataset: Dataset) -> str | None:
    meta = getattr(dataset, "file_meta", None)
    text = "" if meta is None else element_text(meta, "TransferSyntaxUID")
    syntax = UID(text if is_uid(text) else "")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return "has no transfer syntax, or none of a still image; export it again as Explicit VR Little Endian"
    if decoder.is_available:
        return None
    return (
        f"is compressed as {syntax.name} ({syntax}) and no decoder for it is installed; "
        "run: pip install monai-basisprune[codecs]"
    )


def header_problems(dataset: Dataset) -> list[str]:
    """List what the header says against using an image as one gray radiograph, all of it, before decoding.

    Args:
        dataset: a parsed DICOM data set.

    Returns:
        Sentences without a subject; empty when the pixels may be decoded.
    """
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            return ["holds floating point pixels, which are not supported; export it as integers with a rescale"]
        return ["holds no image (no PixelData); if it should, it was cut short: copy it again, else move it out"]
    problems = []
    frames = element_number(dataset, "NumberOfFrames")
    if frames is not None and frames != 1:
        problems.append("is a multi-frame image (NumberOfFrames is not 1); export each frame as a file of its own")
    photometric = element_text(dataset, "PhotometricInterpretation")
    if element_integer(dataset, "SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = photometric if photometric in (*_COLORS, "MONOCHROME1", "MONOCHROME2") else "an unknown value"
        samples = element_integer(dataset, "SamplesPerPixel")
        problems.append(
            f"is a color image or not gray (SamplesPerPixel {samples}, PhotometricInterpretation {found}); "
            "expected 1 sample of MONOCHROME1 or MONOCHROME2"
        )
    allocated, stored, high = (element_integer(dataset, key) for key in ("BitsAllocated", "BitsStored", "HighBit"))
    signed, rows, columns = (element_integer(dataset, key) for key in ("PixelRepresentation", "Rows", "Columns"))
    if allocated not in (8, 16, 32) or not stored or high is None or not stored <= high + 1 <= allocated:
        problems.append(
            f"has an impossible pixel layout (BitsAllocated {allocated}, BitsStored {stored}, HighBit {high})"
        )
    if signed not in (0, 1) or not rows or not columns:
        problems.append(f"lacks its size or sign (Rows {rows}, Columns {columns}, PixelRepresentation {signed})")
    elif rows * columns > MOST_PIXELS:
        problems.append(f"is too large to be one radiograph ({rows} x {columns} pixels, at most {MOST_PIXELS})")
    elif allocated is not None and (problem := compressed_problem(dataset, rows, columns, allocated // 8)):
        problems.append(problem)
    for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        number = element_number(dataset, keyword)
        if number is not None and not math.isfinite(number):
            problems.append(f"has a {keyword} that is not a finite number (NaN, infinite or text)")
    if element_number(dataset, "RescaleSlope") == 0:
        problems.append("has a RescaleSlope of 0, which erases the image")
    if (element_number(dataset, "WindowCenter") is None) != (element_number(dataset, "WindowWidth") is None):
        problems.append("has only one of WindowCenter and WindowWidth; both are needed")
    if element_text(dataset, "VOILUTFunction") not in ("", *_WINDOW_FUNCTIONS):
        problems.append(f"has an unknown VOILUTFunction; known are {', '.join(_WINDOW_FUNCTIONS)}")
    if element_text(dataset, "PresentationLUTShape") not in ("", "IDENTITY", "INVERSE"):
        problems.append("has an unknown PresentationLUTShape; known are IDENTITY, INVERSE")
    if "PresentationLUTSequence" in dataset:
        problems.append("has a PresentationLUTSequence, which is not supported")
    if syntax_problem := _syntax_problem(dataset):
        problems.append(syntax_problem)
    return problems


def stored_values(dataset: Dataset) -> Integers:
    """Decode the pixels of a data set whose header has no problems.

    Bits outside BitsStored (overlays, garbage) are removed; signed values are extended from BitsStored.

    Args:
        dataset: a parsed DICOM data set.

    Returns:
        Integers of shape (rows, columns), of 32 bits, or 64 where 32 are allocated.

    Raises:
        ImageProblemError: when the pixels cannot be decoded or do not fit the header.
    """
    try:
        array = pixel_array(dataset, raw=True, correct_unused_bits=False, view_only=True)
    except Exception as error:
        reason = "shorter than its header says, or damaged" if isinstance(error, ValueError) else "damaged or cut short"
        raise ImageProblemError(f"has pixels that cannot be decoded ({reason}); copy or export it again") from None
    if array.shape != (dataset.Rows, dataset.Columns):
        raise ImageProblemError(f"decodes to shape {array.shape}, its header says ({dataset.Rows}, {dataset.Columns})")
    values: Integers = array.astype(np.int32 if array.dtype.itemsize < 4 else np.int64)
    bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless or not syntax.is_encapsulated:
        values >>= int(dataset.HighBit) + 1 - bits
    elif not signed and int(values.max()) >> bits:
        # A JPEG with more bits than the header declares: masking would wrap bright pixels to black.
        raise ImageProblemError(f"holds values above its BitsStored of {bits}; export it again")
    values &= (1 << bits) - 1
    if signed:
        values -= (values >> (bits - 1)) << bits
    return values


def padding_mask(dataset: Dataset, stored: Integers) -> Mask:
    """Mark pixels outside the radiograph: equal to PixelPaddingValue, or between it and PixelPaddingRangeLimit.

    Args:
        dataset: a parsed DICOM data set.
        stored: its stored values.

    Returns:
        True at padding, same shape as `stored`.
    """
    value = element_integer(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = element_integer(dataset, "PixelPaddingRangeLimit")
    if dataset.PixelRepresentation == 1:  # an implicit file may deliver the two as unsigned
        value, limit = (None if v is None else v - 65536 if v > 32767 else v for v in (value, limit))
        assert value is not None
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _look_up(dataset: Dataset, name: str, values: Integers) -> tuple[Floats, int]:
    """Apply a Modality or VOI LUT: values below the table take its first entry, above it the last (C.11.1.1)."""
    try:
        item = dataset[name].value[0]
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        count, first, bits = (int(part) for part in item.LUTDescriptor)
        count = count or 65536
        data = item["LUTData"].value
        words = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.asarray(data)
        wide = words.astype("<u2").reshape(-1)
        # Tables of 8 bits may be packed two to a word.
        entries = wide if wide.size >= count else wide.view("u1")
        if not 1 <= bits <= 16 or entries.size < count:
            raise ValueError
    except Exception:
        raise ImageProblemError(f"has a {name} that cannot be read (descriptor and data do not agree)") from None
    if first > 32767 and values.min() < 0:  # the first mapped value of signed input, delivered as unsigned
        first -= 65536
    entries = entries[:count].astype(np.float64)
    bits = max(bits, math.ceil(math.log2(entries.max() + 1)))
    return entries[np.clip(values - first, 0, count - 1)], bits


def modality_values(dataset: Dataset, stored: Integers) -> tuple[Floats, str]:
    """Apply the Modality LUT, or rescale slope and intercept (absent ones are 1 and 0).

    Args:
        dataset: a parsed DICOM data set.
        stored: its stored values.

    Returns:
        Values of the same shape, and the name of what was applied ("none", "LUT", "rescale").

    Raises:
        ImageProblemError: when a value is no longer finite or a table cannot be read.
    """
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, "ModalityLUTSequence", stored)[0], "LUT"
    slope, intercept = element_number(dataset, "RescaleSlope"), element_number(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return stored.astype(np.float64), "none"
    with np.errstate(over="ignore", invalid="ignore"):
        values: Floats = stored.astype(np.float64) * (1.0 if slope is None else slope) + (
            0.0 if intercept is None else intercept
        )
    if not np.isfinite(values).all():
        raise ImageProblemError("has values that are NaN or infinite after rescale")
    return values, "rescale"


def _window(values: Floats, center: float, width: float, function: str) -> tuple[Floats, float, float]:
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ImageProblemError(f"has a WindowWidth too small for the VOILUTFunction {function}")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width)), center - width / 2, center + width / 2
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    low, high = center - width / 2, center + width / 2
    if width == 0:
        return (values > center).astype(np.float64), low, high
    return np.clip((values - low) / width, 0.0, 1.0), low, high


def display_values(dataset: Dataset, values: Floats, valid: Mask) -> tuple[Floats, str, float, float]:
    """Map modality values to [0, 1]: the first VOI LUT, else the first window, else the image's own full range.

    Args:
        dataset: a parsed DICOM data set.
        values: its modality values, shape (rows, columns).
        valid: False at padding, which does not count for the range.

    Returns:
        Values in [0, 1], the name of the mapping, and the modality values that 0 and 1 stand for (of a LUT: NaN).

    Raises:
        ImageProblemError: when the mapping is unreadable or the image is constant.
    """
    if dataset.get("VOILUTSequence"):
        entries, bits = _look_up(dataset, "VOILUTSequence", np.rint(values).astype(np.int64))
        shown, name, low, high = entries / (2**bits - 1), "VOI LUT", math.nan, math.nan
    elif (center := element_number(dataset, "WindowCenter")) is not None:
        width = element_number(dataset, "WindowWidth")
        assert width is not None
        function = element_text(dataset, "VOILUTFunction") or "LINEAR"
        shown, low, high = _window(values, center, width, function)
        name = f"window {function}"
    else:
        low, high = float(values[valid].min()), float(values[valid].max())
        if low == high:
            raise ImageProblemError("is a constant image (every pixel has one value)")
        shown, name = np.clip((values - low) / (high - low), 0.0, 1.0), "full range"
    inside: Sequence[float] | Floats = shown[valid]
    if np.ptp(inside) == 0:
        raise ImageProblemError(f"is a constant image after its {name} (every pixel has one value)")
    return shown, name, low, high
