"""AUC against pruning ratio, and the choice of one network on it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import ConfigurationError

__all__ = ["SELECTION_RULES", "CurvePoint", "PruningCurve", "check_selection"]

SELECTION_RULES = ("point", "interval")
"""How the smallest network is chosen: by the AUC itself, or by the interval of its difference."""


def check_selection(margin: float, rule: str) -> None:
    """Check, before any training, how a network is to be chosen; see :meth:`PruningCurve.smallest`.

    Raises:
        ConfigurationError: if the margin is no loss of AUC, or the rule is unknown.
    """
    if rule not in SELECTION_RULES:
        raise ConfigurationError(f"selection must be one of {SELECTION_RULES}, got {rule!r}.")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < 1:
        raise ConfigurationError(f"margin must be a loss of AUC, at least 0 and below 1, got {margin!r}.")


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation of one network.

    Attributes:
        epoch: epochs of training before it.
        bases: number of bases that the network has.
        parameters: number of its parameters after recomposition.
        macs: its multiply-accumulate operations after recomposition.
        parameter_reduction: the share of the original network's parameters that is gone.
        mac_reduction: the share of its operations that is gone.
        auc: the AUC with its interval, as JSON types.
        difference: its difference to the unpruned network on the same cases; None for the unpruned one.
        structure: tells networks that keep other bases or channels apart; see
            :func:`~monai_basisprune.structure.structure_of`.
    """

    epoch: int
    bases: int
    parameters: int
    macs: int
    parameter_reduction: float
    mac_reduction: float
    auc: dict[str, Any]
    difference: dict[str, Any] | None = None
    structure: str | None = None


@dataclass
class PruningCurve:
    """All evaluations of a run, in the order in which they were made.

    Args:
        points: the evaluations.
    """

    points: list[CurvePoint] = field(default_factory=list)

    def rounds(self) -> list[CurvePoint]:
        """Return the last evaluation of each round: what the network reached before the next cut.

        The last one, not the best one: to pick the best of several epochs on the same cases would flatter it. A round
        ends where bases or channels change. They need not get fewer: a search goes back to a larger network.
        """
        kept = [(point.bases, point.structure) for point in self.points]
        return [point for point, own, after in itertools.zip_longest(self.points, kept, kept[1:]) if own != after]

    def unpruned(self) -> CurvePoint:
        """Return the last evaluation of the unpruned network, before the first cut.

        Raises:
            ConfigurationError: if the curve is empty, or it does not start unpruned.
        """
        if not self.points:
            raise ConfigurationError(
                "The pruning curve is empty: no evaluation was recorded, so nothing can be chosen."
            )
        if self.points[0].parameter_reduction > 0:
            raise ConfigurationError(
                "The first evaluation of the pruning curve is of a pruned network, so there is nothing to compare "
                "with: evaluate the network before the first cut."
            )
        return self.rounds()[0]

    def smallest(self, margin: float, rule: str = "point") -> tuple[CurvePoint, str]:
        """Choose the smallest network that is not worse than the unpruned one by more than a margin of AUC.

        Args:
            margin: the margin, such as 0.01.
            rule: ``"point"`` compares the AUC itself; ``"interval"`` asks that the paired interval of the difference
                lies above ``-margin``, which small validation sets rarely show.

        Returns:
            the evaluation, and the reason in words. It is the unpruned network where no other qualifies.

        Raises:
            ConfigurationError: if the rule is unknown, the curve is empty, or it does not start unpruned.
        """
        check_selection(margin, rule)
        unpruned = self.unpruned()
        fitting = [point for point in self.rounds()[1:] if _is_within(point.difference or {}, margin, rule)]
        if not fitting:
            return unpruned, (
                f"No pruned network has a validation {'AUC' if rule == 'point' else 'interval'} within {margin:g} of "
                f"the unpruned network, so the unpruned one was kept."
            )
        chosen = min(fitting, key=lambda point: point.parameters)
        if rule == "interval":
            return chosen, (
                f"The smallest network whose interval on validation cases shows that it is not worse by more than "
                f"{margin:g} AUC."
            )
        return chosen, (
            f"The smallest network whose AUC on validation cases is not lower by more than {margin:g} than that of "
            f"the unpruned network."
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return all evaluations as JSON types."""
        return [asdict(point) for point in self.points]

    @classmethod
    def from_list(cls, content: Sequence[dict[str, Any]]) -> PruningCurve:
        """Read what :meth:`to_list` returned."""
        return cls([CurvePoint(**point) for point in content])


def _is_within(difference: Mapping[str, Any], margin: float, rule: str) -> bool:
    value = difference.get("difference" if rule == "point" else "low")
    if value is None:
        return False
    # non-inferiority is shown above the margin, not at it
    return bool(value >= -margin if rule == "point" else value > -margin)
