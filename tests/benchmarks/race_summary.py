"""What the runs of the race come to: AUC with interval, size and time at each ratio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from race_data import Images, load

from monai_basisprune.evidence import auc_interval, compare_auc

MARGIN = 0.01


def summarize(data: Path, output: Path) -> dict[str, Any]:
    """Pool the folds of each contestant, and compare each cut with the transferred, unpruned network.

    A seed counts once it has all its folds. The AUC is the mean of the seeds'; its interval and that of the
    difference count every patient once, however many seeds there are.
    """
    runs = [json.loads(file.read_text()) for file in sorted(output.glob("*.json"))]
    rows = []
    for name, network in sorted({(run["data"], run["network"]) for run in runs}):
        images = load(name, data)
        here = [run for run in runs if (run["data"], run["network"]) == (name, network)]
        reference = _pooled([run for run in here if run["contestant"] == "default"], images)
        for contestant in sorted({run["contestant"] for run in here}):
            pooled = _pooled([run for run in here if run["contestant"] == contestant], images)
            for ratio in sorted({ratio for _, ratio in pooled}):
                seeds = sorted(seed for seed, r in pooled if r == ratio)
                steps = [pooled[seed, ratio] for seed in seeds]
                rows.append(
                    {"data": name, "network": network, "contestant": contestant, "ratio": ratio, "seeds": seeds}
                    | _row(steps, [reference.get((seed, 0.0)) for seed in seeds])
                )
    return {"margin": MARGIN, "settings": runs[0]["settings"] if runs else None, "rows": rows}


def _pooled(runs: list[dict[str, Any]], images: Images) -> dict[tuple[int, float], dict[str, Any]]:
    """Return, for each seed that has all folds and each ratio, the scores of all test images and the costs."""
    result = {}
    for seed in {run["seed"] for run in runs}:
        folds = [run for run in runs if run["seed"] == seed]
        if len(folds) == len(images.folds):
            for steps in zip(*(run["steps"] for run in folds), strict=False):  # as far as all of them go
                tests = np.concatenate([images.folds[run["fold"]][1] for run in folds])
                result[seed, steps[0]["ratio"]] = {
                    "scores": np.concatenate([step["scores"] for step in steps]),
                    "labels": images.labels.numpy()[tests],
                    "patients": images.patients[tests],
                    **{key: np.median([s[key] for s in steps]) for key in ("parameters", "macs", "latency_ms")},
                    "seconds": float(np.mean([step["seconds"] for step in steps])),
                }
    return result


def _row(steps: list[dict[str, Any]], references: list[dict[str, Any] | None]) -> dict[str, Any]:
    labels, scores, patients = (np.concatenate([step[key] for step in steps]) for key in _COLUMNS)
    each = [auc_interval(step["labels"], step["scores"], step["patients"], resamples=200).auc for step in steps]
    interval = auc_interval(labels, scores, patients)
    row: dict[str, Any] = {
        "auc": round(float(np.mean(each)), 4),
        "auc_by_seed": [round(auc, 4) for auc in each],
        "low": _rounded(interval.low),
        "high": _rounded(interval.high),
        **{key: float(np.median([step[key] for step in steps])) for key in ("parameters", "macs", "latency_ms")},
        "seconds": round(float(np.mean([step["seconds"] for step in steps])), 1),
    }
    if all(reference is not None for reference in references):
        before = np.concatenate([reference["scores"] for reference in references if reference is not None])
        change = compare_auc(labels, before, scores, patients, margin=MARGIN)
        row |= {"change": round(change.difference, 4), "change_low": _rounded(change.low)}
        row |= {"change_high": _rounded(change.high), "non_inferior": change.non_inferior}
    return row


_COLUMNS = ("labels", "scores", "patients")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
