"""The use of a pruned network inside a bundle: the cases of an evaluation, its figures, and MONAI's engine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import nn

from ..data import load_split
from ..data.preflight import inspect_files
from ..errors import CohortError, ConfigurationError
from ..evidence import auc_interval
from ..files import write_atomically
from ..handlers import Predictions, PredictionsHandler
from ..report import load_study
from .cohort import synthetic_folder

__all__ = ["check_all_used", "evaluation_cases", "predict", "write_evaluation"]


def evaluation_cases(
    output_dir: str | os.PathLike[str], section: str, dataset_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Return one section of the datalist that the pruning run wrote.

    Args:
        output_dir: folder of the results.
        section: ``"training"``, ``"validation"`` or ``"test"``.
        dataset_dir: folder of the images; None for the synthetic cohort of the run.

    Raises:
        ConfigurationError: if there is no result, or it was made with images of which the folder must be named.
        CohortError: if the cases cannot be read.
    """
    output = Path(output_dir)
    datalist = _require(output, "datalist.json")
    if dataset_dir is None:
        dataset_dir = synthetic_folder(output)
        own = "The result in output_dir was made with images of your own: pass --dataset_dir with their folder."
        if not dataset_dir.is_dir():
            raise ConfigurationError(own)
        if not load_study(_require(output, "study.json"))["data"]["synthetic"]:
            raise ConfigurationError(own)
    cases = load_split(datalist, section, dataset_dir)
    items = json.loads(datalist.read_text(encoding="utf-8"))[section]
    if all("image" in item for item in items):  # others were found by their content
        _check_images(items, Path(dataset_dir))
    return cases


def _require(output: Path, name: str) -> Path:
    path = output / name
    if not path.is_file():
        raise ConfigurationError(
            f"There is no {name} in output_dir: run `python -m monai.bundle run prune` first, or pass "
            f"--output_dir with the folder that it wrote."
        )
    return path


def _check_images(items: Sequence[Mapping[str, Any]], root: Path) -> None:
    """Check that the files are still the images that the run saw; their names alone do not tell."""
    records = inspect_files(root, [root / item["image"] for item in items], progress=False)
    other = [
        f"case {item['case_id']}"
        for item, record in zip(items, records, strict=True)
        if item.get("image_sha256") not in (None, record.digest)
    ]
    if other:
        raise CohortError(
            "dataset_dir holds other images under the names that the run read; pass the folder that the result was "
            "made with.",
            other,
        )


def predict(
    network: nn.Module, data: Dataset, device: torch.device | str, batch_size: int = 16, patient_key: str | None = None
) -> Predictions:
    """Run a network over a data set with MONAI's evaluator.

    Args:
        network: the network.
        data: items with ``image``, ``case_id``, and ``label`` where known.
        device: where to run.
        batch_size: images in a batch.
        patient_key: key of the patient's id, where known.
    """
    handler = PredictionsHandler(patient_key)
    evaluator = SupervisedEvaluator(
        device=torch.device(device),
        val_data_loader=DataLoader(data, batch_size=batch_size),
        network=network,
        val_handlers=[handler],
        decollate=False,
    )
    evaluator.run()
    return handler.predictions


def check_all_used(predictions: Predictions) -> None:
    """Refuse predictions of which some are of no image, before any figure is computed.

    Raises:
        CohortError: with the cases that could not be used, and why.
    """
    if skipped := [f"{c}: {p}" for c, p in zip(predictions.case_ids, predictions.problems, strict=False) if p]:
        raise CohortError("No figure is computed while cases cannot be used; repair them.", skipped)


def write_evaluation(predictions: Predictions, path: str | os.PathLike[str], section: str = "test") -> dict[str, Any]:
    """Write the AUC of a network with its 95 % interval by patient, as JSON, and print it.

    Args:
        predictions: those of labeled cases.
        path: the JSON file.
        section: the name of the section that was evaluated.
    """
    check_all_used(predictions)
    result = auc_interval(predictions.labels, predictions.scores, predictions.patients or None)
    content = {"section": section, "auc": asdict(result)}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, text)
    interval = "" if result.low is None else f" (95 % interval {result.low:.3f} to {result.high:.3f})"
    print(f"AUC on {result.cases} {section} cases: {result.auc:.3f}{interval}; {result.method}.")
    return content
