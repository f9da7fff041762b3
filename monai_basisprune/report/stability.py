"""Repeats of one study, on one page: how much the curve, the choice and the kept bases depend on chance."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monai_basisprune.files import write_atomically
from monai_basisprune.report.consistency import interval_problems
from monai_basisprune.report.curves import auc_axis, reduction_axis, stretch
from monai_basisprune.report.figures import save_figure
from monai_basisprune.report.records import check_record
from monai_basisprune.report.rendering import picture_pair, render
from monai_basisprune.report.style import FAINT, INK, PALETTE, new_figure, style_axes, style_legend
from monai_basisprune.report.tables import write_csv
from monai_basisprune.report.wording import percent, plural

__all__ = ["STABILITY_COLUMNS", "band_figure", "validate_stability", "write_stability"]

STABILITY_COLUMNS = (
    "seed", "fold", "folds", "target", "parameter_reduction", "validation_auc",
    "chosen", "chosen_reduction", "chosen_parameters", "test_auc", "test_difference",
    "test_low", "test_high", "test_confidence", "margin", "non_inferior",
)  # fmt: skip
_SHARE = 1e-9


def write_stability(stability: Mapping[str, Any], folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write the repeats of a study as ``stability.html``, ``stability.csv`` and ``stability.svg``.

    Args:
        stability: the record of the repeats, see ``report/templates/stability.schema.json``.
        folder: folder to write to; it is made if it is missing.

    Returns:
        The paths, under the keys ``stability_html``, ``stability_csv`` and ``stability_svg``.

    Raises:
        ConfigurationError: if the record is not valid; every problem is listed and nothing is written.
    """
    validate_stability(stability)
    place = Path(folder)
    known = [layer for layer in stability["overlap"] if layer["jaccard"] is not None]
    # a layer that keeps all bases in all repeats says nothing about which ones are kept
    cut = [layer for layer in known if layer["by_chance"] is not None and layer["by_chance"] < 1 - _SHARE]
    tested = [repeat for repeat in stability["repeats"] if repeat["non_inferior"] is not None]
    page = render(
        "stability.html",
        stability=stability,
        curve=picture_pair(lambda small: band_figure(stability, narrow=small), "band"),
        overlap=picture_pair(lambda small: _overlap_figure(known, narrow=small), "overlap") if known else None,
        known=len(known),
        cut=len(cut),
        mean_overlap=fmean(layer["jaccard"] for layer in cut) if cut else None,
        mean_chance=fmean(layer["by_chance"] for layer in cut) if cut else None,
        tested=tested,
        shown=sum(repeat["non_inferior"] for repeat in tested),
        folds=stability["repeats"][0]["folds"],
    )
    return {
        "stability_csv": write_csv(place / "stability.csv", STABILITY_COLUMNS, _rows(stability)),
        "stability_svg": save_figure(band_figure(stability), place / "stability.svg"),
        "stability_html": write_atomically(place / "stability.html", page),
    }


def validate_stability(stability: Mapping[str, Any]) -> None:
    """Check that a record of repeats is complete, holds only plain finite numbers, and does not contradict itself.

    Args:
        stability: the record; it is not changed.

    Raises:
        ConfigurationError: if anything is wrong; the message lists every problem with its JSON path.
    """
    check_record(stability, "the stability record", "stability.schema.json", _contradictions)


def _contradictions(stability: Mapping[str, Any]) -> Iterator[str]:
    repeats = [(repeat["seed"], repeat["fold"]) for repeat in stability["repeats"]]
    if len(set(repeats)) < len(repeats):
        yield "$.repeats: each pair of seed and fold must occur once"
    for index, repeat in enumerate(stability["repeats"]):
        record = {"difference": repeat["test_difference"], "low": repeat["test_low"], "high": repeat["test_high"]}
        if None not in record.values():
            yield from interval_problems(record, "difference", f"$.repeats[{index}]")
        if repeat["non_inferior"] and (repeat["test_low"] is None or repeat["test_low"] <= -(repeat["margin"] or 0)):
            yield f"$.repeats[{index}].non_inferior: true is claimed, but the interval does not show it"
    for index, point in enumerate(stability["band"]):
        path = f"$.band[{index}]"
        if point["repeats"] > len(repeats):
            yield f"{path}.repeats: {point['repeats']}, but there are {len(repeats)} repeats"
        low, mean, high = point["low"], point["mean"], point["high"]
        if (low is None) != (high is None) or (mean is None and low is not None):
            yield f"{path}: only some of low, mean and high are null"
        elif mean is not None and low is not None and not low - _SHARE <= mean <= high + _SHARE:
            yield f"{path}.mean: {mean:.6g} lies outside {low:.6g} to {high:.6g}"
    chosen = sorted(repeat["chosen_reduction"] for repeat in stability["repeats"])
    for name, value in (("minimum", chosen[0]), ("maximum", chosen[-1])):
        if abs(stability["chosen"][name] - value) > _SHARE:
            yield f"$.chosen.{name}: {stability['chosen'][name]:.6g}, but the repeats say {value:.6g}"
    if not chosen[0] - _SHARE <= stability["chosen"]["median"] <= chosen[-1] + _SHARE:
        yield "$.chosen.median: lies outside minimum and maximum"
    for index, layer in enumerate(stability["overlap"]):
        if (layer["jaccard"] is None) != (layer["reason"] is not None):
            yield f"$.overlap[{index}].reason: must say why there is no overlap, and be null where there is one"
    if stability["pooled"] is not None:
        for name, value in (("original", "auc"), ("pruned", "auc"), ("difference", "difference")):
            yield from interval_problems(stability["pooled"][name], value, f"$.pooled.{name}")


def _rows(stability: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for repeat in stability["repeats"]:
        own = {key: value for key, value in repeat.items() if key != "curve"}
        for point in repeat["curve"]:
            yield {
                **own,
                "target": point["target"],
                "parameter_reduction": point["parameter_reduction"],
                "validation_auc": point["auc"],
                "chosen": abs(point["parameter_reduction"] - repeat["chosen_reduction"]) < _SHARE,
            }


def band_figure(stability: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the curves of all repeats, with their band and mean, as a figure; narrow for a telephone."""
    figure = new_figure(3.7 if narrow else 8.2, 4.4 if narrow else 4.7)
    axes: Axes = figure.subplots()
    style_axes(axes)
    shares, values = [0.0], []
    for index, repeat in enumerate(stability["repeats"]):
        # a search goes back and forth; the line goes from left to right
        points = sorted(((_share(point), point["auc"]) for point in repeat["curve"]), key=lambda point: point[0])
        shares += [share for share, _ in points]
        values += [auc for _, auc in points if auc is not None]
        axes.plot(
            [stretch(share) for share, _ in points], [math.nan if auc is None else auc for _, auc in points],
            color=FAINT, linewidth=0.9, alpha=0.6, label="one repeat" if index == 0 else None, zorder=2,
        )  # fmt: skip
    # a point of other repeats than its neighbors would look like a change of the networks
    everyone = [point for point in stability["band"] if point["repeats"] == len(stability["repeats"])]
    band = sorted(everyone, key=lambda point: point["target"])
    if band:
        places = [stretch(point["target"]) for point in band]
        low, mean, high = (
            [math.nan if point[key] is None else point[key] for point in band] for key in ("low", "mean", "high")
        )
        shares += [point["target"] for point in band]
        values += [value for value in (*low, *mean, *high) if not math.isnan(value)]
        axes.fill_between(places, low, high, color=PALETTE[0], alpha=0.2, linewidth=0, label="band", zorder=3)
        axes.plot(places, mean, color=PALETTE[0], linewidth=2, marker="o", markersize=4.5, label="mean", zorder=4)
    reduction_axis(axes, shares, "share removed (target) / %", narrow=narrow)
    auc_axis(axes, min(values, default=0.0), max(values, default=1.0))
    chosen = [stretch(repeat["chosen_reduction"]) for repeat in stability["repeats"]]
    axes.plot(
        chosen, [0.04] * len(chosen), marker="|", markersize=14, markeredgewidth=2, color=PALETTE[1],
        linestyle="none", transform=axes.get_xaxis_transform(), label="chosen by one repeat", zorder=5,
    )  # fmt: skip
    axes.set_ylabel("AUC on validation cases")
    many = plural(len(chosen), "repeat", "repeats")
    axes.set_title(
        f"{many}; chosen: {percent(stability['chosen']['minimum'])} to {percent(stability['chosen']['maximum'])}",
        loc="left", color=FAINT, fontsize=9,
    )  # fmt: skip
    style_legend(figure, axes, columns=1 if narrow else 4)
    return figure


def _share(point: Mapping[str, Any]) -> float:
    return float(point["parameter_reduction"] if point["target"] is None else point["target"])


def _overlap_figure(layers: list[Mapping[str, Any]], *, narrow: bool = False) -> Figure:
    figure = new_figure(3.7 if narrow else 8.2, 3.4)
    axes: Axes = figure.subplots()
    style_axes(axes)
    places = range(1, len(layers) + 1)
    chance = [math.nan if layer["by_chance"] is None else layer["by_chance"] for layer in layers]
    axes.plot(places, chance, color=INK, marker="_", markersize=11, linestyle="none", label="expected by chance")
    found = [layer["jaccard"] for layer in layers]
    axes.plot(places, found, color=PALETTE[0], marker="o", markersize=4.5, linestyle="none", label="found")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0.4, len(layers) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("overlap of kept bases")
    axes.set_xlabel("layers, from the input to the output")
    style_legend(figure, axes, columns=2)
    return figure
