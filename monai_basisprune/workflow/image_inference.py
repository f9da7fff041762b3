"""The evaluation of a pruned network of pictures on one section of the datalist that its run wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.image_files import place_pictures
from ..errors import ConfigurationError
from ..evidence import accuracy, auc_by_class, auc_interval
from ..files import write_atomically
from ..handlers import Predictions
from ..reading import read_json
from .image_cohort import load_items, unpacked_folder
from .inference import check_all_used

__all__ = ["image_evaluation_cases", "patients_known", "write_image_evaluation"]


def image_evaluation_cases(
    output_dir: str | os.PathLike[str], section: str, dataset_dir: str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """Return one section of the datalist that the pruning run wrote, its pictures found by their content.

    Args:
        output_dir: folder of the results.
        section: ``"training"``, ``"validation"`` or ``"test"``.
        dataset_dir: folder of the pictures; None, or the MedMNIST file, for those that the run itself wrote.

    Raises:
        ConfigurationError: if there is no result, or the folder must be named.
        CohortError: if the cases cannot be read, or are not in the folder.
    """
    datalist = _datalist(output_dir)
    root = unpacked_folder(output_dir) if dataset_dir is None or Path(dataset_dir).is_file() else Path(dataset_dir)
    if not root.is_dir():
        raise ConfigurationError(
            "The pictures of this result are not in output_dir: pass --dataset_dir with their folder."
        )
    if not isinstance(datalist, dict) or not isinstance(datalist.get(section), list):
        raise ConfigurationError(
            f"The section {section!r} was asked for, datalist.json has training, validation and test."
        )
    placed = {**datalist, section: place_pictures(datalist[section], root)}
    return load_items(placed, section, root)


def patients_known(output_dir: str | os.PathLike[str]) -> bool:
    """Tell whether the pruning run knew the patients; else every image counts as a patient of its own.

    Args:
        output_dir: folder of the results.

    Raises:
        ConfigurationError: if there is no result.
    """
    datalist = _datalist(output_dir)
    return isinstance(datalist, dict) and datalist.get("patients_known") is True


def _datalist(output_dir: str | os.PathLike[str]) -> Any:
    try:
        return read_json(Path(output_dir) / "datalist.json")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"There is no datalist.json in output_dir that can be read ({type(error).__name__}): run `python -m "
            "monai.bundle run prune` first, or pass --output_dir with the folder that it wrote."
        ) from None


def write_image_evaluation(
    predictions: Predictions, class_names: Sequence[str], path: str | os.PathLike[str], section: str = "test"
) -> dict[str, Any]:
    """Write the AUC of a network, that of each class and the accuracy, with intervals, as JSON, and print them.

    Args:
        predictions: those of labeled cases.
        class_names: names of the classes or findings.
        path: the JSON file.
        section: the name of the section that was evaluated.

    Raises:
        CohortError: if some cases could not be used.
    """
    check_all_used(predictions)
    labels, scores, patients = predictions.labels, predictions.scores, predictions.patients or None
    result = auc_interval(labels, scores, patients)
    content: dict[str, Any] = {"section": section, "auc": asdict(result)}
    lines = []
    if predictions.several:
        classes = auc_by_class(labels, scores, class_names, patients).classes
        content["classes"] = [asdict(one) for one in classes]
        lines += [f"  {one.name}: {_words(one.interval.auc, one.interval.low, one.interval.high)}"
                  if one.interval else f"  {one.name}: {one.reason}" for one in classes]  # fmt: skip
        if not isinstance(labels[0], list):
            share = accuracy(labels, scores, patients)
            content["accuracy"] = asdict(share)
            lines.append(f"  accuracy: {_words(share.value, share.low, share.high)}")
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False))
    print(f"AUC on {result.cases} {section} cases: {_words(result.auc, result.low, result.high)}; {result.method}.")
    print("\n".join(lines), end="\n" if lines else "")
    return content


def _words(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" + ("" if low is None else f" (95 % interval {low:.3f} to {high:.3f})")
