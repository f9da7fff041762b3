"""Builds realistic study records for the tests of the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from monai_basisprune.report import CasePictures

REDUCTIONS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
AUCS = (0.912, 0.915, 0.913, 0.909, 0.894, 0.861, 0.742)
P_VALUES = (1.0, 0.1, 0.14, 0.25, 0.6, 0.97, 0.99)
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


def estimate_record(value: float, name: str, spread: float = 0.03) -> dict[str, Any]:
    return {
        "value": value,
        "low": max(0.0, value - spread),
        "high": min(1.0, value + spread),
        "confidence": 0.95,
        "method": f"{name}; patient-clustered bootstrap, 2000 resamples, seed 0, t quantile, logit scale",
        "cases": 100,
        "patients": 50,
    }


def calibration_record(shift: float) -> dict[str, Any]:
    lower = [index / 10 for index in range(10)]
    return {
        "brier": estimate_record(0.11 + shift, "Brier score"),
        "calibration_error": estimate_record(0.05 + shift, "expected calibration error, 10 bins of equal width"),
        "points": {
            "mean_probability": [edge + 0.05 for edge in lower],
            "positive_fraction": [min(1.0, max(0.0, edge + 0.05 + shift * math.sin(7 * edge))) for edge in lower],
            "cases": [24, 11, 8, 5, 4, 3, 6, 8, 12, 19],
            "lower_edges": lower,
            "upper_edges": [edge + 0.1 for edge in lower],
        },
    }


def operating_point_record(value: float) -> dict[str, Any]:
    name = "sensitivity at a specificity of 0.9"
    place = {"specificity": 0.9, "attained_specificity": 0.92, "threshold": 0.61}
    return estimate_record(value, name, 0.09) | place


def subgroup_record(
    attribute: str, value: str, cases: int, aucs: tuple[float, float] | None, reason: str | None = None
) -> dict[str, Any]:
    difference = None
    if aucs is not None:
        difference = difference_record(aucs[1] - aucs[0], 0.05) | {"p_value_difference": 0.2}
    return {
        "attribute": attribute,
        "value": value,
        "cases": cases,
        "positive_cases": cases // 2 if aucs else 0,
        "patients": cases // 2,
        "original": auc_record(aucs[0], cases, 0.08) if aucs else None,
        "pruned": auc_record(aucs[1], cases, 0.08) if aucs else None,
        "difference": difference,
        "adjusted_p_value": 1.0 if aucs else None,
        "reason": reason,
    }


def audit_record() -> dict[str, Any]:
    one_class = "not computable: all 14 cases are negative"
    alone = "not computable as a group: all cases of the test set have this value"
    changes = ((1, 0.91, 0.34), (0, 0.12, 0.55), (1, 0.44, 0.71))
    return {
        "subgroups": [
            subgroup_record("sex", "female", 54, (0.91, 0.90)),
            subgroup_record("sex", "male", 46, (0.90, 0.893)),
            subgroup_record("age band", "40 to 59", 38, (0.92, 0.925)),
            subgroup_record("age band", "60 to 79", 48, (0.89, 0.86)),
            subgroup_record("age band", "other", 14, None, one_class),
            subgroup_record("scanner manufacturer", "GE", 100, None, alone),
        ],
        "changed_cases": [
            {
                "case_id": f"{number:016x}",
                "label": label,
                "original": before,
                "pruned": after,
                "activation_layer": "class_layers.relu",
                "reason": None,
            }
            for number, (label, before, after) in enumerate(changes, start=0xA3F1)
        ],
        "remarks": ["A small group cannot show safety."],
    }


def search_record() -> dict[str, Any]:
    steps = ((0.5, True, 0.003), (0.75, True, 0.001), (0.95, False, -0.018), (0.9, True, -0.003))
    return {
        "margin": 0.01,
        "rule": "interval",
        "steps": [
            {
                "target": target,
                "parameter_reduction": target,
                "accepted": accepted,
                "auc": 0.912 + difference,
                "difference": difference,
                "low": difference - 0.006,
            }
            for target, accepted, difference in steps
        ],
        "required_positive_patients": 412,
        "remarks": ["The validation set is too small to show non-inferiority at this margin."],
    }


def cost_record(size: int, peak: int, milliseconds: float) -> dict[str, Any]:
    latency = {"median_ms": milliseconds, "low_ms": 0.96 * milliseconds, "high_ms": 1.07 * milliseconds}
    latency |= {"device": "cpu (x86_64)", "threads": 1, "batch_size": 1, "repeats": 30}
    return {"bytes_on_disk": size, "peak_activation_bytes": peak, "latency": latency}


def make_pictures(*case_ids: str) -> dict[str, CasePictures]:
    """Return a gray wedge with a bright spot for each case, and maps that look at different places."""
    rows, columns = np.mgrid[0:1:64j, 0:1:64j]

    def spot(row: float, column: float) -> Any:
        return np.exp(-40 * ((rows - row) ** 2 + (columns - column) ** 2))

    image = 0.7 * columns + 0.3 * spot(0.4, 0.6)
    return {case: CasePictures(image, spot(0.4, 0.6), spot(0.7, 0.3)) for case in case_ids}


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
        difference = None if number == 0 else difference_record(auc - AUCS[0]) | {"p_value": P_VALUES[number]}
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
                "difference": difference,
                "adjusted_p_value": None if number == 0 else min(1.0, 3 * P_VALUES[number]),
            }
        )
    keys = ("round", "parameters", "macs", "parameter_reduction", "mac_reduction")
    chosen = {key: curve[3][key] for key in keys}
    chosen["reason"] = (
        "smallest network whose validation AUC is not lower than the unpruned network's by more than 0.01"
    )
    chosen["supported_by_interval"] = False
    chosen |= cost_record(2_900_000, 3_200_000, 9.8)
    study = {
        "format": "monai_basisprune.study",
        "format_version": 2,
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
        "network": {
            "name": "DenseNet121",
            "input_shape": [1, 64, 64],
            "parameters": PARAMETERS,
            "macs": MACS,
            **cost_record(28_400_000, 4_100_000, 21.4),
        },
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
            "calibration": {"original": calibration_record(0.02), "pruned": calibration_record(0.06)},
            "operating_point": {
                "specificity": 0.9,
                "original": operating_point_record(0.767),
                "pruned": operating_point_record(0.751),
            },
        },
        "audit": audit_record(),
        "search": search_record(),
        "layers": densenet_layers(),
        "files": {"model": "model.pt", "plan": "model.plan.json", "torchscript": "model.ts", "curve_csv": "curve.csv"},
        "warnings": ["3 images were resampled from 16 to 8 bits", "2 patients occur in both classes"],
    }
    if changes.get("test", study) is None:
        study["audit"] = None  # there is nothing to audit without test cases
    return study | changes
