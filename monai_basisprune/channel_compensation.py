"""Channel compensation: the layers that read removed channels read them off the channels that are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .activation import Moments, grouped_features
from .channel_slices import channel_count, group_count, kept_channels, original_channels
from .elimination import damped_solution
from .layers import DecomposedLayer

__all__ = ["lost_inputs", "positions_in", "refit_inputs_", "spatial_dims", "take_inputs"]


def positions_in(module: nn.Module, twin: nn.Module, side: str) -> list[int] | None:
    """Return where the channels that are left of a module stand in its twin in the reference.

    Args:
        module: a layer of the network.
        twin: the layer with its name in the reference, of which as many channels were removed, fewer or none.
        side: ``"in"`` or ``"out"``.

    Returns:
        one position for each channel, or None where the twin had other channels, or has lost some of them.
    """
    if _before(module, side) != _before(twin, side):
        return None
    places = {channel: position for position, channel in enumerate(_kept(twin, side))}
    kept = _kept(module, side)
    return [places[channel] for channel in kept] if places.keys() >= set(kept) else None


def lost_inputs(module: nn.Module, twin: nn.Module) -> bool:
    """Return whether a layer reads fewer channels than its twin."""
    return channel_count(module, "in") < channel_count(twin, "in")


def spatial_dims(layer: Any) -> int:
    """Return the number of spatial dimensions of a layer, 0 for a linear one."""
    return len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0


def take_inputs(layer: nn.Module, into: list[torch.Tensor]) -> Any:
    """Return a hook that keeps what a layer reads, as from :func:`grouped_features`."""
    groups, dims = group_count(layer), spatial_dims(layer)
    return lambda module, args: into.append(grouped_features(args[0], groups, dims))


def refit_inputs_(module: nn.Module, twin: nn.Module, moments: Moments, ridge: float) -> None:
    """Give a layer the weights with which it reads the removed channels off those that are left, in place.

    With ``X`` what the twin reads and ``Z`` what the layer reads, ``A = argmin ‖X - A Z‖²`` in closed form, and the
    weights become ``W A`` (Xie et al., arXiv 2108.13728: ``W' = W · C[:, keep] · (C[keep, keep] + λ I)⁻¹``), where
    ``W`` are the twin's, at every position of the kernel alike. A decomposed layer gets new basis filters, a plain one
    new weights, and its bias takes the means.

    Args:
        module: the layer, which has fewer inputs than its twin.
        twin: the layer as it was before; decomposed if ``module`` is.
        moments: of ``(Z, X)`` together.
        ridge: ``λ`` as a share of the mean square of ``Z``; it grows by the number of features per sample, as few
            images tell little of how many features go together.
    """
    groups, kept = group_count(module), channel_count(module, "in") // group_count(module)
    first, wanted = _first(module), _first(twin)
    bias: torch.Tensor | None = module.scaling.bias if isinstance(module, DecomposedLayer) else module.bias  # type: ignore[assignment]
    products, mean = moments.second_moment(), moments.mean().unsqueeze(-1)
    if bias is not None:
        products = products - mean @ mean.transpose(1, 2)
    own = torch.zeros(groups, products.shape[1] - kept, kept, dtype=torch.float64)
    positions = positions_in(module, twin, "in")
    assert positions is not None
    own[:, positions[:kept], range(kept)] = 1.0  # all groups have lost the same
    read = damped_solution(own, products[:, :kept, :kept], products[:, kept:, :kept], ridge + kept / moments.samples)
    weight = wanted.weight.detach().to("cpu", torch.float64)
    crossed = bool(getattr(wanted, "transposed", False))
    weight = (weight.transpose(0, 1) if crossed else weight)[_rows(module, twin)]
    weight = weight.reshape(groups, -1, own.shape[1], max(weight[0, 0].numel(), 1))
    new = torch.einsum("grnt,gnk->grkt", weight, read)
    shape = list(first.weight.shape)
    if crossed:
        shape[0], shape[1] = shape[1], shape[0]
    values = new.reshape(shape)
    first.weight.data.copy_(values.transpose(0, 1) if crossed else values)
    if bias is not None:
        shift = torch.einsum("grnt,gno->gr", weight, mean[:, kept:] - read @ mean[:, :kept])
        if crossed:  # each position of the outputs gets a part of the kernel, on average this one
            shift = shift / math.prod(module.stride)  # type: ignore[arg-type]
        old = bias.detach().to("cpu", torch.float64)
        if isinstance(module, DecomposedLayer):
            folded = (
                module.scaling.folded_weight().detach().to("cpu", torch.float64).reshape(groups, -1, shift.shape[1])
            )
            shift = (folded @ shift.unsqueeze(-1)).squeeze(-1)
        else:
            old = twin.bias.detach().to("cpu", torch.float64)[_rows(module, twin)]  # type: ignore[operator]
        bias.data.copy_(old + shift.reshape(-1))


def _first(layer: Any) -> Any:
    return layer.basis if isinstance(layer, DecomposedLayer) else layer


def _rows(module: nn.Module, twin: nn.Module) -> Sequence[int]:
    """Return which rows of the twin's weights the layer has."""
    if isinstance(module, DecomposedLayer) and isinstance(twin, DecomposedLayer):
        return [twin.kept_bases.index(basis) for basis in module.kept_bases]
    rows = positions_in(module, twin, "out")
    assert rows is not None
    return rows


def _kept(module: nn.Module, side: str) -> list[int]:
    return kept_channels(module).get(side, list(range(channel_count(module, side))))


def _before(module: nn.Module, side: str) -> int:
    return original_channels(module).get(side, channel_count(module, side))
