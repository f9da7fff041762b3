"""The report: one self-contained HTML page, with tables as CSV and the curve as pictures beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_basisprune.files import write_atomically
from monai_basisprune.report import wording
from monai_basisprune.report.curves import curve_figure
from monai_basisprune.report.figures import draw_curve, roc_figure
from monai_basisprune.report.limits import limits_sentences
from monai_basisprune.report.methods import methods_paragraph
from monai_basisprune.report.pictures import CasePictures, data_uri, overlay
from monai_basisprune.report.ranks import ranks_figure
from monai_basisprune.report.reliability import reliability_figure
from monai_basisprune.report.rendering import picture_pair, render
from monai_basisprune.report.study import validate_study
from monai_basisprune.report.subgroups import classes_figure, subgroups_figure
from monai_basisprune.report.tables import (
    write_classes_csv,
    write_curve_csv,
    write_reliability_csv,
    write_roc_csv,
    write_subgroups_csv,
)

__all__ = ["write_report"]


def write_report(
    study: Mapping[str, Any],
    output_dir: str | os.PathLike[str],
    pictures: Mapping[str, CasePictures] | None = None,
) -> dict[str, Path]:
    """Write everything that a reader of a study needs: the page ``report.html``, tables and pictures.

    The page opens without a network connection and loads nothing: styles and pictures are inside.

    Args:
        study: the study record.
        output_dir: folder to write to; it is made if it is missing. Earlier files are replaced, each only when the
            new one is complete.
        pictures: images of cases of the audit with their class activation maps, by case id. They are no part of the
            record; without them the page says that it shows none.

    Returns:
        The paths, under the keys ``curve_csv``, ``curve_svg``, ``curve_png``, ``report_html``, and, where the record
        holds what they show, ``roc_csv``, ``classes_csv``, ``reliability_csv``, ``subgroups_csv``.

    Raises:
        ConfigurationError: if the record is not valid, see :func:`validate_study`; nothing is written then.
    """
    validate_study(study)
    folder = Path(output_dir)
    page = _render_report(study, pictures or {})
    written = {
        "curve_csv": write_curve_csv(study, folder / "curve.csv"),
        "curve_svg": draw_curve(study, folder / "curve.svg"),
        "curve_png": draw_curve(study, folder / "curve.png"),
    }
    test = study["test"] or {}
    if test.get("roc"):
        written["roc_csv"] = write_roc_csv(study, folder / "roc.csv")
    if test.get("classes"):
        written["classes_csv"] = write_classes_csv(study, folder / "classes.csv")
    if test.get("calibration"):
        written["reliability_csv"] = write_reliability_csv(study, folder / "reliability.csv")
    if study["audit"] is not None:
        written["subgroups_csv"] = write_subgroups_csv(study, folder / "subgroups.csv")
    written["report_html"] = write_atomically(folder / "report.html", page)
    return written


def _render_report(study: Mapping[str, Any], pictures: Mapping[str, CasePictures]) -> str:
    test, audit = study["test"] or {}, study["audit"]
    has_ranks = any(layer["max_rank"] is not None for layer in study["layers"])
    has_groups = audit is not None and any(group["difference"] is not None for group in audit["subgroups"])
    return render(
        "report.html",
        study=study,
        verdict=wording.verdict(study),
        auc=wording.auc_name(study),
        auc_title=_title(wording.auc_name(study)),
        several=wording.several_classes(study),
        same=wording.nothing_pruned(study),
        unpruned=min(study["curve"], key=lambda point: point["round"]),
        picked=next(point for point in study["curve"] if point["round"] == study["chosen"]["round"]),
        adjusted=any(point.get("adjusted_p_value") is not None for point in study["curve"]),
        methods=methods_paragraph(study),
        limits=limits_sentences(study),
        curve=picture_pair(lambda small: curve_figure(study, narrow=small), "curve"),
        ranks=picture_pair(lambda small: ranks_figure(study, narrow=small), "ranks") if has_ranks else None,
        roc=picture_pair(lambda small: roc_figure(study, narrow=small), "roc") if test.get("roc") else None,
        classes=picture_pair(lambda small: classes_figure(study, narrow=small), "classes")
        if any(one["difference"] is not None for one in test.get("classes") or ())
        else None,
        roc_note="No test results" if study["test"] is None else "The study record holds no ROC curves",
        reliability=picture_pair(lambda small: reliability_figure(study, narrow=small), "reliability")
        if test.get("calibration")
        else None,
        groups=picture_pair(lambda small: subgroups_figure(study, narrow=small), "groups") if has_groups else None,
        pictures=_embed(audit, pictures),
    )


def _title(words: str) -> str:
    return words[0].upper() + words[1:]


def _embed(audit: Mapping[str, Any] | None, pictures: Mapping[str, CasePictures]) -> dict[str, dict[str, Any]]:
    """Return three pictures of each case of the audit that has some, as addresses that hold the pixels."""
    cases = [] if audit is None else [case["case_id"] for case in audit["changed_cases"]]
    return {
        case: {
            "image": data_uri(overlay(found.image, None)),
            "original": data_uri(overlay(found.image, found.original)),
            "pruned": data_uri(overlay(found.image, found.pruned)),
            "slice_index": found.slice_index,
        }
        for case in cases
        if (found := pictures.get(case)) is not None
    }
