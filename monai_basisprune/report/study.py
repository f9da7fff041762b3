"""The study record: the one JSON file that everything in a report is made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import write_atomically
from monai_basisprune.reading import read_json
from monai_basisprune.report.consistency import find_contradictions
from monai_basisprune.report.records import check_record

__all__ = ["load_study", "save_study", "validate_study"]

_FORMAT_VERSION = 2


def validate_study(study: Mapping[str, Any]) -> None:
    """Check that a study record is complete, holds only plain finite numbers, and does not contradict itself.

    Checked are the JSON types, the JSON Schema (``report/templates/study.schema.json``, draft 2020-12), and the
    numbers against each other, such as an AUC outside its own interval, or a claim of non-inferiority whose interval
    reaches beyond the margin.

    Args:
        study: the study record; it is not changed.

    Raises:
        ConfigurationError: if anything is wrong. The message lists every problem with its JSON path, such as
            ``$.curve[3].auc.low``.
    """
    _check(study, "the study record")


def save_study(study: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Check a study record and save it as JSON, so that the file is whole or not there.

    Args:
        study: the study record.
        path: the file to write; an earlier file is replaced only when the new one is complete.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: if the record is not valid, see :func:`validate_study`; nothing is written then.
    """
    _check(study, f"the study record for {Path(path).name}")
    return write_atomically(path, json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load_study(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a study record and check it.

    Args:
        path: a file written by :func:`save_study`.

    Returns:
        The study record.

    Raises:
        ConfigurationError: if the file is not JSON, or the record is not valid, see :func:`validate_study`.
        OSError: if the file cannot be read.
    """
    try:
        study = read_json(path)
    except ValueError as error:  # wrong JSON and wrong UTF-8 alike
        raise ConfigurationError(
            f"{Path(path).name} was asked for as a study record, but it is not JSON ({error}). "
            "Give the file that save_study wrote, and copy it again if it was cut short."
        ) from error
    _check(study, Path(path).name)  # not its folders, which can be named after people
    return dict(study)


def _check(study: object, what: str) -> None:
    version = study.get("format_version") if isinstance(study, Mapping) else None
    if isinstance(version, int) and version < _FORMAT_VERSION:
        raise ConfigurationError(
            f"{what} has format_version {version}, known is {_FORMAT_VERSION}. The older format was never released and "
            "lacks the audit: run the study again, which writes a new record."
        )
    check_record(study, what, "study.schema.json", find_contradictions)
