"""The images of the race: held in memory as bytes, divided by patient, augmented batch by batch."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn import functional

MEAN, STD = 0.4734, 0.2515  # of CIFAR-10, over its three channels: what the network was pretrained with


@dataclass(frozen=True)
class Images:
    """One data set.

    Attributes:
        pixels: gray values, uint8 of shape (images, size, size).
        labels: 0 or 1 for each image.
        patients: a number for each image's patient.
        folds: for each fold the positions of the training images and of the test images.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    patients: np.ndarray
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input without the batch."""
        return (3, *self.pixels.shape[1:])  # type: ignore[return-value]

    def inputs(self, positions: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return normalized images of one channel, as they are."""
        return (self.pixels[positions].unsqueeze(1).float() / 255 - MEAN) / STD


def radiographs(folder: Path, size: int = 96, folds: int = 5) -> Images:
    """NIH ChestX-ray8 radiographs, pneumonia against no finding, in folds by patient."""
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pixels = torch.stack([_resized(Image.open(folder / "images" / row["image"]).convert("L"), size) for row in rows])
    labels = np.array([int(row["pneumonia"]) for row in rows])
    patients = np.unique([row["patient_id"] for row in rows], return_inverse=True)[1]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    return Images(pixels, torch.from_numpy(labels), patients, tuple(splitter.split(labels, labels, patients)))


def pneumoniamnist(file: Path, size: int = 64, training: int = 1000) -> Images:
    """PneumoniaMNIST with its own test images; of the training images some, drawn with seed 0."""
    with np.load(file, allow_pickle=False) as arrays:
        chosen = np.sort(np.random.default_rng(0).permutation(len(arrays["train_images"]))[:training])
        images = np.concatenate([arrays["train_images"][chosen], arrays["test_images"]])
        labels = np.concatenate([arrays["train_labels"][chosen], arrays["test_labels"]]).reshape(-1).astype(int)
    enlarged = functional.interpolate(torch.from_numpy(images).unsqueeze(1).float(), (size, size), mode="bilinear")
    pixels = enlarged.squeeze(1).round().to(torch.uint8)
    everyone = np.arange(len(labels))
    return Images(pixels, torch.from_numpy(labels), everyone, ((everyone[:training], everyone[training:]),))


def load(name: str, data: Path) -> Images:
    """Return one data set of the shared folder by its name."""
    if name == "radiographs":
        return radiographs(data / "cxr")
    if name == "pneumoniamnist":
        return pneumoniamnist(data / "pneumoniamnist_28.npz")
    raise ValueError(f"data must be radiographs or pneumoniamnist, got {name!r}.")


def shuffled_batches(
    inputs: torch.Tensor, batch_size: int, generator: torch.Generator, augmented: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one epoch of shuffled batches, each image moved, turned, enlarged and brightened a little if asked for.

    Each batch is the positions of its images and the images.
    """
    order = torch.randperm(len(inputs), generator=generator)
    for start in range(0, len(inputs) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, to_network(augment(inputs[chosen], generator) if augmented else inputs[chosen])


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images of one channel after a random affine transform and a random change of brightness."""

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1) * limit

    angle, scale = uniform(0.1), 1 + uniform(0.1)
    rows = torch.stack([angle.cos() * scale, -angle.sin() * scale, uniform(0.12)], dim=1)
    columns = torch.stack([angle.sin() * scale, angle.cos() * scale, uniform(0.12)], dim=1)
    grid = functional.affine_grid(torch.stack([rows, columns], dim=1), list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return moved * (1 + uniform(0.2)).view(-1, 1, 1, 1) + uniform(0.2).view(-1, 1, 1, 1)


def to_network(x: torch.Tensor) -> torch.Tensor:
    """Return gray images with three channels, in the memory format that the networks run in."""
    return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _resized(image: Image.Image, size: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image)).float()
    return functional.interpolate(pixels[None, None], (size, size), mode="area")[0, 0].round().to(torch.uint8)
