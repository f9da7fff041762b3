"""Builds realistic study records for the tests of the report."""

from __future__ import annotations

import math
from typing import Any

REDUCTIONS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
AUCS = (0.912, 0.915, 0.913, 0.909, 0.894, 0.861, 0.742)
PARAMETERS, MACS = 6_955_906, 231_456_789


def auc_record(auc: float | None, cases: int, spread: float = 0.045) -> dict[str, Any]:
    counts = {"cases": cases, "patients": cases // 2, "positive_cases": cases // 2, "positive_patients": cases // 4}
    if auc is None:
        method = "not computable: all cases belong to one class"
        return {"auc": None, "low": None, "high": None, "confidence": 0.95, "method": method, **counts}
    method = "patient-clustered bootstrap, 2000 resamples"
    low, high = auc - spread, min(1.0, auc + 0.75 * spread)
    return {"auc": auc, "low": low, "high": high, "confidence": 0.95, "method": method, **counts}


def difference_record(difference: float, spread: float = 0.02, margin: float = 0.01) -> dict[str, Any]:
    low, high = difference - spread, difference + spread
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "margin": margin,
        "non_inferior": low > -margin,
        "method": "patient-clustered paired bootstrap, 2000 resamples",
        "confidence": 0.95,
    }


def roc_record(auc: float, points: int = 60) -> dict[str, list[float]]:
    # A curve whose area is the AUC: tpr = fpr ** (1 / auc - 1).
    fpr = [index / (points - 1) for index in range(points)]
    return {"fpr": fpr, "tpr": [value ** (1 / auc - 1) for value in fpr]}


def densenet_layers(kept: float = 0.1) -> list[dict[str, Any]]:
    shapes = [("features.conv0", 64, 49)]
    channels = 64
    for block, size in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, size + 1):
            name = f"features.denseblock{block}.denselayer{layer}.layers"
            shapes += [(f"{name}.conv1", 128, channels), (f"{name}.conv2", 32, 128 * 9)]
            channels += 32
        if block < 4:
            shapes.append((f"features.transition{block}.conv", channels // 2, channels))
            channels //= 2
    layers = []
    for index, (name, rows, columns) in enumerate(shapes):
        max_rank = min(rows, columns)
        rank = max(1, round(max_rank * kept * (1.4 + math.sin(index / 5))))
        layers.append(
            {
                "name": name,
                "type": "Conv2d",
                "rank": rank,
                "max_rank": max_rank,
                "parameters": rank * (rows + columns),
                "original_parameters": rows * columns,
                "skipped": None,
            }
        )
    layers.append(
        {
            "name": "class_layers.out",
            "type": "Linear",
            "rank": None,
            "max_rank": None,
            "parameters": 2050,
            "original_parameters": 2050,
            "skipped": "only convolutions are decomposed",
        }
    )
    return layers


def split_record(cases: int) -> dict[str, Any]:
    return {
        "cases": cases,
        "patients": cases // 2,
        "cases_by_class": [cases // 2, cases - cases // 2],
        "patients_by_class": [cases // 4, cases // 2 - cases // 4],
    }


def make_study(**changes: Any) -> dict[str, Any]:
    """Return the record of a DenseNet121 on 500 synthetic radiographs; ``changes`` replace top-level keys."""
    curve = []
    for number, (reduction, auc) in enumerate(zip(REDUCTIONS, AUCS, strict=True)):
        parameters, macs = round(PARAMETERS * (1 - reduction)), round(MACS * (1 - 0.94 * reduction))
        curve.append(
            {
                "round": number,
                "epoch": 6 + 2 * number,
                "target": reduction,
                "parameters": parameters,
                "macs": macs,
                "bases": round(9000 * (1 - reduction)),
                "parameter_reduction": 1 - parameters / PARAMETERS,
                "mac_reduction": 1 - macs / MACS,
                "auc": auc_record(auc, 100, 0.04 + 0.03 * reduction),
                "difference": None if number == 0 else difference_record(auc - AUCS[0]),
            }
        )
    keys = ("round", "parameters", "macs", "parameter_reduction", "mac_reduction")
    chosen = {key: curve[3][key] for key in keys}
    chosen["reason"] = (
        "smallest network whose validation AUC is not lower than the unpruned network's by more than 0.01"
    )
    chosen["supported_by_interval"] = False
    study = {
        "format": "monai_basisprune.study",
        "format_version": 1,
        "title": "Cardiomegaly on synthetic chest radiographs",
        "created": "2026-11-21T05:00:00+00:00",
        "command": (
            "python -m monai.bundle run prune --bundle_root bundles/chest_xray_classification --config_file "
            "\"['bundles/chest_xray_classification/configs/train.json',"
            "'bundles/chest_xray_classification/configs/prune.json']\" --dataset_dir /data/synthetic --seed 0"
        ),
        "versions": {"monai_basisprune": "0.1.0", "monai": "1.6.1", "torch": "2.13.0+cpu", "python": "3.11.7"},
        "device": "cpu",
        "seed": 0,
        "wall_seconds": 241.0,
        "peak_memory_bytes": 2_100_000_000,
        "data": {
            "class_names": ["negative", "positive"],
            "split_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "synthetic": True,
            "splits": {"training": split_record(300), "validation": split_record(100), "test": split_record(100)},
        },
        "network": {"name": "DenseNet121", "input_shape": [1, 64, 64], "parameters": PARAMETERS, "macs": MACS},
        "pruning": {
            "importance": "taylor",
            "budget": "parameters",
            "targets": list(REDUCTIONS),
            "transfer_epochs": 6,
            "epochs_per_round": 2,
            "norm_statistics": "update",
            "selection": "point",
            "auc_margin": 0.01,
        },
        "curve": curve,
        "chosen": chosen,
        "test": {
            "original": auc_record(0.905, 100),
            "pruned": auc_record(0.898, 100),
            "difference": difference_record(0.898 - 0.905, 0.025),
            "roc": {"original": roc_record(0.905), "pruned": roc_record(0.898)},
        },
        "layers": densenet_layers(),
        "files": {"model": "model.pt", "plan": "model.plan.json", "torchscript": "model.ts", "curve_csv": "curve.csv"},
        "warnings": ["3 images were resampled from 16 to 8 bits", "2 patients occur in both classes"],
    }
    return study | changes
