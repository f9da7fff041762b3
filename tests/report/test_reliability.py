from __future__ import annotations

import pytest
from studies import make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.reliability import reliability_figure


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


def test_bars_of_both_networks_share_their_bin_and_names_tell_the_error() -> None:
    diagram, counts = reliability_figure(make_study(), narrow=True).axes
    before, after = counts.patches[:10], counts.patches[10:]
    for index, (left, right) in enumerate(zip(before, after, strict=True)):
        # bins are a tenth wide: each bar takes 0.04 of it, to either side of its middle
        assert (left.get_width(), right.get_width()) == pytest.approx((0.04, 0.04))
        assert left.get_x() == pytest.approx(index / 10 + 0.01)
        assert right.get_x() == pytest.approx(index / 10 + 0.05)
    labels = diagram.get_legend_handles_labels()[1]
    assert labels == [
        "perfect calibration",
        "before pruning: calibration error 0.070",
        "after pruning: calibration error 0.110",
    ]
