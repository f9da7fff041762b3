"""What the result of a run depends on: it goes on from checkpoints of its own only, and no runs of two kinds mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import monai
import torch

from .._version import __version__
from .cohort import PreparedCohort
from .start import PATH_FLAGS, is_steps, running_parser

__all__ = ["config_settings", "run_settings", "versions"]

_NOT_SETTINGS = {
    "finalize", "imports", "initialize", "start",  # steps, and what they start
    "num_workers", "redact_logs", "resume", "save_execute_config", "tensorboard", "title",  # change no network
    "methods", "parallel", "repeats",  # of several runs, which are compared one by one
    "fold", "split_seed",  # of one of them; what they make is the cases and their sections
}  # fmt: skip


def config_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a bundle's configuration the result of a run depends on.

    Where files lie is no part of it, nor are comments and lists of steps.

    Args:
        config: the configuration.
    """
    return {
        key: value
        for key, value in config.items()
        if key not in _NOT_SETTINGS and not key.startswith("_") and not key.endswith(PATH_FLAGS) and not is_steps(value)
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes, of which other ones may round otherwise."""
    return {"monai_basisprune": __version__, "torch": torch.__version__, "monai": monai.__version__}


def run_settings(cohort: PreparedCohort) -> dict[str, Any]:
    """Return what the result of the run that is going on depends on: its configuration, its cases and versions.

    Args:
        cohort: the cohort of the run.

    Returns:
        values of JSON types by the name of the setting, for
        :class:`~monai_basisprune.handlers.RunCheckpointHandler`.
    """
    parser = running_parser()
    cases = [
        [section, *(item[key] for key in sorted(item) if key != "image")]
        for section in ("training", "validation", "test")
        for item in cohort.datalist[section]
    ]
    return {
        **config_settings({} if parser is None else parser.get()),
        "the cases and their sections": hashlib.sha256(json.dumps(cases, default=str).encode()).hexdigest(),
        "versions": versions(),
    }
