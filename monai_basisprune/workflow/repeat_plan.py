"""Which repeats of a study there are: their seeds, their folds, and the names of their folders."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.splits import check_folds
from ..errors import ConfigurationError

__all__ = ["Repeat", "plan_repeats"]


@dataclass(frozen=True)
class Repeat:
    """One repeat.

    Attributes:
        number: its number, from 0.
        seed: its seed.
        fold: the fold of its test section, or None.
        folds: number of folds, or None.
    """

    number: int
    seed: int
    fold: int | None
    folds: int | None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"repeat-{self.number:02d}"

    def __str__(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold} of {self.folds}"
        return f"{self.name} (seed {self.seed}{fold})"


def plan_repeats(repeats: int, seed: int, folds: int | None = None, fold: int | None = None) -> list[Repeat]:
    """Return the seed and the fold of each repeat: repeat r has the seed plus r and, with folds, fold r.

    Args:
        repeats: number of repeats, at least 2.
        seed: seed of the first one.
        folds: number of folds by patient, or None (0 means the same): then all repeats have the same test patients.
        fold: must be None; one fold alone is a run of ``prune``.

    Raises:
        ConfigurationError: if a value cannot be used.
    """
    problems = []
    for name, value, least in (("repeats", repeats, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{name} must be a whole number from {least}, got {value!r}")
    if fold is not None:
        problems.append(f"fold {fold!r} was set: `repeat` runs the folds itself; set it only for a single `prune`")
    if folds:
        try:
            check_folds(folds, 0)
            if not problems and repeats > folds:
                problems.append(f"{repeats} repeats need as many folds, got folds {folds}: each is the test once")
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("The repeats cannot be planned:\n" + "\n".join(f"  - {line}" for line in problems))
    return [Repeat(r, seed + r, r if folds else None, folds or None) for r in range(repeats)]
