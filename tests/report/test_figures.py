from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib import pyplot
from studies import make_study

from monai_basisprune import report
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import draw_curve, draw_ranks, draw_roc
from monai_basisprune.report.curves import curve_figure
from monai_basisprune.report.figures import inline_svg, roc_figure

DRAW = [draw_curve, draw_ranks, draw_roc]


@pytest.mark.parametrize("draw", DRAW)
def test_svg_is_xml_and_the_same_each_time(draw: Any, tmp_path: Path) -> None:
    first, second = draw(make_study(), tmp_path / "a.svg"), draw(make_study(), tmp_path / "b.SVG")
    assert first.read_bytes() == second.read_bytes()
    assert ElementTree.parse(first).getroot().tag.endswith("svg")


@pytest.mark.parametrize("draw", DRAW)
def test_png_is_a_picture(draw: Any, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(draw(make_study(), tmp_path / "a.png")) as picture:
        assert min(picture.size) > 600
        assert len(picture.convert("L").getcolors()) > 20


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("name", ["a.pdf", "a"])
def test_other_suffixes_are_refused(draw: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ends in \.svg or \.png"):
        draw(make_study(), tmp_path / name)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds none"):
        draw_roc(make_study(test=None), tmp_path / "a.svg")
    with pytest.raises(ConfigurationError, match="none of the 0 layers"):
        draw_ranks(make_study(layers=[]), tmp_path / "a.svg")


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("keep", [3, 200])
def test_hostile_layer_names_are_drawn_as_they_are(keep: int, tmp_path: Path) -> None:
    study = make_study()
    study["layers"] = study["layers"][:keep]
    study["layers"][0]["name"] = "</svg><script>alert(1)</script>$x^{$"
    study["network"]["name"] = "Dense --> \x01 $\\frac$"
    draw_ranks(study, tmp_path / "a.png")
    for draw in (draw_ranks, draw_curve):
        path = draw(study, tmp_path / "a.svg")
        assert "script" not in path.read_text()
        ElementTree.parse(path)


def test_curve_of_one_round_and_of_a_grown_network(tmp_path: Path) -> None:
    study = make_study()
    study["curve"] = study["curve"][:1]
    study["chosen"] |= {key: study["curve"][0][key] for key in study["chosen"] if key in study["curve"][0]}
    draw_curve(study, tmp_path / "a.png")
    study = make_study()
    network = study["network"]
    study["curve"][1] |= {"parameters": network["parameters"] * 2, "parameter_reduction": -1.0}
    draw_curve(study, tmp_path / "b.png")


def test_inline_svg_meets_no_other_and_names_no_address() -> None:
    one, two = (inline_svg(curve_figure(make_study()), name) for name in ("one", "two"))
    names = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert names[0]
    assert not names[0] & names[1]
    for text, known in zip((one, two), names, strict=True):
        assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= known
        assert set(re.findall(r'https?://[^"\s]+', text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert "<style" not in text
        assert "var(--series-0)" in text
        assert "#0072b2" not in text


def test_operating_points_stand_on_the_roc_curves() -> None:
    study = make_study()
    dots = [line for line in roc_figure(study).axes[0].get_lines() if line.get_marker() in ("s", "o")]
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [
        (pytest.approx(0.08), 0.767),
        (pytest.approx(0.08), 0.751),
    ]


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    # monai imports pyplot itself, so that its presence says nothing; its list of open figures does.
    before, opened = dict(matplotlib.rcParams), pyplot.get_fignums()
    for draw in DRAW:
        draw(make_study(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == opened
    for source in Path(report.__file__).parent.glob("*.py"):
        assert not re.search(r"import .*pyplot|rcParams|matplotlib\.use", source.read_text(encoding="utf-8"))
