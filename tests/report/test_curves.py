from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.figure import Figure
from studies import auc_record, make_study

from monai_basisprune.report.curves import auc_axis, curve_figure, overlay_figure, reduction_axis, stretch
from monai_basisprune.report.style import PALETTE


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


def test_a_tenth_of_what_is_left_is_one_step() -> None:
    assert [stretch(share) for share in (0.0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1, 2, 3])
    assert stretch(-1.0) == pytest.approx(-0.30103)  # a network that grew stands left of the unpruned one


def test_room_around_aucs_is_a_share_of_their_range_and_never_leaves_the_scale() -> None:
    axes = Figure().subplots()
    auc_axis(axes, 0.4, 0.9)
    assert axes.get_ylim() == pytest.approx((0.37, 0.93))
    auc_axis(axes, 0.9, 0.91)
    assert axes.get_ylim() == pytest.approx((0.88, 0.93))
    auc_axis(axes, 0.0, 1.0)
    assert axes.get_ylim() == pytest.approx((0.0, 1.005))


@pytest.mark.parametrize(
    ("narrow", "ticks"), [(False, ["0", "50", "75", "90", "95", "98", "99", "99.5"]), (True, ["0", "50", "90", "99"])]
)
def test_a_telephone_gets_fewer_ticks(narrow: bool, ticks: list[str]) -> None:
    axes = Figure().subplots()
    reduction_axis(axes, [0.3, 0.995], "removed / %", narrow=narrow)
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks
    assert axes.get_xlabel() == ("removed / %" if narrow else "removed / %  (axis stretched: log of what is left)")


def test_seven_studies_on_one_page_are_told_apart_by_color_or_marker() -> None:
    studies = [make_study() for _ in range(7)]
    axes = overlay_figure(studies, [f"study {number}" for number in range(7)]).axes[0]
    lines = [line for line in axes.get_lines() if str(line.get_label()).startswith("study")]
    assert [line.get_label() for line in lines] == [f"study {number}" for number in range(7)]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
    assert len(set(looks)) == 7
    assert looks[0][0] == looks[6][0] == PALETTE[0]
    assert not [line for line in axes.get_lines() if "chosen" in str(line.get_label())]


def test_nothing_is_called_the_unpruned_network_that_is_none() -> None:
    study = make_study()
    study["curve"] = study["curve"][1:]
    labels = [str(line.get_label()) for line in curve_figure(study).axes[0].get_lines()]
    assert not [label for label in labels if label.startswith(("before pruning", "margin"))]
