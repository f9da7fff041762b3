"""The smallest network that costs no more than a margin of AUC: what to try next, what to accept, when to stop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .bisection import next_target
from .budgets import Budget
from .curve import CurvePoint, PruningCurve, check_selection
from .errors import ConfigurationError, PlanMismatchError
from .evidence.feasibility import SampleProblem

__all__ = [
    "SMALL_VALIDATION",
    "MetricSearch",
    "SearchStep",
    "check_search",
]

SMALL_VALIDATION = ("point", "raise")
"""What can be done where the validation cases are too few: go by the AUC alone, or stop."""


def check_search(
    auc_margin: float,
    bisections: int = 3,
    on_small_validation: str = "point",
    expected_auc: float = 0.9,
    margin: float | None = None,
) -> None:
    """Check, before anything is computed, the settings of a search.

    Args:
        auc_margin: the loss of AUC that is accepted.
        bisections: how often to halve the last step.
        on_small_validation: one of :data:`SMALL_VALIDATION`.
        expected_auc: the AUC that is assumed before any training.
        margin: the margin of the curve's comparisons; None if there is no curve yet.

    Raises:
        ConfigurationError: if one of them cannot be used; all problems are listed.
    """
    problems = []
    if not _is_number(auc_margin) or not 0 < auc_margin < 1:
        problems.append(f"auc_margin must be a loss of AUC, above 0 and below 1, got {auc_margin!r}.")
    elif margin is not None and margin != auc_margin:
        problems.append(
            f"auc_margin is {auc_margin:g}, but the curve compares with a margin of {margin!r}: give both the same."
        )
    if isinstance(bisections, bool) or not isinstance(bisections, int) or bisections < 0:
        problems.append(f"bisections must be a whole number, at least 0, got {bisections!r}.")
    if on_small_validation not in SMALL_VALIDATION:
        problems.append(f"on_small_validation must be one of {SMALL_VALIDATION}, got {on_small_validation!r}.")
    if not _is_number(expected_auc) or not 0.5 <= expected_auc < 1:
        problems.append(f"expected_auc must be at least 0.5 and below 1, got {expected_auc!r}.")
    if problems:
        raise ConfigurationError("\n".join(problems))


@dataclass(frozen=True)
class SearchStep:
    """One ratio that was tried.

    Attributes:
        epoch: epochs of training before it was judged; its evaluation in the curve has the same.
        target: the share that was to be removed.
        parameter_reduction: the share of the original network's parameters that is gone.
        accepted: whether it is good enough.
        auc: its AUC on validation cases.
        difference: its difference to the unpruned network, or None where that is not computable.
        low: lower end of the interval of the difference, or None likewise.
    """

    epoch: int
    target: float
    parameter_reduction: float
    accepted: bool
    auc: float
    difference: float | None
    low: float | None


class MetricSearch:
    """Decides which ratio to try next and which networks are good enough; knows nothing of training.

    With the rule ``"interval"`` a network is accepted if it is shown on validation cases to be non-inferior: the
    paired interval of the difference to the unpruned network lies above ``-margin``. Several networks are tested on
    the same cases, so two things keep the chance of a false acceptance small. The coarse targets are tested in an order
    that is fixed beforehand and that the first failure ends, so each may be tested at the full level (fixed-sequence
    test: Maurer, Hothorn and Lehmacher, in "Biometrie in der chemisch-pharmazeutischen Industrie" 6, 1995; Westfall
    and Krishen, J. Stat. Plan. Inference 99, 2001). The bisection looks again after that failure, so each of its steps
    is tested at the level divided by the number of bisections (Bonferroni). With 95 % intervals, a network worse
    by exactly the margin then ends up chosen in about 5 % of searches (simulated in ``tests/test_search.py``; 10 %
    without the division). Yet the same cases chose what to test: the confirmatory figure is the one comparison on the
    test cases.

    With the rule ``"point"`` a network is accepted if the difference itself is not below ``-margin``. Such a difference
    wavers, so one that is below does not end the coarse targets; an interval that lies below ``-margin`` as a whole
    does, which shows that the network is worse.

    Args:
        budget: a ``Budget(auc_margin=…)``.
        targets: the coarse targets, rising.
        rule: ``"interval"`` or ``"point"``.
        bisections: how often to halve the step between the largest target that was accepted and the next one.

    Attributes:
        outcomes: one of :data:`~monai_basisprune.bisection.OUTCOMES` for each ratio.
        steps: the ratios that took a round of training.
        warnings: what a reader must know before using the result.
        required_positive_patients: with which non-inferiority could be shown, where the validation cases are too few.

    Raises:
        ConfigurationError: if an argument cannot be used.
    """

    def __init__(self, budget: Budget, targets: Sequence[float], rule: str = "interval", bisections: int = 3) -> None:
        if budget.auc_margin is None:
            raise ConfigurationError(f"A search needs a Budget(auc_margin=...), got {budget}.")
        check_selection(budget.auc_margin, rule)
        check_search(budget.auc_margin, bisections)
        if not targets or targets[0] <= 0 or any(later <= earlier for earlier, later in itertools.pairwise(targets)):
            raise ConfigurationError(
                f"The targets of a search must be above 0 and rise, such as [0.5, 0.75, 0.9]; got {list(targets)}."
            )
        self.margin = float(budget.auc_margin)
        self.targets = [float(target) for target in targets]
        self.rule = self._asked_rule = rule
        self.bisections = bisections
        self.outcomes: list[str] = []
        self.steps: list[SearchStep] = []
        self.warnings: list[str] = []
        self.required_positive_patients: int | None = None

    @property
    def target(self) -> float | None:
        """The ratio to try next, or None where the search has ended."""
        return next_target(self.targets, self.bisections, self.outcomes)

    def judge(self, point: CurvePoint) -> bool:
        """Return whether the network that was pruned to :attr:`target` is accepted, and note it.

        Args:
            point: its evaluation. A difference or an interval that is not computable is never accepted.
        """
        target = self.target
        assert target is not None, "judged after the end"
        record = point.difference or {}
        difference, low = _finite(record.get("difference")), _finite(record.get("low"))
        failing = "failed"
        if self.rule == "point":
            accepted = difference is not None and difference >= -self.margin
            high = _finite(record.get("high"))
            if high is None or high >= -self.margin:
                failing = "missed"
        else:
            p_value = _finite(record.get("p_value"))
            level = (1 - record.get("confidence", 0.95)) / 2 / (self.bisections if self.bisecting else 1)
            accepted = low is not None and low > -self.margin and p_value is not None and p_value < level
        step = SearchStep(point.epoch, target, point.parameter_reduction, accepted, point.auc["auc"], difference, low)
        self.steps.append(step)
        self.outcomes.append("accepted" if accepted else failing)
        return accepted

    def settle(self, accepted: bool) -> None:
        """Note that :attr:`target` names a network that was judged already, without a round."""
        self.outcomes.append("accepted" if accepted else "missed" if self.rule == "point" else "failed")

    def demand_points_only(self, problem: SampleProblem) -> None:
        """Go on with the rule ``"point"``, because the validation cases are too few for the interval."""
        self.rule = "point"
        self.required_positive_patients = problem.required_positive_patients
        self.warnings.append(
            f"{problem.message} So networks were accepted by their AUC alone (rule 'point'), which does not show that "
            f"they are as good."
        )

    def choose(self, curve: PruningCurve) -> tuple[CurvePoint, str]:
        """Return the evaluation of the smallest accepted network, and the reason in words."""
        accepted = [step for step in self.steps if step.accepted]
        if not accepted:
            return curve.unpruned(), (
                f"The search accepted none of the {len(self.steps)} networks that it tried with a margin of "
                f"{self.margin:g} AUC, so the unpruned one was kept."
            )
        chosen = next(point for point in curve.rounds() if point.epoch == accepted[-1].epoch)
        words = (
            "whose interval on validation cases shows that it is not worse"
            if self.rule == "interval"
            else "whose AUC on validation cases is not lower"
        )
        return chosen, (
            f"The smallest network found by a search over {len(self.steps)} networks {words} by more than "
            f"{self.margin:g}."
        )

    def to_record(self) -> dict[str, Any]:
        """Return the search for the study record, as JSON types."""
        return {
            "margin": self.margin,
            "rule": self.rule,
            "steps": [{key: value for key, value in asdict(step).items() if key != "epoch"} for step in self.steps],
            "required_positive_patients": self.required_positive_patients,
            "remarks": [*self.warnings, *self._remarks()],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return how far the search is, as plain types, for a checkpoint."""
        return {
            "settings": self._settings(),
            "rule": self.rule,
            "outcomes": list(self.outcomes),
            "steps": [asdict(step) for step in self.steps],
            "warnings": list(self.warnings),
            "required_positive_patients": self.required_positive_patients,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            PlanMismatchError: if it is of a search with other settings.
        """
        if state["settings"] != self._settings():
            raise PlanMismatchError(
                f"The checkpoint is of a search with {state['settings']}, this one has {self._settings()}: go on with "
                f"the settings that it was started with."
            )
        self.rule = state["rule"]
        self.outcomes = list(state["outcomes"])
        self.steps = [SearchStep(**step) for step in state["steps"]]
        self.warnings = list(state["warnings"])
        self.required_positive_patients = state["required_positive_patients"]

    def _settings(self) -> dict[str, Any]:
        # the rule that was asked for: the one in use may have changed since
        settings = {"auc_margin": self.margin, "targets": list(self.targets), "rule": self._asked_rule}
        return {**settings, "bisections": self.bisections}

    @property
    def bisecting(self) -> bool:
        """Whether the coarse targets are done."""
        return "failed" in self.outcomes or len(self.outcomes) >= len(self.targets)

    def _remarks(self) -> list[str]:
        remarks = []
        if self.target is not None:
            remarks.append(f"The search was stopped before its end; next it would have tried {self.target:g}.")
        elif self.outcomes[len(self.targets) - 1 :][:1] == ["accepted"] and "failed" not in self.outcomes:
            remarks.append(f"The largest target, {self.targets[-1]:g}, was accepted: larger ones may be possible.")
        if self.rule == "interval":
            remarks.append(
                "The coarse targets were tested in an order fixed beforehand, each at the full level, until one failed"
                + (f"; the level of each step after that was divided by {self.bisections}." if self.bisections else ".")
            )
        else:
            remarks.append(
                "A ratio whose AUC was too low did not end the search unless its whole interval lay below the margin, "
                "since single AUCs waver; so the smallest of several networks was taken, and its AUC on validation "
                "cases flatters it."
            )
        remarks.append(
            "The same validation cases judged all networks of the search: the confirmatory figure is that of the test "
            "cases, which were read once, for the chosen network."
        )
        return remarks


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
