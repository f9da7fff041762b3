"""Writes small folders of pictures and MedMNIST files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_basisprune.data.image_classes import LabelSettings
from monai_basisprune.data.image_folder import prepare_image_datalist
from monai_basisprune.errors import CohortError

CLASSES = ("healthy", "ill", "unclear")
SECTIONS = ("training", "validation", "test")


def gray(seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8)


def save(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def write_folders(root: Path, count: int = 12, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write pictures in a folder for each class; the classes differ in brightness."""
    for index, name in enumerate(classes):
        for number in range(count):
            values = gray(100 * index + number) // 3 + 60 * index
            save(root / name / f"{number:03d}.png", values.astype(np.uint8))
    return root


def write_table(root: Path, rows: list[str], header: str = "image,label") -> Path:
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root


def write_npz(path: Path, classes: int = 3, findings: int = 0, count: int = 12, **changes: Any) -> Path:
    """Write a file as MedMNIST does; ``changes`` replace arrays, None leaves one out."""
    arrays: dict[str, Any] = {}
    for place, name in enumerate(("train", "val", "test")):
        labels = (np.arange(count) % classes)[:, None]
        if findings:
            labels = np.array([[(number >> bit) & 1 for bit in range(findings)] for number in range(count)])
        images = np.stack([gray(1000 * place + number) for number in range(count)])
        arrays |= {f"{name}_images": images, f"{name}_labels": labels.astype(np.uint8)}
    arrays |= changes
    np.savez_compressed(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def prepare(root: Path, work: Path | None = None, on_problem: str = "raise", **settings: Any) -> dict[str, Any]:
    """Return the datalist of a folder of pictures."""
    settings = {"label_kind": "single", **settings}
    seed = settings.pop("seed", 0)
    output = (work or root.parent / "work") / "datalist.json"
    return prepare_image_datalist(
        root, output, LabelSettings(**settings), seed=seed, on_problem=on_problem, progress=False
    )


def problems(root: Path, **settings: Any) -> str:
    """Return why a folder of pictures cannot be used."""
    with pytest.raises(CohortError) as error:
        prepare(root, **settings)
    return str(error.value)
