"""Pretrained weights for networks of volumes: MedicalNet, a checkpoint, an inflated 2D classifier, a simulated task."""

from __future__ import annotations

import os
from typing import Any

import torch
from monai.networks.nets import ResNet
from monai.networks.nets.resnet import get_medicalnet_pretrained_resnet_args, get_pretrained_resnet_medicalnet
from torch import nn

from ..data.synthetic_volumes import synthetic_source_volumes
from ..errors import ConfigurationError
from ..inflation import inflate
from .pretrained import load_pretrained, pretrain_on_images, transfer_weights

__all__ = ["load_pretrained_volume", "medicalnet_depth"]

_SOURCE_CASES, _SOURCE_EPOCHS = 1200, 5
_KNOWN = (10, 18, 34, 50, 101, 152, 200)


def load_pretrained_volume(
    network: nn.Module,
    pretrained: str | os.PathLike[str] | None,
    flat_network: nn.Module | None = None,
    flat_pretrained: str | os.PathLike[str] | None = None,
    volume_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Give a network of volumes its pretrained weights.

    Args:
        network: the network of the task; it is left as it is.
        pretrained: ``"medicalnet"`` (MONAI's own loader, which may download them), ``"inflate"`` (a 2D classifier,
            see :func:`~monai_basisprune.inflate`), ``"synthetic"`` (pretrained here on a simulated source task,
            without any download) or the path of a checkpoint, which holds a state dict, alone or under ``state_dict``
            or ``model``.
        flat_network: for ``"inflate"``, the same network with two spatial dimensions.
        flat_pretrained: for ``"inflate"``, the path of its checkpoint, or ``"synthetic"``.
        volume_size: size of the volumes of the synthetic source task, along each axis.
        device: where the synthetic source task is trained.
        seed: seed of the synthetic source task.
        progress: whether to show a progress bar.

    Returns:
        a new network with the weights; the head, where its number of classes differs, is that of ``network``.

    Raises:
        ConfigurationError: if the weights cannot be found or fetched; the message says what to pass.
        InflationError: if the 2D classifier is not the same network; every difference is listed.
        PlanMismatchError: if they do not fit the network; every difference is listed.
    """
    if pretrained is None:
        raise ConfigurationError(
            "No pretrained weights were given: pass --pretrained medicalnet, --pretrained inflate, --pretrained "
            "synthetic, or --pretrained /path/to/checkpoint.pt. Pruning by bases rests on pretrained weights."
        )
    if pretrained == "imagenet":
        raise ConfigurationError(
            "There are no ImageNet weights of volumes: pass --pretrained medicalnet, or --pretrained inflate with a 2D "
            "classifier."
        )
    if pretrained == "synthetic":
        simulated, classes = synthetic_source_volumes(_SOURCE_CASES, volume_size, seed)
        return pretrain_on_images(network, simulated, classes, _SOURCE_EPOCHS, 16, device, seed, progress)
    if pretrained == "medicalnet":
        return _load_medicalnet(network)
    if pretrained == "inflate":
        if flat_network is None or flat_pretrained is None:
            raise ConfigurationError(
                "A 2D classifier was to be inflated, and there is none: pass --flat_pretrained with the path of its "
                "checkpoint, or --flat_pretrained synthetic, and its network as networks#flat if it is another."
            )
        flat = load_pretrained(flat_network, flat_pretrained, device=device, seed=seed, progress=progress)
        return inflate(flat, network)
    return load_pretrained(network, pretrained, device=device, seed=seed, progress=progress)


def medicalnet_depth(network: nn.Module) -> int:
    """Return which of MedicalNet's networks a network is, by its depth.

    Raises:
        ConfigurationError: if it is none of them, and what it would have to be.
    """
    if isinstance(network, ResNet):
        convolutions = [name for name, one in network.named_modules() if isinstance(one, nn.Conv3d)]
        depth = 1 + sum("downsample" not in name for name in convolutions)
        first: Any = network.conv1
        if depth in _KNOWN and isinstance(first, nn.Conv3d) and first.in_channels == 1:
            return depth
    raise ConfigurationError(
        f"MedicalNet has weights of MONAI's 3D ResNets for one channel, this is a {type(network).__name__} that is "
        f"none of them: pass --network_def with one of the depths {', '.join(map(str, _KNOWN))}, or --pretrained "
        f"/path/to/checkpoint.pt."
    )


def _load_medicalnet(network: nn.Module) -> nn.Module:
    depth = medicalnet_depth(network)
    file = f"resnet_{depth}_23dataset.pth of TencentMedicalNet/MedicalNet-Resnet{depth}"
    instead = "pass --pretrained /path/to/that/file; or --pretrained inflate with a 2D classifier, or synthetic."
    try:
        state = get_pretrained_resnet_medicalnet(depth, device="cpu", datasets23=True)
    except ImportError as error:
        raise ConfigurationError(
            f"MONAI fetches the MedicalNet weights of ResNet-{depth} by huggingface_hub, not installed here: pip "
            f'install "monai_basisprune[medicalnet]". Or download the file {file} from huggingface.co and {instead}'
        ) from error
    except Exception as error:  # no connection, a refusal, a damaged file: each library raises types of its own
        raise ConfigurationError(
            f"The MedicalNet weights of ResNet-{depth} could not be fetched or read ({type(error).__name__}). They "
            f"need a connection to huggingface.co. Without one, download the file {file} elsewhere and {instead}"
        ) from error
    if not isinstance(state, dict) or not state:
        raise ConfigurationError(
            f"What was fetched as the MedicalNet weights of ResNet-{depth} holds no weights; remove the file and fetch "
            f"it again."
        )
    bias, shortcut = get_medicalnet_pretrained_resnet_args(depth)
    form = f"shortcut_type {shortcut}" if bias else f"shortcut_type {shortcut}, bias_downsample false"
    return transfer_weights(network, state, f"the MedicalNet weights of ResNet-{depth} ({form})")
