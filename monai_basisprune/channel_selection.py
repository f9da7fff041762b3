"""Which channels a budget removes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .budgets import Budget, count_positions, network_cost
from .channel_graph import ChannelGroup
from .channel_slices import channel_count, parameters_at, sizes, weights_at
from .channel_trial import Side
from .errors import BudgetError

__all__ = ["Tally", "channel_blocks", "channel_candidates", "check_channel_scores", "select_channels"]


class Tally:
    """What is left of a network, in one currency, as channels and bases go one by one."""

    def __init__(self, network: nn.Module, budget: Budget, input_shape: Sequence[int]) -> None:
        self.cost = network_cost(network, budget)
        self.left = self.cost.total
        self.modules = dict(network.named_modules())
        self.counts: dict[str, dict[str, int]] = {}
        self.ranks: dict[str, int] = {}
        self.positions: dict[str, int] | None = None
        if budget.quantity == "macs":
            self.positions, _ = count_positions(network, input_shape)

    def price(self, name: str) -> int:
        """Return what a module costs now."""
        inputs, outputs = sizes(self.modules[name])
        counts = self.counts.get(name, {})
        inputs, outputs = counts.get("in", inputs), counts.get("out", outputs)
        module, rank = self.modules[name], self.ranks.get(name)
        if self.positions is None:
            return parameters_at(module, inputs, outputs, rank)
        return self.positions.get(name, 0) * weights_at(module, inputs, outputs, rank)

    def remove(self, unit: Mapping[Side, Sequence[int]]) -> None:
        """Take one channel out of all the modules that it is in."""
        self.left -= self._change(unit, -1)

    def saving(self, unit: Mapping[Side, Sequence[int]]) -> int:
        """Return what would go with one channel."""
        saved = self._change(unit, -1)
        self._change(unit, 1)
        return saved

    def _change(self, unit: Mapping[Side, Sequence[int]], sign: int) -> int:
        names = {name for name, _ in unit}
        before = sum(self.price(name) for name in names)
        for (name, side), positions in unit.items():
            counts = self.counts.setdefault(name, {})
            counts[side] = counts.get(side, channel_count(self.modules[name], side)) + sign * len(positions)
        return before - sum(self.price(name) for name in names)

    def basis_price(self, name: str) -> int:
        """Return what one basis of a layer holds in its two halves now."""
        layer: Any = self.modules[name]
        inputs, outputs = sizes(layer)
        counts = self.counts.get(name, {})
        columns = layer.basis.weight[0].numel() * counts.get("in", inputs) // inputs
        price = columns + counts.get("out", outputs) // layer.groups
        return int(price) if self.positions is None else int(price) * self.positions[name]

    def remove_bases(self, name: str, count: int) -> None:
        """Take some bases out of a layer."""
        self.left -= self.price(name)
        self.ranks[name] = self.ranks.get(name, self.modules[name].rank()) - count
        self.left += self.price(name)

    def impossible(self, budget: Budget, least: str) -> str:
        """Return why a budget cannot be met when all that can go is gone."""
        largest = math.floor(self.cost.reduction(self.left) * 1e4) / 1e4
        return (
            f"{budget} cannot be met {least}, {self.left:,} of the original {self.cost.original:,} {budget.quantity} "
            f"remain. The largest that can be met is {budget.quantity}={largest}; ask for less, or see channel_status "
            f"for the groups that keep their channels."
        )


def select_channels(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, torch.Tensor],
    budget: Budget,
    input_shape: Sequence[int],
    multiple: int = 1,
) -> dict[str, list[int]]:
    """Choose the channels to keep so that a budget is met; changes nothing.

    The channels of all groups compete: those with the lowest scores go first until the budget is met. At least one
    channel of each group stays. Between equal scores, the channel of the larger group goes first.

    Args:
        network: a decomposed network.
        groups: its groups of channels.
        scores: one score for each channel, ``{group: tensor of shape (channels,)}``; groups left out keep all.
        budget: how much to remove: of parameters, of operations, or a threshold.
        input_shape: shape of one input without the batch.
        multiple: channels go in blocks, so that a multiple of this number of them is left in every group of which any
            go; a block counts with the mean of its scores.

    Returns:
        for each group in ``scores`` the positions to keep, rising.

    Raises:
        ValueError: if the scores do not fit the network or are not finite, with all problems listed, or ``multiple`` is
            no whole number of at least 1.
        BudgetError: if the budget cannot be met; the message holds the largest one that can.
    """
    if budget.quantity not in ("parameters", "macs", "threshold"):
        raise BudgetError(
            f"{budget} cannot be met by channels: ask for a share of parameters or of macs, or for a threshold."
        )
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple must be a whole number of at least 1, the channels of one block, got {multiple!r}.")
    free = {group.name: group for group in groups if group.kept_because is None}
    check_channel_scores(groups, scores)
    gone: dict[str, set[int]] = {name: set() for name in scores}
    tally = None if budget.threshold is not None else Tally(network, budget, input_shape)
    for score, _, name, positions in channel_blocks(free, scores, multiple):
        if tally is None and score >= (budget.threshold or 0.0):
            break
        if tally is not None:
            if tally.left <= tally.cost.allowed:
                break
            for position in positions:
                tally.remove(free[name].units[position])
        gone[name].update(positions)
    if tally is not None and tally.left > tally.cost.allowed:
        fewest = "one channel" if multiple == 1 else f"one block of {multiple} channels"
        raise BudgetError(tally.impossible(budget, f"by channels: with {fewest} left in every group that has scores"))
    return {name: [p for p in range(len(free[name].units)) if p not in gone[name]] for name in scores}


def channel_blocks(
    free: Mapping[str, ChannelGroup], scores: Mapping[str, torch.Tensor], multiple: int
) -> list[tuple[float, float, str, list[int]]]:
    """Return the channels that can go in blocks with their mean score, those to remove first in front.

    The first block of a group leaves a multiple of ``multiple``, each further one is of that size, and the best block
    of each group is not among them.
    """
    if multiple == 1:
        return [(score, size, name, [position]) for score, size, name, position in channel_candidates(free, scores)]
    blocks = []
    for name, tensor in scores.items():
        rising = tensor.detach().cpu().double().sort(stable=True)
        start, end = 0, len(rising.values) % multiple or multiple
        while end + multiple <= len(rising.values):
            score = float(rising.values[start:end].mean())
            blocks.append((score, -len(free[name].units), name, rising.indices[start:end].tolist()))
            start, end = end, end + multiple
    return sorted(blocks)


def channel_candidates(
    free: Mapping[str, ChannelGroup], scores: Mapping[str, torch.Tensor]
) -> list[tuple[float, float, str, int]]:
    """Return all channels but the best of each group, those to remove first in front."""
    candidates = []
    for name, tensor in scores.items():
        values = tensor.detach().cpu().double().tolist()
        best = max(range(len(values)), key=lambda position: (values[position], -position))
        candidates += [(v, -len(free[name].units), name, p) for p, v in enumerate(values) if p != best]
    return sorted(candidates)


def check_channel_scores(groups: Sequence[ChannelGroup], scores: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError with all problems if the scores are not those of channels that can be removed."""
    known = {group.name: group for group in groups}
    problems = []
    for name, values in scores.items():
        if name not in known:
            problems.append(f"{name}: no group of channels has this name")
        elif known[name].kept_because is not None:
            problems.append(f"{name}: its channels cannot be removed, {known[name].kept_because}")
        elif tuple(values.shape) != (len(known[name].units),):
            problems.append(f"{name}: {tuple(values.shape)} scores for {len(known[name].units)} channels")
        elif not bool(torch.isfinite(values).all()):
            problems.append(f"{name}: scores are NaN or infinite")
    if not scores:
        names = [group.name for group in groups if group.kept_because is None]
        problems.append(f"there are none; groups whose channels can be removed are {names}, see channel_status")
    if problems:
        raise ValueError(
            "The scores do not fit the channels of the network:\n" + "\n".join(f"  - {line}" for line in problems)
        )
