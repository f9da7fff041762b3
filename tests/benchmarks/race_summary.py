"""What the runs of the race come to: AUC with interval, size and time at each ratio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from race_data import Images, load

MARGIN = 0.01
RESAMPLES = 2000

_COSTS = ("parameters", "macs", "latency_ms")


def summarize(
    data: Path,
    output: Path,
    references: Sequence[str],
    earlier: Sequence[dict[str, Any]] = (),
    note: str | None = None,
) -> dict[str, Any]:
    """Pool the folds of each contestant, and compare each cut with the transferred, unpruned network.

    A seed counts once it has all its folds; scores are compared within a seed, never between two. AUC and change are
    the mean of the seeds'; their intervals are percentiles of a bootstrap of patients, who are drawn for all seeds
    together, so more seeds do not make patients more.

    Args:
        data: the folder of shared data.
        output: the folder of the runs.
        references: contestants that begin with the network that all are compared with.
        earlier: rows of an earlier summary; those of a contestant stay where the output has fewer seeds of it.
        note: goes into the rows of this output.
    """
    runs = [json.loads(file.read_text()) for file in sorted(output.glob("*.json"))]
    rows = []
    for name, network in sorted({(run["data"], run["network"]) for run in runs}):
        images = load(name, data)
        here = [run for run in runs if (run["data"], run["network"]) == (name, network)]
        reference: dict[int, dict[str, Any]] = {}
        for contestant in references:
            pooled = _pooled([run for run in here if run["contestant"] == contestant], images)
            reference |= {seed: step for (seed, ratio), step in pooled.items() if ratio == 0.0}
        for contestant in sorted({run["contestant"] for run in here}):
            pooled = _pooled([run for run in here if run["contestant"] == contestant], images)
            for ratio in sorted({ratio for _, ratio in pooled}):
                seeds = sorted(seed for seed, r in pooled if r == ratio)
                steps = [pooled[seed, ratio] for seed in seeds]
                rows.append(
                    {"data": name, "network": network, "contestant": contestant, "ratio": ratio, "seeds": seeds}
                    | _row(steps, [reference.get(seed) for seed in seeds])
                    | ({} if note is None else {"note": note})
                )
    return {"margin": MARGIN, "settings": runs[0]["settings"] if runs else None, "rows": _merged(earlier, rows)}


def _merged(earlier: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of two summaries, for each contestant those of the one with more seeds, else the later ones."""
    seeds: list[dict[tuple[str, ...], int]] = []
    for summary in (earlier, rows):
        seeds.append({})
        for row in summary:
            seeds[-1][_contestant(row)] = max(len(row["seeds"]), seeds[-1].get(_contestant(row), 0))
    before, now = seeds
    kept = [row for row in earlier if before[_contestant(row)] > now.get(_contestant(row), 0)]
    new = [row for row in rows if now[_contestant(row)] >= before.get(_contestant(row), 0)]
    return sorted([*kept, *new], key=lambda row: (*_contestant(row), row["ratio"]))


def _contestant(row: dict[str, Any]) -> tuple[str, ...]:
    return row["data"], row["network"], row["contestant"]


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
                    **{key: np.median([s[key] for s in steps if key in s]) for key in _COSTS},
                    "seconds": float(np.mean([step["seconds"] for step in steps])),
                }
    return result


def _row(steps: list[dict[str, Any]], references: list[dict[str, Any] | None]) -> dict[str, Any]:
    costs = {key: float(np.median([step[key] for step in steps])) for key in _COSTS}
    seconds = round(float(np.mean([step["seconds"] for step in steps])), 1)
    return {**auc_row(steps, references), **costs, "seconds": seconds}


def auc_row(steps: Sequence[dict[str, Any]], references: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return the mean AUC of some seeds, and how it differs from that of their references, with intervals.

    Args:
        steps: for each seed the scores, labels and patients of all test images, in the same order.
        references: the same of what each is compared with; nothing is compared if one is None.
    """
    patients = np.unique(steps[0]["patients"], return_inverse=True)[1]
    drawn = np.random.default_rng(0).multinomial(
        patients.max() + 1, [1 / (patients.max() + 1)] * (patients.max() + 1), RESAMPLES
    )
    # the first row counts every patient once, each of the others draws as many patients with replacement
    weights = np.concatenate([np.ones((1, drawn.shape[1])), drawn])[:, patients]
    aucs = np.stack([_weighted_aucs(step, weights) for step in steps])
    row: dict[str, Any] = {
        "auc": round(float(aucs[:, 0].mean()), 4),
        "auc_by_seed": aucs[:, 0].round(4).tolist(),
        **_interval(aucs, ""),
    }
    if all(reference is not None for reference in references):
        changes = aucs - np.stack([_weighted_aucs(one, weights) for one in references if one is not None])
        row |= {"change": round(float(changes[:, 0].mean()), 4), "change_by_seed": changes[:, 0].round(4).tolist()}
        row |= _interval(changes, "change_")
        row["non_inferior"] = row["change_low"] > -MARGIN
    return row


def _interval(values: np.ndarray, prefix: str) -> dict[str, float]:
    """Return the percentiles of the mean over seeds: every seed is counted with the same patients at a time."""
    low, high = np.nanpercentile(values.mean(axis=0)[1:], [2.5, 97.5])
    return {f"{prefix}low": round(float(low), 4), f"{prefix}high": round(float(high), 4)}


def _weighted_aucs(step: dict[str, Any], weights: np.ndarray) -> np.ndarray:
    """Return the AUC of one seed for each row of weights of the images; ties count half, one class alone gives NaN."""
    places = np.unique(step["scores"], return_inverse=True)[1]
    order = np.argsort(places)
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    of_class = [weights * (step["labels"] == label) for label in (0, 1)]
    negative, positive = (np.add.reduceat(one[:, order], starts, axis=1) for one in of_class)
    below = negative.cumsum(axis=1) - 0.5 * negative
    pairs = negative.sum(axis=1) * positive.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((below * positive).sum(axis=1) / pairs)
