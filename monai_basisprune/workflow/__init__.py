"""What the bundles do beyond configuration: one tested function for each step of a run."""

from __future__ import annotations

from .cohort import PreparedCohort, prepare_cohort
from .inference import (
    evaluation_cases,
    list_radiographs,
    load_deployed,
    read_deployment,
    write_evaluation,
    write_predictions,
)
from .pretrained import load_pretrained, transfer_weights
from .start import start_run
from .study import finish_study
from .transfer import make_budgets, save_transferred

__all__ = [
    "PreparedCohort",
    "evaluation_cases",
    "finish_study",
    "list_radiographs",
    "load_deployed",
    "load_pretrained",
    "make_budgets",
    "prepare_cohort",
    "read_deployment",
    "save_transferred",
    "start_run",
    "transfer_weights",
    "write_evaluation",
    "write_predictions",
]
