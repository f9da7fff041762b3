"""What was done to a network, as plain JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from torch import nn

from ._version import __version__
from .decomposition import decomposed_layers
from .errors import PlanMismatchError
from .files import write_atomically
from .layers import DecomposedConv

__all__ = ["LayerPlan", "PruningPlan", "architecture_of", "convolution_geometry"]

_FORMAT, _FORMAT_VERSION = "monai_basisprune.plan", 1
_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "padding_mode", "dilation", "groups")

_SIZE = {"type": "integer", "minimum": 0, "maximum": 2**31}
_SIZES = {"type": "array", "items": _SIZE, "maxItems": 16}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "format_version", "package_version", "architecture", "weights_sha256", "layers"],
    "properties": {
        "format": {"const": _FORMAT},
        "format_version": {"const": _FORMAT_VERSION},
        "package_version": {"type": "string", "maxLength": 100},
        "weights_sha256": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[0-9a-f]{64}$"}]},
        "architecture": {"type": "object", "additionalProperties": _SIZES},
        "layers": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["geometry", "kept_bases"],
                "properties": {
                    "kept_bases": {"type": "array", "items": _SIZE, "minItems": 1, "uniqueItems": True},
                    "geometry": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type", *_GEOMETRY, "bias"],
                        "properties": {
                            "type": {"type": "string", "maxLength": 100},
                            "in_channels": _SIZE,
                            "out_channels": _SIZE,
                            "kernel_size": _SIZES,
                            "stride": _SIZES,
                            "padding": {"anyOf": [_SIZES, {"enum": ["valid", "same"]}]},
                            "padding_mode": {"enum": ["zeros", "reflect", "replicate", "circular"]},
                            "dilation": _SIZES,
                            "groups": _SIZE,
                            "bias": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}


@dataclass(frozen=True)
class LayerPlan:
    """One decomposed layer: the convolution that it replaces, and the bases that are left of it.

    Attributes:
        geometry: attributes of the convolution, among them ``type`` and whether it has a ``bias``.
        kept_bases: which bases of the full decomposition are left.
    """

    geometry: dict[str, Any]
    kept_bases: list[int]


@dataclass(frozen=True)
class PruningPlan:
    """What was done to a network, as plain data: enough to build the pruned architecture from the original one.

    Attributes:
        layers: one :class:`LayerPlan` for each decomposed layer, by dotted name.
        architecture: the shapes of all entries of the original network's state dict.
        weights_sha256: SHA-256 of the weights file that belongs to the plan, or None.
        package_version: the version of monai_basisprune that wrote it.
    """

    layers: dict[str, LayerPlan]
    architecture: dict[str, list[int]]
    weights_sha256: str | None = None
    package_version: str = field(default=__version__)

    @classmethod
    def from_network(cls, network: nn.Module) -> PruningPlan:
        """Describe a decomposed network.

        Raises:
            LayerSelectionError: if it holds no decomposed layer.
        """
        layers = {
            name: LayerPlan(convolution_geometry(layer), list(layer.kept_bases))
            for name, layer in decomposed_layers(network)
        }
        return cls(layers=layers, architecture=architecture_of(network))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return {"format": _FORMAT, "format_version": _FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Any) -> PruningPlan:
        """Read a plan from JSON types.

        Raises:
            PlanMismatchError: if it is not a plan of this format version, or malformed; all problems are listed.
        """
        problems = [
            f"  - {error.json_path}: {_shortened(error.message)}"
            for error in Draft202012Validator(_SCHEMA).iter_errors(content)
        ]
        if problems:
            raise PlanMismatchError("This is no pruning plan that can be used:\n" + "\n".join(problems))
        return cls(
            layers={name: LayerPlan(**layer) for name, layer in content["layers"].items()},
            architecture=content["architecture"],
            weights_sha256=content["weights_sha256"],
            package_version=content["package_version"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, atomically."""
        write_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningPlan:
        """Read a plan that :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            PlanMismatchError: if it is not a plan.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # too long a number is a ValueError of its own
            raise PlanMismatchError(f"{path} is not JSON, so it is no pruning plan: {error}") from error
        return cls.from_dict(content)


def _shortened(message: str) -> str:
    # the value comes first and may be long, the reason last
    return message if len(message) <= 200 else f"{message[:100]} … {message[-90:]}"


def convolution_geometry(convolution: nn.Module) -> dict[str, Any]:
    """Return what tells one convolution, decomposed or not, from another, as JSON types."""
    kind, bias = convolution, getattr(convolution, "bias", None)
    if isinstance(convolution, DecomposedConv):
        kind, bias = convolution.basis, convolution.scaling.bias
    geometry: dict[str, Any] = {"type": type(kind).__name__}
    for name in _GEOMETRY:
        value = getattr(convolution, name)
        geometry[name] = list(value) if isinstance(value, tuple) else value
    return {**geometry, "bias": bias is not None}


def architecture_of(network: nn.Module) -> dict[str, list[int]]:
    """Return the shapes of the state dict that the network had before it was decomposed."""
    # a module that has two names stands twice in the state dict
    named = network.named_modules(remove_duplicate=False)
    decomposed = {name: m for name, m in named if isinstance(m, DecomposedConv)}
    inside = tuple(f"{name}." if name else "" for name in decomposed)
    shapes = {
        key: list(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not (inside and key.startswith(inside))
    }
    for layer, prefix in zip(decomposed.values(), inside, strict=True):
        shapes[f"{prefix}weight"] = [layer.out_channels, *layer.basis.weight.shape[1:]]
        if layer.scaling.bias is not None:
            shapes[f"{prefix}bias"] = [layer.out_channels]
    return shapes
