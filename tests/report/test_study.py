from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from studies import auc_record, difference_record, make_study

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


def test_nan_in_a_file_is_refused(tmp_path: Any) -> None:
    study = make_study(wall_seconds=math.nan)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study))
    with pytest.raises(
        ConfigurationError, match=r"study.json was asked for as a study record, but it is not JSON \(NaN"
    ):
        load_study(path)


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


def test_null_auc_needs_a_reason() -> None:
    study = make_study()
    study["curve"][6]["auc"] = auc_record(None, 100)
    study["curve"][6] |= {"difference": None, "adjusted_p_value": None}
    validate_study(study)
    study["curve"][6]["auc"]["method"] = "DeLong"
    with pytest.raises(ConfigurationError, match=r"curve\[6\]\.auc\.method: .*'not computable'"):
        validate_study(study)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("curve.2.parameter_reduction", 0.5, "does not agree with"),
        ("curve.2.mac_reduction", 0.1, "does not agree with"),
        ("curve.2.auc.low", 0.95, "outside its own interval"),
        ("curve.2.auc.high", None, "only one of low and high is null"),
        ("curve.2.round", 3, "each round must occur once"),
        ("curve.2.difference.difference", -0.015, "is not the AUC of the pruned network minus"),
        ("curve.2.difference.non_inferior", True, "true is claimed for a margin of 0.01"),
        ("chosen.round", 99, "is not a round of the curve"),
        ("chosen.parameters", 1, "differs from"),
        ("test.difference", difference_record(0.007), "is not the AUC of the pruned network minus"),
        ("test.difference.non_inferior", True, "the interval reaches -0.032"),
        ("test.roc.pruned.fpr", [0.0, 1.0], "of tpr"),
        ("test.roc.pruned", {"fpr": [0.0, 0.9, 0.5], "tpr": [0.0, 0.5, 1.0]}, "must never fall"),
        ("data.splits.training.cases", 301, "sums to 300"),
        ("data.splits.training.patients", 301, "only 300 cases"),
        ("data.splits.test.cases_by_class", [100], "1 numbers for 2 classes"),
        ("layers.0.rank", 50, "above max_rank"),
        ("layers.0.rank", None, "gives no reason"),
    ],
)
def test_contradictions_are_refused(place: str, value: object, words: str) -> None:
    study = make_study()
    *path, last = place.split(".")
    target: Any = study
    for part in path:
        target = target[int(part) if part.isdigit() else part]
    target[last] = value
    with pytest.raises(ConfigurationError, match=words):
        validate_study(study)


def test_curve_must_begin_unpruned() -> None:
    study = make_study()
    del study["curve"][0]
    with pytest.raises(ConfigurationError, match="must be the unpruned network"):
        validate_study(study)


def test_interval_that_ends_at_the_margin_shows_nothing() -> None:
    study = make_study()
    study["test"]["difference"] |= {"low": -0.01, "high": 0.0, "non_inferior": True}
    with pytest.raises(ConfigurationError, match="non_inferior: true is claimed"):
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


FEMALE, OTHER = "audit.subgroups.0", "audit.subgroups.4"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("curve.2.adjusted_p_value", 0.1, r"curve\[2\]\.adjusted_p_value: 0.1 is smaller than the p-value"),
        ("curve.0.adjusted_p_value", 0.1, r"curve\[0\]\.adjusted_p_value"),
        ("test.calibration.pruned.brier.low", 0.5, r"pruned\.brier: value 0.17 lies outside its own interval"),
        ("test.calibration.pruned.brier.low", None, "must hold 'not computable'"),
        ("test.calibration.pruned.points.cases", [100], "all lists must be equally long"),
        ("test.calibration.pruned.points.cases", [10] * 9 + [11], "sums to 101, but the test set holds 100"),
        ("test.operating_point.pruned.specificity", 0.8, "a specificity of 0.9 was asked for"),
        ("test.operating_point.pruned.attained_specificity", 0.8, "of which 0.8 is attained"),
        (f"{FEMALE}.cases", 55, r"the groups by 'sex' hold 101 cases, the test set 100"),
        (f"{FEMALE}.patients", 60, "more positive cases or patients than the 54 cases"),
        (f"{FEMALE}.pruned", None, "only some of original, pruned and difference are null"),
        (f"{FEMALE}.reason", "none", "must say why nothing was computed, and be null"),
        (f"{OTHER}.reason", None, "must say why nothing was computed, and be null"),
        (f"{FEMALE}.original.low", 0.95, r"subgroups\[0\]\.original: auc 0.91 lies outside"),
        (f"{FEMALE}.difference.difference", 0.03, "is not the AUC of the pruned network minus"),
        (f"{FEMALE}.difference.non_inferior", True, "true is claimed"),
        (f"{FEMALE}.adjusted_p_value", 0.1, "is smaller than the p-value before correction: it is 0.2"),
        (f"{OTHER}.adjusted_p_value", 0.1, "is smaller than the p-value before correction: there is none"),
        ("audit.changed_cases.0.pruned", 0.9, "the largest change must come first"),
        ("audit.changed_cases.1.case_id", "000000000000a3f1", "each case must occur once"),
        ("audit.changed_cases.1.label", 2, "not the index of one of 2 classes"),
        ("audit.changed_cases.1.reason", "x", "must say why there is no class activation map"),
        ("test", None, "there is an audit, but no test results"),
        ("search.steps.1.low", 0.5, r"steps\[1\]\.low: 0.5 is above the difference"),
        ("chosen.latency.low_ms", 40.0, r"chosen\.latency: the median, 9.8 ms, lies outside"),
    ],
)
def test_contradictions_of_the_audit_are_refused(place: str, value: object, words: str) -> None:
    study = make_study()
    *path, last = place.split(".")
    target: Any = study
    for part in path:
        target = target[int(part) if part.isdigit() else part]
    target[last] = value
    with pytest.raises(ConfigurationError, match=words):
        validate_study(study)
