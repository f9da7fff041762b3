"""What the layers of a network lose of their outputs, as bases and channels go and the others make up for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .activation import Moments, grouped_features, raise_problems
from .channel_compensation import spatial_dims
from .channel_graph import ChannelGroup
from .channel_slices import channel_count, group_count
from .decomposition import decomposed_layers
from .elimination import Elimination, eliminate
from .forward import forward_pass
from .layers import DecomposedLayer

__all__ = ["RemovalCurve", "feature_moment", "measure_features", "removal_curves"]


@dataclass(frozen=True)
class RemovalCurve:
    """What can be removed of one layer or of one group of channels.

    Attributes:
        key: the name of the layer, or ``"channels of <name>"`` of the group.
        name: the name of either.
        order: the bases (positions in each group of the layer) or channels, those that go first in front.
        losses: the share of the output that is lost after each.
        limit: how many of them may go at once; the curve goes on, so that no other takes their place unseen.
    """

    key: str
    name: str
    order: list[int]
    losses: list[float]
    limit: int


def measure_features(
    network: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[torch.Tensor]
) -> dict[tuple[str, str], Moments]:
    """Return the moments of the scaled bases of each layer, and of what each layer reads that reads free channels."""
    layers = dict(decomposed_layers(network))
    readers = dict.fromkeys(name for group in groups for name in group.readers())
    moments = {("bases", name): Moments() for name in layers} | {("inputs", name): Moments() for name in readers}
    handles = []
    for name, layer in layers.items():
        factors = layer.scaling.scaling_factors.detach().to("cpu", torch.float64).reshape(layer.groups, -1, 1)

        def outputs(
            module: Any,
            args: object,
            output: torch.Tensor,
            layer: Any = layer,
            factors: Any = factors,
            into: Moments = moments["bases", name],
        ) -> None:
            features = grouped_features(output, layer.groups, len(layer.kernel_size))
            into.add(features * factors.to(features.device))

        handles.append(layer.basis.register_forward_hook(outputs))
    for name in readers:
        module = network.get_submodule(name)

        def inputs(module: Any, args: Any, into: Moments = moments["inputs", name]) -> None:
            into.add(grouped_features(args[0], group_count(module), spatial_dims(module)))

        handles.append(module.register_forward_pre_hook(inputs))
    images = 0
    try:
        for batch in batches:
            forward_pass(network, batch)
            images += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    _check_samples(network, moments, images)
    return moments


def _check_samples(network: nn.Module, moments: Mapping[tuple[str, str], Moments], images: int) -> None:
    problems = []
    for (kind, name), one in moments.items():
        if one.sums is None:
            problems.append(f"{name}: no image reaches it")
        elif not one.is_finite():
            problems.append(f"{name}: what it reads or puts out is NaN or infinite")
        elif kind == "bases" and one.samples < one.sums.shape[1]:
            needed = one.sums.shape[1]
            problems.append(
                f"{name}: {one.samples} samples ({images} images, {one.samples / images:.3g} positions each) for "
                f"{needed} bases; at least {math.ceil(needed * images / one.samples)} images are needed, or larger "
                f"ones"
            )
    raise_problems(f"{type(network).__name__} cannot be searched", list(dict.fromkeys(problems)))


def removal_curves(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    moments: Mapping[tuple[str, str], Moments],
    lost: Mapping[str, float],
    step: float,
    ridge: float,
) -> list[RemovalCurve]:
    """Return what each layer and each group of channels loses with up to a share of what it has.

    Args:
        network: a decomposed network.
        groups: its groups of channels that can be removed.
        moments: what :func:`measure_features` returned.
        lost: what each has lost already, by key.
        step: the share.
        ridge: as for :func:`eliminate`.
    """
    parts = []
    for name, layer in decomposed_layers(network):
        slots = layer.rank() // layer.groups
        weight = layer.scaling.weight.detach().to("cpu", torch.float64).reshape(layer.groups, -1, slots)
        metric = torch.block_diag(*(weight.transpose(1, 2) @ weight))
        places = torch.arange(layer.rank()).reshape(layer.groups, slots).T.contiguous()
        moment = torch.block_diag(*feature_moment(moments["bases", name], layer.scaling.bias is not None))
        parts.append(_part(name, name, [Elimination(moment, metric, places)], lost, step, ridge))
    for group in groups:
        layers = []
        damping = ridge
        for reader in group.readers():
            module = network.get_submodule(reader)
            moment = torch.block_diag(*feature_moment(moments["inputs", reader], _bias(module) is not None))
            places = torch.tensor([unit[reader, "in"] for unit in group.units])
            layers.append(Elimination(moment, _metric(module), places))
            # as where the layers are fitted
            damping = max(damping, ridge + len(moment) / group_count(module) / moments["inputs", reader].samples)
        parts.append(_part(f"channels of {group.name}", group.name, layers, lost, step, damping))
    return [part for part in parts if part.order]


def _part(
    key: str, name: str, layers: Sequence[Elimination], lost: Mapping[str, float], step: float, ridge: float
) -> RemovalCurve:
    units = len(layers[0].places)
    limit = min(max(1, int(step * units)), units - 1)
    order, losses = eliminate(layers, min(2 * limit, units - 1), ridge) if limit else ([], [])
    return RemovalCurve(key, name, order, [lost.get(key, 0.0) + loss for loss in losses], limit)


def feature_moment(moments: Moments, centered: bool) -> torch.Tensor:
    """Return the covariance for a layer whose bias takes the means, else the second moment."""
    return moments.covariance() if centered else moments.second_moment()


def _bias(module: Any) -> torch.Tensor | None:
    bias: torch.Tensor | None = module.scaling.bias if isinstance(module, DecomposedLayer) else module.bias
    return bias


def _metric(module: Any) -> torch.Tensor:
    """Return what errors of the inputs of a layer count in its outputs, all positions of its kernel together."""
    groups, inputs = group_count(module), channel_count(module, "in") // group_count(module)
    weight = (module.basis if isinstance(module, DecomposedLayer) else module).weight.detach().to("cpu", torch.float64)
    if getattr(module, "transposed", False):
        weight = weight.transpose(0, 1)
    grouped = weight.reshape(groups, -1, inputs, weight[0, 0].numel())
    if isinstance(module, DecomposedLayer):
        scaling = module.scaling.folded_weight().detach().to("cpu", torch.float64)
        scaling = scaling.reshape(groups, -1, grouped.shape[1])
        inner = scaling.transpose(1, 2) @ scaling
        blocks = torch.einsum("grnt,grs,gsmt->gnm", grouped, inner, grouped)
    else:
        blocks = torch.einsum("grnt,grmt->gnm", grouped, grouped)
    return torch.block_diag(*blocks)
