"""Scores of several classes, and how many patients of one class count for them."""

from __future__ import annotations

import numpy as np
import pytest

from monai_basisprune.evidence._inputs import Cohort
from monai_basisprune.evidence._networks import ClassCohorts, effective_count, read_networks, read_truth


def test_one_column_is_one_finding_and_several_are_classes():
    scores = np.arange(4.0)
    for one in (scores, scores[:, None]):
        assert isinstance(read_networks([0, 1, 0, 1], {"scores": one}, None), Cohort)
    several = read_networks([0, 1, 0, 1], {"scores": np.eye(2)[[0, 1, 0, 1]]}, None)
    assert isinstance(several, ClassCohorts)
    assert len(several.classes) == 2


def test_each_class_is_labeled_against_the_rest_with_its_own_scores():
    labels, patients = [2, 0, 1, 0], ["a", "b", "b", "c"]
    columns = {"one": np.arange(12.0).reshape(4, 3), "two": -np.arange(12.0).reshape(4, 3)}
    found = read_networks(labels, columns, patients)
    assert (found.cases, found.patients, found.patients_given) == (4, 3, True)
    for index, cohort in enumerate(found.classes):
        assert cohort.labels.tolist() == [label == index for label in labels]
        assert cohort.scores.tolist() == [
            [columns["one"][case, index], columns["two"][case, index]] for case in range(4)
        ]
        assert cohort.codes.tolist() == [0, 1, 1, 2]
    assert found.scores.shape == (12, 2)
    assert found.scores[4:8].tolist() == found.classes[1].scores.tolist()


@pytest.mark.parametrize("labels", [[2, 0, 1], [[2], [0], [1]], np.array([2.0, 0.0, 1.0])])
def test_classes_are_told_by_number_or_by_columns(labels):
    wanted = [[False, False, True], [True, False, False], [False, True, False]]
    assert read_truth(labels, (3, 3)).tolist() == wanted
    assert read_truth(np.array(wanted).astype(int), (3, 3)).tolist() == wanted


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], r"labels must have shape \(3,\) or \(3, 2\) to fit the scores, found \(2,\)"),
        ([0, 1, 2], r"labels must be the number of a class, 0 to 1, found 1 other value\(s\): 2"),
        ([0, 1, 0.5], r"found 1 other value\(s\): 0.5"),
        ([[0, 1], [1, 2], [0, -1]], r"labels must be 0 or 1 for each class, found 2 other value\(s\): -1, 2"),
    ],
)
def test_labels_that_fit_no_classes_are_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        read_truth(labels, (3, 2))


@pytest.mark.parametrize("shape", [(2, 0), (2, 2, 1)])
def test_scores_of_no_class_are_refused(shape):
    words = r"scores must have one shape, \(n,\) for one finding or \(n, classes\) for several, found scores \(2, "
    with pytest.raises(ValueError, match=words):
        read_networks([0, 1], {"scores": np.zeros(shape)}, None)


@pytest.mark.parametrize("counts", [[7], [10, 10, 10], [3, 50, 8], [1, 60]])
def test_one_class_of_the_effective_count_spreads_as_the_mean_of_all(counts):
    rng = np.random.default_rng(0)
    means = np.mean([rng.normal(size=(20000, count)).mean(axis=1) for count in counts], axis=0)
    assert effective_count(counts, 10**6) == pytest.approx(1 / means.var(), abs=0.6, rel=0.05)
    assert effective_count(counts, 2) == 2


def test_patients_of_classes_count_as_those_of_one_and_no_more_than_there_are():
    labels = np.arange(60) % 3
    found = read_networks(labels, {"scores": np.eye(3)[labels]}, None)
    assert (found.positive_patients, found.negative_patients, found.disjoint_pairs) == (60, 60, 30)
    rare = np.array([0] * 28 + [1, 1] * 1)
    few = read_networks(rare, {"scores": np.eye(2)[rare]}, None)
    assert few.positive_patients == round(4 / (1 / 28 + 1 / 2))
    assert few.disjoint_pairs == round(4 / (1 / 2 + 1 / 2))
