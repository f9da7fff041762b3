"""The ranks of all layers before and after pruning, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.style import FAINT, INK, PALETTE, new_figure, style_axes, style_legend
from monai_basisprune.report.wording import shorten

__all__ = ["ranks_figure"]

# Above this many layers names would not fit: only the blocks of the network are named then.
_MOST_NAMED = 26
_MOST_BLOCKS = 12


def ranks_figure(study: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the ranks of the layers of a valid study as a figure; narrow for a telephone.

    Raises:
        ConfigurationError: if no layer has a basis.
    """
    layers = study["layers"]
    if not any(layer["max_rank"] is not None for layer in layers):
        raise ConfigurationError(
            f"a picture of the ranks was asked for, but none of the {len(layers)} layers in the study record has a "
            "basis; decompose the network before writing the record."
        )
    if len(layers) <= _MOST_NAMED:
        return _named(layers, narrow=narrow)
    return _many(layers, narrow=narrow)


def _named(layers: Sequence[Mapping[str, Any]], *, narrow: bool) -> Figure:
    figure = new_figure(3.7 if narrow else 8.2, 1.2 + 0.24 * len(layers))
    axes: Axes = figure.subplots()
    style_axes(axes)
    places = range(len(layers))
    axes.barh(places, [layer["max_rank"] or 0 for layer in layers], height=0.72, color=FAINT, alpha=0.3, label="before")
    axes.barh(places, [layer["rank"] or 0 for layer in layers], height=0.72, color=PALETTE[0], label="after pruning")
    widest = max(layer["max_rank"] or 0 for layer in layers)
    for place, layer in enumerate(layers):
        known = layer["max_rank"] is not None
        text = f"{layer['rank']} of {layer['max_rank']}" if known else "skipped"
        if layer.get("channels") is not None and layer["channels"] < layer["max_channels"]:
            text += f"; channels: {layer['channels']} of {layer['max_channels']}"
        start = (layer["max_rank"] or 0) + 0.01 * widest
        axes.text(start, place, text, va="center", fontsize=8, color=INK if known else FAINT)
    axes.set_yticks(places, labels=[_ending(layer["name"] or "(network)", 22 if narrow else 44) for layer in layers])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
        label.set_fontsize(8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, widest * (1.4 if narrow else 1.15))
    axes.grid(False, axis="y")
    axes.set_xlabel("rank (number of bases)")
    style_legend(figure, axes, columns=2)
    return figure


def _ending(name: str, limit: int) -> str:
    # The end of a dotted name is what tells one layer from the next.
    return name if len(name) <= limit else f"\u2026{name[1 - limit :]}"


def _many(layers: Sequence[Mapping[str, Any]], *, narrow: bool) -> Figure:
    figure = new_figure(3.7 if narrow else 8.2, 5.0)
    bases: Axes
    kept: Axes
    bases, kept = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    places = range(len(layers))
    known = [place for place in places if layers[place]["max_rank"] is not None and layers[place]["rank"] is not None]
    ranks, most = [layers[place]["rank"] for place in known], [layers[place]["max_rank"] for place in known]
    bases.bar(known, most, width=0.8, color=FAINT, alpha=0.35, label="before")
    bases.bar(known, ranks, width=0.8, color=PALETTE[0], label="after pruning")
    kept.bar(known, [100 * rank / top for rank, top in zip(ranks, most, strict=True)], width=0.8, color=PALETTE[0])
    skipped = [place for place in places if place not in set(known)]
    if skipped:
        kept.plot(skipped, [0] * len(skipped), "x", color=INK, markersize=4, clip_on=False)
        bases.plot(skipped, [0] * len(skipped), "x", color=INK, markersize=4, clip_on=False, label="skipped")
    for axes in (bases, kept):
        style_axes(axes)
        axes.grid(False, axis="x")
    bases.set_ylabel("bases")
    kept.set_ylabel("bases kept / %")
    kept.set_ylim(0, 100)
    bases.set_xlim(-1, len(layers))
    blocks = _blocks([layer["name"] for layer in layers])
    for start, _, _ in blocks[1:]:
        for axes in (bases, kept):
            axes.axvline(start - 0.5, color=FAINT, linewidth=0.6, alpha=0.4)
    # A block too small for its name keeps its lines; every name is in the table of the report.
    wide = [block for block in blocks if block[1] - block[0] >= len(layers) * (0.1 if narrow else 0.05)]
    kept.set_xticks(
        [(start + stop - 1) / 2 for start, stop, _ in wide], labels=[shorten(name, 18) for _, _, name in wide]
    )
    for axes in (bases, kept):
        axes.tick_params(axis="x", length=0)
    rotation = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if narrow or len(wide) > 7 else {}
    for label in kept.get_xticklabels():
        label.set(parse_math=False, fontsize=8, **rotation)
    kept.set_xlabel(f"{len(layers)} layers, from the input to the output")
    style_legend(figure, bases, columns=3)
    return figure


def _blocks(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return first layer, end and name of each block of the network, at the deepest level with at most a dozen."""
    deepest = max(name.count(".") for name in names)
    found: list[tuple[int, int, str]] = []
    for depth in range(1, deepest + 2):
        keys = [".".join(name.split(".")[:depth]) for name in names]
        groups = [(key, list(group)) for key, group in groupby(range(len(names)), key=keys.__getitem__)]
        if len(groups) > _MOST_BLOCKS:
            break
        found = [(group[0], group[-1] + 1, key.rsplit(".", 1)[-1]) for key, group in groups]
    if len(found) < 2:
        step = -(-len(names) // _MOST_BLOCKS)
        found = [(place, min(place + step, len(names)), names[place]) for place in range(0, len(names), step)]
    return found
