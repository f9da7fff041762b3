"""The pruning curve as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_basisprune.report.style import FAINT, INK, PALETTE, new_figure, style_axes, style_legend
from monai_basisprune.report.wording import auc_name, confidence_words, decimal, percent, plural

__all__ = ["auc_axis", "curve_figure", "overlay_figure", "reduction_axis", "stretch"]

_FINE_TICKS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75)  # where no network is smaller than a fifth
_TICKS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)


def stretch(reduction: float) -> float:
    """Return the place of a share of parameters removed on the horizontal axis: -log10 of the share that is left.

    Each step from 0 to 90, 99 and 99.9 % is equally wide, since each leaves a tenth of the parameters.
    """
    return -math.log10(1 - reduction)


def curve_figure(study: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the pruning curve of a valid study as a figure; narrow for a telephone."""
    figure = new_figure(3.7 if narrow else 8.2, 4.4 if narrow else 4.7)
    axes: Axes = figure.subplots()
    style_axes(axes)
    points = sorted(study["curve"], key=lambda point: (point["parameter_reduction"], point["round"]))
    _draw_band(axes, points, PALETTE[0], f"{confidence_words(points[0]['auc'])} of the AUC")
    name = auc_name(study)
    _draw_points(axes, points, PALETTE[0], f"{name} on the validation set")
    _draw_reference(axes, study)
    missing = [point for point in points if point["auc"]["auc"] is None]
    _draw_chosen(axes, study, points)
    _set_limits(axes, points, narrow=narrow)
    if missing:
        bottom = [axes.get_ylim()[0]] * len(missing)
        axes.plot(
            [stretch(point["parameter_reduction"]) for point in missing], bottom, "x",
            color=INK, markersize=7, clip_on=False, label="AUC not computable", zorder=5,
        )  # fmt: skip
    axes.set_ylabel(f"{name} on the validation set")
    record = points[0]["auc"]
    patients = "" if record["patients"] is None else f", {plural(record['patients'], 'patient', 'patients')}"
    axes.set_title(
        f"{'V' if narrow else study['network']['name'] + ', v'}alidation set: "
        f"{plural(record['cases'], 'case', 'cases')}{patients}",
        loc="left", color=FAINT, fontsize=9, parse_math=False,
    )  # fmt: skip
    style_legend(figure, axes, columns=1 if narrow else 2)
    return figure


def overlay_figure(studies: Sequence[Mapping[str, Any]], labels: Sequence[str], *, narrow: bool = False) -> Figure:
    """Return the pruning curves of several valid studies as one figure."""
    figure = new_figure(3.7 if narrow else 8.2, (4.2 if narrow else 4.5) + 0.18 * len(studies))
    axes: Axes = figure.subplots()
    style_axes(axes)
    everything = []
    for index, (study, label) in enumerate(zip(studies, labels, strict=True)):
        points = sorted(study["curve"], key=lambda point: (point["parameter_reduction"], point["round"]))
        everything += points
        color = PALETTE[index % len(PALETTE)]
        _draw_band(axes, points, color, None, alpha=0.08, whiskers=False)
        # The second half dozen of studies gets the colors again, with other markers.
        marker = "osD^vP"[(index + index // len(PALETTE)) % 6]
        _draw_points(axes, points, color, label, marker=marker, line=("-", "--", "-.", ":")[index % 4])
    _set_limits(axes, everything, narrow=narrow)
    axes.set_ylabel(f"{auc_name(studies[0])} on the validation set")
    axes.set_title("Bands: interval of each AUC", loc="left", color=FAINT, fontsize=9)
    style_legend(figure, axes, columns=1)
    return figure


def _draw_points(
    axes: Axes, points: Sequence[Mapping[str, Any]], color: str, label: str, *, marker: str = "o", line: str = "-"
) -> None:
    # NaN makes Matplotlib leave a gap: a line across a missing AUC would claim what nobody measured.
    x = [stretch(point["parameter_reduction"]) for point in points]
    y = [math.nan if point["auc"]["auc"] is None else point["auc"]["auc"] for point in points]
    axes.plot(x, y, color=color, linewidth=1.8, linestyle=line, marker=marker, markersize=4.5, label=label, zorder=4)


def _draw_band(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    color: str,
    label: str | None,
    *,
    alpha: float = 0.18,
    whiskers: bool = True,
) -> None:
    x = [stretch(point["parameter_reduction"]) for point in points]
    low, high = (
        [math.nan if point["auc"][key] is None else point["auc"][key] for point in points] for key in ("low", "high")
    )
    axes.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, label=label)
    if whiskers:
        # The band between two points is only drawn through; the whiskers stand where something was measured.
        axes.vlines(x, low, high, color=color, linewidth=1, alpha=0.55)


def _draw_reference(axes: Axes, study: Mapping[str, Any]) -> None:
    unpruned = min(study["curve"], key=lambda point: point["round"])
    auc, margin = unpruned["auc"]["auc"], study["pruning"]["auc_margin"]
    if auc is None or unpruned["parameter_reduction"] > 0:
        return
    axes.axhline(auc, color=INK, linewidth=1, linestyle="--", label=f"before pruning: {decimal(auc)}", zorder=3)
    if margin > 0:
        label = f"margin, {margin:g} lower: {decimal(auc - margin)}"
        axes.axhline(auc - margin, color=INK, linewidth=1.2, linestyle=":", label=label, zorder=3)


def _draw_chosen(axes: Axes, study: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    chosen = next(point for point in points if point["round"] == study["chosen"]["round"])
    auc = chosen["auc"]["auc"]
    if auc is None:
        return
    label = f"chosen: {percent(chosen['parameter_reduction'])} removed, AUC {decimal(auc)}"
    axes.plot(
        [stretch(chosen["parameter_reduction"])], [auc], marker="o", markersize=11, linestyle="none",
        markerfacecolor="none", markeredgecolor=PALETTE[1], markeredgewidth=2.2, label=label, zorder=6,
    )  # fmt: skip


def _set_limits(axes: Axes, points: Sequence[Mapping[str, Any]], *, narrow: bool) -> None:
    reduction_axis(axes, [point["parameter_reduction"] for point in points], "parameters removed / %", narrow=narrow)
    values = [point["auc"][key] for point in points for key in ("auc", "low", "high")]
    known = [value for value in values if value is not None] or [0.0, 1.0]
    auc_axis(axes, min(known), max(known))


def auc_axis(axes: Axes, low: float, high: float) -> None:
    """Make the vertical axis that of AUCs, with room around them and no tick above 1.

    Args:
        axes: the axes.
        low: the smallest AUC that must fit.
        high: the largest one.
    """
    room = max(0.02, 0.06 * (high - low))
    axes.set_ylim(max(0.0, low - room), min(1.005, high + room))
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(top, 1.0)])


def reduction_axis(axes: Axes, reductions: Sequence[float], label: str, *, narrow: bool) -> None:
    """Make the horizontal axis that of shares removed, see :func:`stretch`, with ticks where people look for them.

    Args:
        axes: the axes.
        reductions: the shares that must fit.
        label: what the axis shows, with its unit.
        narrow: whether the figure is for a telephone.
    """
    places = [stretch(reduction) for reduction in reductions]
    first, last = min(0.0, *places), max(stretch(0.5), *places)
    pad = 0.03 * (last - first)
    axes.set_xlim(first - pad, last + pad)
    ticks = [tick for tick in (_FINE_TICKS if last < stretch(0.8) else _TICKS) if stretch(tick) <= last + pad]
    if narrow and len(ticks) > 7:
        ticks = [tick for tick in ticks if tick not in (0.75, 0.95, 0.98, 0.995, 0.998, 0.9995, 0.9998)]
    axes.set_xticks([stretch(tick) for tick in ticks], labels=[f"{100 * tick:g}" for tick in ticks])
    axes.set_xlabel(label if narrow else f"{label}  (axis stretched: log of what is left)")
