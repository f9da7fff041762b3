from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from monai_basisprune.evidence import compare_auc, required_positive_patients
from monai_basisprune.evidence.intervals import hanley_mcneil_variance


def test_answer_is_the_smallest_that_suffices():
    positives = required_positive_patients(0.02, 0.85, 0.9, 4)
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)

    def reach(positives):
        return quantiles * np.sqrt(2 * hanley_mcneil_variance(0.85, positives, 4 * positives) * 0.1)

    assert reach(positives) <= 0.02 < reach(positives - 1)


def test_directions():
    base = required_positive_patients(0.02, 0.9, 0.9)
    assert required_positive_patients(0.01, 0.9, 0.9) > 3 * base
    assert required_positive_patients(0.02, 0.8, 0.9) > base
    assert required_positive_patients(0.02, 0.9, 0.95) < base
    assert required_positive_patients(0.02, 0.9, 0.9, power=0.9) > base
    assert required_positive_patients(0.02, 0.9, 0.9, 9) < base


def test_power_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    shift, repeats, root = np.sqrt(2) * stats.norm.ppf(0.85), 150, np.linalg.cholesky([[1, 0.9], [0.9, 1]])
    # the correlation of the AUCs, a little below that of the scores
    positives = required_positive_patients(0.05, 0.85, 0.88)
    m = n = positives
    labels = np.repeat([1, 0], [m, n])
    passed = 0
    for _ in range(repeats):
        scores = rng.normal(size=(m + n, 2)) @ root.T + shift * labels[:, None]
        passed += compare_auc(labels, *scores.T, margin=0.05).non_inferior
    assert passed / repeats == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0.9, 0.9), "margin must lie between 0 and 1"),
        ((0.01, 1, 0.9), "expected_auc must be 0.5 or more and below 1, found 1"),
        ((0.01, 0.9, 1), "correlation must be -1 or more and below 1, found 1"),
        ((0.01, 0.9, 0.9, 0), "negatives_per_positive must be above 0"),
        ((0.00001, 0.9, 0.0), "are needed for a margin of 1e-05: widen it"),
        ((0.01, float("nan"), 0.9), "expected_auc must be"),
    ],
)
def test_errors(arguments, words):
    with pytest.raises(ValueError) as error:
        required_positive_patients(*arguments)
    assert words in str(error.value)


def test_power_error():
    with pytest.raises(ValueError, match=r"power must lie between 0.5 and 1, such as 0.8, found 80"):
        required_positive_patients(0.01, 0.9, 0.9, power=80)
