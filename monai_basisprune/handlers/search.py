"""Lets a metric decide how far a network is pruned."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..budgets import Budget
from ..curve import CurvePoint
from ..decomposition import decomposed_layers
from ..errors import ConfigurationError
from ..evidence.feasibility import SampleProblem, sample_problem
from ..importance import TaylorImportance
from ..pruning import select_bases
from ..search import MetricSearch, check_search
from ..snapshot import NetworkSnapshot, restore_, take_snapshot
from .curve import PruningCurveHandler

__all__ = ["MetricSearchRounds"]


class MetricSearchRounds:
    """Searches, in the rounds of a :class:`PruningHandler`, for the smallest network within a margin of AUC.

    The budgets of that handler are the coarse targets. After each round the network's last evaluation is judged. Where
    it fails, the network goes back, in place, to the last one that was accepted, and the step between both is bisected;
    see :class:`~monai_basisprune.search.MetricSearch`. In the end the network is the smallest that was accepted.

    Twice the validation cases are checked for being too few to show anything: before any training with an AUC that is
    assumed, if ``validation`` is given, and before the first cut with the AUC that was reached.

    Args:
        curve: the handler that evaluates; attach its evaluator to the trainer before the :class:`PruningHandler`.
        budget: a ``Budget(auc_margin=…)``; a dictionary stands for its arguments.
        rule: ``"interval"`` to accept networks that are shown to be non-inferior, ``"point"`` to go by the AUC alone.
        bisections: how often to halve the last step.
        on_small_validation: ``"point"`` goes on with that rule where the validation cases are too few, and says so
            everywhere; ``"raise"`` stops.
        validation: the validation cases, with ``label`` and ``patient_id``.
        expected_auc: the AUC that is assumed before any training.

    Attributes:
        search: the :class:`~monai_basisprune.search.MetricSearch`, once a :class:`PruningHandler` holds this.
    """

    def __init__(
        self,
        curve: PruningCurveHandler,
        budget: Budget | Mapping[str, Any],
        rule: str = "interval",
        bisections: int = 3,
        on_small_validation: str = "point",
        validation: Sequence[Mapping[str, Any]] | None = None,
        expected_auc: float = 0.9,
    ) -> None:
        self.curve = curve
        self.budget = budget if isinstance(budget, Budget) else Budget(**budget)
        self.rule = rule
        self.bisections = bisections
        self.on_small_validation = on_small_validation
        self.validation = validation
        self.expected_auc = expected_auc
        self.logger = logging.getLogger(__name__)
        self._budgets: list[Budget] = []
        self._snapshot: NetworkSnapshot | None = None
        self._scores: dict[str, torch.Tensor] = {}
        self._failed: dict[str, list[int]] | None = None

    def bind(self, budgets: Sequence[Budget]) -> None:
        """Take the coarse targets.

        Raises:
            ConfigurationError: if they cannot be bisected, or another setting cannot be used.
        """
        quantities = {budget.quantity for budget in budgets}
        if len(quantities) != 1:
            raise ConfigurationError(f"The budgets of a search must all be of one quantity, got {sorted(quantities)}.")
        self._budgets = list(budgets)
        targets = [getattr(budget, budget.quantity) for budget in budgets]
        self.search = MetricSearch(self.budget, targets, self.rule, self.bisections)
        check_search(
            self.search.margin, self.bisections, self.on_small_validation, self.expected_auc, self.curve.margin
        )

    def start(self) -> None:
        """Check the number of validation cases before any training.

        Raises:
            ConfigurationError: if they are too few and ``on_small_validation`` is ``"raise"``.
        """
        if self.validation is None or self.search.rule == "point":
            return
        patients: list[set[Any]] = [set(), set()]
        for case in self.validation:
            patients[int(case["label"])].add(case["patient_id"])
        problem = self._problem(self.expected_auc, len(patients[1]), len(patients[0]), "assumed")
        if problem is not None:
            self.logger.warning("%s It is checked again with the AUC that is reached.", problem.message)

    def advance(
        self, network: nn.Module, importance: Any, optimizer: torch.optim.Optimizer, epoch: int
    ) -> tuple[dict[str, torch.Tensor], Budget] | None:
        """Judge the last round, go back where it failed, and return the scores and the budget of the next cut.

        Returns:
            None where the search has ended; the network is then the smallest that was accepted.

        Raises:
            ConfigurationError: if the network was not evaluated in this epoch.
        """
        if self.search.target is None:
            return None
        point = self._evaluation(network, epoch)
        accepted = self._judge(point)
        if accepted:
            self._snapshot, self._scores, self._failed = take_snapshot(network, optimizer), importance.scores(), None
        else:
            assert self._snapshot is not None
            self._failed = self._kept_of(network)
            restore_(network, optimizer, self._snapshot)
            if isinstance(importance, TaylorImportance):
                importance.reset()
        while (target := self.search.target) is not None:
            share: dict[str, Any] = {self._budgets[0].quantity: target}
            budget = replace(self._budgets[0], **share)
            kept = self._kept_after(network, budget)
            now = self._kept_of(network)
            if kept not in (now, self._failed):
                # that very selection: a time is measured anew by each call, so the same share may mean other bases
                most = sum(layer.max_rank for _, layer in decomposed_layers(network))
                left = sum(len(bases) for bases in kept.values())
                return self._scores, Budget(bases=1 - left / most, input_shape=budget.input_shape)
            self.search.settle(kept == now)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return how far the search is and the network to go back to, as tensors and plain types."""
        return {
            "search": self.search.state_dict(),
            "snapshot": None if self._snapshot is None else self._snapshot.to_dict(),
            "scores": dict(self._scores),
            "failed": self._failed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.search.load_state_dict(state["search"])
        self._snapshot = None if state["snapshot"] is None else NetworkSnapshot.from_dict(state["snapshot"])
        self._scores = dict(state["scores"])
        self._failed = state["failed"]

    def _evaluation(self, network: nn.Module, epoch: int) -> CurvePoint:
        bases = sum(layer.rank() for _, layer in decomposed_layers(network))
        points = self.curve.curve.points
        if not points or (points[-1].epoch, points[-1].bases) != (epoch, bases):
            raise ConfigurationError(
                f"The search found no evaluation of the network in epoch {epoch}: run the evaluator of its curve in "
                f"every epoch, by a ValidationHandler that comes before the PruningHandler."
            )
        return points[-1]

    def _judge(self, point: CurvePoint) -> bool:
        if self._snapshot is not None:
            target, accepted = self.search.target, self.search.judge(point)
            step = self.search.steps[-1]
            self.logger.info(
                "Target %g: AUC %.3f, %s by the rule %r with a margin of %g.",
                target,
                step.auc,
                "accepted" if accepted else "not accepted, back to the last network that was",
                self.search.rule,
                self.search.margin,
            )
            return accepted
        # the unpruned network: how good it is decides how many cases are enough
        if self.search.rule == "interval":
            reference = self.curve.state_dict()["reference"]
            ids = reference["patients"] or range(len(reference["labels"]))
            patients = [{p for p, of in zip(ids, reference["labels"], strict=True) if of == label} for label in (0, 1)]
            problem = self._problem(
                point.auc["auc"], len(patients[1]), len(patients[0]), "reached before the first cut"
            )
            if problem is not None:
                self.search.demand_points_only(problem)
                self.logger.warning("%s", self.search.warnings[-1])
        return True

    def _problem(self, auc: float, positives: int, negatives: int, source: str) -> SampleProblem | None:
        problem = sample_problem(self.search.margin, auc, positives, negatives, source, self.curve.confidence)
        if problem is not None and self.on_small_validation == "raise":
            raise ConfigurationError(
                f"{problem.message} Add patients to the validation set, take a larger auc_margin, or set "
                f"on_small_validation to 'point' to go by the AUC alone"
                + ("." if source != "assumed" else "; a better network needs fewer, so expected_auc can be set higher.")
            )
        return problem

    @staticmethod
    def _kept_of(network: nn.Module) -> dict[str, list[int]]:
        return {name: list(layer.kept_bases) for name, layer in decomposed_layers(network)}

    def _kept_after(self, network: nn.Module, budget: Budget) -> dict[str, list[int]]:
        kept = self._kept_of(network)
        positions = select_bases(network, self._scores, budget)
        return kept | {name: [kept[name][position] for position in positions[name]] for name in positions}
