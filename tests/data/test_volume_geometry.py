from __future__ import annotations

import math

import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from scipy.spatial.transform import Rotation
from volume_files import affine

from monai_basisprune.data.volume_geometry import (
    MOST_VOXELS,
    geometry_problems,
    resampled_shape,
    size_problems,
    turned_to_ras,
    voxel_spacing,
)


def turned(degrees: float, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> np.ndarray:
    grid = affine(spacing)
    grid[:3, :3] = Rotation.from_euler("xyz", [degrees, degrees / 2, -degrees], degrees=True).as_matrix() @ grid[:3, :3]
    return grid


@pytest.mark.parametrize("degrees", [0, 10, 44, 90, 135, 180])
def test_spacing_is_that_of_nibabel_however_a_volume_is_turned(degrees: float) -> None:
    grid = turned(degrees)
    np.testing.assert_allclose(voxel_spacing(grid), voxel_sizes(grid), rtol=1e-12)
    assert geometry_problems((10, 20, 30), grid) == []


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIR", "AIL"])
def test_shape_and_spacing_follow_their_axes(codes: str) -> None:
    axes = ["LR", "PA", "IS"]
    shape, grid = (10, 20, 30), np.eye(4)
    for column, code in enumerate(codes):
        row = next(number for number, pair in enumerate(axes) if code in pair)
        grid[:3, column] = 0
        grid[row, column] = (1.0, 1.5, 2.0)[column] * (1 if code in "RAS" else -1)
    assert "".join(aff2axcodes(grid)) == codes
    found, spacing = turned_to_ras(shape, grid)
    places = [next(number for number, code in enumerate(codes) if code in pair) for pair in axes]
    assert found == tuple(shape[place] for place in places)
    assert spacing == tuple((1.0, 1.5, 2.0)[place] for place in places)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 100, 100), "is no volume: its size is 3 x 100 x 100, expected at least 4"),
        ((1 << 20, 1 << 20, 4), f"is too large: its header says 1048576 x 1048576 x 4 voxels, at most {MOST_VOXELS}"),
    ],
)
def test_sizes_that_cannot_be(shape: tuple[int, ...], words: str) -> None:
    (problem,) = size_problems(shape)
    assert words in problem
    assert size_problems((512, 512, 1024)) == []


def sheared(degrees: float) -> np.ndarray:
    grid = affine()
    grid[1, 2] = math.tan(math.radians(degrees)) * grid[2, 2]
    return grid


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (np.full((4, 4), np.nan), "has an affine that is not finite"),
        (np.eye(3), "has an affine that is not finite"),
        (np.zeros((4, 4)), "has an affine without three directions (spacing 0 x 0 x 0 mm)"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "has an affine without three directions"),
        (affine((0.5, 0.5, 8.5)), "a ratio of 17 where at most 16 is accepted"),
        (affine((300.0, 300.0, 300.0)), "so it is longer than 4 m"),
        (sheared(10), "its axes are off by 10.0 degrees from being square"),
    ],
    ids=["nan", "3 x 3", "zero", "flat", "anisotropic", "meters", "sheared"],
)
def test_affines_that_cannot_be(grid: np.ndarray, words: str) -> None:
    assert any(words in problem for problem in geometry_problems((20, 20, 20), grid))


def test_edges_that_are_accepted() -> None:
    assert geometry_problems((20, 20, 20), affine((0.5, 0.5, 8.0))) == []
    assert geometry_problems((20, 20, 20), sheared(1.0)) == []


def test_a_resampled_volume_covers_the_whole() -> None:
    assert resampled_shape((10, 20, 30), (1.0, 1.5, 2.0), None) == (10, 20, 30)
    assert resampled_shape((10, 20, 30), (1.0, 1.5, 2.0), (3.0, 3.0, 1.0)) == (4, 10, 60)
    assert resampled_shape((4, 4, 4), (0.1, 0.1, 0.1), (50, 50, 50)) == (1, 1, 1)
