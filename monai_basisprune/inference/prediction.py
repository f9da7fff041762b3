"""Prediction in batches with the plain network alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from monai.data import DataLoader
from torch import nn
from tqdm import tqdm

from ..data.preflight import check_on_problem
from ..errors import ConfigurationError
from ..redaction import RedactingWorkerStart
from .cases import CaseDataset
from .deployed import identify_algorithm, image_kind, load_deployed, read_deployment
from .kinds import IMAGE_KINDS, list_cases, prepare_cases
from .structured_report import check_report_folder, check_report_sources, write_structured_reports
from .table import PredictedCases, check_predictions_file, exit_code, write_predictions

__all__ = ["PredictionRun", "predict_cases", "predict_folder"]


@dataclass(frozen=True)
class PredictionRun:
    """What a prediction over a folder came to.

    Attributes:
        cases: number of cases in the table.
        skipped: how many of them could not be used.
        seconds: time from the first file to the last probability.
        exit_code: 0, or 3 where cases were skipped.
    """

    cases: int
    skipped: int
    seconds: float
    exit_code: int


def predict_cases(
    network: nn.Module,
    data: CaseDataset,
    batch_size: int = 16,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    multi_label: bool = False,
    progress: bool = True,
) -> PredictedCases:
    """Run a network over cases, in their order; a case that cannot be used does not stop it.

    Args:
        network: the network, in evaluation mode and on the device.
        data: the cases.
        batch_size: images in a batch.
        num_workers: processes that read images while the network computes; 0 for none.
        device: where the network is.
        multi_label: whether a case can be of several classes at once: a sigmoid for each instead of one softmax.
        progress: whether to show a progress bar on the error stream.
    """
    loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers, worker_init_fn=RedactingWorkerStart())
    predicted = PredictedCases()
    with (
        _threads_beside(num_workers),
        torch.inference_mode(),
        tqdm(total=len(data), desc="Predicting", unit="case", disable=not progress) as bar,
    ):
        for batch in loader:
            logits = network(batch["image"].to(device)).double()
            outputs = logits.sigmoid() if multi_label else logits.softmax(dim=1)
            predicted.outputs += outputs.cpu().tolist()
            predicted.case_ids += batch["case_id"]
            predicted.problems += batch["problem"]
            bar.update(len(outputs))
    return predicted


@contextmanager
def _threads_beside(num_workers: int) -> Iterator[None]:
    """Leave the processes that read images a core each: threads that share one wait for each other at every layer."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, _cores() - num_workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def predict_folder(
    output_dir: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    predictions_file: str | os.PathLike[str],
    on_problem: str = "raise",
    sr_dir: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> PredictionRun:
    """Predict every image of a folder with the network that a pruning run left, whose file tells what its images are.

    All files are checked before anything is computed: of radiographs the headers, of pictures and volumes all they
    hold. Damage that shows only later is reported with all cases named. Nothing in ``dataset_dir`` is changed.

    Args:
        output_dir: folder of the results, of which only ``model.ts`` is read.
        dataset_dir: folder of DICOM radiographs; of PNG and JPEG files, or a ``.npz`` file; or of volumes, NIfTI files
            and folders with one DICOM series each. Subfolders are included.
        predictions_file: the table to write, see :func:`write_predictions`.
        on_problem: ``"raise"``, or ``"skip"`` to write what cannot be used with the reason.
        sr_dir: a new folder for DICOM Structured Reports, one for each study; None for none.
        batch_size: images in a batch, at least 1; None for 16, or 4 volumes.
        num_workers: processes that read images while the network computes; 0 for none.
        device: where to compute.
        progress: whether to show progress bars.

    Raises:
        ConfigurationError: if there is no network, or an argument cannot be used.
        CohortError: if cases cannot be used, all of them listed; no table is written then.
    """
    check_on_problem(on_problem)
    if (batch_size is not None and batch_size < 1) or num_workers < 0:
        raise ConfigurationError(
            f"batch_size must be at least 1 and num_workers at least 0, got {batch_size} and {num_workers}."
        )
    deployment = read_deployment(output_dir)
    kind, multi_label = IMAGE_KINDS[image_kind(deployment)], deployment.get("label_kind") == "multi"
    if sr_dir is not None and not kind.is_dicom:
        raise ConfigurationError(
            "Structured Reports belong to DICOM studies; there are none of pictures: leave sr_dir out."
        )
    check_predictions_file(predictions_file)
    check_report_folder(sr_dir, dataset_dir)
    network = load_deployed(output_dir, device, optimize=True)
    start = time.perf_counter()
    cases = list_cases(deployment, dataset_dir, on_problem, progress)
    check_report_sources(cases, sr_dir)
    data = prepare_cases(cases, deployment)
    predicted = predict_cases(network, data, batch_size or kind.batch_size, num_workers, device, multi_label, progress)
    seconds = time.perf_counter() - start
    names = deployment["class_names"]
    write_predictions(predicted, names, predictions_file, multi_label, on_problem, kind.id_column)
    algorithm = identify_algorithm(output_dir)
    write_structured_reports(cases, predicted, names, algorithm, sr_dir, dataset_dir, multi_label)
    skipped = sum(map(bool, predicted.problems))
    return PredictionRun(len(cases), skipped, seconds, exit_code(predicted))
