"""A cut of channels tried on a copy, against a network that ignores the same channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .channel_slices import channel_count, keep_channels_
from .copies import copy_network
from .forward import forward_pass
from .layers import DecomposedLayer

__all__ = ["Side", "cut_difference", "removed_slots"]

Side = tuple[str, str]
"""The dotted name of a module, and "in" or "out"."""


def removed_slots(
    groups: Mapping[str, Sequence[Mapping[Side, Sequence[int]]]], kept: Mapping[str, Sequence[int]]
) -> dict[Side, list[int]]:
    """Return the positions that each side of each module loses.

    Args:
        groups: for each group of channels, by name, the positions that each channel takes in each module.
        kept: for each group the channels that stay; all of them in a group left out.
    """
    removed: dict[Side, list[int]] = {}
    for name, units in groups.items():
        stay = set(kept.get(name, range(len(units))))
        for number, unit in enumerate(units):
            if number not in stay:
                for side, positions in unit.items():
                    removed.setdefault(side, []).extend(positions)
    return {side: sorted(positions) for side, positions in removed.items()}


def cut_difference(network: nn.Module, x: torch.Tensor, removed: Mapping[Side, Sequence[int]]) -> float:
    """Return how far the output without some channels is from the output when the layers that read them ignore them.

    Args:
        network: the network; two copies of it are cut.
        x: the input of both.
        removed: the positions that each side of each module loses.

    Returns:
        the largest difference, relative to the largest output.

    Raises:
        ValueError: if the network cannot run without them, or gives values that are not finite.
    """
    ignoring, cut = copy_network(network), copy_network(network)
    deaf, short = dict(ignoring.named_modules()), dict(cut.named_modules())
    for (name, side), positions in removed.items():
        gone = set(positions)
        keep_channels_(short[name], side, [c for c in range(channel_count(short[name], side)) if c not in gone])
        if side == "in":
            _ignore_(deaf[name], positions)
    outputs = [_tensors(forward_pass(one, x)) for one in (ignoring, cut)]
    worst = 0.0
    for wanted, found in zip(*outputs, strict=True):
        if wanted.shape != found.shape or not bool(torch.isfinite(wanted).all() & torch.isfinite(found).all()):
            raise ValueError(f"The output has shape {tuple(found.shape)} in place of {tuple(wanted.shape)}, or is NaN.")
        worst = max(worst, float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-30)))
    return worst


def _ignore_(module: nn.Module, positions: Sequence[int]) -> None:
    """Set the weights that read some inputs to zero."""
    weight: torch.Tensor = module.basis.weight if isinstance(module, DecomposedLayer) else module.weight  # type: ignore[assignment]
    dim = 0 if getattr(module, "transposed", False) else 1
    with torch.no_grad():
        local = sorted({position % weight.shape[dim] for position in positions})
        weight.index_fill_(dim, torch.tensor(local, device=weight.device), 0.0)


def _tensors(output: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
