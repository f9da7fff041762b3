"""Contradictions inside a study record that a schema cannot see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["find_contradictions", "interval_problems"]

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
        yield from interval_problems(point["auc"], "auc", f"$.curve[{index}].auc")
        yield from _difference(point["difference"], f"$.curve[{index}].difference")
        yield from _change(point["difference"], unpruned, point["auc"]["auc"], f"$.curve[{index}].difference")
        p_value = (point["difference"] or {}).get("p_value")
        yield from _adjusted(point.get("adjusted_p_value"), p_value, f"$.curve[{index}]")
    yield from _chosen(study["chosen"], curve)
    yield from _splits(study["data"])
    for index, layer in enumerate(study["layers"]):
        yield from _layer(layer, f"$.layers[{index}]")
    if study["test"] is not None:
        yield from _test(study["test"])
        yield from _classes(study["test"], study["data"])
        if "test" not in study["data"]["splits"]:
            yield "$.data.splits: there are test results, but no split named 'test'"
    if study["audit"] is not None:
        yield from _audit(study["audit"], study["test"], len(study["data"]["class_names"]))
    for index, step in enumerate((study["search"] or {}).get("steps", ())):
        if step["low"] is not None and (step["difference"] is None or step["low"] > step["difference"] + _ROUNDING):
            yield f"$.search.steps[{index}].low: {step['low']:.6g} is above the difference, {step['difference']}"
    for name in ("network", "chosen"):
        latency = study[name].get("latency")
        if latency and not latency["low_ms"] <= latency["median_ms"] <= latency["high_ms"]:
            yield f"$.{name}.latency: the median, {latency['median_ms']:.6g} ms, lies outside low_ms and high_ms"


def _reductions(point: Mapping[str, Any], network: Mapping[str, Any], path: str) -> Iterator[str]:
    for reduction, count in (("parameter_reduction", "parameters"), ("mac_reduction", "macs")):
        expected = 1 - point[count] / network[count]
        if abs(point[reduction] - expected) > _SHARE_TOLERANCE:
            yield (
                f"{path}.{reduction}: {point[reduction]:.6g} does not agree with {point[count]} of "
                f"{network[count]} {count}, which is {expected:.6g}"
            )


def interval_problems(record: Mapping[str, Any], name: str, path: str) -> Iterator[str]:
    """Yield one line for each contradiction between a value, its interval and its method.

    Args:
        record: holds the value, ``low``, ``high`` and ``method``.
        name: key of the value.
        path: JSON path of the record.
    """
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
    yield from interval_problems(record, "difference", path)
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
        if data.get("label_kind") == "multi":
            if any(count > split["cases"] for count in split["cases_by_class"]):
                yield f"{path}.cases_by_class: a finding is in more cases than the {split['cases']} that there are"
        elif sum(split["cases_by_class"]) != split["cases"]:
            yield f"{path}.cases_by_class: sums to {sum(split['cases_by_class'])}, but there are {split['cases']} cases"
        if split["patients"] is not None and split["patients"] > split["cases"]:
            yield f"{path}.patients: {split['patients']} patients, but only {split['cases']} cases"


def _layer(layer: Mapping[str, Any], path: str) -> Iterator[str]:
    rank, max_rank = layer["rank"], layer["max_rank"]
    if layer["skipped"] is None and (rank is None or max_rank is None):
        yield f"{path}: rank or max_rank of {layer['name']!r} is null, but 'skipped' gives no reason"
    if rank is not None and max_rank is not None and rank > max_rank:
        yield f"{path}.rank: {rank} is above max_rank, {max_rank}"
    channels, max_channels = layer.get("channels"), layer.get("max_channels")
    if (channels is None) != (max_channels is None):
        yield f"{path}: only one of channels and max_channels is given"
    elif channels is not None and channels > max_channels:
        yield f"{path}.channels: {channels} is above max_channels, {max_channels}"


def _test(test: Mapping[str, Any]) -> Iterator[str]:
    for name in ("original", "pruned"):
        yield from interval_problems(test[name], "auc", f"$.test.{name}")
    yield from _difference(test["difference"], "$.test.difference")
    yield from _change(test["difference"], test["original"]["auc"], test["pruned"]["auc"], "$.test.difference")
    for name, roc in (test.get("roc") or {}).items():
        path = f"$.test.roc.{name}"
        if len(roc["fpr"]) != len(roc["tpr"]):
            yield f"{path}: {len(roc['fpr'])} values of fpr, but {len(roc['tpr'])} of tpr"
        for axis in ("fpr", "tpr"):
            if any(after < before for before, after in pairwise(roc[axis])):
                yield f"{path}.{axis}: the values must never fall from one to the next"
    for name, part in (test.get("calibration") or {}).items():
        yield from _calibration(part, test["pruned"]["cases"], f"$.test.calibration.{name}")
    point = test.get("operating_point") or {}
    for name in ("original", "pruned") if point else ():
        path, own = f"$.test.operating_point.{name}", point[name]
        yield from _estimate(own, path)
        if own["specificity"] != point["specificity"] or own["attained_specificity"] < own["specificity"] - _ROUNDING:
            yield (
                f"{path}: a specificity of {point['specificity']:.6g} was asked for, but the sensitivity is given for "
                f"{own['specificity']:.6g}, of which {own['attained_specificity']:.6g} is attained"
            )


def _classes(test: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    found = test.get("classes")
    if not found:
        if len(data["class_names"]) > 2 or data.get("label_kind") == "multi":
            yield "$.test.classes: there are several classes, so the AUC of each must be given"
        return
    if [one["name"] for one in found] != list(data["class_names"]):
        yield "$.test.classes: the names must be those of $.data.class_names, in their order"
    for index, one in enumerate(found):
        path = f"$.test.classes[{index}]"
        if one["cases"] != test["pruned"]["cases"] or one["positive_cases"] > one["cases"]:
            yield f"{path}: {one['positive_cases']} of {one['cases']} cases, the test set has {test['pruned']['cases']}"
        computed = [one[name] is not None for name in ("original", "pruned", "difference")]
        if any(computed) != all(computed) or any(computed) == (one["reason"] is not None):
            yield f"{path}.reason: must say why nothing was computed, and be null where all of it was"
        if all(computed):
            for name in ("original", "pruned"):
                yield from interval_problems(one[name], "auc", f"{path}.{name}")
            yield from _difference(one["difference"], f"{path}.difference")
            yield from _change(one["difference"], one["original"]["auc"], one["pruned"]["auc"], f"{path}.difference")
        p_value = (one["difference"] or {}).get("p_value_difference")
        yield from _adjusted(one["adjusted_p_value"], p_value, path)
    for name in ("original", "pruned"):
        known = [one[name]["auc"] for one in found if one[name] is not None]
        if len(known) == len(found) and abs(sum(known) / len(known) - test[name]["auc"]) > _AUC_TOLERANCE:
            yield f"$.test.{name}.auc: {test[name]['auc']:.6g} is not the mean of the AUCs of the classes"
        if test.get("accuracy"):
            yield from _estimate(test["accuracy"][name], f"$.test.accuracy.{name}")


def _adjusted(adjusted: float | None, p_value: float | None, path: str) -> Iterator[str]:
    if adjusted is not None and (p_value is None or adjusted < p_value - _ROUNDING):
        before = "there is none" if p_value is None else f"it is {p_value:.6g}"
        yield f"{path}.adjusted_p_value: {adjusted:.6g} is smaller than the p-value before correction: {before}"


def _estimate(record: Mapping[str, Any], path: str) -> Iterator[str]:
    low, high = record["low"], record["high"]
    if low is None or high is None:
        if "not computable" not in record["method"]:
            yield f"{path}.method: there is no interval, so this must hold 'not computable' and say why"
    elif not low - _ROUNDING <= record["value"] <= high + _ROUNDING:
        yield f"{path}: value {record['value']:.6g} lies outside its own interval, {low:.6g} to {high:.6g}"


def _calibration(part: Mapping[str, Any], cases: int, path: str) -> Iterator[str]:
    for name in ("brier", "calibration_error"):
        yield from _estimate(part[name], f"{path}.{name}")
    points = part["points"]
    lengths = {name: len(values) for name, values in points.items()}
    if len(set(lengths.values())) > 1:
        yield f"{path}.points: all lists must be equally long, found {lengths}"
    if sum(points["cases"]) != cases:
        yield f"{path}.points.cases: sums to {sum(points['cases'])}, but the test set holds {cases} cases"


def _audit(audit: Mapping[str, Any], test: Mapping[str, Any] | None, classes: int) -> Iterator[str]:
    if test is None:
        yield "$.audit: there is an audit, but no test results"
    sums: dict[str, int] = {}
    for index, group in enumerate(audit["subgroups"]):
        path = f"$.audit.subgroups[{index}]"
        sums[group["attribute"]] = sums.get(group["attribute"], 0) + group["cases"]
        if max(group["positive_cases"], group["patients"] or 0) > group["cases"]:
            yield f"{path}: more positive cases or patients than the {group['cases']} cases"
        computed = [group[name] is not None for name in ("original", "pruned", "difference")]
        if any(computed) and not all(computed):
            yield f"{path}: only some of original, pruned and difference are null"
        if any(computed) == (group["reason"] is not None):
            yield f"{path}.reason: must say why nothing was computed, and be null where something was"
        if all(computed):
            for name in ("original", "pruned"):
                yield from interval_problems(group[name], "auc", f"{path}.{name}")
            yield from _difference(group["difference"], f"{path}.difference")
            before, after = group["original"]["auc"], group["pruned"]["auc"]
            yield from _change(group["difference"], before, after, f"{path}.difference")
        p_value = (group["difference"] or {}).get("p_value_difference")
        yield from _adjusted(group["adjusted_p_value"], p_value, path)
    for attribute, cases in sums.items():
        if test is not None and cases != test["pruned"]["cases"]:
            yield (
                f"$.audit.subgroups: the groups by {attribute!r} hold {cases} cases, the test set "
                f"{test['pruned']['cases']}"
            )
    changed = audit["changed_cases"]
    changes = [abs(case["pruned"] - case["original"]) for case in changed]
    if any(later > earlier + _ROUNDING for earlier, later in pairwise(changes)):
        yield "$.audit.changed_cases: the largest change must come first"
    if len({case["case_id"] for case in changed}) < len(changed):
        yield "$.audit.changed_cases: each case must occur once"
    for index, case in enumerate(changed):
        path = f"$.audit.changed_cases[{index}]"
        if case["label"] >= classes:
            yield f"{path}.label: {case['label']} is not the index of one of {classes} classes"
        if (case["activation_layer"] is None) == (case["reason"] is None):
            yield f"{path}.reason: must say why there is no class activation map, and be null where there is one"
