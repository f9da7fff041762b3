"""The reliability diagram: what the networks predict against what is true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.style import FAINT, INK, PALETTE, new_figure, style_axes, style_legend
from monai_basisprune.report.wording import decimal

__all__ = ["NETWORKS", "reliability_figure"]

NETWORKS = (
    ("original", "before pruning", INK, "--", "s"),
    ("pruned", "after pruning", PALETTE[0], "-", "o"),
)
"""Key in the record, words, color, line and marker of both networks in every picture of the test set."""


def reliability_figure(study: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the reliability diagram of both networks of a valid study, with the number of cases of each bin.

    Args:
        study: the study record.
        narrow: whether the figure is for a telephone.

    Raises:
        ConfigurationError: if the record holds no calibration.
    """
    calibration = (study["test"] or {}).get("calibration")
    if not calibration:
        raise ConfigurationError(
            "A reliability diagram was asked for, but the study record holds no calibration; add 'test.calibration' "
            "with 'original' and 'pruned'."
        )
    figure = new_figure(3.6 if narrow else 5.2, 5.1 if narrow else 6.4)
    diagram: Axes
    counts: Axes
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    diagram.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="perfect calibration")
    for place, (name, words, color, line, marker) in enumerate(NETWORKS):
        points = calibration[name]["points"]
        error = calibration[name]["calibration_error"]["value"]
        diagram.plot(
            points["mean_probability"], points["positive_fraction"],
            color=color, linestyle=line, marker=marker, markersize=5, linewidth=1.6,
            label=f"{words}: calibration error {decimal(error)}",
        )  # fmt: skip
        width = [(high - low) * 0.4 for low, high in zip(points["lower_edges"], points["upper_edges"], strict=True)]
        left = [
            (low + high) / 2 + (place - 1) * wide
            for low, high, wide in zip(points["lower_edges"], points["upper_edges"], width, strict=True)
        ]
        counts.bar(left, points["cases"], width=width, align="edge", color=color, alpha=0.25 if place == 0 else 0.9)
    for axes in (diagram, counts):
        style_axes(axes)
        axes.set_xlim(-0.01, 1.01)
    diagram.set_ylim(-0.02, 1.02)
    diagram.set_ylabel("fraction of positive cases")
    counts.set_ylabel("cases")
    counts.set_xlabel("predicted probability of the positive class")
    style_legend(figure, diagram, columns=1)
    return figure
