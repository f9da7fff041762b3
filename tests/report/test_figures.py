from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib import pyplot
from studies import auc_record, make_study

from monai_basisprune import report
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import draw_curve, draw_ranks, draw_roc
from monai_basisprune.report.curves import curve_figure, stretch
from monai_basisprune.report.figures import inline_svg, roc_figure
from monai_basisprune.report.reliability import reliability_figure
from monai_basisprune.report.subgroups import subgroups_figure

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


def test_axis_is_stretched_and_ticks_stand_apart() -> None:
    axes = curve_figure(make_study()).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "50", "75", "90", "95", "98", "99"]
    places = [stretch(share) for share in (0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)]
    assert list(axes.get_xticks()) == pytest.approx(places)
    assert min(after - before for before, after in pairwise(places)) > 0.29


def test_no_tick_claims_an_auc_above_one() -> None:
    study = make_study()
    for point in study["curve"]:
        point["auc"] |= {"auc": 0.99, "low": 0.985, "high": 0.999}
    axes = curve_figure(study).axes[0]
    axes.figure.canvas.draw()
    assert max(axes.get_yticks()) <= 1
    assert axes.get_ylim()[1] > 1  # room for the line


def test_small_reductions_get_ticks_of_their_own() -> None:
    study = make_study()
    study["curve"] = study["curve"][:2]
    study["chosen"] |= {"round": 1, "parameter_reduction": study["curve"][1]["parameter_reduction"]}
    axes = curve_figure(study).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "25", "40", "50"]


def test_curve_draws_the_numbers_of_the_record() -> None:
    study = make_study()
    study["curve"][6]["auc"] = auc_record(None, 100)
    study["curve"][6] |= {"difference": None, "adjusted_p_value": None}
    axes = curve_figure(study).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    drawn = lines["AUC on the validation set"].get_ydata()
    assert list(drawn[:6]) == [point["auc"]["auc"] for point in study["curve"][:6]]
    assert drawn[6] != drawn[6]  # a gap, not a guess
    assert list(lines["AUC not computable"].get_xdata()) == pytest.approx([stretch(0.99)], abs=1e-4)
    assert lines["before pruning: 0.912"].get_ydata()[0] == 0.912
    assert lines["margin, 0.01 lower: 0.902"].get_ydata()[0] == pytest.approx(0.902)
    chosen = next(line for label, line in lines.items() if label.startswith("chosen: 90.0"))
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == pytest.approx((1.0, 0.909), abs=1e-4)


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


def test_reliability_draws_the_points_of_both_networks() -> None:
    study = make_study()
    diagram, counts = reliability_figure(study).axes
    lines = {str(line.get_label()).split(":")[0]: line for line in diagram.get_lines()}
    for name, words in (("original", "before pruning"), ("pruned", "after pruning")):
        points = study["test"]["calibration"][name]["points"]
        assert list(lines[words].get_xdata()) == points["mean_probability"]
        assert list(lines[words].get_ydata()) == points["positive_fraction"]
    cases = study["test"]["calibration"]["original"]["points"]["cases"]
    assert [bar.get_height() for bar in counts.patches] == cases * 2
    with pytest.raises(ConfigurationError, match="holds no calibration"):
        reliability_figure(make_study(test=None))


def test_subgroups_draw_what_is_computable_and_the_margin() -> None:
    study = make_study()
    axes = subgroups_figure(study).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "all test cases",
        "sex: female",
        "sex: male",
        "age band: 40 to 59",
        "age band: 60 to 79",
    ]
    dots = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() in ("o", "D")]
    known = [group["difference"] for group in study["audit"]["subgroups"] if group["difference"]]
    assert dots == [study["test"]["difference"]["difference"], *(record["difference"] for record in known)]
    margin = next(line for line in axes.get_lines() if line.get_label() == "margin: a loss of 0.01")
    assert margin.get_xdata()[0] == -0.01
    with pytest.raises(ConfigurationError, match="holds no group in which the networks could be compared"):
        subgroups_figure(make_study(audit=None))


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
