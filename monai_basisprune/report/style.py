"""How every picture looks: colors that color-blind readers can tell apart, and plain axes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BACKGROUND", "FAINT", "INK", "PALETTE", "new_figure", "style_axes", "style_legend"]

# Each color occurs in one role only: the page replaces them by CSS variables, one set for light and one for dark.
INK = "#1b1f24"
FAINT = "#66707b"
BACKGROUND = "#fefefe"
# Okabe and Ito, "Color Universal Design", 2008; without the yellow, which is too pale for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

_FONT_SIZE = 10


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height in inches."""
    return Figure(figsize=(width, height), facecolor=BACKGROUND, layout="constrained")


def style_axes(axes: Axes) -> None:
    """Take away everything from the axes that carries no information."""
    axes.set_facecolor(BACKGROUND)
    axes.grid(True, color=FAINT, alpha=0.22, linewidth=0.7, linestyle="-")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=INK, labelsize=_FONT_SIZE - 1, width=0.8, length=3.5, which="major", color=FAINT)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(_FONT_SIZE)


def style_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Put the legend below the axes, where it can cover no data."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False,
        fontsize=_FONT_SIZE - 1, labelcolor=INK, handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
