from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset
from sklearn.metrics import auc, roc_auc_score
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.errors import BasisPruneError
from monai_basisprune.handlers import Predictions
from monai_basisprune.workflow.repeat_results import read_predictions
from monai_basisprune.workflow.study_test import (
    compare_on_test_cases,
    cost_on_device,
    files_of_test,
    save_test_predictions,
)

from ..networks import TinyClassifier, cut, tiny_classifier

CASES = 24


def linear(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def cases(labels: list[Any]) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        [
            {
                "image": torch.rand((1, 8, 8), generator=generator),
                "label": label,
                "patient_id": f"patient{index // 2}",
                "case_id": f"case{index:02d}",
            }
            for index, label in enumerate(labels)
        ]
    )


def outputs(network: nn.Module, data: Dataset) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(torch.stack([item["image"] for item in data])).double().numpy()


def test_two_classes_have_both_aucs_their_difference_and_their_curves() -> None:
    labels = [index % 2 for index in range(CASES)]
    data, pair = cases(labels), cut(tiny_classifier())
    record, before, after = compare_on_test_cases(*pair, data, "cpu", 0.05)
    aucs = {}
    for name, network, predictions in zip(("original", "pruned"), pair, (before, after), strict=True):
        scores = np.diff(outputs(network, data), axis=1)[:, 0]
        np.testing.assert_allclose(predictions.scores, scores, atol=1e-5)
        aucs[name] = roc_auc_score(labels, scores)
        assert record[name]["auc"] == pytest.approx(aucs[name])
        assert (record[name]["cases"], record[name]["patients"]) == (CASES, CASES // 2)
        assert auc(record["roc"][name]["fpr"], record["roc"][name]["tpr"]) == pytest.approx(aucs[name])
        assert record["calibration"][name]["brier"]["cases"] == CASES
    assert aucs["original"] != aucs["pruned"]
    assert record["difference"]["difference"] == pytest.approx(aucs["pruned"] - aucs["original"])
    assert record["difference"]["margin"] == 0.05
    assert not {"classes", "accuracy"} & set(record)
    json.dumps(record, allow_nan=False)


def test_where_patients_are_not_known_every_case_counts_as_one() -> None:
    record, before, _ = compare_on_test_cases(
        *cut(tiny_classifier()), cases([index % 2 for index in range(CASES)]), "cpu", 0.01, patient_key=None
    )
    assert before.patients == []
    assert record["original"]["patients"] is None
    assert "every case counted as a patient of its own" in record["difference"]["method"]


def test_several_classes_are_compared_one_by_one() -> None:
    labels = [index % 3 for index in range(CASES)]
    data, pair = cases(labels), (linear(3, 0), linear(3, 1))
    record, *_ = compare_on_test_cases(*pair, data, "cpu", 0.01, class_names=("a", "b", "c"))
    assert [one["name"] for one in record["classes"]] == ["a", "b", "c"]
    for name, network in zip(("original", "pruned"), pair, strict=True):
        chances = torch.softmax(torch.from_numpy(outputs(network, data)), dim=1).numpy()
        each = [roc_auc_score([label == k for label in labels], chances[:, k]) for k in range(3)]
        assert [one[name]["auc"] for one in record["classes"]] == pytest.approx(each)
        assert record[name]["auc"] == pytest.approx(np.mean(each))
        assert record["accuracy"][name]["value"] == pytest.approx(np.mean(chances.argmax(axis=1) == labels))
    assert not {"roc", "calibration", "operating_point"} & set(record)


def test_findings_have_no_accuracy_as_each_is_there_or_not() -> None:
    rows = [[index % 2, index // 2 % 2] for index in range(CASES)]
    data, pair = cases([torch.tensor(row) for row in rows]), (linear(2, 0), linear(2, 1))
    record, before, after = compare_on_test_cases(*pair, data, "cpu", 0.01, class_names=("a", "b"))
    assert before.labels == after.labels == rows
    assert not {"accuracy", "roc", "calibration"} & set(record)
    for index, one in enumerate(record["classes"]):
        column = [row[index] for row in rows]
        assert one["pruned"]["auc"] == pytest.approx(roc_auc_score(column, outputs(pair[1], data)[:, index]))


class Shuffled(Dataset):
    """Gives its cases in the other direction each time it is read."""

    def __init__(self, data: Dataset) -> None:
        super().__init__(list(data))
        self.reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return self.data[index if self.reads <= len(self.data) else -1 - index]


def test_both_networks_must_see_the_same_cases() -> None:
    data = Shuffled(cases([index % 2 for index in range(CASES)]))
    with pytest.raises(BasisPruneError, match="must see the same test cases in the same order"):
        compare_on_test_cases(tiny_classifier(), tiny_classifier(), data, "cpu", 0.01)


# --- what is written


def test_the_tables_of_a_report_are_those_that_the_results_have() -> None:
    assert files_of_test({"roc": {"original": {}}, "calibration": {"points": 1}, "auc": 1}) == {
        "roc": "roc.csv",
        "reliability": "reliability.csv",
    }
    assert files_of_test({"classes": [{}], "accuracy": {"a": 1}}) == {"classes": "classes.csv"}
    assert files_of_test({"classes": [], "roc": None}) == {}


@pytest.mark.parametrize("patients", [["p", "p", "q"], []])
def test_predictions_are_written_to_be_pooled(tmp_path: Path, patients: list[str]) -> None:
    before = Predictions([[0.0, 1.0], [1.0, 0.5], [0.25, 0.0]], [1, 0, 1], patients, ["a", "b", "c"])
    after = Predictions([[0.0, 2.0], [1.0, 1.5], [0.25, 0.0]], [1, 0, 1], patients, ["a", "b", "c"])
    (tmp_path / "work").mkdir()
    save_test_predictions(before, after, tmp_path / "work" / "test_predictions.json")
    assert read_predictions(tmp_path) == {
        "labels": [1, 0, 1],
        "original": [1.0, -0.5, -0.25],
        "pruned": [2.0, 0.5, -0.25],
        "patients": patients,
    }
    after.outputs[0][1] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_test_predictions(before, after, tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()


def test_the_cost_is_that_of_the_recomposed_network() -> None:
    network = cut(tiny_classifier())[1]
    found = cost_on_device(network, TinyClassifier.input_shape, "cpu")
    plain = mbp.recompose(network)
    held = [*plain.parameters(), *plain.buffers()]
    assert found["bytes_on_disk"] == sum(tensor.numel() * tensor.element_size() for tensor in held)
    cost = mbp.measure_complexity(plain, TinyClassifier.input_shape)
    assert found["peak_activation_bytes"] == cost.peak_activation_bytes
    assert 0 < found["latency"]["low_ms"] <= found["latency"]["median_ms"] <= found["latency"]["high_ms"]
    assert "warm_up" not in found["latency"]
    assert type(network.grouped).__name__ != type(plain.grouped).__name__  # the one passed in is left as it is
    json.dumps(found, allow_nan=False)
