"""A pruned network at work: a folder of images in, a table of probabilities out. Needs nothing that training needs.

What is imported here needs torch, MONAI's transforms and data sets, and pydicom; no scikit-learn, scipy, matplotlib,
ignite or Torch-Pruning, and nothing of `handlers`, `evidence`, `report` or `workflow`.
"""

from __future__ import annotations

from .cases import CaseDataset, list_radiographs
from .deployed import DEPLOYMENT_KEYS, Algorithm, carried_keys, identify_algorithm, load_deployed, read_deployment
from .pictures import PICTURE_KEYS, list_images
from .prediction import PredictionRun, predict_cases, predict_folder, radiograph_preparation
from .structured_report import check_report_folder, write_structured_reports
from .table import (
    SKIPPED_EXIT_CODE,
    PredictedCases,
    check_outputs,
    check_predictions_file,
    exit_code,
    exit_if_skipped,
    write_predictions,
)
from .volumes import VOLUME_KEYS, list_volumes, read_volume_deployment

__all__ = [
    "DEPLOYMENT_KEYS",
    "PICTURE_KEYS",
    "SKIPPED_EXIT_CODE",
    "VOLUME_KEYS",
    "Algorithm",
    "CaseDataset",
    "PredictedCases",
    "PredictionRun",
    "carried_keys",
    "check_outputs",
    "check_predictions_file",
    "check_report_folder",
    "exit_code",
    "exit_if_skipped",
    "identify_algorithm",
    "list_images",
    "list_radiographs",
    "list_volumes",
    "load_deployed",
    "predict_cases",
    "predict_folder",
    "radiograph_preparation",
    "read_deployment",
    "read_volume_deployment",
    "write_predictions",
    "write_structured_reports",
]
