"""Bases and channels under one budget: whatever matters least for what it costs goes first."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from .budgets import Budget, network_cost
from .channel_graph import ChannelGroup, channel_groups
from .channel_selection import check_channel_scores, check_multiple, fewest_channels, rising_blocks
from .channel_trial import Side, removed_slots
from .channels import cut_channels_, verify_cut
from .copies import copy_network
from .decomposition import decomposed_layers
from .errors import BudgetError
from .layers import DecomposedLayer
from .pruning import check_scores, keep_bases_, score_slots
from .tally import Tally

__all__ = ["JointResult", "check_joint_budget", "prune_jointly_"]


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
    groups: Sequence[ChannelGroup] | None = None,
    multiple: int = 1,
) -> JointResult:
    """Remove bases and channels of a decomposed network in place, until a budget is met.

    All bases and all channels compete by their score per parameter (or operation) that goes with them, or, where the
    budget is of both, for the sum of their shares of the original network, so that what holds much of either goes
    first. The scores of both kinds have to be in one unit: a :class:`TaylorImportance` and a
    :class:`ChannelTaylorImportance` with the same ``reduction``, the same batches and no normalization. A basis counts
    with what it holds in both halves of its layer, though a layer above its break-even rank saves nothing yet when
    recomposed; a channel with what goes at that moment in all layers that it is in. At least one basis of each group of
    each layer stays, and one channel of each group of channels.

    Everything is checked before anything is cut, as in :func:`prune_channels_`: where this raises, the network is
    untouched. An optimizer goes on with what is left.

    Args:
        network: a decomposed network.
        basis_scores: one score for each basis, ``{layer name: tensor of shape (rank,)}``.
        channel_scores: one score for each channel, ``{group: tensor of shape (channels,)}``.
        budget: how much of the original network to remove: of parameters, of macs or of both.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.
        optimizer: the optimizer, or optimizers, that train the network.
        groups: the groups that the channels go in, as ``channel_importance.groups``; by default they are looked for,
            which takes some forward passes.
        multiple: leave a multiple of this number of channels in every group of which any go, as in
            :func:`prune_channels_`; a block of channels competes by the sum of its scores.

    Returns:
        what is left.

    Raises:
        ValueError: if the scores do not fit the network or are below 0, it cannot process the input, or ``multiple`` is
            no whole number of at least 1.
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
    check_joint_budget(budget)
    check_multiple(multiple)
    layers = dict(decomposed_layers(network))
    check_scores(layers, basis_scores)
    groups = channel_groups(network, input_shape) if groups is None else groups
    check_channel_scores(groups, channel_scores)
    negative = [n for scores in (basis_scores, channel_scores) for n, s in scores.items() if bool((s < 0).any())]
    if negative:
        raise ValueError(f"Scores per parameter need scores of at least 0; below it are some of {negative}.")
    tally = Tally(network, budget, input_shape)
    kept_bases, kept_channels = _select(tally, layers, groups, basis_scores, channel_scores, multiple)
    removed = removed_slots({group.name: group.units for group in groups}, kept_channels)
    verify_cut(network, input_shape, removed)
    # all that can raise comes before the cut
    trial = copy_network(network)
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


def check_joint_budget(budget: Budget) -> None:
    """Raise a BudgetError if a budget is of something that bases and channels have not in common."""
    if not budget.shares.keys() <= {"parameters", "macs"}:
        raise BudgetError(f"{budget} is not one of bases and channels together: ask for a share of parameters or macs.")


def _select(
    tally: Tally,
    layers: Mapping[str, DecomposedLayer],
    groups: Sequence[ChannelGroup],
    basis_scores: Mapping[str, torch.Tensor],
    channel_scores: Mapping[str, torch.Tensor],
    multiple: int,
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    order = {name: score_slots(layers[name], scores) for name, scores in basis_scores.items()}
    bases = {name: _BasisQueue(tally, name, layers[name].groups, values) for name, (_, values) in order.items()}
    units = {group.name: group.units for group in groups}
    channels = {name: _ChannelQueue(tally, units[name], scores, multiple) for name, scores in channel_scores.items()}
    queues: list[_Queue] = [*bases.values(), *channels.values()]
    # all units of a queue save the same, so only the first of each can be next
    heap = [(queue.ratio(), number) for number, queue in enumerate(queues) if queue.waiting]
    heapq.heapify(heap)
    while heap and not tally.met:
        ratio, number = heapq.heappop(heap)
        queue = queues[number]
        # what a unit saves shrinks as others go: it waits for its new turn
        if queue.ratio() <= ratio:
            queue.advance()
        if queue.waiting:
            heapq.heappush(heap, (queue.ratio(), number))
    if not tally.met:
        left = f"with one basis left in every layer and {fewest_channels(multiple)} in every group that has scores"
        raise BudgetError(tally.impossible(left))
    kept_bases = {n: sorted(order[n][0][:, : queue.left].reshape(-1).tolist()) for n, queue in bases.items()}
    kept_channels = {n: sorted(chain.from_iterable(queue.blocks[queue.gone :])) for n, queue in channels.items()}
    return kept_bases, kept_channels


class _Queue:
    """Units that save the same, in the order in which they go; the last one stays."""

    def __init__(self, tally: Tally, scores: Sequence[float]) -> None:
        self.tally, self.scores, self.gone = tally, scores, 0

    @property
    def left(self) -> int:
        """How many units are left."""
        return len(self.scores) - self.gone

    @property
    def waiting(self) -> bool:
        """Whether one more can go."""
        return self.left > 1

    def ratio(self) -> float:
        """Return the score of the next one for what it saves now."""
        saving = self._saving()
        return self.scores[self.gone] / saving if saving > 0 else float("inf")

    def advance(self) -> None:
        """Let the next one go."""
        self._remove()
        self.gone += 1

    def _saving(self) -> float:
        raise NotImplementedError

    def _remove(self) -> None:
        raise NotImplementedError


class _BasisQueue(_Queue):
    def __init__(self, tally: Tally, name: str, groups: int, falling: torch.Tensor) -> None:
        super().__init__(tally, falling.flip(0).tolist())
        self.name, self.groups = name, groups

    def _saving(self) -> float:
        return self.tally.basis_price(self.name) * self.groups

    def _remove(self) -> None:
        self.tally.remove_bases(self.name, self.groups)


class _ChannelQueue(_Queue):
    def __init__(
        self, tally: Tally, units: Sequence[Mapping[Side, Sequence[int]]], scores: torch.Tensor, multiple: int
    ) -> None:
        self.blocks = rising_blocks(scores, multiple)
        super().__init__(tally, [float(scores[block].detach().double().sum()) for block in self.blocks])
        # a block goes as one unit
        self.units = [
            {side: [position for channel in block for position in units[channel][side]] for side in units[0]}
            for block in self.blocks
        ]

    def _saving(self) -> float:
        return self.tally.saving(self.units[self.gone])

    def _remove(self) -> None:
        self.tally.remove(self.units[self.gone])
