"""Measure how often the intervals of ``monai_basisprune.evidence`` hold the truth, and how often its test errs.

Every cell draws binormal scores of two correlated networks, with a random effect of the patient, whose true AUCs are
known: the candidate is worse than the reference by exactly the margin. Reported are the coverage of the interval of
the reference's AUC and of the difference (target: 93.5 to 96.5 %), the share of samples in which the candidate is
called non-inferior (an error each time; target: at most 5 %), and the same for the naive analysis that counts every
image as a patient. Cells named "rare failure" break the model on purpose: the candidate agrees with the reference but
misses a small share of the positive patients altogether.

    python tests/benchmarks/evidence_coverage.py --output docs/results/evidence_coverage.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy
from scipy import stats

from monai_basisprune.evidence import auc_interval, compare_auc

COVERAGE_TARGET = (0.935, 0.965)
ERROR_TARGET = 0.05


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation.

    Attributes:
        patients: number of patients.
        prevalence: probability that a patient (or an image, if ``mixed``) is positive.
        auc: true AUC of the reference network.
        images: largest number of images of a patient; the number is uniform from 1 to it.
        margin: non-inferiority margin, and the true loss of the candidate.
        correlation: correlation of the two networks' scores.
        patient_share: share of the score's variance that images of a patient have in common.
        mixed: whether one patient can have positive and negative images.
        rare_failure: whether the loss comes from a few positive patients that the candidate misses altogether.
    """

    patients: int
    prevalence: float
    auc: float
    images: int = 1
    margin: float = 0.02
    correlation: float = 0.9
    patient_share: float = 0.5
    mixed: bool = False
    rare_failure: bool = False


GRID = (
    Cell(100, 0.3, 0.6),
    Cell(100, 0.1, 0.8),
    Cell(100, 0.3, 0.8),
    Cell(100, 0.3, 0.97),
    Cell(100, 0.1, 0.97),
    Cell(300, 0.05, 0.9),
    Cell(300, 0.2, 0.97),
    Cell(1000, 0.1, 0.9, margin=0.01, correlation=0.95),
    Cell(2000, 0.05, 0.8, margin=0.01, correlation=0.95),
    Cell(50, 0.3, 0.8, images=5),
    Cell(50, 0.4, 0.95, images=5),
    Cell(100, 0.2, 0.9, images=5, mixed=True),
    Cell(100, 0.3, 0.97, images=5),
    Cell(100, 0.1, 0.9, images=3),
    Cell(150, 0.3, 0.6, images=2),
    Cell(300, 0.2, 0.9, images=5, margin=0.01, correlation=0.95),
    Cell(300, 0.3, 0.9, correlation=0.98, rare_failure=True),
    Cell(2000, 0.3, 0.9, correlation=0.98, rare_failure=True),
)


def draw(cell: Cell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels ``(n,)``, scores ``(n, 2)`` of reference and candidate, and patients ``(n,)``."""
    patients = np.repeat(np.arange(cell.patients), rng.integers(1, cell.images + 1, size=cell.patients))
    if cell.mixed:
        labels = rng.random(len(patients)) < cell.prevalence
    else:
        labels = (rng.random(cell.patients) < cell.prevalence)[patients]
    root = np.linalg.cholesky(np.array([[1.0, cell.correlation], [cell.correlation, 1.0]]))
    patient_effect = (rng.normal(size=(cell.patients, 2)) @ root.T)[patients]
    image_effect = rng.normal(size=(len(patients), 2)) @ root.T
    aucs = np.array([cell.auc, cell.auc if cell.rare_failure else cell.auc - cell.margin])
    scores = labels[:, None] * np.sqrt(2) * stats.norm.ppf(aucs)
    scores += np.sqrt(cell.patient_share) * patient_effect + np.sqrt(1 - cell.patient_share) * image_effect
    if cell.rare_failure:
        missed = (rng.random(cell.patients) < cell.margin / cell.auc)[patients] & labels
        scores[missed, 1] = scores[missed, 1] - 100.0
    return labels, scores, patients


def measure(cell: Cell, repeats: int, resamples: int, seed: int) -> dict[str, object]:
    """Repeat one cell and return shares of the samples."""
    rng = np.random.default_rng([seed, GRID.index(cell)])
    names = ("auc", "auc_low_too_high", "difference", "non_inferior", "width")
    hits: dict[str, list[float]] = {f"{kind}{name}": [] for kind in ("", "naive_") for name in names}
    skipped = 0
    for repeat in range(repeats):
        labels, scores, patients = draw(cell, rng)
        if labels.all() or not labels.any():
            skipped += 1
            continue
        for kind in ("", "naive_") if cell.images > 1 else ("",):
            grouping = None if kind else patients
            one = auc_interval(labels, scores[:, 0], grouping, resamples=resamples, seed=repeat)
            two = compare_auc(labels, *scores.T, grouping, cell.margin, resamples=resamples, seed=repeat)
            hits[f"{kind}non_inferior"].append(two.non_inferior)
            if one.low is None or one.high is None or two.low is None or two.high is None:
                skipped += not kind
                continue
            hits[f"{kind}auc"].append(one.low <= cell.auc <= one.high)
            hits[f"{kind}auc_low_too_high"].append(one.low > cell.auc)
            hits[f"{kind}difference"].append(two.low <= -cell.margin <= two.high)
            hits[f"{kind}width"].append(two.high - two.low)
    share = {name: round(float(np.mean(values)), 4) if values else None for name, values in hits.items()}
    coverages = [share["auc"], share["difference"]]
    assert share["non_inferior"] is not None
    return {
        **asdict(cell),
        "coverage_auc": share["auc"],
        "auc_below_interval": share["auc_low_too_high"],
        "coverage_difference": share["difference"],
        "type_1_error": share["non_inferior"],
        "mean_width_difference": share["width"],
        "naive_coverage_auc": share["naive_auc"],
        "naive_coverage_difference": share["naive_difference"],
        "naive_type_1_error": share["naive_non_inferior"],
        "not_computable": skipped,
        "coverage_on_target": all(c is not None and COVERAGE_TARGET[0] <= c <= COVERAGE_TARGET[1] for c in coverages),
        "type_1_error_on_target": share["non_inferior"] <= ERROR_TARGET,
    }


def main() -> None:
    """Run the grid and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="samples drawn in each cell")
    parser.add_argument("--resamples", type=int, default=500, help="bootstrap resamples (the library's default: 2000)")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--cells", type=int, nargs="*", help="indices of the grid; all if left out")
    parser.add_argument("--output", type=Path, help="JSON file to write; printed if left out")
    arguments = parser.parse_args()
    cells, start = [], time.process_time()
    for index in range(len(GRID)) if arguments.cells is None else arguments.cells:
        cells.append(measure(GRID[index], arguments.repeats, arguments.resamples, arguments.seed))
        print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    record = {
        "command": "python " + " ".join(sys.argv),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "settings": {
            "repeats": arguments.repeats,
            "resamples": arguments.resamples,
            "seed": arguments.seed,
            "confidence": 0.95,
            "coverage_target": COVERAGE_TARGET,
            "type_1_error_target": ERROR_TARGET,
            "standard_error_of_a_coverage_of_95_percent": round(float(np.sqrt(0.95 * 0.05 / arguments.repeats)), 4),
        },
        "cpu_seconds": round(time.process_time() - start, 1),
        "cells": cells,
    }
    text = json.dumps(record, indent=2) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
