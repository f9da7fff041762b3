"""The use of a pruned network: what it predicts for a folder of images, and how well on the test cases."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.data.torchscript_utils import METADATA_FILENAME
from monai.engines import SupervisedEvaluator
from torch import nn

from ..data import load_split
from ..data.preflight import check_on_problem, cross_check, inspect_files, list_files
from ..errors import CohortError, ConfigurationError
from ..evidence import auc_interval
from ..files import archive_problem, write_atomically
from ..handlers import Predictions, PredictionsHandler
from ..report import load_study
from .cohort import synthetic_folder

__all__ = [
    "DEPLOYMENT_KEYS",
    "evaluation_cases",
    "list_radiographs",
    "load_deployed",
    "predict",
    "read_deployment",
    "write_evaluation",
    "write_predictions",
]

DEPLOYMENT_KEYS = ("image_size", "image_channels", "intensity_mean", "intensity_std", "class_names")
"""What a deployed network carries about its images and classes."""


def load_deployed(output_dir: str | os.PathLike[str], device: torch.device | str = "cpu") -> nn.Module:
    """Load the recomposed plain network that a pruning run left: TorchScript, which needs nothing of this package.

    Args:
        output_dir: folder of the results.
        device: where to load it.

    Raises:
        ConfigurationError: if there is none, or it cannot be read.
    """
    return _load(output_dir, torch.device(device))[0].eval()


def read_deployment(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read how the images of the deployed network are prepared, and the names of its classes.

    The file of the network carries them, so that it is never used with images that were prepared otherwise.

    Args:
        output_dir: folder of the results.

    Returns:
        ``image_size``, ``image_channels``, ``intensity_mean``, ``intensity_std`` and ``class_names``.

    Raises:
        ConfigurationError: if there is no deployed network, or it does not carry them.
    """
    metadata = _load(output_dir, torch.device("cpu"))[1]
    missing = [key for key in DEPLOYMENT_KEYS if key not in metadata]
    if missing:
        raise ConfigurationError(
            f"model.ts in output_dir does not carry {missing}: it was not written by this package."
        )
    return {key: metadata[key] for key in DEPLOYMENT_KEYS}


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


def _require(output: Path, name: str, what: str | None = None) -> Path:
    path = output / name
    if not path.is_file():
        raise ConfigurationError(
            f"There is no {what or name} in output_dir: run `python -m monai.bundle run prune` first, or pass "
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


def _load(output_dir: str | os.PathLike[str], device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    path = _require(Path(output_dir), "model.ts", "pruned network (model.ts)")
    carried = {METADATA_FILENAME: ""}
    try:
        problem = archive_problem(path)
        if problem is not None:
            raise RuntimeError(problem)
        network: nn.Module = torch.jit.load(str(path), map_location=device, _extra_files=carried)
        metadata = json.loads(carried[METADATA_FILENAME] or "{}")
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"model.ts in output_dir cannot be read, it is damaged: {error}") from error
    return network, metadata


def list_radiographs(
    dataset_dir: str | os.PathLike[str] | None, on_problem: str = "raise", progress: bool = True
) -> list[dict[str, str]]:
    """Read every DICOM file of a folder and list the radiographs, without labels.

    Args:
        dataset_dir: the folder.
        on_problem: ``"raise"``, or ``"skip"`` to leave out files that cannot be used, with a warning.
        progress: whether to show a progress bar.

    Returns:
        dictionaries with ``image`` (the path) and ``case_id`` (the SOPInstanceUID).

    Raises:
        CohortError: if a file cannot be used, all of them listed, or if there is none.
    """
    check_on_problem(on_problem)
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise CohortError("dataset_dir is not a folder; pass --dataset_dir with the folder that holds DICOM files.")
    root = Path(dataset_dir)
    paths, left_out = list_files(root)
    records = inspect_files(root, paths, progress)
    found = cross_check(records)
    problems = [str(problem) for problem in found]
    bad = {position for problem in found for position in problem.positions}
    usable = [record for record in records if record.position not in bad]
    if problems and on_problem == "raise":
        raise CohortError(
            f"{len(records) - len(usable)} of {len(records)} files cannot be used; repair or remove them, or pass "
            f"--on_problem skip to predict the others.",
            problems,
        )
    if not usable:
        raise CohortError(f"dataset_dir holds no radiograph that can be read ({left_out} other files).", problems)
    if problems:
        warnings.warn("Left out:\n" + "\n".join(f"  - {line}" for line in problems), stacklevel=2)
    return [{"image": str(root / record.path), "case_id": str(record.sop_instance_uid)} for record in usable]


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


def write_predictions(predictions: Predictions, class_names: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Write a table of probabilities: the case's id, then one column for each class.

    Args:
        predictions: the probabilities, after the softmax.
        class_names: names of the classes.
        path: the CSV file.

    Raises:
        CohortError: if there is no prediction, or one is no probability.
    """
    outputs = torch.tensor(predictions.outputs, dtype=torch.float64)
    if not len(outputs) or len(outputs) != len(predictions.case_ids):
        raise CohortError(f"There are {len(outputs)} predictions for {len(predictions.case_ids)} cases.")
    if outputs.shape[1] != len(class_names):
        raise CohortError(
            f"The network gives {outputs.shape[1]} outputs, there are {len(class_names)} class names: "
            f"{list(class_names)}."
        )
    sound = outputs.isfinite().all(dim=1) & ((outputs.sum(dim=1) - 1).abs() < 1e-3) & (outputs >= 0).all(dim=1)
    if not bool(sound.all()):
        broken = [case for case, good in zip(predictions.case_ids, sound.tolist(), strict=True) if not good]
        raise CohortError(
            "The network gave no probabilities for some cases; check the weights and the images.",
            [f"SOPInstanceUID {case}" for case in broken],
        )

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["SOPInstanceUID", *(f"probability_{name}" for name in class_names)])
            for case, row in zip(predictions.case_ids, predictions.outputs, strict=True):
                writer.writerow([case, *(f"{value:.6f}" for value in row)])

    write_atomically(path, write)
    print(f"{len(outputs)} predictions written to predictions_file.")
    return Path(path)


def write_evaluation(predictions: Predictions, path: str | os.PathLike[str], section: str = "test") -> dict[str, Any]:
    """Write the AUC of a network with its 95 % interval by patient, as JSON, and print it.

    Args:
        predictions: those of labeled cases.
        path: the JSON file.
        section: the name of the section that was evaluated.
    """
    result = auc_interval(predictions.labels, predictions.scores, predictions.patients or None)
    content = {"section": section, "auc": asdict(result)}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, text)
    interval = "" if result.low is None else f" (95 % interval {result.low:.3f} to {result.high:.3f})"
    print(f"AUC on {result.cases} {section} cases: {result.auc:.3f}{interval}; {result.method}.")
    return content
