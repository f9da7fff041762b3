"""Contradictions inside a study record that a schema cannot see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["find_contradictions"]

# Writers may round a share to four decimals; a wrong denominator is off by far more.
_SHARE_TOLERANCE = 5e-4
_AUC_TOLERANCE = 2e-3
_ROUNDING = 1e-9


def find_contradictions(study: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line, with a JSON path, for each pair of numbers in a study record that cannot both be true.

    Args:
        study: a study record that satisfies the schema.
    """
    network, curve = study["network"], study["curve"]
    unpruned = min(curve, key=lambda point: point["round"])["auc"]["auc"]
    for index, point in enumerate(curve):
        yield from _reductions(point, network, f"$.curve[{index}]")
        yield from _interval(point["auc"], "auc", f"$.curve[{index}].auc")
        yield from _difference(point["difference"], f"$.curve[{index}].difference")
        yield from _change(point["difference"], unpruned, point["auc"]["auc"], f"$.curve[{index}].difference")
    yield from _chosen(study["chosen"], curve)
    yield from _splits(study["data"])
    for index, layer in enumerate(study["layers"]):
        yield from _layer(layer, f"$.layers[{index}]")
    if study["test"] is not None:
        yield from _test(study["test"])
        if "test" not in study["data"]["splits"]:
            yield "$.data.splits: there are test results, but no split named 'test'"


def _reductions(point: Mapping[str, Any], network: Mapping[str, Any], path: str) -> Iterator[str]:
    for reduction, count in (("parameter_reduction", "parameters"), ("mac_reduction", "macs")):
        expected = 1 - point[count] / network[count]
        if abs(point[reduction] - expected) > _SHARE_TOLERANCE:
            yield (
                f"{path}.{reduction}: {point[reduction]:.6g} does not agree with {point[count]} of "
                f"{network[count]} {count}, which is {expected:.6g}"
            )


def _interval(record: Mapping[str, Any], name: str, path: str) -> Iterator[str]:
    value, low, high = record[name], record["low"], record["high"]
    if value is None and (low is not None or high is not None):
        yield f"{path}: there is an interval, but {name} is null"
    if (low is None) != (high is None):
        yield f"{path}: only one of low and high is null"
    if value is None or low is None or high is None:
        if not record["method"].startswith("not computable"):
            yield f"{path}.method: a value is null, so this must begin with 'not computable' and say why"
    elif not low - _ROUNDING <= value <= high + _ROUNDING:
        yield f"{path}: {name} {value:.6g} lies outside its own interval, {low:.6g} to {high:.6g}"


def _difference(record: Mapping[str, Any] | None, path: str) -> Iterator[str]:
    if record is None:
        return
    yield from _interval(record, "difference", path)
    low, margin = record["low"], record["margin"]
    if record["non_inferior"] and (low is None or low <= -margin):
        reach = "there is no interval" if low is None else f"the interval reaches {low:.6g}"
        yield f"{path}.non_inferior: true is claimed for a margin of {margin:.6g}, but {reach}"


def _change(record: Mapping[str, Any] | None, before: Any, after: Any, path: str) -> Iterator[str]:
    if record is None or record["difference"] is None:
        return
    if before is None or after is None:
        yield f"{path}.difference: there is a difference, but one of the two AUCs is null"
    elif abs(record["difference"] - (after - before)) > _AUC_TOLERANCE:
        yield (
            f"{path}.difference: {record['difference']:.6g} is not the AUC of the pruned network minus that of the "
            f"unpruned one, which is {after - before:.6g}"
        )


def _chosen(chosen: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rounds = [point["round"] for point in curve]
    if len(set(rounds)) < len(rounds):
        yield f"$.curve: each round must occur once; found {rounds}"
    first = min(curve, key=lambda point: point["round"])
    if first["parameter_reduction"] > _SHARE_TOLERANCE or first["mac_reduction"] > _SHARE_TOLERANCE:
        yield (
            f"$.curve: the first round, {first['round']}, must be the unpruned network, since all others are compared "
            f"with it; found parameter_reduction {first['parameter_reduction']:.6g}"
        )
    for point in curve:
        if point["round"] == chosen["round"]:
            for name in ("parameters", "macs", "parameter_reduction", "mac_reduction"):
                if abs(chosen[name] - point[name]) > _ROUNDING:
                    yield f"$.chosen.{name}: {chosen[name]} differs from {point[name]} in round {chosen['round']}"
            return
    yield f"$.chosen.round: {chosen['round']} is not a round of the curve; found {rounds}"


def _splits(data: Mapping[str, Any]) -> Iterator[str]:
    classes = len(data["class_names"])
    for name, split in data["splits"].items():
        path = f"$.data.splits.{name}"
        for key in ("cases_by_class", "patients_by_class"):
            if split[key] is not None and len(split[key]) != classes:
                yield f"{path}.{key}: {len(split[key])} numbers for {classes} classes"
        if sum(split["cases_by_class"]) != split["cases"]:
            yield f"{path}.cases_by_class: sums to {sum(split['cases_by_class'])}, but there are {split['cases']} cases"
        if split["patients"] is not None and split["patients"] > split["cases"]:
            yield f"{path}.patients: {split['patients']} patients, but only {split['cases']} cases"


def _layer(layer: Mapping[str, Any], path: str) -> Iterator[str]:
    rank, max_rank = layer["rank"], layer["max_rank"]
    if layer["skipped"] is None and (rank is None or max_rank is None):
        yield f"{path}: rank or max_rank of {layer['name']!r} is null, but 'skipped' gives no reason"
    if rank is not None and max_rank is not None and rank > max_rank:
        yield f"{path}.rank: {rank} is above max_rank, {max_rank}"


def _test(test: Mapping[str, Any]) -> Iterator[str]:
    for name in ("original", "pruned"):
        yield from _interval(test[name], "auc", f"$.test.{name}")
    yield from _difference(test["difference"], "$.test.difference")
    yield from _change(test["difference"], test["original"]["auc"], test["pruned"]["auc"], "$.test.difference")
    for name, roc in (test.get("roc") or {}).items():
        path = f"$.test.roc.{name}"
        if len(roc["fpr"]) != len(roc["tpr"]):
            yield f"{path}: {len(roc['fpr'])} values of fpr, but {len(roc['tpr'])} of tpr"
        for axis in ("fpr", "tpr"):
            if any(after < before for before, after in pairwise(roc[axis])):
                yield f"{path}.{axis}: the values must never fall from one to the next"
