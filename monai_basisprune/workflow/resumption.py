"""What a bundle's run depends on, so that it only goes on from checkpoints of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from .._version import __version__
from .cohort import PreparedCohort
from .start import running_parser

__all__ = ["run_settings"]

_UNIMPORTANT = {
    "bundle_root",
    "finalize",
    "imports",
    "initialize",
    "num_workers",
    "redact_logs",
    "resume",
    "save_execute_config",
    "start",
    "tensorboard",
    "title",
}
"""What changes nothing in a network."""
_PLACES = ("_dir", "_file", "_root")


def run_settings(cohort: PreparedCohort) -> dict[str, Any]:
    """Return what the result of the run that is going on depends on: its configuration, its cases and versions.

    Where files lie is no part of it.

    Args:
        cohort: the cohort of the run.

    Returns:
        values of JSON types by the name of the setting, for
        :class:`~monai_basisprune.handlers.RunCheckpointHandler`.
    """
    parser = running_parser()
    config: Mapping[str, Any] = {} if parser is None else parser.get()
    settings = {
        key: value
        for key, value in config.items()
        if key not in _UNIMPORTANT and not key.startswith("_") and not key.endswith(_PLACES) and not _is_steps(value)
    }
    cases = [
        [section, *(item[key] for key in sorted(item) if key != "image")]
        for section in ("training", "validation", "test")
        for item in cohort.datalist[section]
    ]
    digest = hashlib.sha256(json.dumps(cases, default=str).encode()).hexdigest()
    versions = {"monai_basisprune": __version__, "torch": torch.__version__}
    return {**settings, "the cases and their sections": digest, "versions": versions}


def _is_steps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(step, str) and step.startswith("$") for step in value)
