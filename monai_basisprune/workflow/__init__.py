"""What the bundles do beyond configuration: one tested function for each step of a run."""

from __future__ import annotations

from ..inference import (
    CaseDataset,
    check_predictions_file,
    check_report_folder,
    check_report_sources,
    exit_if_skipped,
    identify_algorithm,
    input_shape,
    list_cases,
    load_deployed,
    read_deployment,
    write_predictions,
    write_structured_reports,
)
from ..redaction import RedactingWorkerStart
from .bundle import BundleEvidence, PrunedBundle, write_pruned_bundle
from .cohort import PreparedCohort, prepare_cohort
from .existing_bundle import prune_bundle
from .image_cohort import (
    PreparedImages,
    classification_loss,
    find_class_names,
    locate_images,
    prepare_image_cohort,
)
from .image_inference import image_evaluation_cases, patients_known, write_image_evaluation
from .inference import evaluation_cases, write_evaluation
from .inspected import format_inspection, inspect_source, show_inspection
from .method_comparison import compare_methods
from .pretrained import load_pretrained, transfer_weights
from .repeats import run_repeats
from .resumption import run_settings
from .start import is_on, keep_one_tracked_config, start_run
from .study import finish_study
from .study_bundle import export_study_bundle
from .study_network import export_study_network
from .transfer import make_budgets, save_transferred, unlabeled_images
from .volume_cohort import prepare_volume_cohort
from .volume_inference import volume_evaluation_cases
from .volume_pretrained import load_pretrained_volume

__all__ = [
    "BundleEvidence",
    "CaseDataset",
    "PreparedCohort",
    "PreparedImages",
    "PrunedBundle",
    "RedactingWorkerStart",
    "check_predictions_file",
    "check_report_folder",
    "check_report_sources",
    "classification_loss",
    "compare_methods",
    "evaluation_cases",
    "exit_if_skipped",
    "export_study_bundle",
    "export_study_network",
    "find_class_names",
    "finish_study",
    "format_inspection",
    "identify_algorithm",
    "image_evaluation_cases",
    "input_shape",
    "inspect_source",
    "is_on",
    "keep_one_tracked_config",
    "list_cases",
    "load_deployed",
    "load_pretrained",
    "load_pretrained_volume",
    "locate_images",
    "make_budgets",
    "patients_known",
    "prepare_cohort",
    "prepare_image_cohort",
    "prepare_volume_cohort",
    "prune_bundle",
    "read_deployment",
    "run_repeats",
    "run_settings",
    "save_transferred",
    "show_inspection",
    "start_run",
    "transfer_weights",
    "unlabeled_images",
    "volume_evaluation_cases",
    "write_evaluation",
    "write_image_evaluation",
    "write_predictions",
    "write_pruned_bundle",
    "write_structured_reports",
]
