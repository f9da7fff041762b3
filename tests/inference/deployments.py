"""Leaves a network as a pruning run does: TorchScript that carries how its images are prepared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from torch import nn

from monai_basisprune.data import VolumePreparation

from ..networks import tiny_classifier

CARRIED = {
    "image_size": 8,
    "image_channels": 1,
    "intensity_mean": 0.449,
    "intensity_std": 0.226,
    "class_names": ["negative", "positive"],
}


def deployment_of(kind: str, **changes: Any) -> dict[str, Any]:
    """Return what a network of one kind of images carries."""
    if kind == "volumes":
        carried = {**VolumePreparation((16, 16, 16)).to_dict(), "class_names": CARRIED["class_names"]}
    else:
        carried = {**CARRIED, **({"label_kind": "single"} if kind == "pictures" else {})}
    return {**carried, **changes}


def deploy(folder: Path, network: nn.Module | None = None, **metadata: Any) -> nn.Module:
    network = (tiny_classifier() if network is None else network).eval()
    folder.mkdir(exist_ok=True)
    script = torch.jit.script(network)
    save_net_with_metadata(script, str(folder / "model.ts"), include_config_vals=False, meta_values=metadata)
    return network


class Brightness(nn.Module):
    """A network of any number of spatial dimensions and classes, that cares for every pixel."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(math.prod(shape), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))
