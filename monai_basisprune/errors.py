"""Exceptions of monai_basisprune, a small tree under one base error.

Each message says what was asked, what was found and what to do. Those that describe a wrong argument are also
``ValueError``, so that callers who know nothing of this package can catch them.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ActivationError",
    "BasisPruneError",
    "BudgetError",
    "CohortError",
    "ConfigurationError",
    "ExportError",
    "InflationError",
    "LayerSelectionError",
    "PlanMismatchError",
    "shortened_list",
]


def shortened_list(problems: Sequence[str], most: int = 40) -> str:
    """Return one line for each problem, and how many more there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "\n".join(f"  - {line}" for line in (*problems[:most], *more))


class BasisPruneError(Exception):
    """Base of every error that monai_basisprune raises on purpose."""


class LayerSelectionError(BasisPruneError, ValueError):
    """The layers that were asked for do not exist, or cannot be decomposed."""


class BudgetError(BasisPruneError, ValueError):
    """A pruning budget cannot be met; the message holds the largest that can."""


class PlanMismatchError(BasisPruneError, ValueError):
    """A plan or a checkpoint does not belong to the network that it is applied to."""


class ConfigurationError(BasisPruneError, ValueError):
    """A configuration of a run holds a key or a value that cannot be used."""


class ExportError(BasisPruneError, ValueError):
    """A network cannot be exported, or the file does not reproduce it."""


class InflationError(BasisPruneError, ValueError):
    """The weights of a network cannot be inflated into another; the message lists every difference."""


class ActivationError(BasisPruneError, ValueError):
    """Unlabeled images do not give what was asked for of the layers of a network; the message lists every problem."""


class CohortError(BasisPruneError, ValueError):
    """A cohort cannot be used; carries every problem that was found, not only the first.

    Args:
        summary: one sentence: what was asked and what to do.
        problems: one line for each problem, naming cases by SOPInstanceUID or by a case id, never by patient.

    Attributes:
        problems: the lines, as a tuple.
    """

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"  - {problem}" for problem in self.problems)]))
