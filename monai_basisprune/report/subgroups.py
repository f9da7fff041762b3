"""The change of the AUC in each group of patients, or of each class, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.style import FAINT, INK, PALETTE, new_figure, style_axes, style_legend
from monai_basisprune.report.wording import confidence_words, shorten

__all__ = ["classes_figure", "subgroups_figure"]


def subgroups_figure(study: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the change of the AUC with its interval, for all test cases and for each group where it is computable.

    Args:
        study: the study record.
        narrow: whether the figure is for a telephone.

    Raises:
        ConfigurationError: if no group has an interval.
    """
    groups = [group for group in (study["audit"] or {}).get("subgroups", ()) if group["difference"] is not None]
    if not groups:
        raise ConfigurationError(
            "A picture of the groups of patients was asked for, but the study record holds no group in which the "
            "networks could be compared."
        )
    rows = [(f"{group['attribute']}: {group['value']}", group["difference"]) for group in groups]
    return _changes_figure(study, rows, "all test cases", narrow)


def classes_figure(study: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the change of the AUC of each class against the rest with its interval, and that of their mean.

    Args:
        study: the study record.
        narrow: whether the figure is for a telephone.

    Raises:
        ConfigurationError: if no class has an AUC.
    """
    classes = [one for one in (study["test"] or {}).get("classes") or () if one["difference"] is not None]
    if not classes:
        raise ConfigurationError("A picture of the classes was asked for, but the study record holds no AUC of one.")
    return _changes_figure(study, [(one["name"], one["difference"]) for one in classes], "mean of all", narrow)


def _changes_figure(
    study: Mapping[str, Any], parts: Sequence[tuple[str, Mapping[str, Any]]], total: str, narrow: bool
) -> Figure:
    rows = [(name, record, PALETTE[0], "o") for name, record in parts]
    whole = study["test"]["difference"]
    if whole is not None and whole["low"] is not None:
        rows.insert(0, (total, whole, INK, "D"))
    figure = new_figure(3.7 if narrow else 8.2, 1.5 + 0.3 * len(rows))
    axes: Axes = figure.subplots()
    style_axes(axes)
    for place, (_, record, color, marker) in enumerate(rows):
        if record["low"] is not None:
            axes.hlines(place, record["low"], record["high"], color=color, linewidth=1.8)
        axes.plot([record["difference"]], [place], marker=marker, color=color, markersize=6, linestyle="none")
    margin = parts[0][1]["margin"]
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.axvline(-margin, color=INK, linewidth=1.2, linestyle=":", label=f"margin: a loss of {margin:g}")
    axes.set_yticks(range(len(rows)), labels=[shorten(name, 20 if narrow else 46) for name, *_ in rows])
    for label in axes.get_yticklabels():
        label.set(parse_math=False, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 9))
    interval = confidence_words(parts[0][1])
    axes.set_xlabel(f"change of the AUC ({interval})" if narrow else f"change of the AUC by pruning ({interval})")
    style_legend(figure, axes, columns=1)
    return figure
