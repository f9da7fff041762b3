from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from monai_basisprune.evidence import auc_interval, compare_auc, holm
from monai_basisprune.evidence.subgroups import AGE_BANDS, Subgroup, age_band, compare_subgroups


def cases(count: int = 120, images: int = 1, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1, 1, 0], count // 4)
    reference = generator.normal(1.2 * labels)
    return {
        "labels": labels,
        "reference": reference,
        "candidate": reference + generator.normal(scale=0.3, size=count),
        "patients": [f"p{index // images}" for index in range(count)],
    }


def values_of(groups: list[Subgroup]) -> list[tuple[str, int, int | None]]:
    return [(group.value, group.cases, group.patients) for group in groups]


@pytest.mark.parametrize("images", [1, 2])
def test_each_group_is_what_the_functions_say_of_its_cases_alone(images: int) -> None:
    data = cases(images=images)
    sex = ["F" if index % 12 < 8 else "M" for index in range(120)]
    groups = compare_subgroups(**data, attributes={"sex": sex}, margin=0.05)
    assert [group.value for group in groups] == ["F", "M"]
    for group in groups:
        own = np.array([value == group.value for value in sex])
        patients = [patient for patient, inside in zip(data["patients"], own, strict=True) if inside]
        # patients are numbered in both: the bootstrap draws the same ones
        assert group.original == auc_interval(data["labels"][own], data["reference"][own], patients)
        assert group.pruned == auc_interval(data["labels"][own], data["candidate"][own], patients)
        expected = compare_auc(data["labels"][own], data["reference"][own], data["candidate"][own], patients, 0.05)
        assert group.difference == expected
        assert (group.cases, group.positive_cases) == (own.sum(), data["labels"][own].sum())
        assert group.patients == own.sum() // images
        assert group.reason is None


def test_holm_corrects_over_all_groups_of_all_attributes() -> None:
    data = cases()
    attributes = {
        "sex": ["F", "M"] * 60,
        "view": ["PA"] * 40 + ["AP"] * 40 + [None] * 40,
        "scanner": ["GE"] * 120,
    }
    groups = compare_subgroups(**data, attributes=attributes)
    tested = [group for group in groups if group.difference is not None]
    assert [(group.attribute, group.value) for group in tested] == [
        ("sex", "F"), ("sex", "M"), ("view", "AP"), ("view", "PA"), ("view", "not known"),
    ]  # fmt: skip
    expected = holm({f"{g.attribute} {g.value}": g.difference.p_value_difference for g in tested})  # type: ignore[misc,union-attr]
    assert [group.adjusted_p_value for group in tested] == [test.adjusted_p_value for test in expected]
    assert max(test.adjusted_p_value / test.p_value for test in expected) == pytest.approx(5)
    (alone,) = [group for group in groups if group.attribute == "scanner"]
    assert alone.reason == "not computable as a group: all cases of the test set have this value"
    assert alone.adjusted_p_value is None


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"A": 60, "B": 55, "C": 5}, [("A", 60), ("B", 55), ("C", 5)]),
        ({"A": 60, "B": 53, "C": 4, "D": 3}, [("A", 60), ("B", 53), ("other", 7)]),
        ({"A": 60, "B": 56, "C": 4}, [("A, and others", 64), ("B", 56)]),
        ({"A": 55, "B": 60, None: 2, "other": 3}, [("A", 55), ("B", 60), ("other", 5)]),
        ({"A": 60, "B": 54, None: 6}, [("A", 60), ("B", 54), ("not known", 6)]),
        ({"A": 116, "B": 4}, [("all", 120)]),
        ({f"V{index}": 4 for index in range(30)}, [("all", 120)]),
        ({None: 120}, [("not known", 120)]),
    ],
)
def test_no_group_of_fewer_than_five_patients_is_shown(
    sizes: dict[str | None, int], expected: list[tuple[str, int]]
) -> None:
    values = [value for value, size in sizes.items() for _ in range(size)]
    groups = compare_subgroups(**cases(), attributes={"x": values})
    assert [(group.value, group.cases) for group in groups] == expected
    assert sum(group.cases for group in groups) == 120
    if len(groups) == 1:
        reason = groups[0].reason
        assert groups[0].difference is None
        assert reason is not None
        assert ("no case of the test set has" if None in sizes else "groups of fewer than 5 patients are not") in reason


def test_patients_count_not_images() -> None:
    values = ["A"] * 96 + ["B"] * 24  # 24 images, but of 4 patients
    groups = compare_subgroups(**cases(images=6), attributes={"x": values})
    assert values_of(groups) == [("all", 120, 20)]
    groups = compare_subgroups(**cases(images=6), attributes={"x": values}, minimum_patients=4)
    assert values_of(groups) == [("A", 96, 16), ("B", 24, 4)]
    unknown = {**cases(images=6), "patients": None}
    assert values_of(compare_subgroups(**unknown, attributes={"x": values})) == [("A", 96, None), ("B", 24, None)]


def test_one_class_and_too_few_of_a_class_say_why() -> None:
    data = cases()
    labels = data["labels"]
    one_positive = int(np.flatnonzero(labels)[0])
    values = ["negative" if not label else "rest" for label in labels]
    values[one_positive] = "negative"
    first, second = compare_subgroups(**data, attributes={"x": values})
    assert (first.value, first.positive_cases, first.original, first.difference) == ("negative", 1, None, None)
    assert first.reason is not None
    assert first.reason.startswith("not computable: an interval needs at least 2 positive and 2 negative patient(s)")
    assert second.reason == "not computable: all 59 cases are positive"
    assert {first.adjusted_p_value, second.adjusted_p_value} == {None}


def test_a_loss_in_one_group_is_found_where_the_mean_hides_it() -> None:
    data = cases(400)
    generator = np.random.default_rng(1)
    hurt = np.arange(400) % 8 < 2
    data["candidate"] = np.where(hurt, generator.normal(size=400), data["reference"])
    groups = compare_subgroups(**data, attributes={"view": ["AP" if one else "PA" for one in hurt]}, margin=0.05)
    harmed, spared = groups
    assert harmed.difference is not None
    assert harmed.difference.high is not None
    assert harmed.difference.high < 0
    assert harmed.adjusted_p_value is not None
    assert harmed.adjusted_p_value < 0.05
    assert spared.difference is not None
    assert spared.difference.difference == 0


def test_results_are_json() -> None:
    groups = compare_subgroups(**cases(), attributes={"sex": ["F", "M"] * 60, "view": [None] * 120})
    assert json.loads(json.dumps([group.to_dict() for group in groups], allow_nan=False))[2]["original"] is None


@pytest.mark.parametrize(("age", "band"), [(0, "0 to 17"), (17, "0 to 17"), (18, "18 to 39"), (90, "80 and older")])
def test_age_bands(age: int, band: str) -> None:
    assert age_band(age) == band


def test_age_bands_sort_by_age_and_refuse_what_is_no_age() -> None:
    names = [name for _, name in AGE_BANDS]
    assert sorted(names) == names
    for age in (-1, float("nan")):
        with pytest.raises(ValueError, match="an age must be a number of years from 0 on"):
            age_band(age)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attributes": {"sex": ["F"] * 119, "view": ["PA"]}}, "each of 120 cases, found sex: 119, view: 1"),
        ({"minimum_patients": 0}, "minimum_patients must be 1 or more"),
        ({"labels": [0] * 120}, "only one class"),
        ({"margin": 1.5}, "margin is the largest loss"),
        ({"candidate": [float("nan")] * 120}, "120 NaN"),
    ],
)
def test_bad_input(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare_subgroups(**{**cases(), "attributes": {"sex": ["F", "M"] * 60}, **changes})
