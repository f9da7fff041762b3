"""The pretrained networks of the race, with a new head for two classes."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.nets import DenseNet121, resnet18
from torch import nn


def load_network(name: str, data: Path, seed: int) -> nn.Module:
    """Return a pretrained network; its head is new, random with the seed.

    Args:
        name: ``"resnet18"``, or ``"densenet121"``, which ``pretrain_densenet.py`` has written.
        data: the folder that holds ``<name>_cifar10.pt``.
        seed: of the new head.
    """
    makers = {
        "resnet18": lambda classes: resnet18(spatial_dims=2, n_input_channels=3, num_classes=classes, conv1_t_stride=2),
        "densenet121": lambda classes: DenseNet121(spatial_dims=2, in_channels=3, out_channels=classes),
    }
    network: nn.Module = makers[name](10)
    state = torch.load(data / f"{name}_cifar10.pt", weights_only=True)["state_dict"]
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    )
    torch.manual_seed(seed)
    head: nn.Module = makers[name](2)
    last = "fc" if name == "resnet18" else "class_layers.out"
    parent, _, attribute = last.rpartition(".")
    setattr(network.get_submodule(parent), attribute, head.get_submodule(last))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
