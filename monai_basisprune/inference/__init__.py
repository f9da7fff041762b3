"""A pruned network at work: a folder of images in, a table of probabilities out. Needs nothing that training needs.

What is imported here needs torch, MONAI's transforms and data sets, pydicom, nibabel and Pillow; no scikit-learn,
scipy, matplotlib, ignite or Torch-Pruning, and nothing of `handlers`, `evidence`, `report` or `workflow`.
"""

from __future__ import annotations

from .cases import CaseDataset, list_radiographs
from .deployed import DEPLOYMENT_KEYS, Algorithm, identify_algorithm, image_kind, load_deployed, read_deployment
from .kinds import IMAGE_KINDS, ImageKind, input_shape, list_cases, prepare_cases
from .pictures import list_images
from .prediction import PredictionRun, predict_cases, predict_folder
from .structured_report import check_report_folder, check_report_sources, write_structured_reports
from .table import (
    SKIPPED_EXIT_CODE,
    PredictedCases,
    check_outputs,
    check_predictions_file,
    exit_code,
    exit_if_skipped,
    write_predictions,
)
from .volumes import list_volumes

__all__ = [
    "DEPLOYMENT_KEYS",
    "IMAGE_KINDS",
    "SKIPPED_EXIT_CODE",
    "Algorithm",
    "CaseDataset",
    "ImageKind",
    "PredictedCases",
    "PredictionRun",
    "check_outputs",
    "check_predictions_file",
    "check_report_folder",
    "check_report_sources",
    "exit_code",
    "exit_if_skipped",
    "identify_algorithm",
    "image_kind",
    "input_shape",
    "list_cases",
    "list_images",
    "list_radiographs",
    "list_volumes",
    "load_deployed",
    "predict_cases",
    "predict_folder",
    "prepare_cases",
    "read_deployment",
    "write_predictions",
    "write_structured_reports",
]
