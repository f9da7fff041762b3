from __future__ import annotations

import pytest

from monai_basisprune.evidence import holm


def test_holms_example_by_hand():
    tests = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert [test.name for test in tests] == list("abcd")
    assert [test.adjusted_p_value for test in tests] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [test.significant for test in tests] == [True, False, False, True]


def test_one_test_is_left_as_it_is_and_none_exceeds_one():
    assert holm({"only": 0.049})[0].adjusted_p_value == 0.049
    assert [test.adjusted_p_value for test in holm({"a": 0.9, "b": 0.8})] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("p_values", "alpha", "words"),
    [
        ({}, 0.05, "p_values are empty"),
        ({"a": float("nan"), "b": 1.2}, 0.05, "found a: nan, b: 1.2; enter 1 for one that was not computable"),
        ({"a": None}, 0.05, "found a: None"),
        ({"a": 0.1}, 5, "alpha must lie between 0 and 1"),
    ],
)
def test_errors(p_values, alpha, words):
    with pytest.raises(ValueError) as error:
        holm(p_values, alpha)
    assert words in str(error.value)
