"""The pictures of a study, drawn with Matplotlib's object interface and saved as SVG or PNG.

Nothing here touches pyplot or Matplotlib's global settings, so a report can be written from any thread of a
training run.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import write_atomically
from monai_basisprune.report.curves import curve_figure
from monai_basisprune.report.ranks import ranks_figure
from monai_basisprune.report.reliability import NETWORKS
from monai_basisprune.report.study import validate_study
from monai_basisprune.report.style import BACKGROUND, FAINT, INK, PALETTE, new_figure, style_axes, style_legend
from monai_basisprune.report.wording import auc_words, confidence_words, plural

__all__ = ["draw_curve", "draw_ranks", "draw_roc", "inline_svg", "roc_figure", "save_figure"]

_PNG_DPI = 200


def draw_curve(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw the pruning curve: validation AUC with its interval against the share of parameters removed.

    Args:
        study: the study record.
        path: file to write, with the suffix ``.svg`` or ``.png``.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid, or the suffix is another one.
    """
    validate_study(study)
    return save_figure(curve_figure(study), path)


def draw_ranks(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw how many bases each layer had and how many are left.

    Args:
        study: the study record.
        path: file to write, with the suffix ``.svg`` or ``.png``.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid or names no layer with a basis, or the suffix is another one.
    """
    validate_study(study)
    return save_figure(ranks_figure(study), path)


def draw_roc(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw the ROC curves of the original and the pruned network on the test set.

    Args:
        study: the study record.
        path: file to write, with the suffix ``.svg`` or ``.png``.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid or holds no ROC curves, or the suffix is another one.
    """
    validate_study(study)
    return save_figure(roc_figure(study), path)


def roc_figure(study: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Return the ROC curves of a valid study as a figure; narrow for a telephone."""
    test = study["test"]
    if test is None or not test.get("roc"):
        raise ConfigurationError(
            "ROC curves were asked for, but the study record holds none; "
            "add 'test.roc' with 'original' and 'pruned', each with 'fpr' and 'tpr'."
        )
    figure = new_figure(3.6 if narrow else 5.2, 4.5 if narrow else 5.6)
    axes: Axes = figure.subplots()
    style_axes(axes)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="chance")
    for name, words, color, line, _ in NETWORKS:
        roc = test["roc"][name]
        label = f"{words}: AUC {auc_words(test[name])}"
        axes.plot(roc["fpr"], roc["tpr"], color=color, linewidth=1.8, linestyle=line, label=label)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel("false-positive rate (1 − specificity)")
    axes.set_ylabel("true-positive rate (sensitivity)")
    record = test["pruned"]
    patients = "" if record["patients"] is None else f", {plural(record['patients'], 'patient', 'patients')}"
    axes.set_title(
        f"Test set: {plural(record['cases'], 'case', 'cases')}{patients}; {confidence_words(record)}s",
        loc="left", color=FAINT, fontsize=9,
    )  # fmt: skip
    point = test.get("operating_point")
    for name, _, color, _, marker in NETWORKS if point else ():
        place = 1 - point[name]["attained_specificity"], point[name]["value"]
        axes.plot(*[[value] for value in place], marker=marker, color=color, markersize=7, linestyle="none")
    style_legend(figure, axes, columns=1)
    return figure


def inline_svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an SVG element that can be put into a page beside others.

    Metadata, which names addresses on the web, and comments are left out; the colors become CSS variables, so that
    the page can be dark; and the identifiers are numbered behind a prefix, so that they cannot meet those of another
    figure.

    Args:
        figure: the figure.
        prefix: beginning of every identifier; letters only.
    """
    text = _render(figure, "svg").decode("utf-8")
    text = _without_comments(text[text.index("<svg") :])
    for pattern in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r"\n\s*\n+", "\n", _number_identifiers(text, prefix))
    for name, color in {"ink": INK, "faint": FAINT, "card": BACKGROUND}.items():
        text = re.sub(color, f"var(--{name})", text, flags=re.IGNORECASE)
    for index, color in enumerate(PALETTE):
        text = re.sub(color, f"var(--series-{index})", text, flags=re.IGNORECASE)
    return text.strip()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Save a figure as SVG or PNG, equal to the byte where it shows the same.

    Args:
        figure: the figure.
        path: file to write, with the suffix ``.svg`` or ``.png``.

    Raises:
        ConfigurationError: if the suffix is another one.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".svg", ".png"):
        raise ConfigurationError(
            f"a picture was asked for as {Path(path).name!r}, but its suffix is {suffix or 'missing'!r}; "
            "give a path that ends in .svg or .png."
        )
    data = _render(figure, suffix[1:])
    if suffix == ".svg":
        data = _number_identifiers(_without_comments(data.decode("utf-8")), "id").encode("utf-8")
    return write_atomically(path, data)


def _render(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "svg":
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    else:
        figure.savefig(stream, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return stream.getvalue()


def _without_comments(text: str) -> str:
    # Matplotlib repeats every text in a comment; a control character in a name would make the file invalid XML.
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def _number_identifiers(text: str, prefix: str) -> str:
    """Number the identifiers of an SVG in their order, since Matplotlib's own differ from run to run."""
    names = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    numbered = {name: f"{prefix}{index}" for index, name in enumerate(names)}

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{numbered.get(match[2], match[2])}{match[3]}"

    text = re.sub(r'(\bid=")([^"]+)(")', replace, text)
    text = re.sub(r'(href="#)([^"]+)(")', replace, text)
    return re.sub(r"(url\(#)([^)]+)(\))", replace, text)
