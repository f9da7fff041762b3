"""Gathers what searches for the smallest network chose, from folders that `run repeat --auc_margin` wrote.

python tests/benchmarks/metric_budget.py --output docs/results/metric_budget.json \
    radiographs=/tmp/radiographs_search pneumoniamnist=/tmp/pneumoniamnist_search

The commands that made these folders stand in docs/results.md, and, without paths, in the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from monai_basisprune.report import load_study


def repeat(folder: Path) -> dict[str, Any]:
    """Return what one search chose, and how that did on validation and test cases."""
    study = load_study(folder / "study.json")
    chosen, test = study["chosen"], study["test"]
    point = study["curve"][chosen["round"]]
    interval = ("difference", "low", "high", "non_inferior")
    return {
        "seed": study["seed"],
        "rule": study["search"]["rule"],
        "required_positive_patients": study["search"]["required_positive_patients"],
        "steps": study["search"]["steps"],
        "parameters": chosen["parameters"],
        "parameter_reduction": chosen["parameter_reduction"],
        "mac_reduction": chosen["mac_reduction"],
        "validation_auc": {key: point["auc"][key] for key in ("auc", "low", "high")},
        "test_auc_before": {key: test["original"][key] for key in ("auc", "low", "high")},
        "test_auc_after": {key: test["pruned"][key] for key in ("auc", "low", "high")},
        "test_difference": {key: test["difference"][key] for key in interval},
        "test_patients": test["difference"]["patients"],
        "wall_seconds": study["wall_seconds"],
        "command": study["command"],
    }


def main() -> None:
    """Gather and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for argument in arguments.results:
        name, _, folder = argument.partition("=")
        stability = json.loads((Path(folder) / "stability.json").read_text(encoding="utf-8"))
        result[name] = {
            "repeats": [repeat(one) for one in sorted(Path(folder, "repeats").glob("repeat-*"))],
            "chosen": stability["chosen"],
            "pooled_test": stability["pooled"],
            "remarks": stability["remarks"],
        }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
