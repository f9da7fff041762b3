"""Where the voxels of a volume lie in the patient, and whether that can be true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

__all__ = ["MOST_VOXELS", "geometry_problems", "resampled_shape", "size_problems", "turned_to_ras", "voxel_spacing"]

MOST_VOXELS = 2**29
"""Most voxels of a volume, 1024 slices of 724 x 724: what more a header promises is not read, and not allocated."""

MOST_ANISOTROPY = 16.0
"""Largest ratio of the spacings of a volume: 0.5 mm in the slice and 8 mm between slices."""

_MOST_LENGTH = 4000.0  # mm, twice a person
_FEWEST_VOXELS = 4
_MOST_SHEAR = 0.02  # cosine of an angle between axes that should be right: 1.1 degrees

Affine = npt.NDArray[np.floating[Any]]


def voxel_spacing(affine: Affine) -> tuple[float, float, float]:
    """Return the distance between voxels along each axis of the array, in mm.

    Args:
        affine: 4 x 4 matrix from voxel indices to mm.
    """
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0).tolist()
    return x, y, z


def size_problems(shape: Sequence[int]) -> list[str]:
    """List what a header says against the size of a volume, before anything is allocated.

    Args:
        shape: number of voxels along each axis.

    Returns:
        Sentences without a subject.
    """
    size = " x ".join(str(length) for length in shape)
    if len(shape) == 3 and min(shape) < _FEWEST_VOXELS:
        return [f"is no volume: its size is {size}, expected at least {_FEWEST_VOXELS} along each axis"]
    if math.prod(shape) > MOST_VOXELS:
        return [
            f"is too large: its header says {size} voxels, at most {MOST_VOXELS} are read; resample it, or copy it "
            "again if its header is damaged"
        ]
    return []


def geometry_problems(shape: Sequence[int], affine: Affine) -> list[str]:
    """List what an affine says against using a volume.

    Args:
        shape: number of voxels along each of the three axes.
        affine: 4 x 4 matrix from voxel indices to mm.

    Returns:
        Sentences without a subject.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    again = "write it again with the affine of the scanner"
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return [f"has an affine that is not finite (NaN or infinite); {again}"]
    spacing = voxel_spacing(matrix)
    shown = " x ".join(f"{one:.3g}" for one in spacing)
    if min(spacing) <= 0 or abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
        return [f"has an affine without three directions (spacing {shown} mm); {again}"]
    problems = []
    if max(spacing) > MOST_ANISOTROPY * min(spacing):
        problems.append(
            f"is too anisotropic: its spacing is {shown} mm, a ratio of {max(spacing) / min(spacing):.0f} where "
            f"at most {MOST_ANISOTROPY:.0f} is accepted; take a thinner reconstruction, or correct the affine"
        )
    if max(one * length for one, length in zip(spacing, shape, strict=True)) > _MOST_LENGTH:
        problems.append(
            f"has an affine that cannot be in mm: its spacing is {shown} mm, so it is longer than "
            f"{_MOST_LENGTH / 1000:.0f} m; correct the affine"
        )
    directions = matrix[:3, :3] / spacing
    shear = np.abs(directions.T @ directions - np.eye(3)).max()
    if shear > _MOST_SHEAR:
        angle = abs(90 - math.degrees(math.acos(min(1.0, float(shear)))))
        problems.append(
            f"has a sheared affine: its axes are off by {angle:.1f} degrees from being square, as after a tilted "
            "gantry; resample it to a square grid"
        )
    return problems


def turned_to_ras(shape: Sequence[int], affine: Affine) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return size and spacing along the axes from left to right, from back to front, and from foot to head."""
    axes = io_orientation(affine)[:, 0].astype(int).tolist()
    own = voxel_spacing(affine)
    return tuple(int(shape[axes.index(axis)]) for axis in range(3)), tuple(own[axes.index(axis)] for axis in range(3))


def resampled_shape(
    shape: Sequence[int], own: Sequence[float], spacing: Sequence[float] | None
) -> tuple[int, int, int]:
    """Return how many voxels a volume would have at another spacing.

    Args:
        shape: number of voxels along each axis.
        own: spacing of the volume.
        spacing: the other spacing; ``None`` for its own.
    """
    wanted = own if spacing is None else spacing
    x, y, z = (max(1, math.ceil(length * one / other)) for length, one, other in zip(shape, own, wanted, strict=True))
    return x, y, z
