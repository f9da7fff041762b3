from __future__ import annotations

import pytest

from monai_basisprune.report.style import BACKGROUND, FAINT, INK, PALETTE, new_figure, style_axes, style_legend


def luminance(color: str) -> float:
    """Return the relative luminance of a color as WCAG 2 defines it."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("color", "least"), [(INK, 7.0), (FAINT, 4.5), (PALETTE[0], 4.5), (PALETTE[1], 3.0)])
def test_letters_and_lines_stand_out_from_the_background(color: str, least: float) -> None:
    # WCAG 2: at least 4.5 for text, 7 for text in the strict form, 3 for lines
    assert (luminance(BACKGROUND) + 0.05) / (luminance(color) + 0.05) >= least


def test_no_color_has_two_roles() -> None:
    colors = [INK, FAINT, BACKGROUND, *PALETTE]
    assert len(set(colors)) == len(colors)


def test_two_sides_of_the_axes_and_names_as_they_are() -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label="$x^{")
    style_axes(axes)
    style_legend(figure, axes, columns=2)
    assert {side for side, spine in axes.spines.items() if spine.get_visible()} == {"left", "bottom"}
    figure.canvas.draw()  # a formula that is none would raise here
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$x^{"]
    assert tuple(figure.get_size_inches()) == (4, 3)
