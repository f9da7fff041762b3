"""What the bundles do beyond configuration: one tested function for each step of a run."""

from __future__ import annotations

from .bundle import BundleEvidence, PrunedBundle, write_pruned_bundle
from .cohort import PreparedCohort, prepare_cohort
from .existing_bundle import prune_bundle
from .inference import (
    evaluation_cases,
    list_radiographs,
    load_deployed,
    read_deployment,
    write_evaluation,
    write_predictions,
)
from .pretrained import load_pretrained, transfer_weights
from .redaction import RedactingWorkerStart
from .repeats import run_repeats
from .start import is_on, start_run
from .study import finish_study
from .study_bundle import export_study_bundle
from .transfer import make_budgets, save_transferred

__all__ = [
    "BundleEvidence",
    "PreparedCohort",
    "PrunedBundle",
    "RedactingWorkerStart",
    "evaluation_cases",
    "export_study_bundle",
    "finish_study",
    "is_on",
    "list_radiographs",
    "load_deployed",
    "load_pretrained",
    "make_budgets",
    "prepare_cohort",
    "prune_bundle",
    "read_deployment",
    "run_repeats",
    "save_transferred",
    "start_run",
    "transfer_weights",
    "write_evaluation",
    "write_predictions",
    "write_pruned_bundle",
]
