"""Decomposed layers back into ordinary ones, each in the cheaper of its two forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .channel_scaling_layer import fold_channel_scaling
from .copies import copy_network
from .decomposition import decomposed_layers
from .folding import fold_norms
from .layer_timing import faster_split

__all__ = ["CHEAPER_BY", "recompose"]

CHEAPER_BY = ("parameters", "latency")
"""What the cheaper form of a layer is told by."""


@torch.no_grad()
def recompose(
    network: nn.Module,
    cheaper_by: str = "parameters",
    input_shape: Sequence[int] | None = None,
    fold: bool = False,
) -> nn.Module:
    """Turn every decomposed layer back into ordinary ones.

    A layer becomes one convolution (or linear layer), or two in an ``nn.Sequential`` where two are cheaper. The result
    is equal in output, keeps the memory format of the weights, and needs nothing of this package to run.

    Args:
        network: a network with decomposed layers; it is left as it is.
        cheaper_by: ``"parameters"`` (default) for the form that holds fewer weights, which, stride or not, also takes
            fewer operations; ``"latency"`` for the form that is faster, measured layer by layer on the device that the
            network is on. The faster form can hold more weights than a budget of parameters left.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``; needed to measure and to fold.
        fold: whether to multiply batch norms into the convolutions before them, which makes a network that is only
            good for inference; it is returned in evaluation mode.

    Returns:
        a new network.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer.
        ValueError: if ``cheaper_by`` is unknown, ``input_shape`` is missing, or the network cannot process it.
    """
    if cheaper_by not in CHEAPER_BY:
        raise ValueError(f"cheaper_by must be one of {CHEAPER_BY}, got {cheaper_by!r}.")
    if input_shape is None and (fold or cheaper_by == "latency"):
        raise ValueError(
            "recompose needs input_shape, the shape of one input without the batch such as (1, 224, 224), to measure "
            "the latency of layers and to fold norms."
        )
    network = fold_channel_scaling(network)
    split: dict[str, bool] = {}
    if cheaper_by == "latency" and input_shape is not None:
        split = faster_split(network, input_shape)
    layers = decomposed_layers(network)
    plain = copy_network(network, {layer: layer.to_plain(split.get(name)) for name, layer in layers})
    return fold_norms(plain, input_shape) if fold and input_shape is not None else plain
