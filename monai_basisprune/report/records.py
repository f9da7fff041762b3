"""The check that every record of this package passes before it is written or shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema

from monai_basisprune.errors import ConfigurationError

__all__ = ["check_record"]


def check_record(
    record: object, what: str, schema: str, find_contradictions: Callable[[Mapping[str, Any]], Iterable[str]]
) -> None:
    """Check that a record holds only plain finite numbers, satisfies its schema, and does not contradict itself.

    Args:
        record: the record; it is not changed.
        what: how an error names it.
        schema: name of the JSON Schema among the templates.
        find_contradictions: yields one line for each contradiction in a record that satisfies the schema.

    Raises:
        ConfigurationError: if anything is wrong; the message lists every problem with its JSON path.
    """
    problems = list(_not_plain(record, "$"))
    if not problems:
        # Tuples are arrays in JSON, but not for jsonschema; the copy looks like the record read back from a file.
        plain = json.loads(json.dumps(record))
        errors = _validator(schema).iter_errors(plain)
        found = sorted(errors, key=lambda error: [str(part) for part in error.absolute_path])
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
def _validator(schema: str) -> Any:
    content = json.loads(files(__package__).joinpath(f"templates/{schema}").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(content)


def _shorten(message: str, limit: int = 200) -> str:
    # jsonschema repeats the whole value in its message, which may be the whole record.
    return message if len(message) <= limit else f"{message[: limit // 2]} ... {message[-limit // 2 :]}"
