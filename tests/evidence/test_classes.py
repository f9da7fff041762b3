from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_basisprune.evidence import auc_by_class, auc_interval

NAMES = ["normal", "benign", "malignant"]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 2)
    labels = rng.integers(0, 3, size=100)[patients]
    scores = 1.5 * np.eye(3)[labels] + rng.normal(size=(100, 3))[patients] + rng.normal(size=(200, 3))
    return labels, scores, patients


@pytest.mark.parametrize("grouping", [True, False])
def test_one_against_the_rest_is_sklearns(data, grouping):
    labels, scores, patients = data
    result = auc_by_class(labels, scores, NAMES, patients if grouping else None)
    for k, entry in enumerate(result.classes):
        assert entry.name == NAMES[k]
        assert entry.interval == auc_interval(labels == k, scores[:, k], patients if grouping else None)
    exponential = np.exp(scores)
    assert result.macro.value == pytest.approx(
        np.mean([roc_auc_score(labels == k, exponential[:, k]) for k in range(3)])
    )
    assert result.macro.low < result.macro.value < result.macro.high
    widest = max(entry.interval.high - entry.interval.low for entry in result.classes)
    assert result.macro.high - result.macro.low < widest
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_hot_labels_give_the_same(data):
    labels, scores, patients = data
    assert auc_by_class(np.eye(3)[labels], scores, NAMES, patients) == auc_by_class(labels, scores, NAMES, patients)


def test_an_absent_class_leaves_no_mean(data):
    labels, scores, patients = data
    findings = np.stack([labels == 0, labels == 1, np.zeros(200, bool)], axis=1)
    result = auc_by_class(findings, scores, NAMES, patients)
    assert result.classes[0].interval is not None
    assert result.classes[2].interval is None
    assert result.classes[2].reason == "not computable: 0 of 200 cases are positive"
    assert result.macro is None
    assert result.reason == "not computable: no AUC for malignant"


def test_a_rare_class_leaves_no_interval_of_the_mean():
    findings = np.array([[0, 1], [1, 0], [0, 0], [0, 1], [0, 0]])
    result = auc_by_class(findings, np.arange(10).reshape(5, 2) % 4, ["a", "b"])
    assert result.classes[0].interval.low is None
    assert result.macro.low is None
    assert "not computable" in result.macro.method


@pytest.mark.parametrize(
    ("labels", "scores", "names", "words"),
    [
        (
            [0, 1],
            np.zeros((2, 3)),
            ["a", "b"],
            "a column for each of at least two class names ['a', 'b'], found (2, 3)",
        ),
        ([0, 1], np.zeros((2, 2)), ["a", "a"], "class_names must differ"),
        (
            [0, 2],
            np.zeros((2, 2)),
            ["a", "b"],
            "labels must be the number of a class, 0 to 1, found 1 other value(s): 2",
        ),
        (
            [[0, 1], [3, 0]],
            np.zeros((2, 2)),
            ["a", "b"],
            "labels must be 0 or 1 for each class, found 1 other value(s): 3",
        ),
        ([0, 1, 1], np.zeros((2, 2)), ["a", "b"], "to fit the scores, found (3,)"),
        ([0, 1], [[0, np.nan], [0, 1]], ["a", "b"], "scores hold 1 NaN"),
        ([[0, 1], [0, 1]], np.zeros((2, 2)), ["a", "b"], "no class has an AUC"),
    ],
)
def test_errors(labels, scores, names, words):
    with pytest.raises(ValueError) as error:
        auc_by_class(labels, scores, names)
    assert words in str(error.value)
