"""Where the labels of pictures come from: the names of their folders, or a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from monai_basisprune.data.image_classes import ImageLabel, ImageLabels, LabelSettings, class_index, name_classes
from monai_basisprune.data.image_table import read_image_table
from monai_basisprune.data.labels import SECTIONS

__all__ = ["read_image_labels"]


def read_image_labels(root: Path, images: Sequence[str], settings: LabelSettings) -> ImageLabels:
    """Read the labels of pictures.

    Args:
        root: the folder.
        images: paths relative to it, with forward slashes.
        settings: how to read them.

    Returns:
        the labels and what is wrong with them; nothing is raised for a table or folder that cannot be used.
    """
    table, problem = _find_table(root, settings.labels_file)
    if problem:
        return ImageLabels(problems=(problem,))
    found = _of_folders(images, settings) if table is None else read_image_table(table, images, settings)
    if settings.patient_pattern is None or found.problems:
        return found
    pattern = re.compile(settings.patient_pattern)
    named = {path: pattern.search(path) for path in found.images}
    missed = sum(match is None or not match[1] for match in named.values())
    if missed:
        text = f"patient_pattern finds no patient in the paths of {missed} of {len(named)} images"
        return ImageLabels(found.class_names, problems=(f"{text}; correct it, or leave it out",))
    whole = {
        path: ImageLabel(one.label, match[1], one.section)
        for (path, one), match in zip(found.images.items(), named.values(), strict=True)
        if match is not None
    }
    return ImageLabels(found.class_names, whole, (), found.unlabeled)


def _find_table(root: Path, labels_file: str | Path | None) -> tuple[Path | None, str | None]:
    if labels_file is None:
        return (root / "labels.csv" if (root / "labels.csv").is_file() else None), None
    for path in (root / labels_file, Path(labels_file)):
        if path.is_file():
            return path, None
    return None, "labels table: the labels_file that was passed exists neither as such nor relative to dataset_dir"


def _of_folders(images: Sequence[str], settings: LabelSettings) -> ImageLabels:
    if settings.label_kind == "multi":
        text = "labels table: several findings of one image need a table, labels.csv, and there is none"
        return ImageLabels(problems=(f"{text}; add it or pass labels_file",))
    parts = {path: PurePosixPath(path).parts for path in images}
    tops = {own[0].casefold() for own in parts.values() if len(own) > 1}
    divided = bool(tops) and tops <= set(SECTIONS) and all(len(own) > 2 for own in parts.values())
    depth = 1 if divided else 0
    loose = sum(len(own) < depth + 2 for own in parts.values())
    names = sorted({own[depth] for own in parts.values() if len(own) > depth + 1})
    problems = []
    if loose:
        problems.append(
            f"dataset_dir: {loose} images lie in no folder of a class; give each class a folder, or add labels.csv"
        )
    elif len(names) < 2 and settings.class_names is None:
        problems.append(f"dataset_dir: holds {len(names)} folders of classes with images, at least 2 are needed")
    classes, wrong = name_classes(names, settings, "folders of classes")
    problems += wrong
    if problems:
        return ImageLabels(classes, problems=tuple(problems))
    found = {
        path: ImageLabel(class_index(own[depth], classes), "", SECTIONS[own[0].casefold()] if divided else None)
        for path, own in parts.items()
    }
    return ImageLabels(classes, found)
