"""Bases and channels under one budget: whatever matters least for what it costs goes first."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .budgets import Budget, network_cost
from .channel_graph import ChannelGroup, channel_groups
from .channel_selection import Tally, channel_candidates, check_channel_scores
from .channel_trial import removed_slots
from .channels import cut_channels_, verify_cut
from .decomposition import decomposed_layers
from .errors import BudgetError
from .layers import DecomposedLayer
from .pruning import check_scores, keep_bases_, score_slots

__all__ = ["JointResult", "prune_jointly_"]


@dataclass(frozen=True)
class JointResult:
    """What a call of :func:`prune_jointly_` left, counted against the original network and after recomposition.

    Attributes:
        kept_bases: for each layer the positions, in the order before this call, of the bases that were kept.
        kept_channels: for each group of channels the positions that were kept.
        removed_bases: number of bases that this call removed.
        removed_channels: number of channels that this call removed; one that goes in several layers counts once.
        parameters: number of parameters that are left.
        parameter_reduction: the share of the original network's parameters that is gone.
        macs: multiply-accumulate operations that are left.
        mac_reduction: the share of the original network's that is gone.
    """

    kept_bases: dict[str, list[int]]
    kept_channels: dict[str, list[int]]
    removed_bases: int
    removed_channels: int
    parameters: int
    parameter_reduction: float
    macs: int
    mac_reduction: float


def prune_jointly_(
    network: nn.Module,
    basis_scores: Mapping[str, torch.Tensor],
    channel_scores: Mapping[str, torch.Tensor],
    budget: Budget,
    input_shape: Sequence[int],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
) -> JointResult:
    """Remove bases and channels of a decomposed network in place, until one budget is met.

    All bases and all channels compete by their score per parameter (or operation) that goes with them, so the scores
    of both kinds have to be in one unit: a :class:`TaylorImportance` and a :class:`ChannelTaylorImportance` with the
    same ``reduction``, the same batches and no normalization. A basis counts with what it holds in both halves of its
    layer, though a layer above its break-even rank saves nothing yet when recomposed; a channel with what goes at
    that moment in all layers that it is in. At least one basis of each group of each layer stays, and one channel of
    each group of channels.

    Everything is checked before anything is cut, as in :func:`prune_channels_`: where this raises, the network is
    untouched. An optimizer goes on with what is left.

    Args:
        network: a decomposed network.
        basis_scores: one score for each basis, ``{layer name: tensor of shape (rank,)}``.
        channel_scores: one score for each channel, ``{group: tensor of shape (channels,)}``.
        budget: how much of the original network to remove: of parameters or of macs.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.
        optimizer: the optimizer, or optimizers, that train the network.

    Returns:
        what is left.

    Raises:
        ValueError: if the scores do not fit the network or are below 0, or it cannot process the input.
        LayerSelectionError: if the network holds no decomposed layer, cannot be traced, or computes something else
            after the cut.
        BudgetError: if the budget cannot be met; the message holds the largest one that can.

    Example:
        >>> import monai_basisprune as mbp
        >>> plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> network = mbp.decompose(plain)
        >>> bases = mbp.TaylorImportance(network)
        >>> with mbp.ChannelTaylorImportance(network, (1, 8, 8)) as channels:
        ...     network(torch.rand(2, 1, 8, 8)).square().mean().backward()
        ...     added = bases.accumulate() and channels.accumulate()
        >>> result = mbp.prune_jointly_(
        ...     network, bases.scores(), channels.scores(), mbp.Budget(parameters=0.6), (1, 8, 8)
        ... )
        >>> result.parameter_reduction >= 0.6
        True
    """
    if budget.quantity not in ("parameters", "macs"):
        raise BudgetError(f"{budget} is not one of bases and channels together: ask for a share of parameters or macs.")
    layers = dict(decomposed_layers(network))
    check_scores(layers, basis_scores)
    groups = channel_groups(network, input_shape)
    check_channel_scores(groups, channel_scores)
    negative = [n for scores in (basis_scores, channel_scores) for n, s in scores.items() if bool((s < 0).any())]
    if negative:
        raise ValueError(f"Scores per parameter need scores of at least 0; below it are some of {negative}.")
    kept_bases, kept_channels = _select(
        Tally(network, budget, input_shape), budget, layers, groups, basis_scores, channel_scores
    )
    removed = removed_slots({group.name: group.units for group in groups}, kept_channels)
    verify_cut(network, input_shape, removed)
    # all that can raise comes before the cut
    trial = copy.deepcopy(network)
    cut_channels_(trial, removed, None)
    keep_bases_(trial, kept_bases)
    parameters = network_cost(trial, Budget(parameters=0.0))
    macs = network_cost(trial, Budget(macs=0.0, input_shape=tuple(input_shape)))
    cut_channels_(network, removed, optimizer)
    removed_bases = keep_bases_(network, kept_bases, optimizer)
    sizes = {group.name: len(group.units) for group in groups}
    return JointResult(
        kept_bases=kept_bases,
        kept_channels=kept_channels,
        removed_bases=removed_bases,
        removed_channels=sum(sizes[name] - len(kept) for name, kept in kept_channels.items()),
        parameters=int(parameters.total),
        parameter_reduction=parameters.reduction(parameters.total),
        macs=int(macs.total),
        mac_reduction=macs.reduction(macs.total),
    )


def _select(
    tally: Tally,
    budget: Budget,
    layers: Mapping[str, DecomposedLayer],
    groups: Sequence[ChannelGroup],
    basis_scores: Mapping[str, torch.Tensor],
    channel_scores: Mapping[str, torch.Tensor],
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    order = {name: score_slots(layers[name], scores) for name, scores in basis_scores.items()}
    free = {group.name: group for group in groups if group.kept_because is None}
    kept_slots = {name: len(values) for name, (_, values) in order.items()}
    gone: dict[str, set[int]] = {name: set() for name in channel_scores}

    def basis_saving(name: str, _: int) -> float:
        return tally.basis_price(name) * layers[name].groups

    def channel_saving(name: str, position: int) -> float:
        return tally.saving(free[name].units[position])

    savings: dict[str, Callable[[str, int], float]] = {"basis": basis_saving, "channel": channel_saving}
    candidates = [("basis", n, slot, float(v)) for n, (_, vs) in order.items() for slot, v in enumerate(vs) if slot > 0]
    candidates += [("channel", n, p, score) for score, _, n, p in channel_candidates(free, channel_scores)]
    heap = [(_ratio(score, savings[kind](n, p)), score, kind, n, p) for kind, n, p, score in candidates]
    heapq.heapify(heap)
    while heap and tally.left > tally.cost.allowed:
        ratio, score, kind, name, position = heapq.heappop(heap)
        # what a candidate saves shrinks as others go: it waits for its new turn
        now = _ratio(score, savings[kind](name, position))
        if now > ratio:
            heapq.heappush(heap, (now, score, kind, name, position))
        elif kind == "basis":
            tally.remove_bases(name, layers[name].groups)
            kept_slots[name] -= 1
        else:
            tally.remove(free[name].units[position])
            gone[name].add(position)
    if tally.left > tally.cost.allowed:
        left = "with one basis left in every layer and one channel in every group that has scores"
        raise BudgetError(tally.impossible(budget, left))
    kept_bases = {name: sorted(order[name][0][:, : kept_slots[name]].reshape(-1).tolist()) for name in order}
    return kept_bases, {n: [p for p in range(len(free[n].units)) if p not in gone[n]] for n in channel_scores}


def _ratio(score: float, saving: float) -> float:
    return score / saving if saving > 0 else float("inf")
