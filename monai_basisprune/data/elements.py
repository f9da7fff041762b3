"""Careful access to DICOM elements: nothing that a file holds as free text reaches a message, a warning or a log.

pydicom puts the value of a malformed element, and the name of a truncated file, into its warnings and errors. Here a
file is parsed from memory, text and numbers are read from the raw bytes, and every failure is reported in our words.
"""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_basisprune.errors import BasisPruneError
from monai_basisprune.reading import read_bytes

__all__ = [
    "KNOWN_MANUFACTURERS",
    "ImageProblemError",
    "element_integer",
    "element_number",
    "element_text",
    "is_uid",
    "parse_dicom",
    "parse_header",
    "read_attributes",
    "sop_instance_uid",
]

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_AGE_UNITS = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_OLDEST = 90
_MOST_BYTES, _BLOCK = 512 << 20, 1 << 20
KNOWN_MANUFACTURERS = (
    "Agfa",
    "Canon",
    "Carestream",
    "DRTECH",
    "Fujifilm",
    "GE",
    "Hologic",
    "Kodak",
    "Konica",
    "Lodox",
    "Philips",
    "Samsung",
    "Shimadzu",
    "Siemens",
    "Swissray",
    "Toshiba",
    "Varian",
    "Vieworks",
    "Villa",
    "Synthetic A",
    "Synthetic B",
    "Synthetic C",
)
"""Manufacturers that may be written into a datalist; any other text of that free-text element becomes ``"other"``."""

_VIEWS = ("PA", "AP", "LL", "RL", "LAT", "LATERAL", "LLD", "RLD", "LLO", "RLO", "AP AXIAL", "ML", "MLO", "CC", "LM")


class ImageProblemError(BasisPruneError):
    """What makes one image unusable, without a word of which image; the caller adds the name. Stays inside `data`."""


_LARGE_VALUE = 1 << 16  # bytes; larger values are pixels


def parse_dicom(path: Path) -> Dataset:
    """Parse a DICOM file from memory.

    Args:
        path: the file.

    Returns:
        The data set, its pixels not yet decoded.

    Raises:
        ImageProblemError: when the file cannot be opened or is not DICOM.
    """
    try:
        content = read_bytes(path, _MOST_BYTES)
    except OSError as error:
        raise ImageProblemError(
            f"cannot be opened ({type(error).__name__}); check that it exists and is readable"
        ) from None
    except ValueError as error:
        raise ImageProblemError(f"cannot be one image: {error}; take it out of the folder") from None
    if not content:
        raise ImageProblemError("is empty (0 bytes); copy it again")
    return _parse(io.BytesIO(content))


def parse_header(path: Path) -> Dataset:
    """Parse all of a DICOM file but its large values, which are not read from the disk.

    Args:
        path: the file.

    Returns:
        The data set; it tells that there are pixels, but they cannot be had from it.

    Raises:
        ImageProblemError: when the file cannot be opened or is not DICOM.
    """
    try:
        # opened by number, so that no name of a file is there to be quoted
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ImageProblemError("is empty (0 bytes); copy it again")
            return _parse(file, defer_size=_LARGE_VALUE)
    except OSError as error:
        raise ImageProblemError(
            f"cannot be opened ({type(error).__name__}); check that it exists and is readable"
        ) from None


def _parse(file: BinaryIO, **options: Any) -> Dataset:
    try:
        _check_inflated_size(file)
        return pydicom.dcmread(file, **options)
    except ImageProblemError:
        raise
    except InvalidDicomError:
        raise ImageProblemError(
            "is not a DICOM file (no 'DICM' marker at byte 128); convert it to DICOM or move it out of the folder"
        ) from None
    except Exception as error:
        raise ImageProblemError(
            f"cannot be parsed as DICOM ({type(error).__name__}); copy or export it again"
        ) from None


def _check_inflated_size(file: BinaryIO) -> None:
    """Refuse a file that is compressed as a whole and would grow without bounds; pydicom unpacks it in one go."""
    if file.read(132)[128:] == b"DICM":
        # the group of its own header is not compressed
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        if element_text(meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while (packed := inflater.unconsumed_tail or file.read(_BLOCK)) and size <= _MOST_BYTES:
                size += len(inflater.decompress(packed, _BLOCK))
            if size > _MOST_BYTES:
                raise ImageProblemError(
                    f"would unpack to more than {_MOST_BYTES >> 20} MiB; export it again as Explicit VR Little Endian"
                )
    file.seek(0)


def element_text(dataset: Dataset, keyword: str) -> str:
    """Return the text of an element, stripped; empty when absent. Several values stay joined by a backslash."""
    try:
        element = dataset.get_item(keyword)
        value: Any = None if element is None else element.value
    except Exception:  # pydicom converts here what it had to look into, and its errors quote the value
        return ""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            text = value.decode("latin-1")
    elif isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        text = "\\".join(str(part) for part in value)
    else:
        text = str(value)
    return text.strip(" \0\r\n\t")


def element_number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of a decimal or integer string: ``None`` when absent, NaN when it is not a number."""
    text = element_text(dataset, keyword).split("\\")[0].strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return math.nan


def element_integer(dataset: Dataset, keyword: str) -> int | None:
    """Return a binary integer element (US or SS); ``None`` when it is absent or malformed."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, bytes):
            return int.from_bytes(value[:2], "little") if value else None
        return None if value is None else int(value)
    except Exception:  # pydicom converts here, and its errors quote the value
        return None


def is_uid(text: str) -> bool:
    """Tell whether a text is a DICOM unique identifier: digits and dots, at most 64 characters."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def sop_instance_uid(dataset: Dataset) -> str | None:
    """Return the SOPInstanceUID, or ``None`` when it is absent or not a valid identifier."""
    text = element_text(dataset, "SOPInstanceUID")
    return text if is_uid(text) else None


def _age(dataset: Dataset) -> int | None:
    match = _AGE.fullmatch(element_text(dataset, "PatientAge").upper())
    if match:
        years = int(match[1]) / _AGE_UNITS[match[2]]
    else:
        birth, study = element_text(dataset, "PatientBirthDate"), element_text(dataset, "StudyDate")
        if not (re.fullmatch(r"\d{8}", birth) and re.fullmatch(r"\d{8}", study)):
            return None
        years = (int(study) - int(birth)) / 10000
    return min(int(years), _OLDEST) if 0 <= years < 130 else None


def _pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            row, column = (float(part) for part in element_text(dataset, keyword).split("\\"))
        except ValueError:
            continue
        if 0 < row < math.inf and 0 < column < math.inf:
            return row, column
    return None


def read_attributes(dataset: Dataset) -> dict[str, Any]:
    """Read what an audit by subgroup needs, as closed vocabularies so that no free text gets through.

    Args:
        dataset: a parsed DICOM data set.

    Returns:
        Only those present: ``sex`` ("F", "M", "O"), ``age`` (whole years; 90 stands for 90 and older, which would
        otherwise identify), ``manufacturer`` (one of :data:`KNOWN_MANUFACTURERS` or "other"), ``view_position`` (a
        known code or "other"), ``pixel_spacing`` (row, column) in mm.
    """
    found: dict[str, Any] = {}
    sex = element_text(dataset, "PatientSex").upper()
    if sex in ("F", "M", "O"):
        found["sex"] = sex
    if (age := _age(dataset)) is not None:
        found["age"] = age
    if text := element_text(dataset, "Manufacturer"):
        words = re.sub(r"[^a-z0-9 ]", " ", text.lower()) + " "
        found["manufacturer"] = next(
            (name for name in KNOWN_MANUFACTURERS if words.startswith(name.lower()) and _ends(words, name)), "other"
        )
    if view := element_text(dataset, "ViewPosition").upper():
        found["view_position"] = view if view in _VIEWS else "other"
    if spacing := _pixel_spacing(dataset):
        found["pixel_spacing"] = spacing
    return found


def _ends(words: str, name: str) -> bool:
    """A short name such as GE must be a whole word; a longer one may go on ("Agfa-Gevaert", "FujifilmCorp")."""
    return len(name) > 3 or words[len(name)] == " "
