from __future__ import annotations

from typing import Any

import pytest
from studies import difference_record, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.subgroups import classes_figure, subgroups_figure


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


def class_record(name: str, difference: float | None) -> dict[str, Any]:
    return {"name": name, "difference": None if difference is None else difference_record(difference, 0.05)}


def test_classes_that_have_an_auc_stand_below_their_mean() -> None:
    study = make_study()
    study["test"]["classes"] = [class_record("cat", 0.02), class_record("dog", None), class_record("$x^{", -0.03)]
    axes = classes_figure(study).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean of all", "cat", "$x^{"]
    intervals = [part.get_segments()[0][:, 0].tolist() for part in axes.collections]
    assert intervals == [pytest.approx(pair) for pair in ([-0.032, 0.018], [-0.03, 0.07], [-0.08, 0.02])]
    axes.figure.canvas.draw()  # as text, not as a formula, which this one is not


def test_no_line_is_drawn_for_what_has_no_interval() -> None:
    study = make_study()
    study["test"]["classes"] = [class_record("cat", 0.02)]
    study["test"]["classes"][0]["difference"] |= {"low": None, "high": None}
    study["test"]["difference"] |= {"low": None, "high": None}
    axes = classes_figure(study, narrow=True).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat"]
    assert not axes.collections


@pytest.mark.parametrize("classes", [None, [], [class_record("dog", None)]])
def test_a_picture_of_no_class_is_refused(classes: list[dict[str, Any]] | None) -> None:
    study = make_study()
    study["test"]["classes"] = classes
    with pytest.raises(ConfigurationError, match="classes was asked for, but the study record holds no AUC of one"):
        classes_figure(study)
