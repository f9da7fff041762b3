"""Which ratio a search for the smallest network tries next."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["OUTCOMES", "next_target"]

OUTCOMES = ("accepted", "missed", "failed")
"""What becomes of a ratio: good enough; not, but that may be chance; not, and the coarse targets end there."""


def next_target(targets: Sequence[float], bisections: int, outcomes: Sequence[str]) -> float | None:
    """Return the ratio that a search tries next, or None where it has ended.

    Coarse targets are tried in turn until one fails; one that is only missed does not end this. Then the step between
    the largest that was accepted (0, the unpruned network, where none was) and the next one is halved, ``bisections``
    times.

    Args:
        targets: the coarse targets, rising.
        bisections: how often to halve the step.
        outcomes: one of :data:`OUTCOMES` for each ratio that was tried.

    Example:
        >>> next_target([0.5, 0.75, 0.9], 2, ["accepted", "missed"])
        0.9
        >>> next_target([0.5, 0.75, 0.9], 2, ["accepted", "accepted", "failed"])
        0.825
        >>> next_target([0.5, 0.75, 0.9], 2, ["accepted", "missed", "failed", "failed"])
        0.5625
    """
    tried = _coarse(len(targets), outcomes)
    if tried == len(outcomes) < len(targets) and "failed" not in outcomes:
        return float(targets[tried])
    best = max((i + 1 for i, outcome in enumerate(outcomes[:tried]) if outcome == "accepted"), default=0)
    if best == len(targets):
        return None
    low, high = [0.0, *targets][best], targets[best]
    halvings = outcomes[tried:]
    for outcome in halvings:
        middle = (low + high) / 2
        low, high = (middle, high) if outcome == "accepted" else (low, middle)
    return None if len(halvings) >= bisections else (low + high) / 2


def _coarse(targets: int, outcomes: Sequence[str]) -> int:
    """Return how many of the outcomes are of coarse targets."""
    return min(outcomes.index("failed") + 1 if "failed" in outcomes else len(outcomes), targets)
