from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.report.stability import validate_stability
from monai_basisprune.workflow.repeat_results import forget, gather, is_complete, read_predictions

from ..report.studies import make_study
from .small_studies import PREDICTIONS, write_repeat


def keep_unpruned(study: dict[str, Any]) -> dict[str, Any]:
    kept = copy.deepcopy(study)
    keys = ("round", "parameters", "macs", "parameter_reduction", "mac_reduction")
    kept["chosen"] |= {key: kept["curve"][0][key] for key in keys}
    kept["test"]["pruned"] = kept["test"]["original"]
    kept["test"]["difference"] |= {"difference": 0.0, "low": 0.0, "high": 0.0, "non_inferior": True}
    kept["audit"] = None
    return kept


def test_the_record_holds_the_interval_of_each_test_and_says_what_validation_does_not_show(tmp_path: Path) -> None:
    study = make_study()
    folders = [write_repeat(tmp_path / "a", study), write_repeat(tmp_path / "b", keep_unpruned(study))]
    found = gather([(seed, None, None, folder) for seed, folder in enumerate(folders)])
    validate_stability(found)
    pruned, kept = found["repeats"]
    difference = study["test"]["difference"]
    assert {key: pruned[f"test_{key}"] for key in ("difference", "low", "high", "confidence")} == {
        key: difference[key] for key in ("difference", "low", "high", "confidence")
    }
    assert (pruned["margin"], pruned["non_inferior"]) == (0.01, False)
    assert (kept["chosen_reduction"], kept["test_difference"], kept["test_low"], kept["non_inferior"]) == (
        0,
        *[None] * 3,
    )
    assert (
        "In 1 of 2 repeats the validation cases do not show that the chosen network is not worse by more than the "
        "margin of 0.01 AUC: it was chosen by its AUC alone. About 412 positive patients would be needed for that."
    ) in found["remarks"]


def test_one_target_reached_on_two_ways_is_one_target(tmp_path: Path) -> None:
    studies = [make_study(), make_study()]
    studies[1]["curve"][3]["target"] += 1e-16
    assert studies[1]["curve"][3]["target"] != studies[0]["curve"][3]["target"]
    folders = [write_repeat(tmp_path / f"{number}", study) for number, study in enumerate(studies)]
    found = gather([(seed, None, None, folder) for seed, folder in enumerate(folders)])
    assert [point["repeats"] for point in found["band"]] == [2] * len(studies[0]["curve"])


def test_a_repeat_that_runs_again_is_not_complete_before_its_end(tmp_path: Path) -> None:
    folder = write_repeat(tmp_path / "a", make_study())
    assert is_complete(folder)
    forget(folder)
    assert not is_complete(folder)
    forget(folder)


def test_the_test_cases_of_all_folds_are_compared_before_and_after(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    repeats, labels, original, pruned, patients = [], [], [], [], []
    for fold in range(3):
        folder = write_repeat(tmp_path / str(fold), make_study())
        truth = [0, 1] * 10
        before = [value + rng.normal() for value in truth]
        after = [value + 0.1 * rng.normal() for value in before]
        ids = [f"{fold}-{case // 2}" for case in range(20)]
        content = {"labels": truth, "original": before, "pruned": after, "patients": ids}
        (folder / "work" / "test_predictions.json").write_text(json.dumps(content))
        repeats.append((fold, fold, 3, folder))
        for whole, part in ((labels, truth), (original, before), (pruned, after), (patients, ids)):
            whole += part
    pooled = gather(repeats)["pooled"]
    margin = make_study()["pruning"]["auc_margin"]
    assert pooled["difference"] == compare_auc(labels, original, pruned, patients, margin).to_dict()
    assert pooled["original"] == auc_interval(labels, original, patients).to_dict()
    assert pooled["pruned"]["auc"] == pytest.approx(roc_auc_score(labels, pruned))
    assert gather(repeats[:2])["pooled"] is None


@pytest.mark.parametrize("findings", [False, True])
def test_several_classes_and_unknown_patients_are_pooled_too(tmp_path: Path, findings: bool) -> None:
    rng = np.random.default_rng(0)
    repeats, whole = [], {name: [] for name in PREDICTIONS}
    for fold in range(2):
        folder = write_repeat(tmp_path / str(fold), make_study())
        truth = np.arange(24) % 3
        before = np.eye(3)[truth] + rng.normal(size=(24, 3))
        labels = np.eye(3, dtype=int)[truth] if findings else truth
        content = {"labels": labels, "original": before, "pruned": before + rng.normal(size=(24, 3))}
        content = {name: values.tolist() for name, values in content.items()} | {"patients": []}
        (folder / "work" / "test_predictions.json").write_text(json.dumps(content))
        assert is_complete(folder)
        repeats.append((fold, fold, 2, folder))
        for name, values in content.items():
            whole[name] += values
    record = gather(repeats)
    validate_stability(record)
    margin = make_study()["pruning"]["auc_margin"]
    expected = compare_auc(whole["labels"], whole["original"], whole["pruned"], None, margin)
    assert record["pooled"]["difference"] == expected.to_dict()
    assert record["pooled"]["pruned"]["auc"] == pytest.approx(
        roc_auc_score(np.eye(3)[np.arange(48) % 3], np.array(whole["pruned"]), average="macro")
    )


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, True]},
        {"labels": [0, [1]]},
        {"original": [[0.1, 0.2], [0.1]]},
        {"pruned": [0.1]},
        {"patients": ["a"]},
        {"patients": [["a"], ["b"]]},
        {"patients": None},
        {"labels": {"a": 1}},
    ],
    ids=str,
)
def test_predictions_that_do_not_fit_each_other_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_repeat(tmp_path / "a", make_study())
    (folder / "work" / "test_predictions.json").write_text(json.dumps(PREDICTIONS | change))
    with pytest.raises(ConfigurationError, match="must hold lists of one length under labels, original"):
        read_predictions(folder)
    assert not is_complete(folder)
