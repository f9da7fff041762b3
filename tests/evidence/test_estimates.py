"""Numbers with an interval from a bootstrap of whole patients, against intervals that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from monai_basisprune.evidence.estimates import Design, bootstrap_estimate, estimate_from_draws


def design(cases: int, **changes) -> Design:
    arguments = {"codes": np.arange(cases), "patients_given": True, "units": cases, "confidence": 0.95}
    return Design(**{**arguments, "resamples": 2000, "seed": 0, **changes})


def mean_of(values):
    """Return the weighted mean as a statistic."""
    return lambda weights: values @ weights / weights.sum(axis=0)


def logit_interval(value: float, error: float, units: int, confidence: float) -> tuple[float, float]:
    reach = stats.t.ppf(0.5 + confidence / 2, units - 1) * error / (value * (1 - value))
    odds = value / (1 - value)
    return tuple(float(o / (1 + o)) for o in (odds * np.exp(-reach), odds * np.exp(reach)))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_share_has_the_interval_of_its_known_deviation(confidence):
    values = (np.arange(200) < 60).astype(float)
    found = bootstrap_estimate(mean_of(values), design(200, confidence=confidence), "share of positive cases")
    low, high = logit_interval(0.3, np.sqrt(0.3 * 0.7 / 200), 200, confidence)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))
    assert (found.cases, found.patients, found.confidence) == (200, 200, confidence)
    assert found.method == (
        "share of positive cases; patient-clustered bootstrap, 2000 resamples, seed 0, t quantile, logit scale"
    )
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_an_interval_is_that_of_its_draws():
    drawn = np.random.default_rng(0).normal(0.7, 0.05, size=400)
    found = estimate_from_draws(0.72, drawn, design(30, units=12), "x")
    assert (found.low, found.high) == pytest.approx(logit_interval(0.72, drawn.std(ddof=1), 12, 0.95))
    assert 0 < found.low < found.value < found.high < 1
    wide = estimate_from_draws(0.99, drawn, design(30, units=12), "x")
    assert 0 < wide.low < 0.99 < wide.high < 1


def test_cases_of_a_patient_are_drawn_together():
    values = (np.arange(100) < 40).astype(float)
    once = bootstrap_estimate(mean_of(values), design(100), "x")
    twice = design(200, codes=np.repeat(np.arange(100), 2), units=100)
    repeated = bootstrap_estimate(mean_of(np.repeat(values, 2)), twice, "x")
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    assert (repeated.cases, repeated.patients) == (200, 100)


def test_the_seed_decides():
    values = (np.arange(50) < 20).astype(float)
    first, again, other = (bootstrap_estimate(mean_of(values), design(50, seed=seed), "x") for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low
    assert "seed 1" in other.method


def test_without_patients_cases_count_and_are_said_to():
    values = (np.arange(50) < 20).astype(float)
    found = bootstrap_estimate(mean_of(values), design(50, patients_given=False), "x")
    assert found.patients is None
    assert "(every case counted as a patient of its own)" in found.method
    few = bootstrap_estimate(mean_of(values), design(50, patients_given=False, units=1), "x")
    assert few.method == "x; not computable: an interval needs at least 2 cases that count, found 1"
    assert (few.low, few.high) == (None, None)


def test_fewer_than_two_patients_give_no_interval():
    found = estimate_from_draws(0.4, np.array([0.4, 0.5]), design(3, codes=np.zeros(3, dtype=int), units=1), "x")
    assert found.method == "x; not computable: an interval needs at least 2 patients that count, found 1"
    assert (found.value, found.low, found.high, found.cases, found.patients) == (0.4, None, None, 3, 1)


def test_resamples_without_a_value_are_left_out_and_counted_up_to_half():
    drawn = np.random.default_rng(0).normal(0.6, 0.05, size=200)
    half = drawn.copy()
    half[:100] = np.nan
    found = estimate_from_draws(0.6, half, design(30), "x")
    assert ", 100 with one class only left out, t quantile" in found.method
    assert (found.low, found.high) == pytest.approx(logit_interval(0.6, drawn[100:].std(ddof=1), 30, 0.95))
    half[100] = np.nan
    most = estimate_from_draws(0.6, half, design(30), "x")
    assert (most.low, most.high) == (None, None)
    assert most.method.startswith("x; not computable: most resamples held one class only (patient-clustered bootstrap")


@pytest.mark.parametrize(("positives", "units"), [(10, 10), (0, 10), (250, 250)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_without_variance_the_interval_is_wilsons(positives, units, confidence):
    values = np.full(units, positives / units)
    found = bootstrap_estimate(mean_of(values), design(units, confidence=confidence), "sensitivity")
    wanted = stats.binomtest(positives, units).proportion_ci(confidence, "wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert 0 <= found.low < found.high <= 1
    assert found.method == f"sensitivity; Wilson interval on {units} patients, as the cases show no variance"


def test_a_value_at_the_edge_has_wilsons_interval_though_its_draws_vary():
    drawn = np.random.default_rng(0).uniform(0.9, 1.0, size=100)
    found = estimate_from_draws(1.0, drawn, design(20), "x")
    wanted = stats.binomtest(20, 20).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
