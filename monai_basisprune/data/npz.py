"""Reads a MedMNIST file (.npz) without trusting it: headers first, no pickle, nothing larger than a limit."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from monai_basisprune.errors import CohortError

__all__ = ["NpzSection", "read_npz", "read_npz_images", "write_pictures"]

SECTIONS = {"train": "training", "val": "validation", "test": "test"}
MOST_BYTES = 1 << 31
_LARGEST_HEADER = 4096
_ADVICE = "Pass the .npz file of a MedMNIST data set, as its authors provide it."


@dataclass(frozen=True)
class NpzSection:
    """The images and labels of one section of the file.

    Attributes:
        name: "training", "validation" or "test".
        images: uint8 or uint16, shape (n, height, width) or (n, height, width, 3).
        labels: whole numbers, shape (n, 1) for one class of each image, (n, findings) with 0 and 1 for several.
    """

    name: str
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


def read_npz(path: Path) -> list[NpzSection]:
    """Read a file with the arrays ``train_images``, ``train_labels`` and so on for ``val`` and ``test``.

    Raises:
        CohortError: if it cannot be used, with every problem that its headers show, before any array is read.
    """
    wanted = [f"{section}_{part}" for section in SECTIONS for part in ("images", "labels")]
    arrays = _read_arrays(path, lambda held: wanted)
    sections, problems = [], []
    for short, name in SECTIONS.items():
        images, labels = arrays[f"{short}_images"], arrays[f"{short}_labels"]
        problems += _image_problems(f"{short}_images", images) + _label_problems(short, images, labels)
        if not problems:
            labels = labels.astype(np.int64).reshape(len(labels), -1)
            sections.append(NpzSection(name, _plain(images), labels))
    widths = {section.labels.shape[1] for section in sections}
    if not problems and len(widths) > 1:
        problems.append(f"the labels of its sections differ in the number of columns: {sorted(widths)}")
    _refuse(problems)
    return sections


def read_npz_images(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the images of a file alone, whatever else it holds: ``images`` and every array ``..._images``, by name.

    Raises:
        CohortError: if it cannot be used, with every problem that its headers show, before any array is read.
    """
    arrays = _read_arrays(path, lambda held: [name for name in held if name.split("_")[-1] == "images"])
    _refuse([problem for name, images in arrays.items() for problem in _image_problems(name, images)])
    return {name: _plain(images) for name, images in arrays.items()}


def _read_arrays(path: Path, choose: Callable[[list[str]], list[str]]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays that are chosen among the names of those that the file holds, once their headers are sound."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse(_archive_problems(entries))
            wanted = choose([entry.filename.removesuffix(".npy") for entry in entries])
            _refuse(_header_problems(archive, entries, wanted) if wanted else ["it has no array 'images'"])
            return {name: _read(archive, name) for name in wanted}
    except CohortError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise CohortError(
            f"The .npz file is damaged, or is none ({type(error).__name__}); download it again. {_ADVICE}"
        ) from None


def _refuse(problems: list[str]) -> None:
    if problems:
        raise CohortError(f"The .npz file cannot be used. {_ADVICE}", problems)


def _plain(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images


def write_pictures(section: NpzSection, folder: Path) -> list[Path]:
    """Write the images of a section as PNG files, without any loss; returns their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(section.images):
        path = folder / f"{number:06d}.png"
        Image.fromarray(np.ascontiguousarray(image)).save(path)
        paths.append(path)
    return paths


def _archive_problems(entries: list[zipfile.ZipInfo]) -> list[str]:
    names = [entry.filename for entry in entries]
    problems = []
    if any("/" in name or "\\" in name or ".." in name or "\0" in name for name in names):
        problems.append("it holds a part whose name leads into another folder; nothing of it was unpacked")
    if len(set(names)) < len(names):
        problems.append("it holds two parts of one name")
    if any(entry.flag_bits & 1 for entry in entries):
        problems.append("it is encrypted")
    size, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if size > MOST_BYTES:
        problems.append(
            f"it would unpack from {packed} to {size} bytes, at most {MOST_BYTES} are read (a zip bomb?); use a "
            "smaller version of the data set"
        )
    return problems


def _header_problems(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], wanted: list[str]) -> list[str]:
    sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in entries}
    problems = [f"it has no array '{name}'" for name in wanted if name not in sizes]
    for name in wanted:
        if name not in sizes:
            continue
        with archive.open(f"{name}.npy") as stream:
            try:
                version = np.lib.format.read_magic(stream)
                reader = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = reader(stream, max_header_size=_LARGEST_HEADER)
            except Exception:  # of many types: the header is a text that NumPy takes apart
                problems.append(f"array '{name}': has a damaged header")
                continue
            begun = stream.tell()
        if dtype.hasobject:
            problems.append(
                f"array '{name}': holds Python objects (pickle), refused, since to read them can run any program; save "
                "it as numbers"
            )
        elif dtype.kind not in "biuf":
            problems.append(f"array '{name}': holds {dtype}, not numbers")
        elif int(np.prod([int(length) for length in shape], dtype=object)) * dtype.itemsize != sizes[name] - begun:
            problems.append(f"array '{name}': its header promises {shape} of {dtype}, which is not what it holds")
    return problems


def _read(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_LARGEST_HEADER)
    return array


def _image_problems(name: str, images: npt.NDArray[Any]) -> list[str]:
    problems = []
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        problems.append(f"array '{name}': holds NaN or infinite values")
    if images.dtype not in (np.uint8, np.uint16) or (images.dtype == np.uint16 and images.ndim == 4):
        problems.append(f"array '{name}': holds {images.dtype}, needed are uint8, or uint16 for gray")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        problems.append(
            f"array '{name}': has shape {images.shape}, needed is (n, height, width) or (n, height, width, 3); "
            "volumes belong to the bundle volume_classification"
        )
    if not images.size:
        problems.append(f"array '{name}': holds no image")
    return problems


def _label_problems(section: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> list[str]:
    problems = []
    counts = [len(array) if array.ndim else 0 for array in (images, labels)]
    if counts[0] != counts[1]:
        problems.append(f"section '{section}': has {counts[0]} images and {counts[1]} labels")
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and not labels.shape[1]):
        problems.append(f"array '{section}_labels': has shape {labels.shape}, needed is (n,), (n, 1) or (n, findings)")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        problems.append(f"array '{section}_labels': holds NaN or fractions, needed are whole numbers")
    return problems
