"""Numbers and findings of a study as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Verdict",
    "auc_name",
    "auc_words",
    "beside_margin",
    "confidence_words",
    "count",
    "decimal",
    "difference_words",
    "duration",
    "estimate_words",
    "latency_words",
    "moment",
    "nothing_pruned",
    "number",
    "p_words",
    "percent",
    "plural",
    "reduction_words",
    "sentence",
    "setting_words",
    "several_classes",
    "shorten",
    "signed",
    "size_words",
    "target_words",
    "verdict",
]

MINUS = "\u2212"
# Keeps a number and its unit on one line.
_SPACE = "\u00a0"


@dataclass(frozen=True)
class Verdict:
    """What a study found, in one headline and a few sentences.

    Attributes:
        kind: ``"shown"``, ``"not shown"``, ``"worse"`` or ``"open"``.
        headline: a few words.
        sentences: the reasons, with their numbers.
    """

    kind: str
    headline: str
    sentences: tuple[str, ...]


def count(value: int) -> str:
    """Shorten a large count to three digits and a unit: ``6955906`` to ``6.96 M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999 950 would become "1000 k": it belongs to the next unit.
        if value >= limit * 0.9995 and value >= 10_000 * (unit == "k"):
            scaled = value / limit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{_SPACE}{unit}"
    return f"{value}"


def number(value: float) -> str:
    """Group the digits of a whole number: ``6955906`` to ``6 955 906`` (thin spaces), others as they are."""
    return f"{value:,}".replace(",", "\u2009") if isinstance(value, int) else f"{value:g}"


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, with more where it would falsely round to 100 %."""
    digits = 1
    while share < 1 and digits < 6 and round(share * 100, digits) >= 100:
        digits += 1
    return f"{_minus(f'{_no_negative_zero(share * 100, digits):.{digits}f}')}{_SPACE}%"


def target_words(share: float | None) -> str:
    """Return a share that was aimed at as a percentage with all its decimals, or a dash: 0.0625 is ``6.25 %``."""
    return "–" if share is None else f"{_minus(f'{100 * share:g}')}{_SPACE}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """Return an AUC with three decimals, or the words that stand for a missing one."""
    return "not computable" if value is None else _minus(f"{_no_negative_zero(value, digits):.{digits}f}")


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign."""
    rounded = _no_negative_zero(value, digits)
    return _minus(f"{rounded:+.{digits}f}") if rounded else f"{rounded:.{digits}f}"


def beside_margin(value: float | None, margin: float) -> str:
    """Return a difference with as many decimals as tell it from the margin, or a dash for None."""
    return "–" if value is None else signed(value, _digits(value, margin))


def confidence_words(record: Mapping[str, Any] | None) -> str:
    """Return ``"95 % interval"``, or ``"interval"`` where the record does not say at which confidence."""
    level = None if record is None else record.get("confidence")
    return "interval" if level is None else f"{100 * level:g}{_SPACE}% interval"


def auc_name(study: Mapping[str, Any]) -> str:
    """Return ``"AUC"``, or ``"mean AUC"`` where it is the mean over several classes or findings."""
    return "mean AUC" if several_classes(study) else "AUC"


def several_classes(study: Mapping[str, Any]) -> bool:
    """Tell whether a study is of more than two classes, or of findings that can occur together."""
    data = study["data"]
    return len(data["class_names"]) > 2 or data.get("label_kind") == "multi"


def auc_words(record: Mapping[str, Any]) -> str:
    """Return an AUC with its interval, or the statement why there is none."""
    if record["auc"] is None:
        return str(record["method"])
    if record["low"] is None:
        return f"{decimal(record['auc'])} (interval {record['method']})"
    return f"{decimal(record['auc'])} ({decimal(record['low'])} to {decimal(record['high'])})"


def difference_words(record: Mapping[str, Any] | None) -> str:
    """Return a difference of two AUCs with its interval, or the statement why there is none."""
    if record is None:
        return "not compared"
    if record["difference"] is None:
        return str(record["method"])
    if record["low"] is None:
        return f"{signed(record['difference'])} (interval {record['method']})"
    digits = _digits(record["low"], record["margin"])
    low, high = signed(record["low"], digits), signed(record["high"], digits)
    return f"{signed(record['difference'], digits)} ({low} to {high})"


def estimate_words(record: Mapping[str, Any]) -> str:
    """Return a number such as a sensitivity with its interval, or the statement why there is none."""
    if record["low"] is None:
        return f"{decimal(record['value'])} (interval {record['method'].rsplit('; ', 1)[-1]})"
    return f"{decimal(record['value'])} ({decimal(record['low'])} to {decimal(record['high'])})"


def p_words(value: float | None) -> str:
    """Return a p-value with three decimals, ``"< 0.001"`` below that, and a dash for None."""
    return "–" if value is None else f"<{_SPACE}0.001" if value < 0.001 else f"{value:.3f}"


def size_words(size: int | None) -> str:
    """Return a number of bytes with three digits and a unit."""
    return "not measured" if size is None else f"{count(size)}B" if size >= 10_000 else f"{size}{_SPACE}B"


def latency_words(record: Mapping[str, Any] | None) -> str:
    """Return the time of one forward pass with its spread."""
    if record is None:
        return "not measured"
    median, low, high = (f"{record[key]:.3g}" for key in ("median_ms", "low_ms", "high_ms"))
    return f"{median}{_SPACE}ms ({low} to {high})"


def reduction_words(share: float, what: str) -> str:
    """Return ``"90.1 % of the parameters were removed"``, or that nothing was, or that the network grew."""
    if share > 0:
        return f"{percent(share)} of the {what} were removed"
    return f"none of the {what} were removed" if share == 0 else f"the {what} grew by {percent(-share)}"


def plural(value: int | None, one: str, many: str) -> str:
    """Return ``"1 case"`` or ``"60 cases"``; ``"cases not known"`` for None."""
    return f"{many} not known" if value is None else f"{number(value)} {one if value == 1 else many}"


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def moment(created: str) -> str:
    """Return a time stamp without seconds: ``2026-11-21T05:00:00+00:00`` to ``2026-11-21 05:00 UTC``."""
    offset = "" if created.endswith(("Z", "+00:00")) else created[-6:]
    return f"{created[:10]} {created[11:16]} UTC{offset}"


def sentence(text: str) -> str:
    """Return a text with exactly one full stop at its end."""
    return f"{text.strip().rstrip('.')}."


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of a text that is too long for its place, so that its beginning and its end stay."""
    return text if len(text) <= limit else f"{text[: limit // 2]}\u2026{text[-(limit - limit // 2 - 1) :]}"


def setting_words(value: object) -> str:
    """Return a setting of a run, which may be a list or a table of others."""
    if isinstance(value, (list, tuple)):
        return ", ".join(setting_words(one) for one in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting_words(one)}" for key, one in value.items())
    return "none" if value is None else str(value)


def nothing_pruned(study: Mapping[str, Any]) -> bool:
    """Tell whether the network that was chosen is the unpruned one, so that there is no change to measure."""
    return bool(study["chosen"]["parameter_reduction"] <= 0 and study["chosen"]["mac_reduction"] <= 0)


def verdict(study: Mapping[str, Any]) -> Verdict:
    """Say whether the pruned network is shown to diagnose as well as the unpruned one, and from which data.

    Only the test set can show it: the validation set chose the network, so its AUC is optimistic.
    """
    if nothing_pruned(study):
        return Verdict(
            "open", "Nothing was pruned", (f"The chosen network is unpruned: {sentence(study['chosen']['reason'])}",)
        )
    test = study["test"]
    if test is None:
        return Verdict(
            "open",
            "Not tested",
            (
                "The study holds no test results, so it is not known whether the pruned network still diagnoses as "
                "well as the unpruned one. The validation AUC chose the network and is therefore optimistic.",
            ),
        )
    before, after = auc_words(test["original"]), auc_words(test["pruned"])
    if test["original"]["auc"] is None or test["pruned"]["auc"] is None:
        measured = f"AUC on the test set, before pruning: {before}; after pruning: {after}."
    else:
        measured = f"On the test set the {auc_name(study)} was {before} before pruning and {after} after it."
    difference = test["difference"]
    if difference is None or difference["low"] is None:
        reason = "the two networks were not compared" if difference is None else difference["method"]
        return Verdict(
            "open",
            "Non-inferiority not assessed",
            (measured, f"There is no interval of the change: {sentence(reason)}"),
        )
    digits = _digits(difference["low"], difference["margin"])
    margin = f"{difference['margin']:g}"
    interval = confidence_words(difference)
    change = f"The {auc_name(study)} changed by {difference_words(difference)}; the brackets hold the {interval}."
    low, high = signed(difference["low"], digits), signed(difference["high"], digits)
    if difference["non_inferior"]:
        found = f"The {interval} of the change reaches down to {low} only, so a loss of more than {margin} is excluded."
        if difference["high"] < 0:
            found += f" Yet the whole interval, up to {high}, lies below zero: the AUC did fall."
        return Verdict("shown", "Non-inferiority is shown", (measured, change, found))
    if difference["high"] < 0:
        found = (
            f"The whole {interval} of the change, up to {high}, lies below zero: the AUC is lower than before pruning."
        )
        return Verdict("worse", "The pruned network is worse", (measured, change, found))
    if difference["low"] < -difference["margin"]:
        found = (
            f"The {interval} of the change reaches {low}, beyond the margin of {margin}: "
            "a loss larger than the margin is not excluded."
        )
    else:
        found = f"The comparison ({difference['method']}) does not claim it for a margin of {margin}."
    return Verdict("not shown", "Non-inferiority is not shown", (measured, change, found))


def _digits(low: float | None, margin: float) -> int:
    """Return as many decimals as tell a bound from the margin; a bound of -0.0104 is not 'beyond 0.010'."""
    digits = 3
    while digits < 6 and low is not None and low != -margin and round(-low, digits) == round(margin, digits):
        digits += 1
    return digits


def _no_negative_zero(value: float, digits: int) -> float:
    rounded = round(value, digits)
    return 0.0 if rounded == 0 else math.copysign(abs(rounded), value)


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
