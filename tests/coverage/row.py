"""One line of the coverage table, and how its network is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks import nets
from torch import nn

__all__ = ["Row", "build", "images", "labeled", "monai_row", "square"]

_SIZES = {1: 256, 2: 64, 3: 32}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what it is called, unique.
        family: the heading that it stands under.
        network: name of the class or function in ``monai.networks.nets``.
        make: builds the network.
        input_shape: shape of one input, without the batch.
        target_modules: which layers are decomposed; None for all convolutions.
        needs: a package that MONAI itself needs for this network, or None.
    """

    name: str
    family: str
    network: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    target_modules: str | None = None
    needs: str | None = None


def build(row: Row, seed: int = 0) -> nn.Module:
    """Return the network of a row, in evaluation mode, as if it had been trained.

    Weights are random with a seed, affine parameters of norms are moved from 1 and 0, and norms have seen some images,
    so that signals neither vanish nor explode.
    """
    torch.manual_seed(seed)
    network = row.make()
    for module in network.modules():
        if isinstance(getattr(module, "bias", None), torch.Tensor) and isinstance(
            module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
        ):
            nn.init.uniform_(module.weight, 0.5, 1.0)  # type: ignore[arg-type]
            nn.init.normal_(module.bias, std=0.1)  # type: ignore[arg-type]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    network.eval()
    if norms:
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = None  # the mean over all images seen, in place of a moving one
        with torch.no_grad():
            for number in range(2):
                network(images(row, 4, seed + 10 + number))
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
            # a few random images leave some channels next to silent, which no trained network has: divided by almost
            # nothing, rounding errors would grow without bounds in a row of many norms
            norm.running_var.add_(0.3 * float(norm.running_var.mean()))
    return network.eval()


def images(row: Row, number: int, seed: int) -> torch.Tensor:
    """Return random images of coarse structure with some noise, as medical images are, rather than noise alone.

    White noise has next to no structure left after some layers, and an instance norm of that divides by almost nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((number, *row.input_shape), generator=generator)
    # a bag of patches has one dimension more
    size = row.input_shape[2:] if row.network == "MILModel" else row.input_shape[1:]
    if not size:
        return noise
    channels = noise.reshape(-1, 1, *size)
    coarse = torch.randn((len(channels), 1, *[8] * len(size)), generator=generator)
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return (nn.functional.interpolate(coarse, size=size, mode=mode) + 0.1 * channels).reshape(noise.shape)


def monai_row(family: str, network: str, label: str, shape: tuple[int, ...], *args: Any, **settings: Any) -> Row:
    """Return a row that calls a class or function of ``monai.networks.nets``."""
    targets, needs = settings.pop("targets", None), settings.pop("needs", None)
    without_swish = family == "EfficientNet" and not settings.pop("memory_efficient", False)

    def make() -> nn.Module:
        made: nn.Module = getattr(nets, network)(*args, **settings)
        if without_swish:
            made.set_swish(memory_efficient=False)  # type: ignore[operator]  # as MONAI's export test does
        return made

    # EfficientNetBN is one class for all sizes
    name = f"{settings['model_name'] if network == 'EfficientNetBN' else network} {label}"
    return Row(name, family, network, make, shape, targets, needs)


def square(channels: int, spatial_dims: int, size: int | None = None) -> tuple[int, ...]:
    """Return an input shape with equal sides."""
    return (channels, *[size or _SIZES[spatial_dims]] * spatial_dims)


def labeled(spatial_dims: int, label: str) -> str:
    """Return what stands behind the name of a network: its dimensions, and what is special."""
    return f"{spatial_dims}D, {label}" if label else f"{spatial_dims}D"
