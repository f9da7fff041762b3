from __future__ import annotations

import re

import jinja2
import pytest
from matplotlib.figure import Figure

from monai_basisprune.report.rendering import picture_pair, render


def test_what_a_page_lacks_is_an_error_and_not_an_empty_place() -> None:
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        render("compare.html", rows=[])
    with pytest.raises(jinja2.TemplateNotFound):
        render("no_such_page.html")


def test_a_picture_comes_in_two_sizes_with_names_of_their_own() -> None:
    asked: list[bool] = []

    def draw(narrow: bool) -> Figure:
        asked.append(narrow)
        figure = Figure(figsize=(2, 1) if narrow else (4, 1))
        figure.subplots().plot([0, 1], [1, 0])
        return figure

    pair = picture_pair(draw, "curve")
    assert asked == [False, True]
    widths = {size: float(re.findall(r'viewBox="0 0 ([\d.]+) ', text)[0]) for size, text in pair.items()}
    assert widths == {"wide": pytest.approx(288), "narrow": pytest.approx(144)}  # 72 points for an inch
    for size, text in pair.items():
        names = re.findall(r'\bid="([^"]+)"', text)
        assert names
        assert all(name.startswith(f"curve{size}") for name in names)
        assert text.__html__() == text  # marked as safe: it is not escaped again
