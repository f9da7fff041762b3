"""The plain recomposed network that a pruning run left, and what its file carries beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from monai.data.torchscript_utils import METADATA_FILENAME
from torch import nn

from .._version import __version__
from ..data.image_classes import LABEL_KINDS
from ..data.volume_transforms import VolumePreparation
from ..errors import ConfigurationError, shortened_list
from ..files import archive_problem, sha256_of

__all__ = ["DEPLOYMENT_KEYS", "Algorithm", "identify_algorithm", "image_kind", "load_deployed", "read_deployment"]

_FLAT = ("image_size", "image_channels", "intensity_mean", "intensity_std", "class_names")

DEPLOYMENT_KEYS = {
    "radiographs": _FLAT,
    "pictures": (*_FLAT, "label_kind"),
    "volumes": (*(field.name for field in fields(VolumePreparation)), "class_names"),
}
"""What a deployed network carries about its images and classes, by the kind of its images."""

_FILE = "model.ts"


@dataclass(frozen=True)
class Algorithm:
    """What made a prediction, told so that it can be found again.

    Attributes:
        name: the name of the algorithm.
        version: the version of this package.
        weights_sha256: SHA-256 of the file of the network.
    """

    name: str
    version: str
    weights_sha256: str


def load_deployed(
    output_dir: str | os.PathLike[str], device: torch.device | str = "cpu", optimize: bool = False
) -> nn.Module:
    """Load the recomposed plain network that a pruning run left: TorchScript, which needs nothing of this package.

    Args:
        output_dir: folder of the results.
        device: where to load it.
        optimize: whether PyTorch may fuse its layers for speed, which changes outputs by rounding and leaves a network
            that is only good for inference.

    Raises:
        ConfigurationError: if there is none, or it cannot be read.
    """
    network = _load(output_dir, torch.device(device))[0].eval()
    if not optimize:
        return network
    frozen = torch.jit.freeze(network)
    fast: nn.Module = frozen if torch.device(device).type != "cpu" else torch.jit.optimize_for_inference(frozen)
    return fast


def image_kind(deployment: Mapping[str, Any]) -> str:
    """Return the kind of the images of a deployed network, one of :data:`DEPLOYMENT_KEYS`.

    Args:
        deployment: what its file carries.
    """
    if "volume_size" in deployment:
        return "volumes"
    return "pictures" if "label_kind" in deployment else "radiographs"


def read_deployment(output_dir: str | os.PathLike[str], kind: str | None = None) -> dict[str, Any]:
    """Read how the images of the deployed network are prepared, and the names of its classes.

    The file of the network carries them, so that it is never used with images that were prepared otherwise.

    Args:
        output_dir: folder of the results.
        kind: of which kind its images must be, one of :data:`DEPLOYMENT_KEYS`; None for any.

    Returns:
        what :data:`DEPLOYMENT_KEYS` names for its kind.

    Raises:
        ConfigurationError: if there is no deployed network, or it is for other images, or does not carry what is needed
            or other values than it can.
    """
    metadata = _load(output_dir, torch.device("cpu"))[1]
    found = image_kind(metadata)
    missing = [key for key in DEPLOYMENT_KEYS[found] if key not in metadata]
    if missing:
        raise ConfigurationError(f"{_FILE} in output_dir does not carry {missing}: it was not written by this package.")
    if kind not in (None, found):
        raise ConfigurationError(
            f"{_FILE} in output_dir is a network for {found}, one for {kind} was asked for: pass --output_dir with the "
            f"folder of its study, or use the bundle for {found}."
        )
    deployment = {key: metadata[key] for key in DEPLOYMENT_KEYS[found]}
    if problems := list(_deployment_problems(deployment)):
        raise ConfigurationError(f"{_FILE} in output_dir cannot be used, it carries:\n{shortened_list(problems)}")
    if found == "volumes":
        deployment.update(VolumePreparation.of(deployment).to_dict())
    return deployment


def _deployment_problems(deployment: Mapping[str, Any]) -> Iterator[str]:
    """Yield what cannot be how images are prepared; a text could be code in a bundle."""
    for key in ("image_size", "image_channels"):
        if key in deployment and (type(deployment[key]) is not int or not 1 <= deployment[key] <= 65536):
            yield f"{key}: must be a whole number from 1 to 65536"
    for key in ("intensity_mean", "intensity_std"):
        if key in deployment and (type(deployment[key]) not in (int, float) or not abs(deployment[key]) < 2**31):
            yield f"{key}: must be a finite number"
    if deployment.get("label_kind", LABEL_KINDS[0]) not in LABEL_KINDS:
        yield f"label_kind: must be one of {', '.join(LABEL_KINDS)}"
    names = deployment.get("class_names", [])
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.isprintable() and 0 < len(name) <= 200 and name[0] not in "$@%" for name in names
    ):
        yield "class_names: must be a list of names, none of which starts with $, @ or %"


def identify_algorithm(output_dir: str | os.PathLike[str]) -> Algorithm:
    """Return what a report says about the network that a pruning run left.

    Args:
        output_dir: folder of the results.

    Raises:
        ConfigurationError: if there is none.
    """
    return Algorithm("monai_basisprune pruned classifier", __version__, sha256_of(_model_file(output_dir)))


def _model_file(output_dir: str | os.PathLike[str]) -> Path:
    path = Path(output_dir) / _FILE
    if not path.is_file():
        raise ConfigurationError(
            f"There is no pruned network ({_FILE}) in output_dir: run `python -m monai.bundle run prune` first, or "
            f"pass --output_dir with the folder that it wrote."
        )
    return path


def _load(output_dir: str | os.PathLike[str], device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    path = _model_file(output_dir)
    carried = {METADATA_FILENAME: ""}
    try:
        problem = archive_problem(path)
        if problem is not None:
            raise ValueError(problem)
        network: nn.Module = torch.jit.load(str(path), map_location=device, _extra_files=carried)
        metadata = json.loads(carried[METADATA_FILENAME] or "{}")
    except Exception as error:  # the reader raises many types, and its words quote the file
        reason = f": {error}" if type(error) is ValueError else f" ({type(error).__name__})"
        raise ConfigurationError(f"{_FILE} in output_dir cannot be read, it is damaged{reason}.") from error
    return network, metadata if isinstance(metadata, dict) else {}
