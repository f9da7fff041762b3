"""The cases that the data loaders of a bundle read: which they are, and whether two loaders share any."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils.enums import CommonKeys

from ..data.identifiers import known
from ..errors import CohortError

__all__ = ["check_separate", "content_of", "remember_cases", "shared_cases"]


def remember_cases(loader: Any, patient_key: str | None) -> None:
    """Let no message name an image or a patient of a loader."""
    known.remember_files(_values(loader, CommonKeys.IMAGE) or ())
    known.remember((_values(loader, patient_key) if patient_key else None) or ())


def check_separate(training: Any, validation: Any, patient_key: str | None) -> list[str]:
    """Check that training and validation share no image, or no patient where patients are named.

    Args:
        training: the loader of the training cases.
        validation: the loader of the validation cases.
        patient_key: key of the patient's id in a case; None if there is none.

    Returns:
        what could not be checked, in words.

    Raises:
        CohortError: if they share any.
    """
    shared = shared_cases(training, validation, patient_key)
    what = "patients" if patient_key else "images"
    if shared:
        raise CohortError(
            f"{shared} {what} are in the training and in the validation data of the bundle: separate them, no AUC "
            f"on cases that were trained on means anything."
        )
    if shared is None:
        return [
            f"The data sets of the bundle do not list their {what}, so it could not be checked that none is in both "
            f"the training and the validation data."
        ]
    if patient_key is None:
        return [
            "No patients are named, so it could not be checked that none is in both the training data and those of "
            "validation or test."
        ]
    return []


def shared_cases(one: Any, other: Any, patient_key: str | None) -> int | None:
    """Count the images, or patients where they are named, that two loaders have in common.

    Returns:
        the number, or None where the data sets do not list their cases.
    """
    found = []
    for loader in (one, other):
        values = _values(loader, patient_key or CommonKeys.IMAGE)
        if values is None:
            return None
        # one file may be written in several ways
        found.append(set(values) if patient_key else {os.path.realpath(value) for value in values})
    return len(found[0] & found[1])


def _values(loader: Any, key: str) -> list[str] | None:
    """Return one entry of each case that a loader reads, such as its image file; None where they are not listed."""
    items = getattr(loader.dataset, "data", None)
    if not isinstance(items, (list, tuple)):
        return None
    values = [item.get(key) if isinstance(item, Mapping) else None for item in items]
    return [str(value) for value in values] if all(isinstance(v, (str, int, Path)) for v in values) else None


def content_of(value: Any) -> Any:
    """Return cases, or a batch of them, as JSON types that are equal where the content is.

    Of a file that is named, its name and its size count, not where it lies; of an array, a hash; of what is neither
    this nor of JSON types, only the type.

    Args:
        value: dictionaries and lists of numbers, texts, paths, arrays and tensors.
    """
    if isinstance(value, Mapping):
        return {str(key): content_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [content_of(item) for item in value]
    if isinstance(value, (str, Path)):
        path = Path(value)
        return [path.name, path.stat().st_size] if len(path.parts) > 1 and _is_file(path) else str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return value if value is None or isinstance(value, (bool, int, float)) else type(value).__name__


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with characters that none can have
        return False
