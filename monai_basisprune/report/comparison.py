"""Several studies on one page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import write_atomically
from monai_basisprune.report import wording
from monai_basisprune.report.curves import overlay_figure
from monai_basisprune.report.rendering import picture_pair, render
from monai_basisprune.report.study import load_study

__all__ = ["compare_studies"]


def compare_studies(
    paths: Sequence[str | os.PathLike[str]],
    output_file: str | os.PathLike[str],
    reference: int | None = None,
    differences: Sequence[Mapping[str, Any] | None] | None = None,
) -> Path:
    """Write one page that shows several studies side by side: curves in one picture, tests and settings in tables.

    Studies of other cases than the first one's are marked as not comparable, with the reason. Paths do not reach the
    page, since the names of folders can be those of people.

    Args:
        paths: study records written by :func:`save_study`, at least two.
        output_file: the HTML file to write.
        reference: which of them trained its network and never cut it, counted from 0; None if there is no such one.
        differences: for each study the difference of its test AUC to that of the reference on the same cases, as
            ``compare_auc(...).to_dict()``, or None; only with a reference.

    Returns:
        The path of the page.

    Raises:
        ConfigurationError: if there are fewer than two studies, one of them is not valid, or there is not one
            difference for each.
        OSError: if a file cannot be read.
    """
    if len(paths) < 2:
        raise ConfigurationError(f"a comparison was asked for with {len(paths)} study records; give at least two.")
    if reference is not None and len(differences or ()) != len(paths):
        raise ConfigurationError(
            f"{len(paths)} studies are to be compared with one of them, but there are {len(differences or ())} "
            "differences: give one for each, None for the reference itself."
        )
    studies = []
    for number, path in enumerate(paths, start=1):
        try:
            studies.append(load_study(path))
        except ConfigurationError as error:
            raise ConfigurationError(f"Of {len(paths)} study records, number {number}: {error}") from None
    labels = [f"{index}: {study['title']}" for index, study in enumerate(studies, start=1)]
    reasons = [list(_reasons(studies[0], study)) for study in studies]
    marks = ["; not comparable with 1" if found else "" for found in reasons]
    short, narrow = (
        [wording.shorten(label, limit - len(mark)) + mark for label, mark in zip(labels, marks, strict=True)]
        for limit in (90, 44)
    )
    page = render(
        "compare.html",
        rows=[
            {
                "label": label,
                "study": study,
                "verdict": wording.verdict(study),
                "same": wording.nothing_pruned(study),
                "reasons": found,
                "epochs": _chosen_round(study)["epoch"],
                "as_long": None if reference is None or differences is None else differences[index],
            }
            for index, (label, study, found) in enumerate(zip(labels, studies, reasons, strict=True))
        ],
        reference=reference,
        targets=_common_targets(studies),
        curve=picture_pair(lambda small: overlay_figure(studies, narrow if small else short, narrow=small), "curve"),
        settings=_different_settings(studies),
        synthetic=any(study["data"]["synthetic"] for study in studies),
        several=any(map(wording.several_classes, studies)),
    )
    return write_atomically(output_file, page)


def _reasons(first: Mapping[str, Any], study: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a study cannot be compared with the first one."""
    mine, other = study["data"], first["data"]
    if mine["split_sha256"] != other["split_sha256"]:
        yield "its split is another one (SHA-256 differs), so its AUCs are not measured on the same cases"
    if mine["class_names"] != other["class_names"]:
        yield "its classes have other names"
    own, first_kind = (data.get("label_kind", "single") for data in (mine, other))
    if own != first_kind:
        words = {"single": "exclude each other", "multi": "can occur together"}
        yield f"its classes {words[own]}, those of the first study {words[first_kind]}"
    if mine["synthetic"] != other["synthetic"]:
        kinds = {True: "synthetic", False: "real"}
        yield f"its data are {kinds[mine['synthetic']]}, those of the first study {kinds[other['synthetic']]}"


def _chosen_round(study: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(point for point in study["curve"] if point["round"] == study["chosen"]["round"])


def _common_targets(studies: Sequence[Mapping[str, Any]]) -> list[tuple[float, list[Mapping[str, Any] | None]]]:
    """Return for each target of at least two studies what each of them reached at it, the last time that it did."""
    reached = [{p["target"]: p for p in study["curve"] if p["target"] is not None} for study in studies]
    targets = sorted({target for own in reached for target in own})
    table = [(target, [own.get(target) for own in reached]) for target in targets]
    quantities = {study["pruning"]["budget"] for study in studies if study["pruning"]["targets"]}
    # shares of different quantities are not the same targets
    return [row for row in table if len(quantities) == 1 and sum(point is not None for point in row[1]) > 1]


def _different_settings(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the name and the values of every setting that is not the same in all studies."""
    settings = [
        {
            "network": study["network"]["name"],
            "input shape": " × ".join(str(size) for size in study["network"]["input_shape"]),
            "seed": study["seed"],
            "device": study["device"],
            **study["pruning"],
            **{f"version of {name}": version for name, version in study["versions"].items()},
        }
        for study in studies
    ]
    names = dict.fromkeys(name for own in settings for name in own)
    table = [
        (name, [wording.setting_words(own[name]) if name in own else "not noted" for own in settings]) for name in names
    ]
    return [(name, values) for name, values in table if len(set(values)) > 1]
