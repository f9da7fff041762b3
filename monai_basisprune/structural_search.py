"""How many bases and channels each layer keeps: what costs least of its output when the others make up for the rest."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .activation import Moments, image_batches, raise_problems
from .budgets import Budget, network_cost
from .channel_compensation import refit_inputs_
from .channel_graph import ChannelGroup, channel_groups
from .channel_slices import channel_count, group_count
from .channel_trial import removed_slots
from .channels import cut_channels_, verify_cut
from .decomposition import decomposed_layers
from .elimination import compensated
from .errors import BudgetError
from .layers import DecomposedLayer
from .pruning import keep_bases_
from .reconstruction import RemovalCurve, feature_moment, measure_features, removal_curves
from .tally import Tally

__all__ = ["SearchIteration", "StructureResult", "prune_by_reconstruction_"]

_SHARE_OF_STEP = 0.5  # of what a layer may lose in one iteration, the network loses half


@dataclass(frozen=True)
class SearchIteration:
    """One iteration of :func:`prune_by_reconstruction_`.

    Attributes:
        threshold: the largest share of its output that any layer has lost so far.
        bases: number of bases that are left.
        channels: number of channels that are left of the groups that can be cut; None where none are cut.
        parameter_reduction: the share of the original network's parameters that is gone.
    """

    threshold: float
    bases: int
    channels: int | None
    parameter_reduction: float


@dataclass(frozen=True)
class StructureResult:
    """What :func:`prune_by_reconstruction_` left, counted against the original network and after recomposition.

    Attributes:
        iterations: one :class:`SearchIteration` after another.
        lost: for each layer, and each group of channels as ``"channels of <name>"``, the share of its output that it
            has lost.
        images: number of images that were used.
        parameters: number of parameters that are left.
        parameter_reduction: the share of the original network's parameters that is gone.
    """

    iterations: list[SearchIteration]
    lost: dict[str, float]
    images: int
    parameters: int
    parameter_reduction: float


def prune_by_reconstruction_(
    network: nn.Module,
    data: Iterable[Any],
    budget: Budget,
    input_shape: Sequence[int] | None = None,
    step: float = 0.25,
    ridge: float = 1e-3,
) -> StructureResult:
    """Remove bases, and channels, in place and without labels or training, until a budget is met.

    A structural search with a step constraint after Xie et al., arXiv 2108.13728. For each layer the bases go in the
    order in which those that are left make up for them best, and so do the channels of each group, for the layers that
    read them; what is then lost of a layer's output, as a share of it, is known after each (:func:`eliminate`). One
    threshold for all layers and groups says how many each loses: the smallest with which the budget is met, which their
    search finds by bisection. So that the estimate holds, no layer or group loses more than a share ``step`` in one
    iteration and the network half of that; then all that is left is fitted in closed form and measured anew. Norms
    keep their statistics, as what they read is what it was. Call :func:`~monai_basisprune.compensate_` with the
    unpruned network afterwards.

    Args:
        network: a decomposed network.
        data: a loader of some 100 unlabeled images, as for :func:`~monai_basisprune.decompose`; read once.
        budget: how much of the original network to remove: ``Budget(parameters=...)`` or ``Budget(macs=...,
            input_shape=...)``.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``: channels are removed as well. By
            default, only bases are.
        step: the largest share of its bases or channels that a layer or group loses in one iteration.
        ridge: ``λ`` as a share of the mean square of the features.

    Returns:
        what is left.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer, or cannot be traced.
        ActivationError: if there are fewer positions in all images than a layer has bases, or images are not of use;
            all problems are listed, and nothing is changed.
        BudgetError: if the budget cannot be met; the message holds the largest one that can.
        ValueError: if ``step`` or ``ridge`` is out of range.

    Example:
        >>> import monai_basisprune as mbp
        >>> plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> network = mbp.decompose(plain)
        >>> images = [torch.rand(16, 1, 12, 12) for _ in range(4)]
        >>> result = prune_by_reconstruction_(network, images, mbp.Budget(parameters=0.5), (1, 12, 12))
        >>> result.parameter_reduction >= 0.5
        True
    """
    if not 0 < step <= 1:
        raise ValueError(f"step must be above 0 and at most 1, got {step}.")
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be a positive number, got {ridge}.")
    if not budget.shares.keys() <= {"parameters", "macs"}:
        raise BudgetError(f"{budget} is none that a structural search meets: ask for a share of parameters or of macs.")
    groups = _free_groups(network, input_shape)
    shape = tuple(input_shape or budget.input_shape or ())
    _check_budget(network, budget, groups, shape)
    problems: list[str] = []
    batches = list(image_batches(network, data, problems))
    raise_problems(f"{type(network).__name__} cannot be searched", problems)
    lost: dict[str, float] = {}
    iterations: list[SearchIteration] = []
    while True:
        tally = Tally(network, budget, shape)
        if tally.met:
            break
        moments = measure_features(network, groups, batches)
        parts = removal_curves(network, groups, moments, lost, step, ridge)
        removals = _chosen(network, groups, tally, parts, lost, step)
        _apply_(network, groups, removals, moments, shape, ridge)
        groups = _free_groups(network, input_shape)
        parameters = network_cost(network, Budget(parameters=0.0))
        iterations.append(
            SearchIteration(
                threshold=max(lost.values()),
                bases=sum(layer.rank() for _, layer in decomposed_layers(network)),
                channels=sum(len(group.units) for group in groups) if input_shape is not None else None,
                parameter_reduction=parameters.reduction(parameters.total),
            )
        )
    parameters = network_cost(network, Budget(parameters=0.0))
    return StructureResult(
        iterations=iterations,
        lost=lost,
        images=sum(len(batch) for batch in batches),
        parameters=int(parameters.total),
        parameter_reduction=parameters.reduction(parameters.total),
    )


def _free_groups(network: nn.Module, input_shape: Sequence[int] | None) -> list[ChannelGroup]:
    decomposed_layers(network)
    if input_shape is None:
        return []
    return [group for group in channel_groups(network, input_shape) if group.kept_because is None]


def _check_budget(network: nn.Module, budget: Budget, groups: Sequence[ChannelGroup], shape: Sequence[int]) -> None:
    tally = Tally(network, budget, shape)
    for group in groups:
        for unit in group.units[1:]:
            tally.remove(unit)
    for name, layer in decomposed_layers(network):
        tally.remove_bases(name, layer.rank() - layer.groups)
    if not tally.met:
        least = "with one basis left in every layer" + (" and one channel in every group" if groups else "")
        raise BudgetError(tally.impossible(least))


def _chosen(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    tally: Tally,
    parts: Sequence[RemovalCurve],
    lost: dict[str, float],
    step: float,
) -> dict[str, list[int]]:
    """Return the units that each part loses, and note what is lost with them."""
    layers, units = dict(decomposed_layers(network)), {f"channels of {group.name}": group.units for group in groups}
    # above its break-even rank, a layer saves nothing yet: the step is measured by what its two halves hold
    room = _SHARE_OF_STEP * step * sum(tally.basis_price(name) * layer.rank() for name, layer in layers.items())
    events = sorted((loss, number) for number, part in enumerate(parts) for loss in part.losses)
    removals: dict[str, list[int]] = {}
    for loss, number in events:
        part = parts[number]
        if tally.met or room <= 0:
            break
        removed = removals.setdefault(part.key, [])
        if part.key in units:
            room -= tally.saving(units[part.key][part.order[len(removed)]])
        else:
            room -= tally.basis_price(part.name) * layers[part.name].groups
        if len(removed) == part.limit:
            continue  # its turn is in the next iteration, and that of what is worth more than it comes after that
        if part.key in units:
            tally.remove(units[part.key][part.order[len(removed)]])
        else:
            tally.remove_bases(part.name, layers[part.name].groups)
        removed.append(part.order[len(removed)])
        lost[part.key] = loss
    return removals


def _apply_(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    removals: Mapping[str, list[int]],
    moments: Mapping[tuple[str, str], Moments],
    shape: Sequence[int],
    ridge: float,
) -> None:
    """Remove units, and fit what is left in closed form from the moments that were measured with them."""
    kept = {
        group.name: [u for u in range(len(group.units)) if u not in set(removals[f"channels of {group.name}"])]
        for group in groups
        if f"channels of {group.name}" in removals
    }
    removed = removed_slots({group.name: group.units for group in groups}, kept)
    if removed:
        verify_cut(network, shape, removed)
    for name, layer in decomposed_layers(network):
        if name in removals:
            slots = layer.rank() // layer.groups
            keep = [slot for slot in range(slots) if slot not in set(removals[name])]
            _remove_bases_(network, name, layer, keep, moments["bases", name], ridge)
    readers = dict.fromkeys(name for name, side in removed if side == "in")
    twins = {name: copy.deepcopy(network.get_submodule(name)) for name in readers if ("inputs", name) in moments}
    cut_channels_(network, removed, None)
    for name, twin in twins.items():
        module = network.get_submodule(name)
        gone = set(removed[name, "in"])
        keep = [c for c in range(channel_count(twin, "in") // group_count(twin)) if c not in gone]
        refit_inputs_(module, twin, _joint(moments["inputs", name], keep), ridge)


def _remove_bases_(
    network: nn.Module, name: str, layer: DecomposedLayer, keep: list[int], moments: Moments, ridge: float
) -> None:
    per_group = layer.rank() // layer.groups
    bias = layer.scaling.bias
    told = compensated(feature_moment(moments, bias is not None), keep, ridge)
    weight = layer.scaling.weight.detach().to("cpu", torch.float64).reshape(layer.groups, -1, per_group)
    new = weight @ told
    layer.means = None  # the fit has the means of what is removed in it
    keep_bases_(network, {name: [g * per_group + slot for g in range(layer.groups) for slot in keep]})
    layer.scaling.weight.data.copy_(new.reshape(layer.scaling.weight.shape))
    if bias is not None:
        mean = moments.mean().unsqueeze(-1)
        bias.data += (weight @ (mean - told @ mean[:, keep])).reshape(-1).to(bias)


def _joint(moments: Moments, keep: list[int]) -> Moments:
    """Return the moments of some features and of all of them, in this order."""
    assert moments.sums is not None
    assert moments.products is not None
    index = torch.tensor([*keep, *range(moments.sums.shape[1])], device=moments.sums.device)
    return Moments(moments.sums[:, index], moments.products[:, index][:, :, index], moments.samples, moments.images)
