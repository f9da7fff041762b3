"""Which channels a budget removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import nn

from .budgets import Budget
from .channel_graph import ChannelGroup
from .errors import BudgetError
from .tally import Tally

__all__ = ["check_channel_scores", "check_multiple", "fewest_channels", "rising_blocks", "select_channels"]


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
    if not budget.shares.keys() <= {"parameters", "macs", "threshold"}:
        raise BudgetError(
            f"{budget} cannot be met by channels: ask for a share of parameters or of macs, or for a threshold."
        )
    check_multiple(multiple)
    free = {group.name: group for group in groups if group.kept_because is None}
    check_channel_scores(groups, scores)
    gone: dict[str, set[int]] = {name: set() for name in scores}
    tally = None if budget.threshold is not None else Tally(network, budget, input_shape)
    for score, _, name, _, positions in _candidates(free, scores, multiple):
        if tally is None and score >= (budget.threshold or 0.0):
            break
        if tally is not None:
            if tally.met:
                break
            for position in positions:
                tally.remove(free[name].units[position])
        gone[name].update(positions)
    if tally is not None and not tally.met:
        fewest = fewest_channels(multiple)
        raise BudgetError(tally.impossible(f"by channels: with {fewest} left in every group that has scores"))
    return {name: [p for p in range(len(free[name].units)) if p not in gone[name]] for name in scores}


def check_multiple(multiple: object) -> None:
    """Raise a ValueError if this is no number of channels in a block."""
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple must be a whole number of at least 1, the channels of one block, got {multiple!r}.")


def fewest_channels(multiple: int) -> str:
    """Say what is left of a group at least."""
    return "one channel" if multiple == 1 else f"one block of {multiple} channels"


def rising_blocks(scores: torch.Tensor, multiple: int) -> list[list[int]]:
    """Return the channels of a group in blocks, those to remove first in front; the last block is the one that stays.

    Without the first block a multiple of ``multiple`` is left, and each further one is of that size. Between equal
    scores, the later channel goes first.
    """
    order = scores.detach().cpu().double().sort(descending=True, stable=True).indices.flip(0).tolist()
    first = len(order) % multiple or multiple
    edges = [0, *range(first, len(order) - multiple + 1, multiple), len(order)]
    return [order[start:end] for start, end in pairwise(edges)]


def _candidates(
    free: Mapping[str, ChannelGroup], scores: Mapping[str, torch.Tensor], multiple: int
) -> list[tuple[float, int, str, int, list[int]]]:
    """Return the blocks that can go with their mean score, those to remove first in front."""
    found = []
    for name, values in scores.items():
        blocks = rising_blocks(values, multiple)[:-1]
        # rounding must not let a block go before the one that brings its group to a multiple
        means = accumulate((float(values[block].detach().double().mean()) for block in blocks), max)
        size = -len(free[name].units)
        found += [(mean, size, name, n, block) for n, (mean, block) in enumerate(zip(means, blocks, strict=True))]
    return sorted(found)


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
