"""What callers hand in, in every form that it comes in."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from monai_basisprune.evidence._inputs import Cohort, check_margin, read_array, read_cohort, read_labels, read_patients


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 0.5],
        (0, 1, 0.5),
        iter([0, 1, 0.5]),
        np.array([0, 1, 0.5], dtype=np.float16),
        np.array([0, True, 0.5], dtype=object),
        torch.tensor([0, 1, 0.5], dtype=torch.bfloat16),
        torch.tensor([0, 1, 0.5], requires_grad=True),
        [torch.tensor(0), np.float32(1), 0.5],
    ],
)
def test_numbers_are_read_from_whatever_holds_them_in_order(values):
    found = read_array(values, "scores")
    assert found.dtype == np.float64
    assert found.tolist() == [0.0, 1.0, 0.5]


def test_an_array_keeps_its_shape_and_what_is_missing_is_nan():
    assert read_array([[1, 2], [3, 4]], "scores").shape == (2, 2)
    assert read_array([True, False], "labels").tolist() == [1.0, 0.0]
    assert np.isnan(read_array([1, None], "scores")[1])
    assert read_array([], "scores").shape == (0,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, "2"], "found <U"),
        (np.array([1, b"2"], dtype=object), "found object"),
        ([[1, 2], [3]], "inhomogeneous"),
        ([1 + 2j], "found complex128"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "found datetime64"),
        ([{}], "scores must be numbers"),
    ],
)
def test_what_are_no_numbers_are_refused_with_what_they_are(values, words):
    with pytest.raises(ValueError, match=r"^scores must be numbers in a list, numpy array or tensor, but ") as caught:
        read_array(values, "scores")
    assert words in str(caught.value)


@pytest.mark.parametrize("values", ["0101", b"0101", {0, 1}, {"a": 0}, 3, None])
def test_what_has_no_order_is_refused_with_its_type(values):
    words = f"scores must be a list, numpy array or tensor in the order of the cases, found {type(values)}"
    with pytest.raises(ValueError, match=re.escape(words)):
        read_array(values, "scores")


def test_labels_of_one_column_are_those_of_none_and_are_named():
    assert read_labels([[0], [1]]).tolist() == read_labels(torch.tensor([False, True])).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"findings must be 0 .* found 6 other value\(s\): 2, 3, 4, 5, 6; turn"):
        read_labels([0, 1, 2, 3, 4, 5, 6, 7], "findings")


class NAType:
    """What pandas calls a value that is missing."""


def test_patients_are_numbered_as_they_appear():
    for values in (["b", "a", "b"], np.array(["b", "a", "b"]), np.array([[7], [3], [7]]), (2.5, "x", 2.5)):
        assert read_patients(values, 3).tolist() == [0, 1, 0]
    assert read_patients([1, "1", np.int64(1), torch.tensor(1)], 4).tolist() == [0, 1, 0, 0]
    assert read_patients([("a", 1), ("a", 2)], 2).tolist() == [0, 1]


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, "", " \t", NAType(), np.datetime64("NaT")])
def test_a_patient_that_is_missing_is_no_patient(missing):
    with pytest.raises(
        ValueError, match=r"1 of 2 cases have no patient \(None, NaN or an empty text\): name all or none"
    ):
        read_patients(["a", missing], 2)


def most_pairs(labels: np.ndarray, codes: np.ndarray) -> int:
    """Return how many pairs of a positive and a negative patient there are without using one twice, by trying all."""
    kinds = [(bool(labels[codes == code].any()), not labels[codes == code].all()) for code in range(codes.max() + 1)]

    def best(left: tuple[int, ...]) -> int:
        pairs = [pair for pair in itertools.permutations(left, 2) if kinds[pair[0]][0] and kinds[pair[1]][1]]
        return max((1 + best(tuple(p for p in left if p not in pair)) for pair in pairs), default=0)

    return best(tuple(range(len(kinds))))


@pytest.mark.parametrize("seed", range(12))
def test_a_cohort_counts_cases_and_patients(seed):
    rng = np.random.default_rng(seed)
    labels, patients = rng.random(8) < rng.uniform(0.2, 0.8), rng.integers(0, 5, size=8)
    labels[:2] = [True, False]
    cohort = read_cohort(labels, {"a": rng.random(8), "b": rng.random((8, 1))}, patients)
    positive, negative = {*patients[labels]}, {*patients[~labels]}
    assert (cohort.cases, cohort.positive_cases) == (8, int(labels.sum()))
    assert (cohort.patients, cohort.positive_patients, cohort.negative_patients) == (
        len({*patients}), len(positive), len(negative),
    )  # fmt: skip
    assert cohort.clustered
    assert cohort.patients_given
    assert cohort.scores.shape == (8, 2)
    assert cohort.disjoint_pairs == most_pairs(cohort.labels, cohort.codes)


def test_without_patients_each_case_is_one():
    cohort = read_cohort([0, 1, 1], {"scores": [1, 2, 3]}, None)
    assert cohort.codes.tolist() == [0, 1, 2]
    assert not cohort.clustered
    assert not cohort.patients_given
    assert isinstance(cohort, Cohort)


@pytest.mark.parametrize("margin", [-0.01, 1, float("nan")])
def test_a_margin_is_a_loss_of_auc(margin):
    with pytest.raises(ValueError, match=f"0 or more and below 1, such as 0.01; found {margin}"):
        check_margin(margin)
    assert check_margin(0) == 0.0
