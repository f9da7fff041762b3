"""The volumes of a folder as cases to predict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.preflight import check_on_problem
from ..data.volume_preflight import cross_check_volumes, find_volumes, inspect_volumes
from ..data.volume_transforms import VolumePreparation
from ..errors import CohortError
from .cases import reasons_by_position

__all__ = ["list_volumes"]


def list_volumes(
    dataset_dir: str | os.PathLike[str] | None,
    on_problem: str = "raise",
    preparation: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Read every volume of a folder, voxels included, and list them, without labels.

    Args:
        dataset_dir: folder of NIfTI files and of folders with one DICOM series each.
        on_problem: ``"raise"``, or ``"skip"`` to list volumes that cannot be used with the reason.
        preparation: how volumes will be prepared, see :func:`read_deployment`; a volume that cannot be
            prepared so is one that cannot be used.
        progress: whether to show a progress bar.

    Returns:
        dictionaries with ``image`` (the path), ``case_id`` (the SeriesInstanceUID of a series, the SHA-256 of a NIfTI
        file, or the place in the sorted list of volumes where there is neither) and ``problem`` (why the volume
        cannot be used, or an empty text).

    Raises:
        CohortError: if a volume cannot be used, all of them listed, or if there is none.
    """
    check_on_problem(on_problem)
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise CohortError("dataset_dir is not a folder; pass --dataset_dir with the folder that holds the volumes.")
    how = None if preparation is None else VolumePreparation.of(preparation)
    root = Path(dataset_dir)
    paths, left_out = find_volumes(root)
    spacing, window = (None, None) if how is None else (how.spacing, how.hounsfield_window)
    records = inspect_volumes(root, paths, spacing, progress, window)
    nothing = f"no volume that can be read ({left_out} other files)"
    reasons = reasons_by_position(cross_check_volumes(records), len(records), on_problem, "volumes", nothing)
    return [
        {
            "image": str(root / record.path),
            "case_id": record.case_name or record.name,
            "problem": reasons.get(record.position, ""),
        }
        for record in records
    ]
