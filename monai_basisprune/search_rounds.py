"""The rounds of a search on one network: judge it, go back where it failed, and say what to cut next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .budgets import Budget
from .curve import CurvePoint
from .errors import ConfigurationError, PlanMismatchError
from .evidence.feasibility import SampleProblem, patients_by_class, sample_problem, several_classes
from .joint_pruning import JointResult
from .pruning import PruneResult
from .rounds import RoundPruner, RoundScores
from .search import MetricSearch
from .snapshot import NetworkSnapshot, restore_, take_snapshot
from .structure import structure_of

__all__ = ["SearchRounds"]


class SearchRounds:
    """Takes a decomposed network through the rounds of a search, in place; trains and evaluates nothing itself.

    Args:
        budget: a ``Budget(auc_margin=…)``.
        budgets: the coarse targets, all of one quantity, rising.
        rule: ``"interval"`` or ``"point"``; see :class:`~monai_basisprune.search.MetricSearch`.
        bisections: how often to halve the last step.
        on_small_validation: what is done where the validation cases are too few for the rule ``"interval"``:
            ``"point"`` goes on with that rule, ``"raise"`` stops.
        confidence: confidence of the intervals.

    Attributes:
        search: what decides.

    Raises:
        ConfigurationError: if the targets cannot be bisected, or another argument cannot be used.
    """

    def __init__(
        self,
        budget: Budget,
        budgets: Sequence[Budget],
        rule: str = "interval",
        bisections: int = 3,
        on_small_validation: str = "point",
        confidence: float = 0.95,
    ) -> None:
        quantities = {one.quantity for one in budgets}
        if len(quantities) != 1:
            raise ConfigurationError(f"The budgets of a search must all be of one quantity, got {sorted(quantities)}.")
        unequal = [str(one) for one in budgets if len(set(one.shares.values())) > 1]
        if unequal:
            raise ConfigurationError(
                f"A search tries one share after another, so give both quantities the same: {unequal}"
            )
        self.search = MetricSearch(budget, [one.share for one in budgets], rule, bisections)
        self.on_small_validation = on_small_validation
        self.confidence = confidence
        self._budget = budgets[0]
        self._snapshot: NetworkSnapshot | None = None
        self._scores = RoundScores({}, {})
        self._failed: list[str] = []

    def check_cases(
        self, auc: float, labels: Sequence[Any], patients: Sequence[Any] | None, source: str
    ) -> SampleProblem | None:
        """Return why validation cases are too few for the rule, or None.

        Args:
            auc: AUC of the unpruned network.
            labels: the class of each case.
            patients: the patient of each case; None counts every case as a patient of its own.
            source: where the AUC comes from; ``"assumed"`` if it is not measured.

        Raises:
            ConfigurationError: if they are too few and ``on_small_validation`` is ``"raise"``.
            ValueError: if a label is not 0 or 1, or one class is absent.
        """
        if self.search.rule == "point":
            return None
        positives, negatives = patients_by_class(labels, patients)
        several = several_classes(labels)
        problem = sample_problem(self.search.margin, auc, positives, negatives, source, self.confidence, several)
        if problem is not None and self.on_small_validation == "raise":
            raise ConfigurationError(
                f"{problem.message} Add patients to the validation set, take a larger auc_margin, or set "
                f"on_small_validation to 'point' to go by the AUC alone"
                + ("." if source != "assumed" else "; a better network needs fewer, so expected_auc can be set higher.")
            )
        return problem

    def advance(
        self, pruner: RoundPruner, point: CurvePoint, labels: Sequence[Any], patients: Sequence[Any] | None
    ) -> PruneResult | JointResult | None:
        """Judge the network, go back where the search says so, and cut it to the next ratio.

        Args:
            pruner: holds the network, which was trained since the last cut, and what has ranked its parts meanwhile.
            point: the evaluation of the network.
            labels: the class of each validation case.
            patients: the patient of each validation case, or None.

        Returns:
            what the cut left, or None where the search has ended: the network is then the smallest that was accepted.
        """
        network = pruner.network
        if self._snapshot is None:  # the unpruned network: how good it is decides how many cases are enough
            problem = self.check_cases(point.auc["auc"], labels, patients, "reached before the first cut")
            if problem is not None:
                self.search.demand_points_only(problem)
        # whether the network is the smallest that was accepted so far
        held = self._snapshot is None or self.search.judge(point)
        scores = pruner.scores()
        if held:
            self._snapshot, self._scores, self._failed = take_snapshot(network, pruner.optimizer), scores, []
        else:
            self._failed.append(structure_of(network))
        while True:
            target = self.search.target
            if not held and (target is None or self.search.bisecting):
                self._go_back(pruner)
                held, scores = True, self._scores
            if target is None:
                return None
            share: dict[str, Any] = dict.fromkeys(self._budget.shares, target)
            before = structure_of(network)
            result = pruner.cut(replace(self._budget, **share), scores)
            after = structure_of(network)
            if after not in (before, *self._failed):
                return result
            self.search.settle(held and after == before)
            if after != before:  # one that has failed before, and only a network that was accepted leads there again
                self._go_back(pruner)

    def _go_back(self, pruner: RoundPruner) -> None:
        """Make the network again the smallest that was accepted."""
        assert self._snapshot is not None
        restore_(pruner.network, pruner.optimizer, self._snapshot)
        pruner.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return how far the search is and the network to go back to, as tensors and plain types."""
        return {
            "quantity": self._budget.quantity,
            "search": self.search.state_dict(),
            "snapshot": None if self._snapshot is None else self._snapshot.to_dict(),
            "scores": vars(self._scores),
            "failed": list(self._failed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            PlanMismatchError: if it is of a search with other settings.
        """
        if state["quantity"] != self._budget.quantity:
            raise PlanMismatchError(
                f"The checkpoint is of a search with targets of {state['quantity']}, this one has targets of "
                f"{self._budget.quantity}: go on with the settings that it was started with."
            )
        self.search.load_state_dict(state["search"])
        self._snapshot = None if state["snapshot"] is None else NetworkSnapshot.from_dict(state["snapshot"])
        self._scores = RoundScores(**state["scores"])
        self._failed = list(state["failed"])
