"""The pruning curve as CSV, and a study as a short table for the terminal."""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_basisprune.files import write_atomically
from monai_basisprune.report.study import validate_study
from monai_basisprune.report.wording import (
    MINUS,
    auc_words,
    confidence_words,
    count,
    difference_words,
    percent,
    sentence,
    verdict,
)

__all__ = ["CURVE_COLUMNS", "format_summary", "write_curve_csv"]

CURVE_COLUMNS = (
    "round", "epoch", "target", "parameters", "macs", "bases", "parameter_reduction", "mac_reduction",
    "auc", "auc_low", "auc_high", "auc_confidence", "auc_method",
    "cases", "patients", "positive_cases", "positive_patients",
    "difference", "difference_low", "difference_high", "difference_margin", "non_inferior", "difference_method",
    "chosen",
)  # fmt: skip

_WIDTH = 88


def write_curve_csv(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the pruning curve as CSV: one line for each round, numbers at full precision, empty where unknown.

    Args:
        study: the study record.
        path: the file to write.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid, see :func:`validate_study`.
    """
    validate_study(study)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for point in study["curve"]:
        auc, difference = point["auc"], point["difference"] or {}
        row = {key: point[key] for key in CURVE_COLUMNS[:8]}
        row |= {"auc": auc["auc"]} | {f"auc_{key}": auc[key] for key in ("low", "high", "confidence", "method")}
        row |= {key: auc[key] for key in ("cases", "patients", "positive_cases", "positive_patients")}
        row |= {key: difference.get(key) for key in ("difference", "non_inferior")}
        row |= {f"difference_{key}": difference.get(key) for key in ("low", "high", "margin", "method")}
        row["chosen"] = point["round"] == study["chosen"]["round"]
        # Lower-case true and false, as in the JSON record that the table comes from.
        writer.writerow({key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()})
    return write_atomically(path, stream.getvalue())


def format_summary(study: Mapping[str, Any]) -> str:
    """Return the findings of a study as a short plain-text table, about 90 columns wide.

    Args:
        study: the study record.

    Returns:
        Several lines without a newline at the end.

    Raises:
        ConfigurationError: if the record is not valid, see :func:`validate_study`.

    Example:
        >>> print(format_summary(load_study("study.json")))  # doctest: +SKIP
    """
    validate_study(study)
    text = "\n".join(_summary_lines(study))
    # Terminals of scanners and clusters may know ASCII only, and a name in a record must not steer the terminal.
    for character, plain in ((MINUS, "-"), ("\u2009", " "), ("\u00a0", " "), ("\u2026", "...")):
        text = text.replace(character, plain)
    return "".join(character for character in text if character == "\n" or character.isprintable())


def _summary_lines(study: Mapping[str, Any]) -> Iterator[str]:
    chosen, network, test = study["chosen"], study["network"], study["test"]
    yield from _wrap(study["title"])
    if study["data"]["synthetic"]:
        yield "SYNTHETIC DATA: these numbers say nothing about patients."
    yield ""
    unpruned = min(study["curve"], key=lambda point: point["round"])
    pruned = next(point for point in study["curve"] if point["round"] == chosen["round"])
    rows = [
        (network["name"], "before", "after"),
        ("parameters", count(network["parameters"]), _after(chosen, "parameters", "parameter_reduction")),
        ("MACs for one input", count(network["macs"]), _after(chosen, "macs", "mac_reduction")),
        ("AUC, validation", auc_words(unpruned["auc"]), auc_words(pruned["auc"])),
    ]
    if test is not None:
        rows.append(("AUC, test", auc_words(test["original"]), auc_words(test["pruned"])))
    narrow = all(len(before) <= 30 and len(after) <= 34 for _, before, after in rows)
    for name, before, after in rows:
        if narrow:
            yield f"  {name[:20]:<20}  {before:<30}  {after}".rstrip()
        else:
            yield from _wrap(f"{name}: {before} -> {after}", "  ")
    if test is not None:
        yield from _wrap(f"{'AUC change, test':<20}  {difference_words(test['difference'])}", "  ")
        yield f"  (in brackets: {confidence_words(test['pruned'])}s)"
    found = verdict(study)
    yield ""
    yield from _wrap(f"{found.headline}. {found.sentences[-1]}")
    yield from _wrap(f"Round {chosen['round']} was chosen on the validation set: {sentence(chosen['reason'])}")
    for warning in study["warnings"]:
        yield from _wrap(f"Warning: {warning}")
    if study["files"]:
        yield ""
        longest = max(len(name) for name in study["files"])
        yield from (f"  {name:<{longest}}  {path}" for name, path in study["files"].items())


def _after(chosen: Mapping[str, Any], key: str, reduction: str) -> str:
    return f"{count(chosen[key])} ({percent(chosen[reduction])} removed)"


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent) or [""]
