"""What one round of pruning cuts: bases alone, bases and channels under one budget, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .budgets import Budget
from .channel_graph import ChannelGroup
from .channel_selection import check_multiple, fewest_channels
from .channel_trial import Side
from .channels import cut_channels_, prune_channels_
from .copies import copy_network
from .decomposition import decomposed_layers
from .distributed import agreed
from .errors import BudgetError, ConfigurationError
from .joint_pruning import JointResult, check_joint_budget, prune_jointly_
from .kernel_caches import forget_convolutions
from .pruning import PruneResult, check_budget, keep_bases_, prune_
from .structure import kept_parts, positions_of, removed_of, structure_of
from .tally import Tally

__all__ = ["ChannelScores", "CollectsGradients", "RoundPruner", "RoundScores", "Scores"]

Compensation = Callable[[nn.Module, nn.Module], Any]


class Scores(Protocol):
    """Ranks the bases of a network."""

    def scores(self) -> dict[str, torch.Tensor]:
        """Return one score for each basis, ``{layer name: tensor of shape (rank,)}``."""
        ...


class ChannelScores(Protocol):
    """Ranks the channels of a network."""

    input_shape: tuple[int, ...]

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups whose channels are ranked."""
        ...

    def scores(self) -> dict[str, torch.Tensor]:
        """Return one score for each channel, ``{group: tensor of shape (channels,)}``."""
        ...


@runtime_checkable
class CollectsGradients(Protocol):
    """An importance that collects gradients during training, and forgets them when the network was cut."""

    def accumulate(self, gradient_scale: float = 1.0, skip_nonfinite: bool = False) -> bool:
        """Add the gradients that the network holds now."""
        ...

    def reset(self) -> None:
        """Forget what was collected."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        ...


@dataclass(frozen=True)
class RoundScores:
    """What decides on a cut.

    Attributes:
        bases: one score for each basis, by layer.
        channels: one score for each channel, by group; empty where channels stay.
    """

    bases: dict[str, torch.Tensor]
    channels: dict[str, torch.Tensor]


class RoundPruner:
    """Cuts a decomposed network in place, round by round; trains and evaluates nothing.

    Without ``channel_importance`` it removes bases. With it, bases and channels compete under one budget
    (:func:`~monai_basisprune.prune_jointly_`), or, with ``channel_budgets``, bases go first to the budget of the round
    and then channels to theirs, which counts what is gone of both (:func:`~monai_basisprune.prune_channels_`).

    Args:
        network: a decomposed network.
        importance: ranks its bases.
        optimizer: the optimizer, or optimizers, that train it.
        channel_importance: ranks its channels; None leaves them.
        channel_budgets: a budget of channels for each round; None cuts jointly.
        compensation: called after each cut with the network and a copy of what it was before, to make up for what is
            gone, such as :func:`~monai_basisprune.compensate_` with its ``data``.
        channel_multiple: leave a multiple of this number of channels in every group of which any go.

    Raises:
        ConfigurationError: if there are budgets of channels and no importance of theirs, or both kinds of scores
            cannot be compared, as one budget demands.
        ValueError: if ``channel_multiple`` is no whole number of at least 1.
    """

    def __init__(
        self,
        network: nn.Module,
        importance: Scores,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        channel_importance: ChannelScores | None = None,
        channel_budgets: Sequence[Budget] | None = None,
        compensation: Compensation | None = None,
        channel_multiple: int = 1,
    ) -> None:
        check_multiple(channel_multiple)
        self.network = network
        self.importance = importance
        self.optimizer = optimizer
        self.channel_importance = channel_importance
        self.channel_budgets = channel_budgets
        self.compensation = compensation
        self.channel_multiple = channel_multiple
        if channel_budgets is not None and channel_importance is None:
            raise ConfigurationError("channel_budgets need a channel_importance, such as a ChannelTaylorImportance.")
        if channel_importance is not None and channel_budgets is None:
            _check_units(importance, channel_importance)

    def scores(self) -> RoundScores:
        """Return what bases and channels matter now."""
        channels = {} if self.channel_importance is None else self.channel_importance.scores()
        return RoundScores(agreed(self.importance.scores()), agreed(channels))

    def reset(self) -> None:
        """Let all that keeps something of the network start anew, as it is another: importances, and PyTorch."""
        forget_convolutions()
        for one in (self.importance, self.channel_importance):
            reset = getattr(one, "reset", None)
            if reset is not None:
                reset()

    def check(self, budgets: Sequence[Budget]) -> None:
        """Check, before any training, that the budgets of all rounds can be met.

        Where bases go first, to a budget of their own, a budget of channels is refused if no choice of bases would
        allow it; which bases are left, and so whether the one that is made allows it, is not known before the cut.

        Raises:
            BudgetError: if one cannot; the message holds the largest budget that can.
            ConfigurationError: if there are not as many budgets of channels.
        """
        if self.channel_budgets is not None and len(budgets) not in (0, len(self.channel_budgets)):
            raise ConfigurationError(
                f"There are {len(budgets)} budgets and {len(self.channel_budgets)} channel_budgets: give one of each "
                f"for each round, or none of bases to cut channels alone."
            )
        if self.channel_importance is None or self.channel_budgets is not None:
            for budget in budgets:
                check_budget(self.network, budget)
        if self.channel_importance is not None:
            jointly = self.channel_budgets is None
            for budget in self.channel_budgets or budgets:
                self._check_with_channels(self.channel_importance, budget, jointly, bases=bool(budgets))

    def _check_with_channels(self, importance: ChannelScores, budget: Budget, jointly: bool, bases: bool) -> None:
        """Check that a budget can be met with the fewest channels in each group and, if bases go, one in each layer."""
        if budget.quantity == "threshold" and not jointly:
            return
        check_joint_budget(budget)
        tally = Tally(self.network, budget, importance.input_shape)
        for name, layer in decomposed_layers(self.network) if bases else ():
            tally.remove_bases(name, layer.rank() - layer.groups)
        for group in importance.groups:
            for unit in group.units[self.channel_multiple :]:
                tally.remove(unit)
        if not tally.met:
            fewest = fewest_channels(self.channel_multiple)
            with_bases = f"with one basis left in every layer and {fewest} in every group"
            raise BudgetError(tally.impossible(with_bases if bases else f"with {fewest} left in every group"))

    def cut(
        self, budget: Budget | None, scores: RoundScores, channel_budget: Budget | None = None
    ) -> PruneResult | JointResult:
        """Cut the network to a budget.

        Args:
            budget: how much to remove; None leaves the bases, and there is a budget of channels then.
            scores: what decides.
            channel_budget: how much to remove by channels afterwards; None for one budget of both.

        Raises:
            BudgetError: if a budget cannot be met; the network is then as it was, or has lost the bases already.
        """
        before = None if self.compensation is None else copy_network(self.network)
        structure, multiple = structure_of(self.network), self.channel_multiple
        result: PruneResult | JointResult
        budget = Budget(bases=0.0) if budget is None else budget
        if self.channel_importance is None or not scores.channels:
            result = prune_(self.network, scores.bases, budget, self.optimizer)
        elif channel_budget is None:
            shape, groups = self.channel_importance.input_shape, self.channel_importance.groups
            both = scores.bases, scores.channels
            result = prune_jointly_(self.network, *both, budget, shape, self.optimizer, groups, multiple)
        else:
            shape = self.channel_importance.input_shape
            bases = prune_(self.network, scores.bases, budget, self.optimizer)
            channels = prune_channels_(self.network, scores.channels, channel_budget, shape, self.optimizer, multiple)
            result = JointResult(
                kept_bases=bases.kept,
                kept_channels=channels.kept,
                removed_bases=bases.removed_bases,
                removed_channels=channels.removed_channels,
                parameters=channels.parameters,
                parameter_reduction=channels.parameter_reduction,
                macs=channels.macs,
                mac_reduction=channels.mac_reduction,
            )
        if self.compensation is not None and before is not None and structure_of(self.network) != structure:
            self.compensation(self.network, before)
        self.reset()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return which bases and channels are left, for a checkpoint."""
        return kept_parts(self.network)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the network and its optimizers to the bases and channels of a checkpoint, whose values are loaded next.

        Raises:
            PlanMismatchError: if the network lacks something that the checkpoint has kept; nothing is changed.
        """
        bases, channels = self.positions(state)
        cut_channels_(self.network, channels, self.optimizer)
        keep_bases_(self.network, bases, self.optimizer)
        self.reset()

    def positions(self, state: Mapping[str, Any]) -> tuple[dict[str, list[int]], dict[Side, list[int]]]:
        """Return at which positions the network holds the bases of a checkpoint, and those that its modules lose.

        Raises:
            PlanMismatchError: as for :meth:`load_state_dict`.
        """
        return positions_of(self.network, state["kept_bases"]), removed_of(self.network, state["kept_channels"])


def _check_units(importance: Scores, channel_importance: ChannelScores) -> None:
    """Raise unless both are estimates of one quantity."""
    wanted = {"reduction": getattr(channel_importance, "reduction", None), "normalization": "none"}
    for one in (importance, channel_importance):
        if any(getattr(one, name, None) != value for name, value in wanted.items()) or wanted["reduction"] is None:
            raise ConfigurationError(
                f"One budget of bases and channels compares their scores, so both have to be Taylor estimates with the "
                f"same reduction and no normalization; got {type(importance).__name__} and "
                f"{type(channel_importance).__name__}. Give channel_budgets of their own to cut one after the other."
            )
