"""Prunes a network while it is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..budgets import Budget
from ..decomposition import decomposed_layers
from ..errors import PlanMismatchError
from ..importance import ScalingImportance, SingularValueImportance, TaylorImportance
from ..pruning import PruneResult, check_budget, keep_bases_, prune_
from ..snapshot import positions_of
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
        budgets: what to prune to, one after another; a dictionary stands for the arguments of a ``Budget``.
        optimizer: the optimizer that trains the network; its state is sliced along.
        transfer_epochs: epochs before the first cut, at least 1.
        epochs_per_round: epochs between two cuts, at least 1.
        search: with it, the budgets are coarse targets, and the handler goes back and bisects where one costs too much
            AUC; the trainer ends when the search does.

    Attributes:
        results: the :class:`~monai_basisprune.PruneResult` of each round of this process.
        rounds: number of rounds that are done.
    """

    def __init__(
        self,
        network: nn.Module,
        importance: TaylorImportance | ScalingImportance | SingularValueImportance,
        budgets: Sequence[Budget | Mapping[str, Any]],
        optimizer: torch.optim.Optimizer,
        transfer_epochs: int = 6,
        epochs_per_round: int = 2,
        search: MetricSearchRounds | None = None,
    ) -> None:
        if transfer_epochs < 1 or epochs_per_round < 1:
            raise ValueError(
                f"transfer_epochs and epochs_per_round must be at least 1, got {transfer_epochs} and "
                f"{epochs_per_round}."
            )
        self.network = network
        self.importance = importance
        self.budgets = [budget if isinstance(budget, Budget) else Budget(**budget) for budget in budgets]
        self.optimizer = optimizer
        self.transfer_epochs = transfer_epochs
        self.epochs_per_round = epochs_per_round
        self.search = search
        if search is not None:
            search.bind(self.budgets)
        self.rounds = 0
        self.results: list[PruneResult] = []
        self.logger = logging.getLogger(__name__)

    @property
    def max_epochs(self) -> int:
        """The epochs that all rounds take, to set as ``max_epochs`` of the trainer; a search may end sooner."""
        return self.transfer_epochs + self._most_rounds * self.epochs_per_round

    @property
    def _most_rounds(self) -> int:
        return len(self.budgets) + (0 if self.search is None else self.search.bisections)

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; when that starts, every budget is checked before any training."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.EPOCH_STARTED, self._stop_if_found)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Prune to the next budget, if this is the epoch to do so."""
        if engine.state.epoch < self.transfer_epochs + self.rounds * self.epochs_per_round:
            return
        if self.search is not None:
            found = self.search.advance(self.network, self.importance, self.optimizer, engine.state.epoch)
            if found is None:
                engine.terminate()
                return
            scores, budget = found
        elif self.rounds < len(self.budgets):
            scores, budget = self.importance.scores(), self.budgets[self.rounds]
        else:
            return
        result = prune_(self.network, scores, budget, self.optimizer)
        if isinstance(self.importance, TaylorImportance):
            self.importance.reset()
        self.rounds += 1
        self.results.append(result)
        self.logger.info(
            "Round %d of %s%d: %d bases left, %.1f %% of the parameters removed.",
            self.rounds,
            "" if self.search is None else "at most ",
            self._most_rounds,
            result.bases,
            100 * result.parameter_reduction,
        )

    def _check(self) -> None:
        for budget in self.budgets:
            check_budget(self.network, budget)
        if self.search is not None:
            self.search.start()

    def _stop_if_found(self, engine: Engine) -> None:
        # a checkpoint of a search that has ended: one epoch more, and the network would not be the chosen one
        if self.search is not None and self.search.search.target is None:
            engine.terminate()

    def state_dict(self) -> dict[str, Any]:
        """Return the rounds that are done and the bases that are left, for a checkpoint."""
        kept = {name: list(layer.kept_bases) for name, layer in decomposed_layers(self.network)}
        state: dict[str, Any] = {"rounds": self.rounds, "kept_bases": kept}
        return state if self.search is None else {**state, "search": self.search.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Prune the network and the optimizer to the bases of a checkpoint, so that their states can be loaded next.

        In a checkpoint loader, name this handler before the network, the optimizer and the importance.

        Raises:
            PlanMismatchError: if the network lacks a layer or a basis of the checkpoint, or only one of this run and
                that of the checkpoint searches.
        """
        if (self.search is None) != ("search" not in state):
            raise PlanMismatchError(
                f"The checkpoint is of a run {'without' if self.search else 'with'} a search for the smallest network: "
                f"go on with the settings that it was started with."
            )
        positions = positions_of(self.network, state["kept_bases"])
        if self.search is not None:
            self.search.load_state_dict(state["search"])
        keep_bases_(self.network, positions, self.optimizer)
        if isinstance(self.importance, TaylorImportance):
            self.importance.reset()
        self.rounds = int(state["rounds"])
