"""The numbers of a study as CSV, and its findings as a short table for the terminal."""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import write_atomically
from monai_basisprune.report.study import validate_study
from monai_basisprune.report.wording import (
    MINUS,
    auc_name,
    auc_words,
    confidence_words,
    count,
    difference_words,
    estimate_words,
    nothing_pruned,
    percent,
    sentence,
    verdict,
)

__all__ = [
    "CLASS_COLUMNS",
    "CURVE_COLUMNS",
    "SUBGROUP_COLUMNS",
    "format_summary",
    "write_classes_csv",
    "write_csv",
    "write_curve_csv",
    "write_reliability_csv",
    "write_roc_csv",
    "write_subgroups_csv",
]

CURVE_COLUMNS = (
    "round", "epoch", "target", "parameters", "macs", "bases", "parameter_reduction", "mac_reduction",
    "auc", "auc_low", "auc_high", "auc_confidence", "auc_method",
    "cases", "patients", "positive_cases", "positive_patients",
    "difference", "difference_low", "difference_high", "difference_margin", "non_inferior", "difference_method",
    "adjusted_p_value", "chosen",
)  # fmt: skip
SUBGROUP_COLUMNS = (
    "attribute", "value", "cases", "positive_cases", "patients",
    "original_auc", "original_low", "original_high", "pruned_auc", "pruned_low", "pruned_high",
    "difference", "difference_low", "difference_high", "difference_margin", "non_inferior", "difference_method",
    "adjusted_p_value", "reason",
)  # fmt: skip

CLASS_COLUMNS = (
    "class", "cases", "positive_cases",
    "original_auc", "original_low", "original_high", "pruned_auc", "pruned_low", "pruned_high",
    "difference", "difference_low", "difference_high", "difference_margin", "non_inferior", "difference_method",
    "adjusted_p_value", "reason",
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
    rows = []
    for point in study["curve"]:
        auc = point["auc"]
        row = {key: point[key] for key in CURVE_COLUMNS[:8]}
        row |= {"auc": auc["auc"]} | {f"auc_{key}": auc[key] for key in ("low", "high", "confidence", "method")}
        row |= {key: auc[key] for key in ("cases", "patients", "positive_cases", "positive_patients")}
        row |= _difference_cells(point["difference"])
        row["adjusted_p_value"] = point.get("adjusted_p_value")
        row["chosen"] = point["round"] == study["chosen"]["round"]
        rows.append(row)
    return write_csv(path, CURVE_COLUMNS, rows)


def write_roc_csv(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the points of both ROC curves on the test set as CSV.

    Args:
        study: the study record.
        path: the file to write.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid or holds no ROC curves.
    """
    curves = _of_test(study, "roc")
    rows = [
        {"network": name, "false_positive_rate": fpr, "true_positive_rate": tpr}
        for name in ("original", "pruned")
        for fpr, tpr in zip(curves[name]["fpr"], curves[name]["tpr"], strict=True)
    ]
    return write_csv(path, ("network", "false_positive_rate", "true_positive_rate"), rows)


def write_reliability_csv(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the reliability diagram of both networks on the test set as CSV: one line for each bin with cases.

    Args:
        study: the study record.
        path: the file to write.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid or holds no calibration.
    """
    columns = ("lower_edges", "upper_edges", "cases", "mean_probability", "positive_fraction")
    calibration = _of_test(study, "calibration")
    rows = [
        {"network": name, **dict(zip(columns, values, strict=True))}
        for name in ("original", "pruned")
        for values in zip(*(calibration[name]["points"][column] for column in columns), strict=True)
    ]
    return write_csv(path, ("network", *columns), rows)


def write_subgroups_csv(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the AUCs of both networks in each group of patients as CSV, empty where not computable.

    Args:
        study: the study record.
        path: the file to write.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid or holds no audit.
    """
    validate_study(study)
    if study["audit"] is None:
        raise ConfigurationError("A table of groups was asked for, but the study record holds no audit.")
    rows = []
    for group in study["audit"]["subgroups"]:
        row = {key: group[key] for key in SUBGROUP_COLUMNS[:5]}
        rows.append(row | _comparison_cells(group))
    return write_csv(path, SUBGROUP_COLUMNS, rows)


def write_classes_csv(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the AUCs of both networks for each class against the rest as CSV, empty where not computable.

    Args:
        study: the study record.
        path: the file to write.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid or holds no AUCs of classes.
    """
    rows = [
        {"class": one["name"], "cases": one["cases"], "positive_cases": one["positive_cases"]} | _comparison_cells(one)
        for one in _of_test(study, "classes")
    ]
    return write_csv(path, CLASS_COLUMNS, rows)


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as CSV, with true and false in lower case, as in the JSON record, and None as nothing.

    Args:
        path: the file to write.
        columns: names of the columns.
        rows: the values of each line by column.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()})
    return write_atomically(path, stream.getvalue())


def _comparison_cells(record: Mapping[str, Any]) -> dict[str, Any]:
    cells = {key: record[key] for key in ("adjusted_p_value", "reason")}
    for name in ("original", "pruned"):
        cells |= {f"{name}_{key}": (record[name] or {}).get(key) for key in ("auc", "low", "high")}
    return cells | _difference_cells(record["difference"])


def _difference_cells(record: Mapping[str, Any] | None) -> dict[str, Any]:
    record = record or {}
    cells = {key: record.get(key) for key in ("difference", "non_inferior")}
    return cells | {f"difference_{key}": record.get(key) for key in ("low", "high", "margin", "method")}


def _of_test(study: Mapping[str, Any], key: str) -> Any:
    validate_study(study)
    part = (study["test"] or {}).get(key)
    if not part:
        raise ConfigurationError(f"A table was asked for, but the study record holds no 'test.{key}'.")
    return part


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
        (f"{auc_name(study)}, validation", auc_words(unpruned["auc"]), auc_words(pruned["auc"])),
    ]
    if test is not None:
        rows.append((f"{auc_name(study)}, test", auc_words(test["original"]), auc_words(test["pruned"])))
        if test.get("accuracy"):
            before, after = (estimate_words(test["accuracy"][name]) for name in ("original", "pruned"))
            rows.append(("accuracy, test", before, after))
    narrow = all(len(before) <= 30 and len(after) <= 34 for _, before, after in rows)
    for name, before, after in rows:
        if narrow:
            yield f"  {name[:20]:<20}  {before:<30}  {after}".rstrip()
        else:
            yield from _wrap(f"{name}: {before} -> {after}", "  ")
    if test is not None:
        change = "none: it is the same network" if nothing_pruned(study) else difference_words(test["difference"])
        yield from _wrap(f"{'AUC change, test':<20}  {change}", "  ")
        yield f"  (in brackets: {confidence_words(test['pruned'])}s)"
    found = verdict(study)
    yield ""
    yield from _wrap(f"{found.headline}. {found.sentences[-1]}")
    if not nothing_pruned(study):
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
