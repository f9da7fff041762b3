"""The tables of the race in docs/results.md, from its summary.

python tests/benchmarks/race_table.py docs/results/race.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LABELS = {
    "default": "**bases and channels jointly, distilled from 95 % on** (default)",
    "default, plain loss": "the same, from labels alone to the end (`plain_loss.json`)",
    "taylor": "bases alone (`bases.json`)",
    "torch-pruning taylor, fine-tuned": "Torch-Pruning, Taylor, all weights fine-tuned",
    "torch-pruning taylor, frozen": "Torch-Pruning, Taylor, norms and head trained",
    "torch-pruning bn scale, fine-tuned": "Torch-Pruning, scale of batch norms, all weights fine-tuned",
    "torch-pruning bn scale, frozen": "Torch-Pruning, scale of batch norms, norms and head trained",
    "truncated svd": "truncated SVD, norms and head trained",
    "small from scratch": "a small ResNet-18 from random weights",
    "default, compensated": "bases and channels jointly, from labels alone, with compensation from 95 % on",
    "channel scaling": "channel scaling (`channel_scaling.json`)",
    "data-aware": "bases of activations, compensated from 75 % on",
    "singular value": "bases by singular values (`singular_value.json`)",
    "scaling": "bases by scaling factors (`scaling.json`)",
    "unpruned": "never cut, trained as long",
}
"""What the contestants are called there, in the order of the rows."""

SETS = {"radiographs": "Radiographs", "pneumoniamnist": "PneumoniaMNIST"}
NETWORKS = {"resnet18": "", "densenet121": ", DenseNet121"}


def table(rows: list[dict[str, Any]], data: str, network: str) -> list[str]:
    """Return the lines of the table of one data set and network; none where nothing was run.

    A star marks seconds of rows with a note.
    """
    chosen = [row for row in rows if (row["data"], row["network"]) == (data, network)]
    ratios = sorted({row["ratio"] for row in chosen})
    if not chosen:
        return []
    head = [f"{SETS[data]}{NETWORKS[network]}", "Seeds", *(f"{100 * ratio:g} %" for ratio in ratios), "Seconds"]
    lines = [_line(head), _line(["---"] * len(head))]
    for contestant, label in LABELS.items():
        mine = {row["ratio"]: row for row in chosen if row["contestant"] == contestant}
        if mine:
            cells = [f"{mine[ratio]['auc']:.3f}" if ratio in mine else "" for ratio in ratios]
            last = mine[max(mine)]
            mark = "*" if "note" in last else ""
            lines.append(_line([label, str(len(last["seeds"])), *cells, f"{last['seconds']:.0f}{mark}"]))
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["rows"]
    unknown = sorted({row["contestant"] for row in rows} - LABELS.keys())
    if unknown:
        raise ValueError(f"No label for {unknown}.")
    tables = [table(rows, data, network) for network in NETWORKS for data in SETS]
    print("\n\n".join("\n".join(lines) for lines in tables if lines))


if __name__ == "__main__":
    main()
