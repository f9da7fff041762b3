"""What two networks say of the test cases, which are read once, and what both cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import nn

from ..complexity import measure_complexity
from ..errors import BasisPruneError
from ..evidence import accuracy, auc_interval, compare_auc, compare_classes, roc_curve_points
from ..files import write_atomically
from ..handlers import Predictions
from ..recomposition import recompose
from .audit import describe_probabilities
from .inference import predict

__all__ = ["compare_on_test_cases", "cost_on_device", "files_of_test", "save_test_predictions"]


def compare_on_test_cases(
    unpruned: nn.Module,
    pruned: nn.Module,
    data: Dataset,
    device: torch.device | str,
    margin: float,
    patient_key: str | None = "patient_id",
    class_names: Sequence[str] = (),
) -> tuple[dict[str, Any], Predictions, Predictions]:
    """Compare two networks on the test cases.

    Args:
        unpruned: the unpruned network.
        pruned: the pruned network.
        data: the test cases.
        device: where to run.
        margin: margin of AUC.
        patient_key: key of the patient's id; None where it is not known, and every case counts as a patient.
        class_names: names of the classes or findings, where there are more than two, or findings.

    Returns:
        what goes into the study record, and what each of both networks predicts.

    Raises:
        BasisPruneError: if they do not see the same cases in the same order.
    """
    before = predict(unpruned, data, device, patient_key=patient_key)
    after = predict(pruned, data, device, patient_key=patient_key)
    if before.case_ids != after.case_ids:
        raise BasisPruneError("Both networks must see the same test cases in the same order.")
    pair = (("original", before), ("pruned", after))
    patients = before.patients or None
    result: dict[str, Any] = {
        name: asdict(auc_interval(predictions.labels, predictions.scores, patients)) for name, predictions in pair
    }
    result["difference"] = asdict(compare_auc(before.labels, before.scores, after.scores, patients, margin))
    if before.several:
        found = compare_classes(before.labels, before.scores, after.scores, class_names, patients, margin)
        result["classes"] = [one.to_dict() for one in found]
        if not isinstance(before.labels[0], list):
            result["accuracy"] = {name: accuracy(one.labels, one.scores, patients).to_dict() for name, one in pair}
        return result, before, after
    result["roc"] = {name: _roc(predictions) for name, predictions in pair}
    return result | describe_probabilities(before, after), before, after


def files_of_test(test: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables that a report of these test results has, by what they are."""
    names = {"roc": "roc.csv", "calibration": "reliability.csv", "classes": "classes.csv"}
    keys = {"calibration": "reliability"}
    return {keys.get(key, key): name for key, name in names.items() if test.get(key)}


def save_test_predictions(before: Predictions, after: Predictions, path: Path) -> None:
    """Write what both networks say of each test case, to be pooled over folds; patients are salted hashes."""
    content = {
        "labels": before.labels,
        "original": before.scores,
        "pruned": after.scores,
        "patients": before.patients,
    }
    write_atomically(path, json.dumps(content, allow_nan=False))


def cost_on_device(network: nn.Module, input_shape: Sequence[int], device: torch.device | str) -> dict[str, Any]:
    """Return what a decomposed network costs after recomposition besides parameters and operations, as JSON types."""
    cost = measure_complexity(recompose(network).to(device), input_shape, latency=True)
    assert cost.latency is not None
    latency = {key: value for key, value in asdict(cost.latency).items() if key != "warm_up"}
    return {
        "bytes_on_disk": cost.bytes_on_disk,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "latency": latency,
    }


def _roc(predictions: Predictions) -> dict[str, list[float]]:
    points = roc_curve_points(predictions.labels, predictions.scores)
    return {"fpr": points.false_positive_rate, "tpr": points.true_positive_rate}
