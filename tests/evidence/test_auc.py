from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monai_basisprune.evidence import auc_interval

from . import reference

LABELS = [0, 0, 0, 0, 1, 1, 1]
SCORES = [0.1, 0.4, 0.3, 0.6, 0.35, 0.8, 0.9]


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, torch.tensor, lambda x: np.array(x)[:, None], lambda x: (v for v in x)]
)
def test_accepts_lists_arrays_and_tensors(make):
    result = auc_interval(make(LABELS), make(SCORES))
    assert result.auc == pytest.approx(roc_auc_score(LABELS, SCORES))
    assert 0 < result.low < result.auc < result.high < 1


@pytest.mark.parametrize("kind", [bool, np.int8, np.float32, np.uint8])
def test_accepts_any_type_of_label(kind):
    assert auc_interval(np.array(LABELS, dtype=kind), SCORES) == auc_interval(LABELS, SCORES)


def test_bfloat16_scores():
    scores = torch.tensor(SCORES, dtype=torch.bfloat16, requires_grad=True)
    assert auc_interval(torch.tensor(LABELS, dtype=torch.bool), scores).auc == auc_interval(LABELS, SCORES).auc


@pytest.mark.parametrize("patients", [None, list("abcdefg"), list("aabcdee"), list("aaabbbc")])
@pytest.mark.parametrize("scores", [SCORES, [0, 0, 0, 0, 1, 1, 1], [1] * 7, [1, 1, 1, 1, 0, 0, 0]])
def test_result_is_json_without_nan(patients, scores):
    result = auc_interval(LABELS, scores, patients)
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert all(isinstance(v, (str, int, float, type(None))) for v in fields.values())
    assert (result.low is None) == (result.high is None) == result.method.startswith("not computable")
    if result.low is not None:
        assert 0 <= result.low <= result.auc <= result.high <= 1
        assert result.low < result.high


def test_counts():
    result = auc_interval(LABELS, SCORES, list("aabcddd"))
    assert (result.cases, result.positive_cases, result.patients, result.positive_patients) == (7, 3, 4, 1)
    result = auc_interval(LABELS, SCORES)
    assert (result.cases, result.positive_cases, result.patients, result.positive_patients) == (7, 3, None, None)


def test_methods_are_named():
    labels, columns, patients = reference.clustered_sample(0)
    scores = columns[:, 0]
    assert auc_interval(labels, scores).method.startswith("DeLong (every case counted as a patient of its own)")
    assert auc_interval(labels, scores, range(len(labels))).method.startswith("DeLong, moderated t")
    clustered = auc_interval(labels, scores, patients)
    assert clustered.method == "patient-clustered bootstrap, 2000 resamples, seed 0, moderated t, logit scale"


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([lambda s: s, np.exp, lambda s: 3 * s - 7, np.cbrt]))
def test_order_of_cases_and_monotone_maps_do_not_matter(random, change):
    labels, columns, _ = reference.clustered_sample(1)
    order = list(range(len(labels)))
    random.shuffle(order)
    a, b = auc_interval(labels, columns[:, 0]), auc_interval(labels[order], change(columns[order, 0]))
    assert (a.auc, a.low, a.high) == pytest.approx((b.auc, b.low, b.high), abs=1e-12)


def test_swapped_classes_mirror_the_interval():
    labels, columns, _ = reference.clustered_sample(2)
    a, b = auc_interval(labels, columns[:, 0]), auc_interval(1 - labels, columns[:, 0])
    assert (a.auc, a.low, a.high) == pytest.approx((1 - b.auc, 1 - b.high, 1 - b.low))


def test_many_cases_give_the_textbook_interval():
    labels, columns, _ = reference.clustered_sample(4, patients=4000, images=1)
    result = auc_interval(labels, columns[:, 0])
    error = np.sqrt(reference.delong(labels, columns[:, :1])[0, 0])
    assert result.standard_error == pytest.approx(error, rel=1e-3)
    assert (result.low, result.high) == pytest.approx((result.auc - 1.96 * error, result.auc + 1.96 * error), abs=5e-4)


@pytest.mark.parametrize("mixed", [True, False])
def test_bootstrap_agrees_with_obuchowski(mixed):
    labels, columns, patients = reference.clustered_sample(5, patients=300, mixed=mixed)
    result = auc_interval(labels, columns[:, 0], patients)
    analytic = np.sqrt(reference.obuchowski(labels, [columns[:, 0]] * 2, patients))
    assert result.standard_error == pytest.approx(analytic, rel=0.06)
    assert result.standard_error > 1.1 * auc_interval(labels, columns[:, 0]).standard_error or mixed


def test_same_seed_same_interval():
    labels, columns, patients = reference.clustered_sample(6)
    first, again, other = (auc_interval(labels, columns[:, 0], patients, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low
    assert first.low == pytest.approx(other.low, abs=0.02)


def test_patients_are_not_merged_by_conversion():
    result = auc_interval([0, 0, 1, 1], [1, 2, 3, 4], [1, "1", 2, "2"])
    assert result.patients == 4


def test_patients_may_be_tensors_or_a_list_of_tensors():
    ids = torch.tensor([3, 3, 5, 6, 7, 7, 8])
    expected = auc_interval(LABELS, SCORES, [3, 3, 5, 6, 7, 7, 8])
    assert expected.patients == 5
    assert auc_interval(LABELS, SCORES, ids) == auc_interval(LABELS, SCORES, list(ids)) == expected


def test_perfect_separation_is_not_certainty():
    few, many = (auc_interval([0] * n + [1] * n, range(2 * n)) for n in (5, 500))
    assert few.auc == few.high == many.auc == 1.0
    assert 0.5 < few.low < 0.8
    assert 0.99 < many.low < 1
    assert "Newcombe score interval" in few.method
    assert "perfectly separated" in few.method


def test_perfect_interval_solves_newcombes_equation():
    result = auc_interval([0] * 8 + [1] * 4, range(12))
    theta = result.low
    spread = theta * (1 - theta) / 32 * (1 + 5 * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
    assert 1 - theta == pytest.approx(1.959964 * np.sqrt(spread), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "patients", "words"),
    [
        ([0, 0, 0, 1], None, "case(s), found 1 and 3"),
        ([0, 0, 1, 1], list("abcc"), "patient(s), found 1 and 2"),
        ([0, 1, 1, 1], list("abcd"), "patient(s), found 3 and 1"),
    ],
)
def test_too_few_patients(labels, patients, words):
    result = auc_interval(labels, [1, 3, 2, 4], patients)
    assert result.low is None
    assert result.high is None
    assert result.method.startswith("not computable: an interval needs at least 2 positive and 2 negative")
    assert words in result.method
    assert result.auc == pytest.approx(roc_auc_score(labels, [1, 3, 2, 4]))


def test_resamples_of_one_class_are_counted():
    labels = [1, 1, 1, 1] + [0] * 20
    patients = [0, 0, 1, 1] + [2 + i // 2 for i in range(20)]
    result = auc_interval(labels, np.random.default_rng(0).normal(size=24), patients)
    assert "with one class only left out" in result.method


def test_speed_of_20000_cases():
    rng = np.random.default_rng(0)
    labels = rng.random(20000) < 0.1
    scores = rng.normal(size=20000)
    start = time.process_time()
    auc_interval(labels, scores)
    assert time.process_time() - start < 0.5  # 0.02 s on an idle core


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], []), "labels are empty"),
        (([0, 1], [1, 2, 3]), "scores and labels differ in length: 3 scores for 2 labels"),
        (([0, 1, 1], [1, np.nan, np.inf]), "scores hold 1 NaN and 1 infinite value(s) of 3"),
        (([0, 1, 2], [1, 2, 3]), "labels must be 0 (negative) or 1 (positive), found 1 other value(s): 2"),
        (([0, 1, np.nan], [1, 2, 3]), "found 1 other value(s): nan"),
        (([-1, 1], [1, 2]), "found 1 other value(s): -1"),
        (([1, 1], [1, 2]), "only one class is present: all 2 labels are 1"),
        (([0, 0], [1, 2]), "only one class is present: all 2 labels are 0"),
        (([[0, 1], [1, 0]], [1, 2]), "labels must have shape (n,) or (n, 1), found (2, 2)"),
        ((["0", "1"], [1, 2]), "labels must be numbers"),
        (([0, 1], ["low", "high"]), "scores must be numbers"),
        (([0, 1], [1, None]), "scores hold 1 NaN"),
        (([0, 1], [1, 2], ["a"]), "patients and labels differ in length: 1 patients for 2 labels"),
        (([0, 1], [1, 2], ["a", None]), "1 of 2 cases have no patient"),
        (([0, 1], [1, 2], [1.0, float("nan")]), "1 of 2 cases have no patient"),
        (([0, 1], [1, 2], ["a", "  "]), "1 of 2 cases have no patient"),
        (([0, 1], [1, 2], [["a"], ["b"]]), "patients must be one text or number for each case"),
        (([0, 1], [1, 2], "ab"), "patients must be a list, numpy array or tensor in the order of the cases"),
        (([0, 1], {1: 0.5, 2: 0.7}), "scores must be a list, numpy array or tensor in the order of the cases"),
        (([0, 1], 3.0), "scores must be a list"),
        (([0, 1], [1j, 2]), "scores must be numbers"),
        (([0, 1], None), "scores must be a list"),
        (([0, 1], [1, 2], None, 95), "confidence must lie between 0 and 1, such as 0.95, found 95"),
        (([0, 1], [1, 2], None, 0), "confidence must lie between 0 and 1"),
        (([0, 1], [1, 2], None, float("nan")), "confidence must lie between 0 and 1"),
    ],
)
def test_errors(arguments, words):
    with pytest.raises(ValueError) as error:
        auc_interval(*arguments)
    assert words in str(error.value)


def test_too_few_resamples():
    with pytest.raises(ValueError, match="resamples must be 100 or more"):
        auc_interval(LABELS, SCORES, resamples=10)
