"""A number other than a single AUC, with an interval from a bootstrap that draws whole patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from ._inputs import FloatArray, IntArray
from .bootstrap import patient_weights
from .intervals import ROUNDING

__all__ = ["Design", "Estimate", "bootstrap_estimate", "estimate_from_draws"]

Statistic = Callable[[FloatArray], FloatArray]  # weights (n, r) -> values (r,), NaN where there is none


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval.

    Attributes:
        value: the number.
        low: lower end of the interval, or None if it is not computable (``method`` says why).
        high: upper end of the interval, or None.
        confidence: confidence level of the interval.
        method: what the number is and how the interval was computed, in words for a report.
        cases: number of cases.
        patients: number of patients, or None if the caller gave none.
    """

    value: float
    low: float | None
    high: float | None
    confidence: float
    method: str
    cases: int
    patients: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Design:
    """How an estimate is to be computed.

    Attributes:
        codes: patient of each case as a number from 0, shape ``(n,)``.
        patients_given: whether the caller named patients.
        units: number of patients that the estimate rests on, such as the positive ones for a sensitivity.
        confidence: confidence level.
        resamples: number of resamples.
        seed: seed of the resamples.
    """

    codes: IntArray
    patients_given: bool
    units: int
    confidence: float
    resamples: int
    seed: int


def bootstrap_estimate(statistic: Statistic, design: Design, name: str) -> Estimate:
    """Compute a statistic between 0 and 1 of weighted cases, and its interval.

    Args:
        statistic: maps weights of the cases, shape ``(n, r)``, to values of shape ``(r,)``; NaN where the weighted
            cases have no such value.
        design: the patients and the settings of the bootstrap.
        name: what the number is.
    """
    value = float(statistic(np.ones((len(design.codes), 1)))[0])
    weights = patient_weights(design.codes, design.resamples, design.seed)
    return estimate_from_draws(
        value, np.concatenate([statistic(block[design.codes]) for block in weights]), design, name
    )


def estimate_from_draws(value: float, drawn: FloatArray, design: Design, name: str) -> Estimate:
    """Return a number between 0 and 1 with its interval, from its values in resamples of patients.

    The interval is the number plus or minus a t quantile times the standard deviation over the resamples, on the logit
    scale, which keeps it within [0, 1]. It does not use the quantiles of the resamples: these hold the truth too rarely
    in small samples, and are biased for numbers that noise can only increase, such as a calibration error.
    In 600 samples of 100 to 300 patients, 95 % intervals held the true sensitivity in 95 to 98 % and the true Brier
    score in 92 to 94 %.

    Args:
        value: the number from all cases.
        drawn: its values in the resamples; NaN where a resample has none.
        design: the patients and the settings of the bootstrap.
        name: what the number is.
    """
    unit = "patients" if design.patients_given else "cases"
    patients = int(design.codes.max()) + 1 if design.patients_given else None

    def result(low: float | None, high: float | None, method: str) -> Estimate:
        return Estimate(value, low, high, design.confidence, f"{name}; {method}", len(design.codes), patients)

    if design.units < 2:
        return result(
            None, None, f"not computable: an interval needs at least 2 {unit} that count, found {design.units}"
        )
    values = drawn[~np.isnan(drawn)]
    method = f"patient-clustered bootstrap, {design.resamples} resamples, seed {design.seed}"
    if not design.patients_given:
        method += " (every case counted as a patient of its own)"
    if len(values) < len(drawn):
        method += f", {len(drawn) - len(values)} with one class only left out"
    if len(values) < len(drawn) / 2:
        return result(None, None, f"not computable: most resamples held one class only ({method})")
    error = float(values.std(ddof=1))
    if error < ROUNDING or min(value, 1 - value) < ROUNDING:
        low, high = _wilson(value, design.units, design.confidence)
        return result(low, high, f"Wilson interval on {design.units} {unit}, as the cases show no variance")
    reach = float(stats.t.isf((1 - design.confidence) / 2, design.units - 1)) * error / (value * (1 - value))
    centre = special.logit(value)
    low, high = float(special.expit(centre - reach)), float(special.expit(centre + reach))
    return result(low, high, f"{method}, t quantile, logit scale")


def _wilson(value: float, units: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (J. Am. Stat. Assoc. 22, 1927)."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (value + z**2 / (2 * units)) / (1 + z**2 / units)
    reach = z / (1 + z**2 / units) * float(np.sqrt(value * (1 - value) / units + z**2 / (4 * units**2)))
    return max(0.0, centre - reach), min(1.0, centre + reach)
