"""Several tests at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["HolmTest", "holm"]


@dataclass(frozen=True)
class HolmTest:
    """One of several tests, after correction.

    Attributes:
        name: name of the test.
        p_value: p-value as it was handed in.
        adjusted_p_value: p-value after Holm's correction; compare it with ``alpha`` itself.
        significant: whether the null hypothesis is rejected.
    """

    name: str
    p_value: float
    adjusted_p_value: float
    significant: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> list[HolmTest]:
    """Correct p-values so that the chance of even one false rejection stays below ``alpha``.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979): the smallest p-value is
    multiplied by the number of tests, the next by one less, and so on; none falls below the one before. It holds for
    tests that depend on each other, such as several pruning ratios on the same patients.

    Args:
        p_values: p-value of each test by name. For non-inferiority tests at a one-sided 2.5 %, set ``alpha=0.025``.
        alpha: accepted chance of one or more false rejections.

    Returns:
        one result for each test, in the order handed in.

    Raises:
        ValueError: if there is no test, a p-value is not a number from 0 to 1, or alpha lies outside (0, 1).

    Example:
        >>> [round(test.adjusted_p_value, 2) for test in holm({"50 %": 0.01, "70 %": 0.04, "90 %": 0.03})]
        [0.03, 0.06, 0.06]
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, such as 0.05, found {alpha}")
    if not p_values:
        raise ValueError("p_values are empty: hand in at least one test")
    wrong = [f"{name}: {p}" for name, p in p_values.items() if p is None or not 0 <= p <= 1]
    if wrong:
        raise ValueError(
            f"p-values must be numbers from 0 to 1, found {', '.join(wrong)}; enter 1 for one that was not computable"
        )
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, float(p) * (len(p_values) - place)))
        adjusted[name] = largest
    return [HolmTest(name, float(p), adjusted[name], adjusted[name] <= alpha) for name, p in p_values.items()]
