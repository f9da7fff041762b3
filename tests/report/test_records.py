from __future__ import annotations

import copy
import math
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from studies import make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import save_study, validate_study
from monai_basisprune.report.records import check_record


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_anywhere(value: float, tmp_path: Any) -> None:
    study = make_study()
    study["curve"][3]["auc"]["low"] = value
    study["pruning"]["free"] = {"deep": [1, value]}
    with pytest.raises(ConfigurationError) as caught:
        save_study(study, tmp_path / "study.json")
    assert "$.curve[3].auc.low" in str(caught.value)
    assert "$.pruning.free.deep[1]" in str(caught.value)
    assert "not a finite number" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_numpy_numbers_are_named() -> None:
    study = make_study(seed=np.int64(3))
    with pytest.raises(ConfigurationError, match=r"\$\.seed: a numpy\.int64 is not plain JSON"):
        validate_study(study)


def test_every_problem_is_listed_with_its_path() -> None:
    study = make_study(title="", device=5, surprise=1)
    del study["data"]["split_sha256"]
    study["curve"][2]["auc"]["auc"] = 1.2
    study["layers"][0]["rank"] = -1
    with pytest.raises(ConfigurationError) as caught:
        validate_study(study)
    text = str(caught.value)
    assert "6 problems found" in text
    for words in (
        "$.title",
        "$.device: 5",
        "'surprise'",
        "$.data: 'split_sha256'",
        "$.curve[2].auc.auc: 1.2",
        "$.layers[0].rank",
    ):
        assert words in text


def refused(record: object, *contradictions: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_record(record, "The record", "study.schema.json", lambda _: contradictions)
    return str(caught.value)


def test_only_dictionaries_with_texts_as_keys_are_plain() -> None:
    text = refused({"a": {1: 2}, "b": MappingProxyType({"c": {3}})})
    assert text.startswith("The record cannot be used, 3 problems found; correct what wrote it and write it again:")
    assert "\n  - $.a: the key 1 is not a string" in text
    assert "\n  - $.b: a mappingproxy is not plain JSON; use a dict" in text
    assert "\n  - $.b.c: a builtins.set is not plain JSON; use int, float or str" in text


def test_contradictions_are_looked_for_in_a_record_of_the_right_form_alone() -> None:
    assert refused(make_study(), "one contradiction").endswith(
        "1 problem found; correct what wrote it and write it again:\n  - one contradiction"
    )
    assert "one contradiction" not in refused(make_study(title=""), "one contradiction")


def test_a_value_of_any_length_makes_a_short_message() -> None:
    text = refused(make_study(device=["x" * 1000]))
    line = text.splitlines()[1]
    assert line.startswith("  - $.device: ['xxx")
    assert line.endswith("is not of type 'string'")
    assert " ... " in line
    assert len(line) < 240


def test_the_record_is_looked_at_and_not_changed() -> None:
    study = make_study()
    before, seen = copy.deepcopy(study), []
    study["network"]["input_shape"] = (1, 64, 64)
    check_record(study, "The record", "study.schema.json", lambda plain: seen.append(plain) or ())
    assert study["network"]["input_shape"] == (1, 64, 64)
    assert seen == [before]  # as read back from a file: a list
