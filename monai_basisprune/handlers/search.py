"""Lets a metric decide how far a network is pruned."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..budgets import Budget
from ..errors import ConfigurationError
from ..joint_pruning import JointResult
from ..pruning import PruneResult
from ..rounds import RoundPruner
from ..search import MetricSearch, check_search
from ..search_rounds import SearchRounds
from ..structure import structure_of
from .curve import PruningCurveHandler

__all__ = ["MetricSearchRounds"]


class MetricSearchRounds:
    """Searches, in the rounds of a :class:`PruningHandler`, for the smallest network within a margin of AUC.

    The budgets of that handler are the coarse targets. After each round the network's last evaluation is judged, and
    another ratio is tried; see :class:`~monai_basisprune.search.MetricSearch`. Before each step of the bisection that
    follows a network that was not accepted, and in the end, the network goes back, in place, to the smallest that was.

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

    search: MetricSearch

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

    def bind(self, budgets: Sequence[Budget]) -> None:
        """Take the coarse targets.

        Raises:
            ConfigurationError: if they cannot be bisected, or another setting cannot be used.
        """
        self._rounds = SearchRounds(
            self.budget, budgets, self.rule, self.bisections, self.on_small_validation, self.curve.confidence
        )
        self.search = self._rounds.search
        check_search(
            self.search.margin, self.bisections, self.on_small_validation, self.expected_auc, self.curve.margin
        )

    def start(self) -> None:
        """Check the number of validation cases before any training; see :meth:`SearchRounds.check_cases`."""
        if self.validation is not None:
            labels, patients = ([case[key] for case in self.validation] for key in ("label", "patient_id"))
            problem = self._rounds.check_cases(self.expected_auc, labels, patients, "assumed")
            if problem is not None:
                self.logger.warning("%s It is checked again with the AUC that is reached.", problem.message)

    def advance(self, pruner: RoundPruner, epoch: int) -> PruneResult | JointResult | None:
        """Let the search take its next step with the evaluation of an epoch; see :meth:`SearchRounds.advance`.

        Raises:
            ConfigurationError: if the network was not evaluated in this epoch, or never unpruned.
        """
        if self.search.target is None:
            return None
        points = self.curve.curve.points
        if not points or (points[-1].epoch, points[-1].structure) != (epoch, structure_of(pruner.network)):
            raise ConfigurationError(
                f"The search found no evaluation of the network in epoch {epoch}: run the evaluator of its curve in "
                f"every epoch, by a ValidationHandler that comes before the PruningHandler."
            )
        self.curve.curve.unpruned()  # raises where there is nothing to compare with
        unpruned, warnings, steps = self.curve.unpruned, len(self.search.warnings), len(self.search.steps)
        result = self._rounds.advance(pruner, points[-1], unpruned["labels"], unpruned["patients"] or None)
        for warning in self.search.warnings[warnings:]:
            self.logger.warning("%s", warning)
        for step in self.search.steps[steps:]:
            self.logger.info(
                "Target %g: AUC %.3f, %s by the rule %r with a margin of %g.",
                *(step.target, step.auc),
                "accepted" if step.accepted else "not accepted",
                *(self.search.rule, self.search.margin),
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return how far the search is and the network to go back to, as tensors and plain types."""
        return self._rounds.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._rounds.load_state_dict(state)
