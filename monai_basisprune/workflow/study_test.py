"""What two networks say of the test cases, which are read once, and what both cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import nn

from ..complexity import measure_complexity
from ..errors import BasisPruneError
from ..evidence import auc_interval, compare_auc, roc_curve_points
from ..files import write_atomically
from ..handlers import Predictions
from ..recomposition import recompose
from .audit import describe_probabilities
from .inference import predict

__all__ = ["compare_on_test_cases", "cost_on_device", "save_test_predictions"]


def compare_on_test_cases(
    unpruned: nn.Module, pruned: nn.Module, data: Dataset, device: torch.device | str, margin: float
) -> tuple[dict[str, Any], Predictions, Predictions]:
    """Compare two networks on the test cases.

    Returns:
        what goes into the study record, and what each of both networks predicts.

    Raises:
        BasisPruneError: if they do not see the same cases in the same order.
    """
    before = predict(unpruned, data, device, patient_key="patient_id")
    after = predict(pruned, data, device, patient_key="patient_id")
    if before.case_ids != after.case_ids:
        raise BasisPruneError("Both networks must see the same test cases in the same order.")
    result: dict[str, Any] = {
        name: asdict(auc_interval(predictions.labels, predictions.scores, predictions.patients))
        for name, predictions in (("original", before), ("pruned", after))
    }
    result["difference"] = asdict(compare_auc(before.labels, before.scores, after.scores, before.patients, margin))
    result["roc"] = {name: _roc(predictions) for name, predictions in (("original", before), ("pruned", after))}
    return result | describe_probabilities(before, after), before, after


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
