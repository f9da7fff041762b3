"""Which channels a budget removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .budgets import Budget
from .channel_graph import ChannelGroup
from .errors import BudgetError
from .tally import Tally

__all__ = ["channel_blocks", "channel_candidates", "check_channel_scores", "select_channels"]


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
            if tally.met:
                break
            for position in positions:
                tally.remove(free[name].units[position])
        gone[name].update(positions)
    if tally is not None and not tally.met:
        fewest = "one channel" if multiple == 1 else f"one block of {multiple} channels"
        raise BudgetError(tally.impossible(f"by channels: with {fewest} left in every group that has scores"))
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
