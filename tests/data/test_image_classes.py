from __future__ import annotations

from typing import Any

import pytest

from monai_basisprune.data.image_classes import LabelSettings, class_index, name_classes
from monai_basisprune.errors import ConfigurationError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_kind": "many"}, "label_kind must be one of ('single', 'multi')"),
        ({"class_names": "abc"}, "class_names must be a list of names"),
        ({"class_names": ["a", "A"]}, "found 2, of which 1 differ"),
        ({"class_names": ["a", "@b"]}, "do not start with $, @ or %"),
        ({"class_names": ["a", "b" * 99]}, "1 to 80 characters"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        LabelSettings(**settings)
    assert words in str(error.value)


def test_names_that_are_found_are_sorted_numbers_as_numbers() -> None:
    assert name_classes(["10", "b", "2", "a"], LabelSettings(), "table") == (("2", "10", "a", "b"), [])
    names, (problem,) = name_classes(["a"], LabelSettings(), "table")
    assert names == ()
    assert "table: class_names must be 2 to 100 different names, found 1" in problem
    assert problem.endswith("; pass class_names")


def test_names_that_are_given_keep_their_order_and_others_are_named() -> None:
    settings = LabelSettings(class_names=["ill", "Healthy"])
    assert name_classes(["healthy", "ILL", "1"], settings, "table") == (("ill", "Healthy"), [])
    _, (problem,) = name_classes(["healthy", "odd"], settings, "table")
    assert problem == "table: 1 outside the classes ('odd'); known are ill, Healthy"
    _, (problem,) = name_classes([f"Jane{number}" for number in range(11)], settings, "table")
    assert "Jane" not in problem


@pytest.mark.parametrize(
    ("text", "names", "index"),
    [
        ("ILL", ("healthy", "ill"), 1),
        ("1", ("healthy", "ill"), 1),
        ("1.0", ("healthy", "ill"), 1),
        ("2", ("healthy", "ill"), -1),
        ("1", ("7", "1", "3"), 1),
        ("0", ("7", "1", "3"), -1),  # names that are numbers are never taken for places
        ("-1", ("healthy", "ill"), -1),
    ],
)
def test_a_class_is_found_by_its_name_or_place(text: str, names: tuple[str, ...], index: int) -> None:
    assert class_index(text, names) == index
