from __future__ import annotations

import pytest
from studies import densenet_layers, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.ranks import _blocks, ranks_figure


def test_a_few_layers_are_named_with_what_is_left_of_each() -> None:
    layers = densenet_layers()
    few = [layers[0] | {"rank": 5, "channels": 12, "max_channels": 64}, layers[1] | {"name": ""}, layers[-1]]
    few[1] |= {"channels": 32, "max_channels": 32}
    axes = ranks_figure(make_study(layers=few)).axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "5 of 49; channels: 12 of 64",
        f"{few[1]['rank']} of 64",
        "skipped",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["features.conv0", "(network)", "class_layers.out"]
    before, after = axes.containers
    assert [bar.get_width() for bar in before] == [49, 64, 0]
    assert [bar.get_width() for bar in after] == [5, few[1]["rank"], 0]


def test_of_a_long_name_the_end_is_shown() -> None:
    layers = [densenet_layers()[0] | {"name": "features." + "x" * 60 + ".conv1"}]
    wide, narrow = (ranks_figure(make_study(layers=layers), narrow=small).axes[0] for small in (False, True))
    for axes, length in ((wide, 44), (narrow, 22)):
        name = axes.get_yticklabels()[0].get_text()
        assert len(name) == length
        assert name.startswith("\u2026x")
        assert name.endswith("x.conv1")


def test_many_layers_are_drawn_by_share_and_named_by_block() -> None:
    study = make_study()
    bases, kept = ranks_figure(study).axes
    assert len(study["layers"]) == 121
    known = study["layers"][:-1]
    assert [bar.get_height() for bar in kept.patches] == [100 * one["rank"] / one["max_rank"] for one in known]
    assert [bar.get_height() for bar in bases.patches[:120]] == [one["max_rank"] for one in known]
    skipped = next(line for line in bases.get_lines() if line.get_label() == "skipped")
    assert list(skipped.get_xdata()) == [120]
    names = [label.get_text() for label in kept.get_xticklabels()]
    assert names == ["denseblock1", "denseblock2", "denseblock3", "denseblock4"]
    assert kept.get_xlabel() == "121 layers, from the input to the output"


def test_blocks_are_the_deepest_level_of_at_most_a_dozen() -> None:
    assert _blocks(["a.x.1", "a.x.2", "a.y.1", "b.1"]) == [(0, 1, "1"), (1, 2, "2"), (2, 3, "1"), (3, 4, "1")]
    many = [f"a.{block}.{layer}" for block in "xy" for layer in range(7)]
    assert _blocks(many) == [(0, 7, "x"), (7, 14, "y")]
    flat = [f"conv{number}" for number in range(25)]  # no level at all: every third is named
    assert _blocks(flat) == [(place, min(place + 3, 25), f"conv{place}") for place in range(0, 25, 3)]


def test_layers_without_a_basis_give_no_picture() -> None:
    layers = [densenet_layers()[-1]]
    with pytest.raises(ConfigurationError, match=r"none of the 1 layers .* has a basis; decompose the network"):
        ranks_figure(make_study(layers=layers))
