"""Prunes a network while it is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..budgets import Budget
from ..decomposition import layer_status
from ..distillation import DistillationLoss
from ..errors import ConfigurationError, PlanMismatchError
from ..joint_pruning import JointResult
from ..loading import SeededCacheDataset
from ..pruning import PruneResult
from ..rounds import ChannelScores, CollectsGradients, Compensation, RoundPruner, Scores
from ..structure import structure_of
from .late_training import LateTraining
from .search import MetricSearchRounds

__all__ = ["PruningHandler"]


class PruningHandler:
    """Prunes a decomposed network in rounds, to one budget after another, while an engine trains it.

    After ``transfer_epochs`` epochs the network is pruned to the first budget, and then every ``epochs_per_round``
    epochs to the next one. A threshold on a schedule is a sequence of ``Budget(threshold=…)``. Attach it after the
    validation handler, so that a round is evaluated before the next cut. The network is changed in place, so the
    trainer, the evaluator and the checkpoint handlers that share it go on with the pruned one.

    Args:
        network: the decomposed network that the engine trains.
        importance: ranks the bases.
        budgets: what to prune to, one after another; a dictionary stands for the arguments of a ``Budget``. With none,
            bases stay, and without ``channel_budgets`` the network is never cut.
        optimizer: the optimizer that trains the network; its state is sliced along.
        transfer_epochs: epochs before the first cut; with 0, the network is cut as it is.
        epochs_per_round: epochs between two cuts; with 0, nothing is trained after a cut.
        search: with it, the budgets are coarse targets, and the handler goes back and bisects where one costs too much
            AUC; the trainer ends when the search does.
        channel_importance: ranks the channels, such as a :class:`~monai_basisprune.ChannelTaylorImportance`: the
            network is cut by bases and channels, jointly to each budget. None leaves the channels.
        channel_budgets: with them, bases are cut to ``budgets`` and then channels to these, one for each round.
        compensation: called after each cut with the network and a copy of what it was before; see
            :class:`~monai_basisprune.rounds.RoundPruner`.
        distillation: the loss function of the trainer, which notes what the network puts out before its first cut. The
            trainer's batches have to hold the position of each case, as those of a
            :class:`~monai_basisprune.loading.SeededCacheDataset` do.
        distilled_from: the share of the parameters that has to be gone before the network learns from it;
            None never does.
        recombined_from: the share of the parameters that has to be gone before the 1×1 convolutions, which transform
            basis features back, are trained as well as their scaling factors; the basis filters stay frozen. The
            optimizer needs :func:`~monai_basisprune.parameter_groups`. None never trains them.
        channel_multiple: leave a multiple of this number of channels in every group of which any go.
        training_cases: the data set of the trainer, where there is distillation: random transforms are left out while
            the network learns from what was noted, which is of the images as they are.

    A round takes an epoch of the engine even where nothing is trained in it: it ends before its first batch, so that
    what evaluates and saves the network after each epoch does so after each cut.

    Attributes:
        targets: what each round prunes to: ``budgets``, or those of channels where only these are cut.
        results: what each round of this process left.
        rounds: number of rounds that are done.
        structures: what each round left, as the points of the curve name it.
    """

    def __init__(
        self,
        network: nn.Module,
        importance: Scores,
        budgets: Sequence[Budget | Mapping[str, Any]],
        optimizer: torch.optim.Optimizer,
        transfer_epochs: int = 6,
        epochs_per_round: int = 2,
        search: MetricSearchRounds | None = None,
        channel_importance: ChannelScores | None = None,
        channel_budgets: Sequence[Budget | Mapping[str, Any]] | None = None,
        compensation: Compensation | None = None,
        distillation: DistillationLoss | None = None,
        distilled_from: float | None = 0.0,
        recombined_from: float | None = None,
        channel_multiple: int = 1,
        training_cases: SeededCacheDataset | None = None,
    ) -> None:
        if transfer_epochs < 0 or epochs_per_round < 0:
            raise ValueError(
                f"transfer_epochs and epochs_per_round must be at least 0, got {transfer_epochs} and "
                f"{epochs_per_round}."
            )
        self.late = LateTraining(network, optimizer, distillation, distilled_from, recombined_from, training_cases)
        if search is not None and channel_budgets is not None:
            raise ConfigurationError(
                "A search cuts bases and channels to one budget: leave channel_budgets out, or the search."
            )
        self.budgets = _made(budgets)
        self.channel_budgets = None if channel_budgets is None else _made(channel_budgets)
        self.targets = self.budgets or self.channel_budgets or []
        if self.targets and not (transfer_epochs and epochs_per_round):
            _check_untrained(importance, channel_importance, self.late.distillation)
        self.pruner = RoundPruner(
            network, importance, optimizer, channel_importance, self.channel_budgets, compensation, channel_multiple
        )
        self.transfer_epochs = transfer_epochs
        self.epochs_per_round = epochs_per_round
        self.search = search
        if search is not None:
            search.bind(self.budgets)
        self.rounds = 0
        self.results: list[PruneResult | JointResult] = []
        self.structures: list[str] = []
        self.logger = logging.getLogger(__name__)

    @property
    def max_epochs(self) -> int:
        """The epochs that all rounds take, to set as ``max_epochs`` of the trainer; a search may end sooner."""
        return self._cut_after(self._most_rounds)

    def trained_epochs(self, epoch: int) -> int:
        """Return in how many of the first epochs of the engine anything is trained."""
        return sum(self._trains(number) for number in range(1, epoch + 1))

    def _cut_after(self, rounds: int) -> int:
        """Return after which epoch the network is cut when some rounds are done."""
        return max(self.transfer_epochs, 1) + rounds * max(self.epochs_per_round, 1)

    def _trains(self, epoch: int) -> bool:
        return epoch <= self.transfer_epochs or (self.epochs_per_round > 0 and epoch > self._cut_after(0))

    @property
    def _most_rounds(self) -> int:
        return len(self.targets) + (0 if self.search is None else self.search.bisections)

    def describe(self) -> dict[str, Any]:
        """Return what cuts and how far, as JSON types."""
        by_channels, compensation = self.pruner.channel_importance, self.pruner.compensation
        return {
            "importance": type(self.pruner.importance if self.budgets or not self.targets else by_channels).__name__,
            "channel_importance": None if by_channels is None else type(by_channels).__name__,
            "budget": self.targets[0].quantity if self.targets else "parameters",
            "targets": _shares(self.targets),
            "channel_targets": None if self.channel_budgets is None else _shares(self.channel_budgets),
            "compensation": compensation is not None,
            "channel_multiple": self.pruner.channel_multiple,
            **self.late.describe(),
        }

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; when that starts, every budget is checked before any training."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.EPOCH_STARTED, self._stop_if_found)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._skip_untrained)
        engine.add_event_handler(Events.ITERATION_STARTED, self.late.tell_cases)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Prune to the next budget, if this is the epoch to do so."""
        if engine.state.epoch < self._cut_after(self.rounds):
            return
        if self.targets:
            self.late.start()
        result: PruneResult | JointResult | None
        if self.search is not None:
            result = self.search.advance(self.pruner, engine.state.epoch)
            if result is None:
                engine.terminate()
                return
        elif self.rounds < len(self.targets):
            budget = self.budgets[self.rounds] if self.budgets else None
            of_channels = None if self.channel_budgets is None else self.channel_budgets[self.rounds]
            result = self.pruner.cut(budget, self.pruner.scores(), of_channels)
        else:
            return
        self.rounds += 1
        self.late.choose(self.rounds)
        self.results.append(result)
        self.structures.append(structure_of(self.pruner.network))
        status = layer_status(self.pruner.network)
        channels = f" and {sum(layer.channels for layer in status)} output channels"
        self.logger.info(
            "Round %d of %s%d: %d bases%s left, %.1f %% of the parameters removed.",
            self.rounds,
            "" if self.search is None else "at most ",
            self._most_rounds,
            sum(layer.rank or 0 for layer in status),
            "" if self.pruner.channel_importance is None else channels,
            100 * result.parameter_reduction,
        )

    def _check(self) -> None:
        self.pruner.check(self.budgets)
        if self.search is not None:
            self.search.start()

    def _stop_if_found(self, engine: Engine) -> None:
        # a checkpoint of a search that has ended: one epoch more, and the network would not be the chosen one
        if self.search is not None and self.search.search.target is None:
            engine.terminate()

    def _skip_untrained(self, engine: Engine) -> None:
        if not self._trains(engine.state.epoch):
            engine.terminate_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the rounds that are done, and the bases and channels that are left, for a checkpoint."""
        of_parts = {**self.pruner.state_dict(), **self.late.state_dict()}
        state = {"rounds": self.rounds, "structures": list(self.structures), **of_parts}
        return state if self.search is None else {**state, "search": self.search.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Prune network and optimizer to what a checkpoint has kept, so that their states can be loaded next.

        In a checkpoint loader, name this handler before the network, the optimizer and the importance.

        Raises:
            PlanMismatchError: if the network lacks a layer, a basis or a channel of the checkpoint, or only one of this
                run and that of the checkpoint searches.
        """
        if (self.search is None) != ("search" not in state):
            raise PlanMismatchError(
                f"The checkpoint is of a run {'without' if self.search else 'with'} a search for the smallest network: "
                f"go on with the settings that it was started with."
            )
        self.pruner.positions(state)  # raises before anything is changed
        if self.search is not None:
            self.search.load_state_dict(state["search"])
        self.late.load_state_dict(state)
        self.pruner.load_state_dict(state)
        self.rounds, self.structures = int(state["rounds"]), list(state["structures"])
        self.late.choose(self.rounds)


def _check_untrained(
    importance: Scores, channel_importance: ChannelScores | None, distillation: DistillationLoss | None
) -> None:
    """Raise if something that learns from training is to decide without any."""
    learning = [one for one in (importance, channel_importance) if isinstance(one, CollectsGradients)]
    if learning or distillation is not None:
        raise ConfigurationError(
            f"transfer_epochs or epochs_per_round is 0, so nothing is trained before some cut, and "
            f"{', '.join(type(one).__name__ for one in [*learning, *([distillation] if distillation else [])])} needs "
            f"training: rank bases by an ActivationImportance or SingularValueImportance, without channel_importance "
            f"and distillation."
        )


def _shares(budgets: Sequence[Budget]) -> list[float]:
    return [budget.share for budget in budgets]


def _made(budgets: Sequence[Budget | Mapping[str, Any]]) -> list[Budget]:
    return [budget if isinstance(budget, Budget) else Budget(**budget) for budget in budgets]
