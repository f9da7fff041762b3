from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from monai.bundle import ConfigParser

import monai_basisprune as mbp
from monai_basisprune.workflow.cohort import PreparedCohort
from monai_basisprune.workflow.resumption import config_settings, run_settings, versions

CASES = "the cases and their sections"


@pytest.fixture
def cohort(tmp_path: Path) -> PreparedCohort:
    sections = {
        name: [
            {"image": f"/data/Doe^Jane/{name}{n}.dcm", "label": n % 2, "patient_id": f"{n:04x}", "case_id": f"c{n}"}
            for n in numbers
        ]
        for name, numbers in (("training", range(4)), ("validation", range(4, 6)), ("test", range(6, 8)))
    }
    return PreparedCohort(tmp_path / "Doe^Jane", tmp_path / "datalist.json", {**sections, "class_names": ["a"]}, False)


def changed(cohort: PreparedCohort, **changes: Any) -> PreparedCohort:
    return replace(cohort, datalist={**copy.deepcopy(cohort.datalist), **changes})


def test_what_changes_no_network_is_no_setting() -> None:
    config = {
        "batch_size": 16,
        "network_def": {"_target_": "x", "a": 1},
        "pretrained": "/data/net.pt",
        "targets": [0.5],
        "none": None,
        "empty": [],
    }
    others = {
        "imports": ["$import os"], "initialize": ["$@start"], "finalize": [1], "start": {"_target_": "y"},
        "num_workers": 4, "redact_logs": True, "resume": False, "save_execute_config": "x", "tensorboard": 1,
        "title": "t", "methods": {}, "parallel": 2, "repeats": 3, "fold": 1, "split_seed": 5,
        "dataset_dir": "/data", "labels_file": "a.csv", "bundle_root": ".", "_about": "a comment",
        "prune": ["$@study"], "anything": ["$1", "$2"],
    }  # fmt: skip
    assert config_settings({**others, **config}) == config
    assert config_settings({"mixed": ["$1", 2]}) == {"mixed": ["$1", 2]}  # no list of steps


def test_versions_are_those_of_what_computes() -> None:
    assert versions() == {"monai_basisprune": mbp.__version__, "torch": torch.__version__, "monai": monai.__version__}


def test_cases_count_and_not_what_their_files_are_called(cohort: PreparedCohort, tmp_path: Path) -> None:
    first = run_settings(cohort)
    assert set(first) == {CASES, "versions"}  # no configuration is running
    assert first["versions"] == versions()
    assert "Doe" not in json.dumps(first)
    moved = replace(cohort, dataset_dir=tmp_path / "b", datalist_file=tmp_path / "c", synthetic=True)
    assert run_settings(moved) == first
    lists = copy.deepcopy(cohort.datalist)
    for section in ("training", "validation", "test"):
        lists[section] = [dict(reversed({**item, "image": "x"}.items())) for item in lists[section]]
    assert run_settings(replace(cohort, datalist=lists)) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda d: {"training": [{**d["training"][0], "label": 1}, *d["training"][1:]]},
        lambda d: {"training": d["training"][1:]},
        lambda d: {"training": d["training"][::-1]},
        lambda d: {"training": d["training"][:3], "validation": [d["training"][3], *d["validation"]]},
        lambda d: {"test": [{**d["test"][0], "case_id": "other"}, *d["test"][1:]]},
        lambda d: {"test": [{**d["test"][0], "age": 40}, *d["test"][1:]]},
    ],
    ids=["a label", "a case less", "their order", "another section", "another case", "more about a case"],
)
def test_other_cases_are_other_settings(cohort: PreparedCohort, change: Any) -> None:
    other = run_settings(changed(cohort, **change(cohort.datalist)))
    assert other[CASES] != run_settings(cohort)[CASES]


def test_the_configuration_that_runs_is_among_the_settings(cohort: PreparedCohort) -> None:
    def settings(**config: Any) -> dict[str, Any]:
        parser = ConfigParser({**config, "settings": "$monai_basisprune.workflow.run_settings(@_cohort)"})
        parser["imports"] = ["$import monai_basisprune", "$import monai_basisprune.workflow"]
        parser["_cohort"] = cohort
        return parser.get_parsed_content("settings")

    found = settings(batch_size=8, dataset_dir="/data/Doe^Jane", num_workers=3)
    assert found["batch_size"] == 8
    assert {key: found[key] for key in (CASES, "versions")} == run_settings(cohort)
    assert not {"dataset_dir", "num_workers", "_cohort", "imports"} & set(found)
    assert settings(batch_size=8, num_workers=4) == found
    assert settings(batch_size=9) != found
