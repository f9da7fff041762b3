from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from studies import make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.evidence.subgroups import compare_subgroups
from monai_basisprune.report import load_study, save_study, validate_study


def test_a_realistic_record_is_valid() -> None:
    study = make_study()
    before = copy.deepcopy(study)
    validate_study(study)
    assert study == before


def test_saved_and_loaded_is_equal(tmp_path: Any) -> None:
    study = make_study(title="Größe × α")
    path = save_study(study, tmp_path / "made" / "study.json")
    assert load_study(path) == study
    assert [file.name for file in path.parent.iterdir()] == ["study.json"]


def test_tuples_are_arrays(tmp_path: Any) -> None:
    study = make_study()
    study["network"]["input_shape"] = (1, 64, 64)
    assert load_study(save_study(study, tmp_path / "study.json"))["network"]["input_shape"] == [1, 64, 64]


def test_nan_in_a_file_is_refused(tmp_path: Any) -> None:
    study = make_study(wall_seconds=math.nan)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study))
    with pytest.raises(
        ConfigurationError, match=r"study.json was asked for as a study record, but it is not JSON \(NaN"
    ):
        load_study(path)


@pytest.mark.parametrize("key", sorted(make_study()))
def test_every_key_is_required(key: str) -> None:
    study = make_study()
    del study[key]
    with pytest.raises(ConfigurationError, match=f"'{key}' is a required property"):
        validate_study(study)


def test_free_keys_are_free_only_where_said() -> None:
    study = make_study()
    study["pruning"]["channels"] = {"ratio": 0.5}
    study["versions"]["numpy"] = "2.4"
    study["files"]["anything"] = "x.bin"
    study["data"]["splits"]["external"] = copy.deepcopy(study["data"]["splits"]["test"])
    validate_study(study)
    study["network"]["flavor"] = "x"
    with pytest.raises(ConfigurationError, match=r"\$\.network: .*'flavor'"):
        validate_study(study)


def test_missing_test_set_is_valid() -> None:
    study = make_study(test=None)
    del study["data"]["splits"]["test"]
    validate_study(study)


def test_broken_file_says_what_to_do(tmp_path: Any) -> None:
    path = save_study(make_study(), tmp_path / "study.json")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ConfigurationError, match=r"is not JSON .*copy it again"):
        load_study(path)
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="is not of type 'object'"):
        load_study(path)


def test_results_of_the_evidence_room_fit_as_they_are() -> None:
    evidence = pytest.importorskip("monai_basisprune.evidence")
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    original, pruned = generator.normal(labels * 1.5), generator.normal(labels * 1.5)
    study = make_study()
    study["test"] = {
        "original": evidence.auc_interval(labels, original).to_dict(),
        "pruned": evidence.auc_interval(labels, pruned).to_dict(),
        "difference": evidence.compare_auc(labels, original, pruned, margin=0.01).to_dict(),
    }
    validate_study(study)


def test_older_format_is_refused_in_plain_words(tmp_path: Any) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(make_study(format_version=1)))
    with pytest.raises(
        ConfigurationError, match=r"study\.json has format_version 1, known is 2\..*run the study again"
    ):
        load_study(path)


def test_audit_and_probabilities_of_the_evidence_room_fit_as_they_are() -> None:
    from monai_basisprune import evidence

    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    original, pruned = generator.normal(labels * 1.5), generator.normal(labels * 1.5)
    study = make_study()
    study["test"] = {
        "original": evidence.auc_interval(labels, original).to_dict(),
        "pruned": evidence.auc_interval(labels, pruned).to_dict(),
        "difference": evidence.compare_auc(labels, original, pruned, margin=0.01).to_dict(),
        "calibration": {},
        "operating_point": {"specificity": 0.9},
    }
    for name, scores in (("original", original), ("pruned", pruned)):
        chances = 1 / (1 + np.exp(-scores))
        study["test"]["calibration"][name] = {
            "brier": evidence.brier_score(labels, chances).to_dict(),
            "calibration_error": evidence.calibration_error(labels, chances).to_dict(),
            "points": evidence.reliability_points(labels, chances).to_dict(),
        }
        study["test"]["operating_point"][name] = evidence.sensitivity_at_specificity(labels, chances, 0.9).to_dict()
    sexes = ["female", "male"] * 49 + [None, "other"]
    groups = compare_subgroups(labels, original, pruned, {"sex": sexes})
    study["audit"]["subgroups"] = [group.to_dict() for group in groups]
    assert [group["value"] for group in study["audit"]["subgroups"]] == ["female", "male, and others"]
    groups = compare_subgroups(labels, original, pruned, {"sex": ["female", "male"] * 50, "view": [None] * 100})
    study["audit"]["subgroups"] = [group.to_dict() for group in groups]
    assert [group["reason"] is None for group in study["audit"]["subgroups"]] == [True, True, False]
    validate_study(study)
