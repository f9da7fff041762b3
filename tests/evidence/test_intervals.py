from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special, stats

from monai_basisprune.evidence.intervals import (
    Spread,
    difference_interval,
    hanley_mcneil_variance,
    score_interval,
    single_interval,
    tail_probability,
)


def spread(first=0.9, last=0.88, error=0.03, correlation=0.8, freedom=40.0):
    covariance = error**2 * np.array([[1, correlation], [correlation, 1]])
    return Spread(np.array([first, last]), covariance, np.array([freedom, freedom]), freedom, 40, 60)


def profile_distance(s, difference):
    """Smallest squared distance of logit AUCs with a given difference from the observed ones, by an optimizer."""
    logits, slope = special.logit(s.auc), s.auc * (1 - s.auc)
    precision = np.linalg.inv(s.covariance / np.outer(slope, slope))

    def distance(first):
        step = np.array([special.logit(first), special.logit(first + difference)]) - logits
        return step @ precision @ step

    inside = (max(0, -difference) + 1e-9, min(1, 1 - difference) - 1e-9)
    return optimize.minimize_scalar(distance, bounds=inside, method="bounded", options={"xatol": 1e-12}).fun


@pytest.mark.parametrize("s", [spread(), spread(0.97, 0.99, 0.01), spread(0.6, 0.6, 0.05, 0.99), spread(0.95, 0.7)])
def test_ends_lie_one_quantile_away_in_profile_likelihood(s):
    for end in difference_interval(s, 0.95):
        assert profile_distance(s, end) == pytest.approx(stats.t.ppf(0.975, 40) ** 2, rel=1e-4)


def test_small_errors_give_the_textbook_interval():
    s = spread(error=0.001)
    reach = stats.t.ppf(0.975, 40) * s.contrast_error
    assert difference_interval(s, 0.95) == pytest.approx((-0.02 - reach, -0.02 + reach), abs=0.01 * reach)


def test_lower_reach_is_longer_near_one():
    low, high = difference_interval(spread(0.98, 0.98, 0.015, 0.5), 0.95)
    assert low == pytest.approx(-high)  # both networks alike: symmetric, but wider than two standard errors
    assert high > 2.1 * spread(0.98, 0.98, 0.015, 0.5).contrast_error


def test_tail_probability_inverts_the_interval():
    s = spread()
    for value in (-0.1, -0.03, -0.02, 0.0, 0.05):
        p = tail_probability(lambda level: difference_interval(s, level), -0.02, value)
        if value == -0.02:
            assert p == 0.5
        elif value < -0.02:
            assert difference_interval(s, 1 - 2 * p)[0] == pytest.approx(value, abs=1e-6)
        else:
            assert difference_interval(s, 2 * p - 1)[1] == pytest.approx(value, abs=1e-6)


def test_textbook_tail_probability():
    s = spread(error=0.001, freedom=1e9)
    p = tail_probability(lambda level: difference_interval(s, level), -0.02, -0.021)
    assert p == pytest.approx(stats.norm.sf(0.001 / s.contrast_error), rel=0.02)


def test_hanley_and_mcneils_own_example():
    # Radiology 143 (1982), the worked example: area 0.893, 51 positive and 58 negative cases, standard error 0.032
    assert np.sqrt(hanley_mcneil_variance(0.893, 51, 58)) == pytest.approx(0.032, abs=0.0006)


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.95, 0.9999])
def test_score_interval_holds_the_auc_and_mirrors(auc, confidence):
    low, high = score_interval(auc, 12, 30, confidence)
    assert 0 <= low <= auc <= high <= 1
    assert score_interval(1 - auc, 12, 30, confidence) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_single_interval_is_symmetric_on_the_logit_scale():
    low, high = single_interval(spread(), 0, 0.95)
    assert special.logit(low) + special.logit(high) == pytest.approx(2 * special.logit(0.9))
