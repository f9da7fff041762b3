"""The cases of an evaluation of a network of volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import load_split
from ..data.splits import SECTIONS
from ..data.volume_preflight import VolumeRecord, find_volumes, inspect_volume, inspect_volumes
from ..errors import CohortError, ConfigurationError
from ..reading import read_json
from ..report import load_study
from .cohort import synthetic_folder

__all__ = ["volume_evaluation_cases"]


def volume_evaluation_cases(
    output_dir: str | os.PathLike[str], section: str, dataset_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Return one section of the datalist that the pruning run wrote.

    The volumes are found by their content, whatever they are called by now.

    Args:
        output_dir: folder of the results.
        section: ``"training"``, ``"validation"`` or ``"test"``.
        dataset_dir: folder of the volumes; None for the synthetic cohort of the run.

    Raises:
        ConfigurationError: if there is no result, or it was made with volumes of which the folder must be named.
        CohortError: if the cases cannot be read.
    """
    output = Path(output_dir)
    for name in ("datalist.json", "study.json"):
        if not (output / name).is_file():
            raise ConfigurationError(
                f"There is no {name} in output_dir: run `python -m monai.bundle run prune` first, or pass --output_dir "
                f"with the folder that it wrote."
            )
    root = synthetic_folder(output) if dataset_dir is None else Path(dataset_dir)
    if dataset_dir is None and not (root.is_dir() and load_study(output / "study.json")["data"]["synthetic"]):
        raise ConfigurationError(
            "The result in output_dir was made with volumes of your own: pass --dataset_dir with their folder."
        )
    if not root.is_dir():
        raise CohortError("dataset_dir is not a folder; pass --dataset_dir with the folder that holds the volumes.")
    try:
        datalist = read_json(output / "datalist.json")
    except (OSError, ValueError):
        raise CohortError("The datalist in output_dir cannot be read; run prune again.") from None
    if section not in SECTIONS or not isinstance(datalist, Mapping) or not isinstance(datalist.get(section), list):
        return load_split(output / "datalist.json", section, root)  # which says what is wrong
    places = {record.digest: record.path for record in _records(root, datalist[section]) if record.digest}
    found = [{**item, "image": places.get(item.get("image_sha256"), "")} for item in datalist[section]]
    return load_split({**datalist, section: found}, section, root)


def _records(root: Path, items: list[dict[str, Any]]) -> list[VolumeRecord]:
    """Read the volumes where the datalist says that they are, else all of the folder."""
    paths = [root / str(item["image"]) for item in items if isinstance(item, Mapping) and item.get("image")]
    if len(paths) == len(items) and all(path.resolve().is_relative_to(root.resolve()) for path in paths):
        return [inspect_volume(root, path, position) for position, path in enumerate(paths, start=1) if path.exists()]
    return inspect_volumes(root, find_volumes(root)[0], progress=False)
