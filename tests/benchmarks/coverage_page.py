"""Writes the generated part of docs/coverage.md from docs/results/coverage.json."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from monai_basisprune.files import write_atomically

__all__ = ["table", "write_page"]

BEGIN, END = "<!-- results: written by tests/benchmarks/coverage.py -->", "<!-- end of results -->"
ALWAYS = ("decompose", "round trip", "half rank", "size", "recompose", "save and load")
EXPORTS = ("TorchScript", "torch.export", "ONNX")
PEER = "Torch-Pruning"
HEADINGS = {"Classifier": "Classifier, Regressor, Discriminator, Critic", "ViT": "ViT and other linear networks"}


def write_page(record: dict[str, Any], page: Path, missing: Sequence[str] = ()) -> None:
    """Put the results, and the names of rows that have none, between the two markers of a page.

    Raises:
        ValueError: if the page does not hold both markers.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} must hold the lines {BEGIN!r} and {END!r}; the results go between them.")
    write_atomically(page, f"{before}{BEGIN}\n\n{table(record, missing)}\n{END}{after}")


def table(record: dict[str, Any], missing: Sequence[str] = ()) -> str:
    """Return counts, one table for each family, and the reasons behind everything that is not "yes"."""
    rows = record["rows"]
    found = {row["name"]: {finding["claim"]: finding for finding in row["findings"]} for row in rows}
    passed = sum(all(f["state"] != "fail" for f in findings.values()) for findings in found.values())
    pruned = sum(findings[PEER]["state"] == "prunes" for findings in found.values())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    minutes = sum(row["seconds"] for row in rows) / 60
    lines = [
        f"**{passed} of {len(rows)} networks pass everything that applies to them. Torch-Pruning prunes {pruned} of "
        f"the same {len(rows)}.**",
        "",
        f"`{record['command']}`, {minutes:.0f} minutes, all rows added up. {versions}.",
    ]
    if missing:
        lines += ["", f"{len(missing)} further networks have not been run: {', '.join(missing)}."]
    reasons: list[str] = []
    for family, members in groupby(rows, key=lambda row: row["family"]):
        lines += ["", f"### {HEADINGS.get(family, family)}", ""]
        heads = ("Network", "Parameters", "After", "Largest error", "Exact", *EXPORTS, PEER)
        lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        lines += [_line(row["name"], found[row["name"]], reasons) for row in members]
    if reasons:
        lines += ["", "### Why not", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines) + "\n"


def _line(name: str, findings: dict[str, dict[str, Any]], reasons: list[str]) -> str:
    size = findings["size"]["figures"]
    errors = [
        value
        for claim in ("decompose", "round trip", "recompose")
        for key, value in findings[claim]["figures"].items()
        if key == "relative_error"
    ]
    broken = [findings[claim] for claim in ALWAYS if findings[claim]["state"] != "pass"]
    why = "; ".join(f"{finding['claim']}: {finding['reason']}" for finding in broken)
    cells = [
        name,
        _millions(size.get("parameters")),
        _millions(size.get("parameters_left")),
        f"{max(errors):.0e}" if errors else "",
        "**no**" + _note(why, reasons) if broken else "yes",
        *(_cell(findings[claim], reasons) for claim in EXPORTS),
        _cell(findings[PEER], reasons),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(finding: dict[str, Any], reasons: list[str]) -> str:
    words = {"pass": "yes", "prunes": "prunes", "fail": "**no**", "not applicable": "–"}
    return words.get(finding["state"], finding["state"]) + _note(finding["reason"], reasons)


def _note(reason: str | None, reasons: list[str]) -> str:
    """Return a footnote's number; equal reasons share one."""
    if reason is None:
        return ""
    reason = reason.replace("|", "\\|").replace("<", "&lt;")
    if reason not in reasons:
        reasons.append(reason)
    return f" ({reasons.index(reason) + 1})"


def _millions(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:.2f} M"
