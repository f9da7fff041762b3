"""Whatever is in a file of JSON or YAML, it is read within limits or refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import monai_basisprune as mbp
from monai_basisprune.data import load_split
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.reading import read_json, structure_problem
from monai_basisprune.report import load_study
from monai_basisprune.workflow.bundle_configs import config_files

FAST = settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@FAST
@given(JSON_VALUES)
def test_any_json_is_read_as_it_is_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        found = read_json(path)
    except ValueError as error:
        reason = str(error)
    else:
        reason = ""
        assert found == value
    no_number = any(word in json.dumps(value) for word in ("NaN", "Infinity"))
    assert bool(reason) == (structure_problem(value) is not None or no_number)


@FAST
@given(JSON_VALUES)
def test_any_json_is_no_study_no_datalist_and_no_plan(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    for read in (load_study, lambda path: load_split(path, "test", path.parent), mbp.PruningPlan.load):
        with pytest.raises(mbp.BasisPruneError):
            read(path)


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)]
    (tmp_path / "configs" / "train.yaml").write_text("\n".join(lines))
    with pytest.raises(
        ConfigurationError, match=r"configs/train.yaml of the bundle cannot be used: it holds more than"
    ):
        config_files(tmp_path)
