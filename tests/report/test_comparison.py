from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import HOSTILE, assert_self_contained
from studies import make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import compare_studies, save_study
from monai_basisprune.report.comparison import _common_targets, _reasons


def test_comparison(tmp_path: Path) -> None:
    other = make_study(title=HOSTILE, test=None)
    other["data"]["split_sha256"] = "ab" * 32
    paths = [save_study(make_study(), tmp_path / "a.json"), save_study(other, tmp_path / "b.json")]
    text = compare_studies(paths, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "not comparable with the first study, because its split is another one (SHA-256 differs)" in text
    assert "not tested" in text
    assert str(tmp_path) not in text
    assert "Cardiomegaly on synthetic chest radiographs" in text
    with pytest.raises(ConfigurationError, match="at least two"):
        compare_studies(paths[:1], tmp_path / "one.html")


def test_comparison_lists_what_differs(tmp_path: Path) -> None:
    one, two = make_study(), make_study(seed=7)
    two["pruning"] |= {"importance": "scaling", "extra": {"learning_rate": [0.1, None]}}
    two["data"] |= {"synthetic": False, "class_names": ["healthy", "sick"]}
    paths = [save_study(study, tmp_path / f"{index}.json") for index, study in enumerate((one, two))]
    text = compare_studies(paths, tmp_path / "compare.html").read_text(encoding="utf-8")
    table = re.sub(r"<[^>]+>", " ", text[text.index('id="settings"') : text.index('id="sources"')]).split()
    for words in ("importance taylor scaling", "seed 0 7", "extra not noted learning_rate 0.1, none"):
        assert words in " ".join(table), words
    assert "budget" not in table
    assert "its classes have other names; its data are real, those of the first study synthetic." in text
    one["data"]["label_kind"] = "multi"  # of the same two names
    assert list(_reasons(make_study(), one)) == [
        "its classes can occur together, those of the first study exclude each other"
    ]
    same = compare_studies([paths[0], paths[0]], tmp_path / "same.html").read_text(encoding="utf-8")
    assert "All settings and versions are the same." in same
    assert 'id="comparable"' not in same


def test_comparison_says_which_record_is_wrong(tmp_path: Path) -> None:
    good = save_study(make_study(), tmp_path / "study.json")
    bad = tmp_path / "Doe" / "study.json"
    bad.parent.mkdir()
    bad.write_text("{")
    with pytest.raises(ConfigurationError, match=r"Of 2 study records, number 2: study\.json was asked for") as caught:
        compare_studies([good, bad], tmp_path / "compare.html")
    assert "Doe" not in str(caught.value)


def test_targets_that_two_studies_reached_stand_side_by_side() -> None:
    one, two, three = make_study(), make_study(), make_study()
    two["curve"] = [*two["curve"][:3], two["curve"][3] | {"target": 0.75}]  # once more to the same target
    three["curve"] = three["curve"][:1]
    table = dict(_common_targets([one, two, three]))
    assert list(table) == [0.0, 0.5, 0.75]
    assert [point and point["round"] for point in table[0.5]] == [1, 1, None]
    assert [point and point["round"] for point in table[0.75]] == [2, 3, None]  # the last time that it was reached
    assert [point and point["round"] for point in table[0.0]] == [0, 0, 0]
    two["pruning"]["budget"] = "macs"
    assert _common_targets([one, two]) == []
    two["pruning"]["targets"] = []  # it was never cut, so that its budget means nothing
    assert [target for target, _ in _common_targets([one, two])] == [0.0, 0.5, 0.75]


def test_a_reference_needs_a_difference_for_each_study(tmp_path: Path) -> None:
    paths = [save_study(make_study(), tmp_path / f"{index}.json") for index in range(2)]
    with pytest.raises(ConfigurationError, match="2 studies are to be compared with one of them, but there are 1"):
        compare_studies(paths, tmp_path / "compare.html", reference=0, differences=[None])
    assert not (tmp_path / "compare.html").exists()
