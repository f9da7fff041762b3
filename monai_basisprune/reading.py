"""Files from outside, read within limits: whatever their bytes are, a value comes back or a reason in our words."""

from __future__ import annotations

import json
import math
import os
import pickle
import warnings
import zipfile
from typing import Any, BinaryIO

import torch
from torch import nn

from .files import archive_problem

__all__ = ["MOST_JSON_BYTES", "is_ordinary_tensor", "read_bytes", "read_json", "read_weights", "structure_problem"]

MOST_JSON_BYTES = 64 << 20
"""Far more than a study, or a datalist of a hundred thousand cases, and little enough to be read within seconds."""

_MOST_VALUES, _MOST_DEPTH, _MOST_NUMBER = 10**7, 64, 2**63


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a file, but no more than there may be.

    Args:
        path: the file.
        most: the largest size, in bytes.

    Raises:
        ValueError: if it is larger; nothing of it is returned.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        # what is asked for is reserved at once, however small the file
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
        if len(content) <= most and (rest := file.read(1)):  # it has no size, or grows
            content += rest + file.read(most - len(content))
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB, which is the most that is read")
    return content


def read_json(path: str | os.PathLike[str], most: int = MOST_JSON_BYTES) -> Any:
    """Read a file of JSON that anybody may have written.

    Args:
        path: the file.
        most: the largest size, in bytes.

    Returns:
        its content; every number is finite, and every text can be written as UTF-8.

    Raises:
        ValueError: if it is no JSON, too large or nested too deep, holds one key twice, or a number that is none, is
            infinite, or needs more than 64 bits. The message is a reason, without the name of the file.
        OSError: if it cannot be read.
    """
    raw = read_bytes(path, most)
    try:
        content = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MOST_DEPTH} levels") from None
    problem = structure_problem(content)
    if problem is not None:
        raise ValueError(problem)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return content


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def structure_problem(content: Any, most_values: int = _MOST_VALUES) -> str | None:
    """Return what keeps a value that was read from a file from being used, or None.

    A part that stands in several places, as the aliases of YAML make it, counts for each place.

    Args:
        content: dictionaries and lists, as a reader of JSON or YAML gives them.
        most_values: how many values there may be in all.
    """
    waiting: list[tuple[Any, int]] = [(content, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if isinstance(value, (dict, list)):
            if depth == _MOST_DEPTH:
                return f"it is nested deeper than {_MOST_DEPTH} levels"
            if seen + len(waiting) + len(value) > most_values:
                return f"it holds more than {most_values} values"
            if isinstance(value, dict):
                waiting += [(key, depth + 1) for key in value]
            waiting += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
        elif type(value) is int and not -_MOST_NUMBER <= value < 2 * _MOST_NUMBER:
            return "it holds a whole number of more than 64 bits"
        elif isinstance(value, str) and not value.isascii() and any("\ud800" <= mark <= "\udfff" for mark in value):
            return "it holds half a character (a surrogate alone)"
    return None


def read_weights(path: str | os.PathLike[str]) -> Any:
    """Read a file that ``torch.save`` wrote, without running anything of it.

    Raises:
        ValueError: if it is damaged, would unpack to far more than its size, or holds more than tensors. The message
            is a reason, without the name of the file.
    """
    with open(path, "rb") as file:
        if _is_archive(file):
            problem = archive_problem(file)
            if problem is not None:
                raise ValueError(problem)
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is TorchScript, which is refused
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError(
                "it is damaged, or holds other things than tensors, which could run code; nothing of it was run. Save "
                "the state dict alone: torch.save(network.state_dict(), path)"
            ) from None
        except Exception as error:  # the reader raises many types, and says how to read the file all the same
            raise ValueError(
                f"it is damaged, or was not written by torch.save ({type(error).__name__} while PyTorch "
                f"{torch.__version__} read it)"
            ) from None


def _is_archive(file: BinaryIO) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # of an end that belongs to an archive, and is damaged
        return True


def is_ordinary_tensor(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor of a file is a plain one with a value of its own for each of its elements.

    One that is sparse, quantized, nested, without values, or of one value under a huge shape, is not: its size in
    memory could be any.
    """
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
