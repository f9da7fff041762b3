"""Measures DeLong's covariance: how long it takes, and how far it is from a sum over all pairs of cases.

python tests/benchmarks/delong.py --output docs/results/delong.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from monai_basisprune.evidence import delong_covariance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.evidence import reference

CASES, NETWORKS, COMPARED = 20_000, 2, 2_000


def sample(cases: int, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and the scores of correlated networks, with ties if they are rounded."""
    rng = np.random.default_rng(0)
    labels = (rng.random(cases) < 0.3).astype(int)
    scores = rng.normal(size=(cases, 1)) + 0.4 * rng.normal(size=(cases, NETWORKS)) + 1.2 * labels[:, None]
    return labels, scores if decimals is None else scores.round(decimals)


def measure(repeats: int) -> dict[str, Any]:
    """Time the covariance and compare it with the reference of the tests."""
    labels, scores = sample(CASES)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        delong_covariance(labels, scores)
        seconds.append(time.perf_counter() - start)
    compared = {}
    for name, decimals in (("no ties", None), ("ties", 1)):
        own = sample(COMPARED, decimals)
        found, expected = delong_covariance(*own)[1], reference.delong(*own)
        compared[name] = float(np.abs(found / expected - 1).max())
    return {
        "cases": CASES,
        "networks": NETWORKS,
        "repeats": repeats,
        "seconds_median": statistics.median(seconds),
        "seconds_largest": max(seconds),
        "target_seconds": 0.1,
        "cases_compared_with_all_pairs": COMPARED,
        "largest_relative_error": compared,
        "target_error": 1e-9,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    command = f"python tests/benchmarks/delong.py --output {arguments.output.as_posix()}"
    result = {"command": command, "versions": versions, "cores": os.cpu_count(), **measure(arguments.repeats)}
    print(result)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
