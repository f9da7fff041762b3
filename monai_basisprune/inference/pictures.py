"""The pictures of a folder as cases to predict."""

from __future__ import annotations

import os
from pathlib import Path

from ..data.image_files import inspect_pictures, list_pictures
from ..data.preflight import check_on_problem
from ..errors import CohortError
from .deployed import DEPLOYMENT_KEYS

__all__ = ["PICTURE_KEYS", "list_images"]

PICTURE_KEYS = (*DEPLOYMENT_KEYS, "label_kind")
"""What a deployed network of pictures carries about its images and classes."""


def list_images(
    dataset_dir: str | os.PathLike[str] | None, on_problem: str = "raise", progress: bool = True
) -> list[dict[str, str]]:
    """Read every PNG and JPEG file of a folder, pixels included, and list them, without labels.

    Args:
        dataset_dir: the folder.
        on_problem: ``"raise"``, or ``"skip"`` to list files that cannot be used with the reason.
        progress: whether to show a progress bar.

    Returns:
        dictionaries with ``image`` (the path), ``case_id`` (the SHA-256 of the file, since its name can be that of a
        patient, or its place in the sorted list of files where it cannot be read) and ``problem`` (why the file cannot
        be used, or an empty text).

    Raises:
        CohortError: if a file cannot be used, all of them listed, or if there is none.
    """
    check_on_problem(on_problem)
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise CohortError("dataset_dir is not a folder; pass --dataset_dir with the folder that holds the pictures.")
    root = Path(dataset_dir)
    paths, links, left_out = list_pictures(root)
    records = inspect_pictures(root, paths, progress)
    lines = links + [f"{record.name}: {record.problem}" for record in records if record.problem]
    if lines and on_problem == "raise":
        raise CohortError(
            f"{len(lines)} problems were found in {len(records)} files; repair or remove them, or pass --on_problem "
            f"skip to predict the others.",
            lines,
        )
    if all(record.problem for record in records):
        raise CohortError(f"dataset_dir holds no picture that can be read ({left_out} other files).", lines)
    return [
        {
            "image": str(root / record.path),
            "case_id": record.file_sha256 or record.name,
            "problem": record.problem or "",
        }
        for record in records
    ]
