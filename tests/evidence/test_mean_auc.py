from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from monai_basisprune.evidence import accuracy, auc_interval, compare_auc, compare_classes, holm
from monai_basisprune.evidence._networks import read_networks
from monai_basisprune.evidence.auc import aucs_of
from monai_basisprune.evidence.bootstrap import bootstrap_auc
from monai_basisprune.evidence.feasibility import patients_by_class


def draw(
    seed: int = 0,
    patients: int = 120,
    classes: int = 4,
    multi: bool = False,
    images: int = 1,
    signal: float = 1.5,
    noise: float = 0.5,
):
    """Return labels, scores of two correlated networks and patients; images of a patient share a part of the score."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(patients), rng.integers(1, images + 1, size=patients))
    if multi:
        labels = (rng.random((patients, classes)) < np.linspace(0.2, 0.4, classes))[codes].astype(int)
        truth = labels
    else:
        labels = rng.integers(0, classes, size=patients)[codes]
        truth = np.eye(classes)[labels]
    base = signal * truth + 0.6 * rng.normal(size=(patients, classes))[codes]
    base += 0.8 * rng.normal(size=(len(codes), classes))
    reference, candidate = (base + size * rng.normal(size=base.shape) for size in (0.3, noise))
    return labels, reference, candidate, codes


@pytest.mark.parametrize("images", [1, 3])
def test_the_mean_of_classes_is_sklearns(images):
    labels, scores, _, codes = draw(images=images)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    result = auc_interval(labels, chances, codes)
    assert result.auc == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr", average="macro"))
    assert result.low < result.auc < result.high
    assert (result.cases, result.patients) == (len(labels), 120)
    assert result.positive_cases is result.positive_patients is None
    assert result.method.startswith("mean of 4 AUCs, each class against the rest")


def test_the_mean_of_findings_is_sklearns():
    labels, scores, _, codes = draw(multi=True)
    assert auc_interval(labels, scores, codes).auc == pytest.approx(roc_auc_score(labels, scores, average="macro"))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("images", [1, 3])
def test_standard_errors_agree_with_a_bootstrap_of_patients(multi, images):
    labels, reference, candidate, codes = draw(multi=multi, images=images, patients=300)
    cohort = read_networks(labels, {"reference": reference, "candidate": candidate}, codes)
    drawn = np.mean([bootstrap_auc(one, 2000, 0) for one in cohort.classes], axis=0)
    result = compare_auc(labels, reference, candidate, codes)
    assert auc_interval(labels, candidate, codes).standard_error == pytest.approx(drawn[:, 1].std(), rel=0.12)
    assert result.standard_error == pytest.approx((drawn[:, 1] - drawn[:, 0]).std(), rel=0.12)


def test_images_of_a_patient_count_as_one():
    labels, scores, _, codes = draw(images=4)
    known, unknown = auc_interval(labels, scores, codes), auc_interval(labels, scores)
    assert known.high - known.low > 1.2 * (unknown.high - unknown.low)
    assert "every case counted as a patient of its own" in unknown.method


def test_copies_of_each_case_change_nothing():
    labels, scores, other, codes = draw()
    twice = [np.repeat(values, 2, axis=0) for values in (labels, scores, other, codes)]
    once, double = compare_auc(labels, scores, other, codes), compare_auc(*twice)
    assert (double.low, double.high, double.p_value) == pytest.approx((once.low, once.high, once.p_value))


def test_two_classes_as_columns_are_close_to_one_finding():
    labels, scores, other, codes = draw(classes=2, patients=200)
    one = compare_auc(labels, scores[:, 1] - scores[:, 0], other[:, 1] - other[:, 0], codes)
    columns = [np.stack([-(s[:, 1] - s[:, 0]), s[:, 1] - s[:, 0]], axis=1) for s in (scores, other)]
    both = compare_auc(labels, *columns, codes)
    assert both.difference == pytest.approx(one.difference)
    assert (both.low, both.high) == pytest.approx((one.low, one.high), abs=2e-3)


def test_test_and_interval_agree():
    labels, reference, candidate, codes = draw(noise=1.0)
    result = compare_auc(labels, reference, candidate, codes, margin=0.02)
    edge = compare_auc(labels, reference, candidate, codes, margin=-result.low)
    assert edge.p_value == pytest.approx(0.025, abs=1e-4)
    assert not result.non_inferior
    assert compare_auc(labels, reference, candidate, codes, margin=-result.low + 1e-3).non_inferior


def test_equal_networks():
    labels, scores, _, codes = draw()
    result = compare_auc(labels, scores, scores, codes)
    assert (result.difference, result.low, result.high, result.non_inferior) == (0.0, 0.0, 0.0, True)
    assert 0 < result.unseen_loss < 0.2


def test_perfect_classes_keep_an_interval():
    labels = np.arange(60) % 3
    perfect = np.eye(3)[labels] + 0.001 * np.arange(60)[:, None] % 0.1
    result = auc_interval(labels, perfect)
    assert (result.auc, result.high) == (1.0, 1.0)
    assert 0.9 < result.low < 1
    half = perfect.copy()
    half[:, 2] = np.random.default_rng(0).normal(size=60) + 2 * (labels == 2)
    mixed = auc_interval(labels, half)
    without = auc_interval(labels == 2, half[:, 2])
    assert 1 - mixed.low > (1 - without.low) / 3
    assert compare_auc(labels, perfect, half).high < 0.1


def test_a_class_of_one_patient_has_no_interval():
    labels = np.array([0, 1, 2, 0, 1, 0, 1])
    result = auc_interval(labels, np.random.default_rng(0).normal(size=(7, 3)))
    assert result.low is None
    assert result.method == (
        "not computable: an interval needs at least 2 positive and 2 negative case(s), found 1 and 6 of class 2"
    )
    comparison = compare_auc(labels, *np.random.default_rng(0).normal(size=(2, 7, 3)))
    assert comparison.low is None
    assert not comparison.non_inferior


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 0, 1], "these lack positive or negative cases: class 2 (0 of 4 cases)"),
        ([0, 1, 3, 1], "the number of a class, 0 to 2, found 1 other value(s): 3"),
        ([0, 1, float("nan"), 1], "found 1 other value(s): nan"),
        ([[0, 1], [1, 0], [0, 0], [1, 1]], "labels must have shape (4,) or (4, 3) to fit the scores, found (4, 2)"),
        ([[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1]], "class 2 (4 of 4 cases)"),
    ],
)
def test_unusable_labels_are_refused(labels, words):
    with pytest.raises(ValueError) as error:
        auc_interval(labels, np.arange(12.0).reshape(4, 3))
    assert words in str(error.value)


def test_networks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="scores must have one shape"):
        compare_auc([0, 1, 2], np.eye(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="hold 1 NaN"):
        auc_interval([0, 1, 2], np.array([[1, 0, 0], [0, np.nan, 0], [0, 0, 1.0]]))


def test_classes_are_compared_one_by_one():
    labels, reference, candidate, codes = draw(noise=1.5)
    names = ["a", "b", "c", "d"]
    found = compare_classes(labels, reference, candidate, names, codes, margin=0.02)
    for index, one in enumerate(found):
        assert one.difference == compare_auc(labels == index, reference[:, index], candidate[:, index], codes, 0.02)
        assert one.positive_cases == int((labels == index).sum())
    tests = holm({one.name: one.difference.p_value_difference for one in found})
    assert [one.adjusted_p_value for one in found] == [test.adjusted_p_value for test in tests]
    mean = compare_auc(labels, reference, candidate, codes)
    assert np.mean([one.difference.difference for one in found]) == pytest.approx(mean.difference)


def test_a_class_without_cases_says_so():
    findings = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    found = compare_classes(findings, *np.random.default_rng(0).normal(size=(2, 4, 3)), ["a", "b", "c"])
    assert found[2].difference is None
    assert found[2].reason == "not computable: 0 of 4 cases are positive"


@pytest.mark.parametrize("images", [1, 3])
def test_accuracy_is_sklearns(images):
    labels, scores, _, codes = draw(images=images)
    result = accuracy(labels, scores, codes)
    assert result.value == pytest.approx(accuracy_score(labels, scores.argmax(axis=1)))
    assert result.low < result.value < result.high


def test_accuracy_refuses_findings():
    with pytest.raises(ValueError, match=r"needs labels \(n,\) and scores \(n, classes\)"):
        accuracy(np.eye(3), np.eye(3))


def test_patients_of_several_classes_count_as_those_of_one_that_spreads_alike():
    assert patients_by_class(np.arange(40) % 4) == (40, 40)
    assert patients_by_class([[1, 0]] * 10 + [[0, 1]] * 10) == (20, 20)
    assert patients_by_class([0, 1, 1], ["a", "a", "b"]) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("multi", [False, True])
def test_coverage_and_error_of_the_test(multi):
    options = {"patients": 80, "images": 2, "multi": multi, "noise": 0.8, "signal": 2.0}
    large = [draw(seed, **{**options, "patients": 20000})[:3] for seed in (1000, 1001)]
    truth = np.mean([aucs_of(read_networks(a, {"r": b, "c": c}, None)) for a, b, c in large], axis=0)
    loss = truth[0] - truth[1]
    covered, held, errors = 0, 0, 0
    for seed in range(300):
        labels, reference, candidate, codes = draw(seed, **options)
        single = auc_interval(labels, candidate, codes)
        pair = compare_auc(labels, reference, candidate, codes, margin=loss)
        covered += single.low <= truth[1] <= single.high
        held += pair.low <= -loss <= pair.high
        errors += pair.non_inferior
    assert covered >= 0.92 * 300
    assert held >= 0.92 * 300
    assert errors <= 0.055 * 300
