"""The pictures of a folder, or of a MedMNIST file, as cases to predict."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ..data.image_files import inspect_pictures, list_pictures
from ..data.npz import read_npz_images
from ..data.preflight import check_on_problem
from ..errors import CohortError

__all__ = ["list_images"]


def list_images(
    dataset_dir: str | os.PathLike[str] | None, on_problem: str = "raise", progress: bool = True
) -> list[dict[str, Any]]:
    """Read every PNG and JPEG file of a folder, pixels included, or the images of a ``.npz`` file, without labels.

    Args:
        dataset_dir: the folder, or the file, of which the arrays ``images`` and ``..._images`` are read.
        on_problem: ``"raise"``, or ``"skip"`` to list files that cannot be used with the reason.
        progress: whether to show a progress bar.

    Returns:
        dictionaries with ``image`` (the path, or the pixels), ``case_id`` (the SHA-256 of the file, since its name can
        be that of a patient, or its place in the sorted list of files where it cannot be read; of a ``.npz`` file the
        array and the place in it, from 0, such as ``test_images[12]``) and ``problem`` (why the file cannot be used, or
        an empty text).

    Raises:
        CohortError: if a file cannot be used, all of them listed, or if there is none.
    """
    check_on_problem(on_problem)
    if dataset_dir is not None and Path(dataset_dir).is_file() and Path(dataset_dir).suffix.lower() == ".npz":
        arrays = read_npz_images(Path(dataset_dir))
        return [
            {"image": image, "case_id": f"{name}[{number}]", "problem": ""}
            for name, images in arrays.items()
            for number, image in enumerate(images)
        ]
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise CohortError(
            "dataset_dir is neither a folder nor a .npz file; pass --dataset_dir with the one that holds the pictures."
        )
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
    for line in links:
        print(f"{line}; they are not predicted", file=sys.stderr)
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
