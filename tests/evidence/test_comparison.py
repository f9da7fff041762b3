from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monai_basisprune.evidence import compare_auc, delong_covariance

from . import reference


def sample(seed=0, **kwargs):
    labels, columns, patients = reference.clustered_sample(seed, **kwargs)
    return labels, columns[:, 0], columns[:, 1], patients


@pytest.mark.parametrize("seed", range(4))
def test_difference_is_candidate_minus_reference(seed):
    labels, first, second, patients = sample(seed)
    result = compare_auc(labels, first, second, patients)
    expected = roc_auc_score(labels, second) - roc_auc_score(labels, first)
    assert result.difference == pytest.approx(expected)
    assert result.candidate_auc - result.reference_auc == pytest.approx(expected)
    assert result.low < result.difference < result.high


def test_many_cases_give_the_textbook_interval():
    labels, first, second, _ = sample(1, patients=3000, images=1)
    result = compare_auc(labels, first, second)
    covariance = reference.delong(labels, np.stack([first, second], axis=1))
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert result.standard_error == pytest.approx(error, rel=2e-3)
    reach = 1.96 * error
    assert (result.low, result.high) == pytest.approx(
        (result.difference - reach, result.difference + reach), abs=0.02 * reach
    )


@pytest.mark.parametrize("mixed", [True, False])
def test_bootstrap_agrees_with_obuchowski(mixed):
    labels, first, second, patients = sample(2, patients=300, mixed=mixed)
    result = compare_auc(labels, first, second, patients)
    _, covariance = delong_covariance(labels, np.stack([first, second], axis=1), patients)
    analytic = np.sqrt(np.array([-1, 1]) @ covariance @ np.array([-1, 1]))
    assert result.standard_error == pytest.approx(analytic, rel=0.06)
    assert result.method.startswith("paired patient-clustered bootstrap, 2000 resamples, seed 0")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.3), st.sampled_from([None, "patients"]))
def test_verdict_interval_and_p_value_agree(seed, margin, grouping):
    labels, first, second, patients = sample(seed, patients=30, prevalence=0.5)
    if min(labels.sum(), (1 - labels).sum()) == 0:
        return
    result = compare_auc(labels, first, second, patients if grouping else None, margin, resamples=200)
    if result.low is None:
        assert not result.non_inferior
        return
    assert result.non_inferior == (result.low > -margin)
    if abs(result.low + margin) > 1e-6:
        assert result.non_inferior == (result.p_value < 0.025)
    if min(abs(result.low), abs(result.high)) > 1e-6:
        assert (result.p_value_difference < 0.05) == (not result.low <= 0 <= result.high)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_cases_does_not_matter(random):
    labels, first, second, _ = sample(3)
    order = list(range(len(labels)))
    random.shuffle(order)
    a, b = compare_auc(labels, first, second), compare_auc(labels[order], first[order], second[order])
    assert (a.difference, a.low, a.high) == pytest.approx((b.difference, b.low, b.high), abs=1e-12)


def test_swapping_networks_mirrors_the_interval():
    labels, first, second, patients = sample(4)
    a, b = compare_auc(labels, first, second, patients), compare_auc(labels, second, first, patients)
    assert (a.difference, a.low, a.high) == pytest.approx((-b.difference, -b.high, -b.low), abs=1e-7)
    assert a.p_value_difference == pytest.approx(b.p_value_difference, abs=1e-6)


def test_wider_margin_and_higher_confidence():
    labels, first, second, patients = sample(5)
    assert compare_auc(labels, first, second, patients, margin=0.5).non_inferior
    assert not compare_auc(labels, first, second, patients, margin=0.0).non_inferior
    narrow, wide = (compare_auc(labels, first, second, patients, confidence=c) for c in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_near_perfect_networks_get_a_lopsided_interval():
    labels, first, second, _ = sample(6, patients=60, images=1, shift=3.5)
    result = compare_auc(labels, first, second)
    assert 0.97 < result.reference_auc < 1
    assert "logit profile" in result.method


def test_same_scores():
    labels, first, _, patients = sample(7)
    result = compare_auc(labels, first, first.copy(), patients)
    assert (result.difference, result.low, result.high, result.non_inferior) == (0, 0, 0, True)
    assert result.method == "both networks return the same scores"
    assert not compare_auc(labels, first, first, patients, margin=0).non_inferior


def test_scores_that_differ_by_rounding_are_the_same_and_others_in_the_same_order_are_not():
    labels, first, _, patients = sample(7, patients=40)
    rounding = 1e-6 * np.random.default_rng(0).choice([-1, 1], len(first))
    result = compare_auc(labels, first, first + rounding, patients)
    assert (result.difference, result.low, result.high, result.non_inferior) == (0, 0, 0, True)
    assert result.method == "both networks return the same scores, up to rounding"
    other = compare_auc(labels, first, np.exp(first), patients)
    assert other.difference == 0
    assert other.low < -0.1
    assert not other.non_inferior


@pytest.mark.parametrize("patients", [None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]])
def test_two_perfect_networks_of_few_patients_prove_nothing(patients):
    labels = [0] * 6 + [1] * 6
    result = compare_auc(labels, range(12), [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11], patients)
    assert result.difference == 0
    assert result.low < -0.1
    assert not result.non_inferior
    assert "separates the classes perfectly" in result.method


def test_two_perfect_networks_of_many_patients():
    n = 2000
    result = compare_auc([0] * n + [1] * n, range(2 * n), np.sqrt(range(2 * n)))
    assert result.non_inferior


def test_equal_order_of_different_scores_is_bounded_by_the_number_of_patients():
    labels = [0, 1] * 20
    scores = np.random.default_rng(0).normal(size=40)
    result = compare_auc(labels, scores, np.exp(scores))
    assert result.difference == 0
    assert result.low == pytest.approx(-(1 - 0.025 ** (1 / 20)))
    assert result.high == pytest.approx(-result.low)
    assert not result.non_inferior
    assert result.method.startswith("exact bound from 20 disjoint pairs of cases")
    assert result.p_value == pytest.approx(0.99**20)


def test_equal_order_with_several_images_of_each_patient_is_bounded_too():
    labels, first, _, patients = sample(9, patients=60)
    result = compare_auc(labels, first, 3 * first - 1, patients)
    assert result.method.startswith("exact bound from")
    assert result.low < -0.1
    assert not result.non_inferior


def test_one_perfect_network():
    labels = [0] * 10 + [1] * 10
    worse = [*range(9), 14, 5.5, *range(15, 24)]
    result = compare_auc(labels, range(20), worse)
    assert result.reference_auc == 1
    assert -1 <= result.low < result.difference < result.high <= 1
    assert not result.non_inferior


def test_unseen_loss_is_the_rule_of_three():
    labels, first, second, _ = sample(8, patients=400, images=1, prevalence=0.25)
    result = compare_auc(labels, first, second)
    assert result.unseen_loss == pytest.approx(3.69 / labels.sum(), rel=0.03)


@pytest.mark.parametrize("patients", [None, list("abcdd")])
def test_too_few_patients(patients):
    labels = [0, 0, 0, 1, 1] if patients else [0, 0, 0, 0, 1]
    result = compare_auc(labels, [1, 2, 3, 4, 5], [1, 2, 3, 4, 6], patients)
    assert (result.low, result.high, result.p_value, result.p_value_difference) == (None, None, None, None)
    assert result.non_inferior is False
    assert result.method.startswith("not computable: an interval needs at least 2 positive and 2 negative")


@pytest.mark.parametrize("patients", [None, list("abcdef"), list("aabbcc"), list("abbccd")])
@pytest.mark.parametrize(
    "scores", [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1] * 6, [1, 2, 4, 3, 5, 6], [0, 1, 0, 1, 0, 1]]
)
@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1]])
def test_result_is_json_without_nan(labels, scores, patients):
    result = compare_auc(labels, [1, 2, 3, 4, 5, 6.5], scores, patients, resamples=200)
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert isinstance(result.non_inferior, bool)
    assert all(isinstance(v, (str, int, float, type(None))) for v in fields.values())
    if result.low is not None:
        assert -1 <= result.low <= result.difference <= result.high <= 1
        assert 0 <= result.p_value <= 1
        assert 0 <= result.p_value_difference <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0, 1], [1, 2, 3], [1, 2]), "reference and labels differ in length: 3 reference for 2 labels"),
        (([0, 1], [1, 2], [1]), "candidate and labels differ in length: 1 candidate for 2 labels"),
        (([0, 1], [1, 2], [1, np.nan]), "candidate hold 1 NaN and 0 infinite value(s) of 2"),
        (([0, 1], [-np.inf, 2], [1, 2]), "reference hold 0 NaN and 1 infinite value(s) of 2"),
        (([1, 1], [1, 2], [1, 2]), "only one class is present"),
        (([0, 1], [1, 2], [1, 2], None, -0.01), "margin is the largest loss of AUC that is accepted"),
        (([0, 1], [1, 2], [1, 2], None, float("nan")), "found nan"),
        (([0, 1], [1, 2], [1, 2], None, 1.0), "below 1"),
    ],
)
def test_errors(arguments, words):
    with pytest.raises(ValueError) as error:
        compare_auc(*arguments)
    assert words in str(error.value)
