"""Reads a NIfTI volume with its header checked first: nothing is allocated that the header does not justify.

nibabel decodes headers; the voxels are read here, from exactly as many bytes as the header says, so that a file that
is cut short, or that unpacks to more than it should, is found out.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.data.volume_geometry import geometry_problems, size_problems

__all__ = ["NIFTI_SUFFIXES", "read_nifti"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Endings of the files that are read as NIfTI, in any case."""

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_PAIR = "is one half of a pair (.hdr and .img); convert the pair to one .nii.gz"
_MOST_EXTENSION = 2**24  # bytes between header and voxels
_PIECE = 2**24
_UNITS = {"meter": "meters", "micron": "micrometers"}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
_CUT = "is cut short or damaged: its header promises more than the file holds, or its checksum is wrong; copy it again"


def read_nifti(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Read the voxels and the affine of one gray NIfTI-1 or NIfTI-2 volume.

    Axes of one voxel behind the third are removed.

    Args:
        path: the file, ``.nii`` or ``.nii.gz``.

    Returns:
        Voxels, float32, as the array is stored; and the 4 x 4 affine to mm, RAS.

    Raises:
        ImageProblemError: when the file cannot be used; without its name.
    """
    try:
        with open(path, "rb") as raw:
            start = raw.read(2)
            raw.seek(0)
            if not start:
                raise ImageProblemError("is empty (0 bytes); copy it again")
            if start == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as file:
                    return _read(cast("IO[bytes]", file))
            return _read(raw)
    except _DAMAGED:
        raise ImageProblemError(_CUT) from None
    except OSError as error:
        raise ImageProblemError(
            f"cannot be opened ({type(error).__name__}); check that it exists and is readable"
        ) from None


def _read(file: IO[bytes]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    header, used = _read_header(file)
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    problems, affine = _header_problems(header, shape)
    if problems:
        raise ImageProblemError("; ".join(problems))
    dtype = header.get_data_dtype()
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    file.read(int(header["vox_offset"]) - used)
    content = _read_exactly(file, size)
    file.read(1)  # at the end of a compressed file, its checksum is compared
    slope, inter = header.get_slope_inter()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by who reads the file
        values = np.frombuffer(content, dtype).reshape(shape, order="F").astype(np.float32)
        if slope is not None:
            values = values * np.float32(slope) + np.float32(inter)
    return values, affine


def _read_exactly(file: IO[bytes], size: int) -> bytearray:
    """Read in pieces, so that no memory is taken for what a file only promises."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(min(_PIECE, size - len(content)))
        if not piece:
            raise ImageProblemError(_CUT)
        content += piece
    return content


def _read_header(file: IO[bytes]) -> tuple[Any, int]:
    """Return the header and how many bytes it took."""
    start = file.read(4)
    for length, kind in _HEADERS.items():
        orders = {length.to_bytes(4, "little"): "<", length.to_bytes(4, "big"): ">"}
        if start in orders:
            content = start + file.read(length - 4)
            if len(content) < length:
                raise ImageProblemError(_CUT)
            magic = content[344:348] if length == 348 else content[4:8]
            if magic[:3] in (b"ni1", b"ni2"):
                raise ImageProblemError(_PAIR)
            if magic[:3] != (b"n+1" if length == 348 else b"n+2"):
                break
            return kind(content, orders[start], check=False), length
    raise ImageProblemError(
        "is not a NIfTI file (wrong magic: neither 'n+1' nor 'n+2'); convert it to NIfTI, or correct its ending"
    )


def _header_problems(header: Any, shape: tuple[int, ...]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """List everything that the header says against the volume, before its voxels are read; returns the affine, too."""
    problems = []
    size = " x ".join(str(length) for length in shape)
    if not shape or min(shape) < 1:
        problems.append(f"has an impossible size in its header ({size or 'none'}); copy it again")
    elif len(shape) != 3:
        problems.append(
            f"is {len(shape)}D ({size}), expected one gray volume of three dimensions; take one volume out of it"
        )
    if shape and min(shape) > 0:
        problems += size_problems(shape)
    dtype = None
    with suppress(Exception):  # nibabel raises several types for an unknown code
        dtype = header.get_data_dtype()
    if dtype is None or dtype.names is not None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        problems.append("holds no gray numbers (color, complex or unknown data type); expected integers or floats")
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) <= offset <= _MOST_EXTENSION:
        problems.append("has an impossible place of its voxels in the header (vox_offset); copy it again")
    try:
        endless = bool(np.isinf(header["scl_slope"]))  # NaN is how programs write that there is none
        header.get_slope_inter()
    except HeaderDataError:
        endless = True
    if endless:
        problems.append("has a scaling in its header that is not finite (scl_slope, scl_inter); correct it")
    affine, missing = _affine(header)
    if missing:
        problems.append(missing)
    elif len(shape) == 3:
        problems += geometry_problems(shape, affine)
        if _mirrored(header, affine):
            problems.append(
                "has a qform and an sform of which one is the mirror image of the other, so left and right are "
                "unknown; write it again with the affine of the scanner"
            )
    with suppress(Exception):
        unit = header.get_xyzt_units()[0]
        if unit in _UNITS:
            problems.append(f"has its affine in {_UNITS[unit]}; write it again in mm")
    return problems, affine


def _mirrored(header: Any, affine: npt.NDArray[np.float64]) -> bool:
    """Tell whether the qform contradicts the affine about left and right; no registration turns one into the other."""
    if int(header["qform_code"]) <= 0:
        return False
    try:
        other = np.asarray(header.get_qform(), dtype=np.float64)
    except Exception:  # a qform that is none says nothing
        return False
    return bool(np.linalg.det(affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0)


def _affine(header: Any) -> tuple[npt.NDArray[np.float64], str | None]:
    """Return the affine of the sform, else that of the qform; nibabel would make one up where both are missing."""
    try:
        if int(header["sform_code"]) > 0:
            return np.asarray(header.get_sform(), dtype=np.float64), None
        if int(header["qform_code"]) > 0:
            return np.asarray(header.get_qform(), dtype=np.float64), None
    except Exception:  # nibabel: a quaternion that is none, NaN
        return np.full((4, 4), np.nan), "has a qform that is no rotation; write it again with the affine of the scanner"
    return np.eye(4), (
        "has no affine (sform_code and qform_code are 0), so left and right are unknown; write it again with the "
        "affine of the scanner"
    )
