"""The report: one self-contained HTML page, with the curve as CSV and as pictures beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import write_atomically
from monai_basisprune.report import wording
from monai_basisprune.report.curves import curve_figure, overlay_figure
from monai_basisprune.report.figures import draw_curve, inline_svg, roc_figure
from monai_basisprune.report.methods import limits_sentences, methods_paragraph
from monai_basisprune.report.ranks import ranks_figure
from monai_basisprune.report.study import load_study, validate_study
from monai_basisprune.report.tables import write_curve_csv

__all__ = ["compare_studies", "write_report"]


def write_report(study: Mapping[str, Any], output_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """Write everything that a reader of a study needs: ``curve.csv``, ``curve.svg``, ``curve.png``, ``report.html``.

    The page opens without a network connection and loads nothing: styles and pictures are inside.

    Args:
        study: the study record.
        output_dir: folder to write to; it is made if it is missing. Earlier files are replaced, each only when the
            new one is complete.

    Returns:
        The paths, under the keys ``curve_csv``, ``curve_svg``, ``curve_png`` and ``report_html``.

    Raises:
        ConfigurationError: if the record is not valid, see :func:`validate_study`; nothing is written then.
    """
    validate_study(study)
    folder = Path(output_dir)
    page = _render_report(study)
    return {
        "curve_csv": write_curve_csv(study, folder / "curve.csv"),
        "curve_svg": draw_curve(study, folder / "curve.svg"),
        "curve_png": draw_curve(study, folder / "curve.png"),
        "report_html": write_atomically(folder / "report.html", page),
    }


def compare_studies(paths: Sequence[str | os.PathLike[str]], output_file: str | os.PathLike[str]) -> Path:
    """Write one page that shows several studies side by side: their curves in one picture, their tests in one table.

    Args:
        paths: study records written by :func:`save_study`, at least two.
        output_file: the HTML file to write.

    Returns:
        The path of the page.

    Raises:
        ConfigurationError: if there are fewer than two studies, or one of them is not valid.
        OSError: if a file cannot be read.
    """
    if len(paths) < 2:
        raise ConfigurationError(f"a comparison was asked for with {len(paths)} study records; give at least two.")
    studies = [load_study(path) for path in paths]
    labels = [f"{index}: {study['title']}" for index, study in enumerate(studies, start=1)]
    short = [wording.shorten(label, 70) for label in labels]
    narrow = [wording.shorten(label, 34) for label in labels]
    context = {
        "rows": [
            {"label": label, "path": os.fspath(path), "study": study, "verdict": wording.verdict(study)}
            for label, path, study in zip(labels, paths, studies, strict=True)
        ],
        "curve": _pair(lambda small: overlay_figure(studies, narrow if small else short, narrow=small), "curve"),
        "splits": sorted({study["data"]["split_sha256"] for study in studies}),
        "synthetic": any(study["data"]["synthetic"] for study in studies),
    }
    return write_atomically(output_file, _environment().get_template("compare.html").render(context))


def _render_report(study: Mapping[str, Any]) -> str:
    test = study["test"]
    has_ranks = any(layer["max_rank"] is not None for layer in study["layers"])
    context = {
        "study": study,
        "verdict": wording.verdict(study),
        "unpruned": min(study["curve"], key=lambda point: point["round"]),
        "picked": next(point for point in study["curve"] if point["round"] == study["chosen"]["round"]),
        "methods": methods_paragraph(study),
        "limits": limits_sentences(study),
        "curve": _pair(lambda small: curve_figure(study, narrow=small), "curve"),
        "ranks": _pair(lambda small: ranks_figure(study, narrow=small), "ranks") if has_ranks else None,
        "roc": _pair(lambda small: roc_figure(study, narrow=small), "roc") if test and test.get("roc") else None,
        "roc_note": "No test results" if test is None else "The study record holds no ROC curves",
    }
    return _environment().get_template("report.html").render(context)


def _pair(draw: Callable[[bool], Any], name: str) -> dict[str, Markup]:
    """Return a picture twice, for a desk and for a telephone, where shrinking would make the letters too small.

    Only SVG made by Matplotlib is marked as safe here; texts from the record are glyph outlines inside it.
    """
    return {
        "wide": Markup(inline_svg(draw(False), f"{name}wide")),
        "narrow": Markup(inline_svg(draw(True), f"{name}narrow")),
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("monai_basisprune", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in wording.__all__:
        if name not in ("Verdict", "verdict"):
            environment.filters[name] = getattr(wording, name)
    return environment
