"""Leaves a network as a pruning run does: TorchScript that carries how its images are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from torch import nn

from ..networks import tiny_classifier

CARRIED = {
    "image_size": 8,
    "image_channels": 1,
    "intensity_mean": 0.449,
    "intensity_std": 0.226,
    "class_names": ["negative", "positive"],
}


def deploy(folder: Path, **metadata: Any) -> nn.Module:
    network = tiny_classifier().eval()
    folder.mkdir(exist_ok=True)
    script = torch.jit.script(network)
    save_net_with_metadata(script, str(folder / "model.ts"), include_config_vals=False, meta_values=metadata)
    return network
