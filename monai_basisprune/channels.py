"""The second half of double pruning: channels of decomposed networks, what they matter, and the cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .budgets import Budget, network_cost
from .channel_graph import channel_groups
from .channel_selection import select_channels
from .channel_slices import channel_count, keep_channels_
from .channel_trial import Side, cut_difference, removed_slots
from .copies import copy_network
from .errors import LayerSelectionError
from .forward import example_input
from .layers import Slicer
from .pruning import hand_over

__all__ = ["ChannelResult", "ChannelStatus", "channel_status", "cut_channels_", "prune_channels_", "verify_cut"]

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ChannelStatus:
    """Channels that can only be removed together with those of other layers.

    Attributes:
        name: the first layer that makes them.
        layers: all modules that lose something when one of them goes.
        channels: how many there are now.
        skipped: why all of them stay, or None where they can be removed.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    skipped: str | None


@dataclass(frozen=True)
class ChannelResult:
    """What a call of :func:`prune_channels_` left, counted against the original network and after recomposition.

    Attributes:
        kept: for each group of channels the positions, in the order before this call, that were kept.
        removed_channels: number of channels that this call removed; one that goes in several layers at once counts
            once.
        channels: number of channels that are left, counted likewise, of the groups that can be cut.
        parameters: number of parameters that are left.
        parameter_reduction: the share of the original network's parameters that is gone.
        macs: multiply-accumulate operations that are left.
        mac_reduction: the share of the original network's that is gone.
    """

    kept: dict[str, list[int]]
    removed_channels: int
    channels: int
    parameters: int
    parameter_reduction: float
    macs: int
    mac_reduction: float


def channel_status(network: nn.Module, input_shape: Sequence[int]) -> list[ChannelStatus]:
    """List the channels of a decomposed network by the groups that they can be removed in; changes nothing.

    Args:
        network: a decomposed network.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Returns:
        one :class:`ChannelStatus` for each group, with the reason where it keeps its channels.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer, or cannot be traced.
        ValueError: if the network cannot process the input.
    """
    return [
        ChannelStatus(
            group.name,
            tuple(dict.fromkeys(name for name, _ in group.sides() if name)),
            len(group.units),
            group.kept_because,
        )
        for group in channel_groups(network, input_shape)
    ]


def prune_channels_(
    network: nn.Module,
    scores: Mapping[str, torch.Tensor],
    budget: Budget,
    input_shape: Sequence[int],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    multiple: int = 1,
) -> ChannelResult:
    """Remove the least important channels of a decomposed network in place, until a budget is met.

    The second half of double pruning, after :func:`prune_` (Wong et al., arXiv 2108.02893). Channels that are coupled
    by a sum or a concatenation go together; where a part of the network cannot be sliced, it keeps its channels, and
    :func:`channel_status` says why. Outputs of the network and its inputs stay. The rows of a basis that lost inputs
    are no longer orthonormal, which changes nothing in what follows.

    Everything is checked before anything is cut, the cut itself on a copy: its output has to be what it is when the
    layers that read the channels ignore them. Where this raises, the network is untouched. Parameters that shrink are
    replaced by new ones, and an optimizer that holds them goes on with these and with the state of what is left. Hand
    the network to DDP, ``torch.compile`` and the like again after the call.

    Args:
        network: a decomposed network.
        scores: one score for each channel, from a :class:`ChannelTaylorImportance`: ``{group: tensor of shape
            (channels,)}``.
        budget: how much of the original network to remove, bases and channels together: ``Budget(parameters=...)``,
            ``Budget(macs=..., input_shape=...)`` or ``Budget(threshold=...)``.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.
        optimizer: the optimizer, or optimizers, that train the network.
        multiple: leave a multiple of this number of channels in every group of which any go. With 16, the size of the
            blocks in which the libraries of many processors compute, a network is faster at the same operations.

    Returns:
        what is left.

    Raises:
        ValueError: if the scores do not fit the network, it cannot process the input, or ``multiple`` is no whole
            number of at least 1.
        LayerSelectionError: if the network holds no decomposed layer, cannot be traced, or computes something else
            after the cut.
        BudgetError: if the budget cannot be met.

    Example:
        >>> import monai_basisprune as mbp
        >>> plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> network = mbp.decompose(plain)
        >>> with mbp.ChannelTaylorImportance(network, (1, 8, 8)) as importance:
        ...     network(torch.rand(2, 1, 8, 8)).square().mean().backward()
        ...     added = importance.accumulate()
        >>> result = mbp.prune_channels_(network, importance.scores(), mbp.Budget(parameters=0.5), (1, 8, 8))
        >>> len(result.kept["0"])
        3
    """
    groups = channel_groups(network, input_shape)
    kept = select_channels(network, groups, scores, budget, input_shape, multiple)
    removed = removed_slots({group.name: group.units for group in groups}, kept)
    verify_cut(network, input_shape, removed)
    # all that can raise comes before the cut
    trial = copy_network(network)
    cut_channels_(trial, removed, None)
    parameters = network_cost(trial, Budget(parameters=0.0))
    macs = network_cost(trial, Budget(macs=0.0, input_shape=tuple(input_shape)))
    cut_channels_(network, removed, optimizer)
    free = [group for group in groups if group.kept_because is None]
    gone = sum(len(group.units) - len(kept[group.name]) for group in free if group.name in kept)
    return ChannelResult(
        kept=kept,
        removed_channels=gone,
        channels=sum(len(group.units) for group in free) - gone,
        parameters=int(parameters.total),
        parameter_reduction=parameters.reduction(parameters.total),
        macs=int(macs.total),
        mac_reduction=macs.reduction(macs.total),
    )


def verify_cut(network: nn.Module, input_shape: Sequence[int], removed: Mapping[Side, Sequence[int]]) -> None:
    """Make the cut on a copy, and check that it runs and computes what it should."""
    trial = copy_network(network).double()
    like = example_input(trial, input_shape, batch_size=2)
    x = torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(0)).to(like.device)
    try:
        difference = cut_difference(trial, x, removed)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise LayerSelectionError(
            f"{type(network).__name__} was not cut: a copy of it does not run without these channels ({error})."
        ) from error
    if difference > _TOLERANCE:
        raise LayerSelectionError(
            f"{type(network).__name__} was not cut: the output of a copy without these channels differs by "
            f"{difference:.1e} from that of one that ignores them. Give scores for fewer groups of channels."
        )


def cut_channels_(
    network: nn.Module,
    removed: Mapping[Side, Sequence[int]],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> None:
    """Remove channels without any check, in place, and take the state of optimizers along.

    Args:
        network: a network.
        removed: the positions that each side of each module loses.
        optimizer: the optimizer, or optimizers, that train it.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())

    def replaced(old: nn.Parameter, new: nn.Parameter, slicer: Slicer) -> None:
        for one in optimizers:
            hand_over(one, old, new, slicer)

    modules = dict(network.named_modules())
    for (name, side), positions in removed.items():
        gone = set(positions)
        keep = [c for c in range(channel_count(modules[name], side)) if c not in gone]
        keep_channels_(modules[name], side, keep, replaced)
