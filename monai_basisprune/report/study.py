"""The study record: the one JSON file that everything in a report is made from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import write_atomically
from monai_basisprune.report.consistency import find_contradictions

__all__ = ["load_study", "save_study", "validate_study"]


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
    _check(study, f"the study record for {os.fspath(path)}")
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
        study = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # wrong JSON and wrong UTF-8 alike
        raise ConfigurationError(
            f"{os.fspath(path)} was asked for as a study record, but it is not JSON ({error}). "
            "Give the file that save_study wrote, and copy it again if it was cut short."
        ) from error
    _check(study, os.fspath(path))
    return dict(study)


def _check(study: object, what: str) -> None:
    problems = list(_not_plain(study, "$"))
    if not problems:
        # Tuples are arrays in JSON, but not for jsonschema; the copy looks like the record read back from a file.
        plain = json.loads(json.dumps(study))
        found = sorted(_validator().iter_errors(plain), key=lambda error: [str(part) for part in error.absolute_path])
        problems = [f"{error.json_path}: {_shorten(error.message)}" for error in found]
        if not problems:
            problems = list(find_contradictions(plain))
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ConfigurationError(
            f"{what} cannot be used, {len(problems)} {'problem' if len(problems) == 1 else 'problems'} found; "
            f"correct what wrote it and write it again:{lines}"
        )


def _not_plain(value: object, path: str) -> Iterator[str]:
    """Yield what JSON cannot hold: infinite numbers, NaN, and objects such as NumPy integers and tensors."""
    if isinstance(value, Mapping):
        if not isinstance(value, dict):
            yield f"{path}: a {type(value).__name__} is not plain JSON; use a dict"
        for key, item in value.items():
            if isinstance(key, str):
                yield from _not_plain(item, f"{path}.{key}")
            else:
                yield f"{path}: the key {key!r} is not a string"
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_plain(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{path}: {value} is not a finite number; use null, and say why in 'method' or in a warning"
    elif value is not None and not isinstance(value, str | int):
        yield f"{path}: a {type(value).__module__}.{type(value).__name__} is not plain JSON; use int, float or str"


@cache
def _validator() -> Any:
    schema = json.loads(files(__package__).joinpath("templates/study.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _shorten(message: str, limit: int = 200) -> str:
    # jsonschema repeats the whole value in its message, which may be the whole record.
    return message if len(message) <= limit else f"{message[: limit // 2]} ... {message[-limit // 2 :]}"
