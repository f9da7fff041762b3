"""Writes cohorts of synthetic CT volumes as NIfTI files, and a source task in 3D to pretrain a network on.

Nothing here comes from a patient. It serves tests, tutorials and dry runs; a result on it says nothing about medicine.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from monai_basisprune.data.phantom import blurred
from monai_basisprune.data.synthetic import draw_sick, new_cohort_folder
from monai_basisprune.errors import ConfigurationError

__all__ = ["SOURCE_VOLUME_CLASSES", "synthetic_source_volumes", "write_synthetic_volumes"]

SOURCE_VOLUME_CLASSES = ("plain", "ball", "many balls", "tube", "shell", "sheet", "fine texture", "patchy texture")
"""Classes of the source task, in the order of their index."""

_AIR, _LUNG, _TISSUE, _BONE = -1000.0, -820.0, 40.0, 350.0  # Hounsfield units
_ORIENTATIONS = ("RAS", "LPS", "LAS", "RSA", "SPL")
_EXTENT = 96.0  # mm, the length of each side of the body's box

Values = npt.NDArray[np.floating[Any]]
Grid = tuple[Values, Values, Values]


def _grid(shape: tuple[int, int, int]) -> Grid:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in shape), indexing="ij")
    return x, y, z


def _ball(at: Grid, center: Values, radii: Values, softness: float = 0.05) -> Values:
    """Return a soft filled ellipsoid: 1 inside, 0 outside."""
    r = np.sqrt(sum(((one - c) / radius) ** 2 for one, c, radius in zip(at, center, radii, strict=True)))
    return 1 / (1 + np.exp(np.clip((r - 1) * float(np.min(radii)) / softness, -30, 30)))


def _smooth(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> Values:
    """Return noise of mean 0 and deviation 1, smooth over `scale` of half a side."""
    sigma = [scale * length / 2 for length in shape]
    noise = blurred(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=2.5)
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def _chest(shape: tuple[int, int, int], rng: np.random.Generator, lesion: bool) -> npt.NDArray[np.float32]:
    """Draw a chest in Hounsfield units, axes to right, front and head; a lesion is a soft nodule in a lung."""
    finding = np.random.default_rng(rng.integers(2**63))  # of its own, so that a pair differs by the lesion only
    at = _grid(shape)
    size = rng.uniform(0.9, 1.05)
    body = _ball(at, np.zeros(3), size * np.array([0.92, 0.72, 1.3]))
    lungs = [
        _ball(
            at,
            np.array([side * rng.uniform(0.4, 0.46), 0.02, rng.uniform(-0.05, 0.05)]),
            np.array([rng.uniform(0.3, 0.36), rng.uniform(0.42, 0.5), rng.uniform(0.75, 0.9)]),
        )
        for side in (-1, 1)
    ]
    lung = np.maximum(*lungs)
    volume = _AIR + (_TISSUE - _AIR) * body + (_LUNG - _TISSUE) * lung * body
    heart = _ball(at, np.array([0.15, 0.2, -0.25]), rng.uniform(0.24, 0.32) * np.ones(3), 0.06)
    volume += (_TISSUE - volume) * heart * body
    spine = _ball(at, np.array([0.0, -0.52, 0.0]), np.array([0.13, 0.13, 1.4]))
    volume += (_BONE - volume) * spine * body
    volume += 110 * lung * (1 - heart) * np.clip(_smooth(rng, shape, 0.08), 0, 2)  # vessels
    if lesion:
        for _ in range(int(finding.integers(1, 3))):
            side = finding.choice((-1, 1))
            center = np.array([side * 0.43, 0.0, 0.0]) + finding.uniform(-1, 1, 3) * (0.12, 0.22, 0.45)
            nodule = _ball(at, center, finding.uniform(0.11, 0.2, 3), 0.03)
            volume += finding.uniform(350, 800) * nodule * lung
    return (volume + rng.uniform(15, 40) * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)


def _save(path: Path, values: Values, affine: Values, seed: int) -> None:
    """Write a NIfTI file as one of many programs would: turned, as integers with a scaling or as floats."""
    technique = np.random.default_rng(seed)
    codes = str(technique.choice(_ORIENTATIONS))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = nib.orientations.apply_orientation(values, turn)
    grid = affine @ inv_ornt_aff(turn, values.shape)
    image = nib.Nifti1Image(turned, grid)
    if technique.random() < 0.7:
        image.set_data_dtype(np.int16)
    if technique.random() < 0.5:
        image.set_qform(grid, code=1)
        image.set_sform(grid, code=0)
    image.header.set_xyzt_units("mm")
    # compressed here, without the name and the time that gzip would note: the same arguments write the same bytes
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_synthetic_volumes(
    output_dir: str | Path,
    patients: int = 240,
    seed: int = 0,
    volume_size: int = 40,
    prevalence: float = 0.4,
    problem_files: bool = True,
) -> Path:
    """Write a cohort of synthetic chest CT volumes with and without a nodule in a lung.

    Files are NIfTI-1, compressed: integers with a scaling and floats, turned in several ways, of different spacings,
    some thicker than wide, one or two of each patient. The same arguments write the same bytes.

    Args:
        output_dir: a new or empty folder; ``labels.csv`` (image, label, patient_id) and ``images/`` are written to it.
        patients: number of patients, at least 2.
        seed: seed of everything.
        volume_size: typical number of voxels along each axis, at least 16; spacings vary by up to a half.
        prevalence: share of patients with a nodule.
        problem_files: whether two files are added that cannot be used: one with four dimensions, one cut short.

    Returns:
        Path of the table of labels.

    Raises:
        ConfigurationError: when an argument is out of range or the folder is not empty.
    """
    if patients < 2 or volume_size < 16 or not 0 < prevalence < 1:
        raise ConfigurationError(
            "A synthetic cohort needs patients >= 2, volume_size >= 16 and prevalence between 0 and 1, "
            f"found {patients}, {volume_size}, {prevalence}"
        )
    root = new_cohort_folder(output_dir)
    sick = draw_sick(patients, prevalence, seed)
    rows = []
    for patient in range(1, patients + 1):
        person = np.random.default_rng([seed, 2, patient])
        for number in range(1, 2 + int(person.random() < 0.3)):
            picture = np.random.default_rng([seed, 3, patient, number])
            thin = float(picture.uniform(0.9, 1.3))
            spacing = np.array([thin, thin, float(picture.choice((1.0, 1.5)) * thin)]) * _EXTENT / volume_size
            shape = tuple(round(_EXTENT / float(one)) for one in spacing)
            values = _chest((shape[0], shape[1], shape[2]), picture, patient in sick)
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = picture.uniform(-30, 30, 3)
            name = f"images/synth{patient:04d}_{number}.nii.gz"
            _save(root / name, values, affine, int(picture.integers(2**31)))
            rows.append((name, "positive" if patient in sick else "negative", f"SYNTH{patient:04d}"))
    if problem_files:
        rows += _problem_files(root, patients, seed, volume_size)
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label", "patient_id"), *rows])
    return root / "labels.csv"


def _problem_files(root: Path, patients: int, seed: int, size: int) -> list[tuple[str, str, str]]:
    """Write one file with four dimensions and one that is cut short."""
    rng = np.random.default_rng([seed, 4])
    series = np.stack([_chest((size, size, size), rng, False) for _ in range(2)], axis=-1)
    affine = np.diag([_EXTENT / size] * 3 + [1.0])
    names = [f"images/synth{patients + one:04d}_1.nii.gz" for one in (1, 2)]
    _save_as_is(root / names[0], series, affine)
    _save_as_is(root / names[1], series[..., 0], affine)
    whole = (root / names[1]).read_bytes()
    (root / names[1]).write_bytes(whole[: len(whole) // 2])
    return [(name, "negative", f"SYNTH{patients + one:04d}") for one, name in enumerate(names, start=1)]


def _save_as_is(path: Path, values: Values, affine: Values) -> None:
    path.write_bytes(gzip.compress(nib.Nifti1Image(values, affine).to_bytes(), compresslevel=1, mtime=0))


def _source_volume(size: int, label: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw one volume of the source task: its pattern on a random background, half of the time in a chest."""
    shape = (size, size, size)
    at = _grid(shape)
    if rng.random() < 0.5:
        volume: Values = np.clip((_chest(shape, rng, False) + 1000) / 1400, 0, 1)
    else:
        volume = 0.4 + 0.1 * _smooth(rng, shape, rng.uniform(0.2, 0.6)) + 0.15 * rng.normal() * at[rng.integers(3)]
    contrast = rng.uniform(0.2, 0.5)
    center = rng.uniform(-0.5, 0.5, 3)
    if label == 1:
        volume = volume + contrast * _ball(at, center, rng.uniform(0.15, 0.35, 3))
    elif label == 2:
        for _ in range(int(rng.integers(6, 12))):
            volume = volume + contrast * _ball(
                at, rng.uniform(-0.8, 0.8, 3), rng.uniform(0.07, 0.11) * np.ones(3), 0.03
            )
    elif label in (3, 5):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        offsets = [one - c for one, c in zip(at, center, strict=True)]
        along = sum(one * d for one, d in zip(offsets, direction, strict=True))
        distance2 = along**2 if label == 5 else sum(one**2 for one in offsets) - along**2
        volume = volume + contrast * np.exp(-distance2 / (2 * rng.uniform(0.05, 0.09) ** 2))
    elif label == 4:
        radius = rng.uniform(0.25, 0.5) * np.ones(3)
        volume = volume + contrast * (_ball(at, center, radius) - _ball(at, center, 0.7 * radius))
    elif label == 6:
        volume = volume + 0.4 * contrast * _smooth(rng, shape, 0.05)
    elif label == 7:
        volume = volume + 0.6 * contrast * np.clip(_smooth(rng, shape, rng.uniform(0.12, 0.2)), 0, None)
    volume = volume + rng.uniform(0.01, 0.04) * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(volume * rng.uniform(0.8, 1.2) + rng.normal(0, 0.05), 0, 1).astype(np.float32)


def synthetic_source_volumes(
    count: int, volume_size: int = 32, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Make volumes of a source task, to pretrain a network where no weights can be downloaded.

    The task is to name a pattern (`SOURCE_VOLUME_CLASSES`): it needs the edges, balls and textures that finding a
    nodule needs, and is another task.

    Args:
        count: number of volumes, at least one of each class.
        volume_size: number of voxels along each axis, at least 16.
        seed: seed of everything.

    Returns:
        Volumes, float32 of shape (count, 1, volume_size, volume_size, volume_size) in [0, 1]; and class indices, int64
        of shape (count,), as many of each class as `count` allows, in random order.

    Raises:
        ConfigurationError: when an argument is out of range.
    """
    classes = len(SOURCE_VOLUME_CLASSES)
    if count < classes or volume_size < 16:
        raise ConfigurationError(
            f"A source task needs count >= {classes} and volume_size >= 16, found {count}, {volume_size}"
        )
    rng = np.random.default_rng([seed, 5])
    labels = rng.permutation(np.arange(count) % classes).astype(np.int64)
    volumes = np.stack([_source_volume(volume_size, int(label), rng) for label in labels])
    return volumes[:, None], labels
