from __future__ import annotations

import pytest

from monai_basisprune.data.strata import check_findings, strata_of
from monai_basisprune.errors import CohortError


def test_classes_stay_as_they_are() -> None:
    assert strata_of([0, 2, 1], ["a", "b", "c"], "xyz") == ([0, 2, 1], ("a", "b", "c"))


def test_the_rarest_finding_counts() -> None:
    labels = [[1, 1], [1, 0], [1, 0], [1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [1, 1]]
    groups, names = strata_of(labels, ["common", "rare"], [str(i) for i in range(9)])
    assert names == ("common", "rare", "no finding")
    assert groups == [1, 0, 0, 1, 0, 2, 2, 2, 1]


def test_a_group_of_few_patients_joins_the_largest() -> None:
    labels = [[1, 0]] * 4 + [[0, 1]] * 4 + [[0, 0]] * 2
    groups, names = strata_of(labels, ["a", "b"], ["1", "2", "3", "4", "5", "5", "6", "6", "7", "8"])
    assert names == ("a",)
    assert set(groups) == {0}


def test_a_section_without_a_finding_is_refused() -> None:
    sections = {"training": [{"label": [1, 0]}, {"label": [0, 1]}], "validation": [{"label": [1, 1]}]}
    sections["test"] = [{"label": [0, 1]}, {"label": [1, 0]}]
    with pytest.raises(CohortError) as error:
        check_findings(sections, ["a", "b"])
    assert "section validation: finding 'a' is in 1 of 1 images" in str(error.value)
    assert "training" not in error.value.problems[0] + error.value.problems[1]
