"""What was done to a network, as plain JSON."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.validators import extend
from torch import nn

from ._version import __version__
from .channel_scaling_layer import fold_channel_scaling
from .channel_slices import cut_modules, kept_channels
from .decomposition import decomposed_layers
from .errors import PlanMismatchError
from .files import write_atomically
from .fingerprint import BLOCK_SETTINGS, LAYER_SETTINGS, architecture_of, module_settings

__all__ = ["ChannelPlan", "LayerPlan", "PruningPlan"]

_FORMAT, _FORMAT_VERSION = "monai_basisprune.plan", 2
# far more than the plan of any network, and little enough to be read within seconds
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH, _MAX_DIGITS, _MAX_LINES = 16 << 20, 10**6, 8, 3000, 50

_SIZE = {"type": "integer", "minimum": 0, "maximum": 2**31}
_NUMBER = {"type": ["number", "boolean"], "minimum": -(2**31), "maximum": 2**31}
_SETTING = {
    "anyOf": [
        _NUMBER,
        {"type": "string", "maxLength": 100},
        {"type": "array", "items": {"anyOf": [{"type": "null"}, _NUMBER]}, "maxItems": 16},
    ]
}
# control characters could speak to a terminal, from an error message, or turn the direction of its letters
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\uf8ff]*\Z"
_NAMES = {"maxLength": 1000, "pattern": _PRINTABLE}
_KEPT = {"type": "array", "items": _SIZE, "minItems": 1, "maxItems": 65536}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "format",
        "format_version",
        "package_version",
        "architecture",
        "modules",
        "weights_sha256",
        "layers",
        "channels",
    ],
    "properties": {
        "format": {"const": _FORMAT},
        "format_version": {"const": _FORMAT_VERSION},
        "package_version": {"type": "string", "maxLength": 100},
        "weights_sha256": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}]},
        "architecture": {
            "type": "object",
            "propertyNames": _NAMES,
            "additionalProperties": {"type": "array", "items": _SIZE, "maxItems": 16},
        },
        "modules": {
            "type": "object",
            "propertyNames": _NAMES,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type"],
                "properties": {
                    "type": {"type": "string", "maxLength": 100, "pattern": _PRINTABLE},
                    **dict.fromkeys((*LAYER_SETTINGS, *BLOCK_SETTINGS), _SETTING),
                },
            },
        },
        "layers": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": _NAMES,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["kept_bases"],
                "properties": {"kept_bases": _KEPT},
            },
        },
        "channels": {
            "type": "object",
            "propertyNames": _NAMES,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "properties": {"kept_inputs": _KEPT, "kept_outputs": _KEPT},
            },
        },
    },
}
# stricter than the standard, for which 1.0 is an integer; NaN and infinity are no JSON at all
_VALIDATOR = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: type(value) is int,
            "number": lambda _, value: type(value) is int or (type(value) is float and math.isfinite(value)),
        }
    ),
)(_SCHEMA)


@dataclass(frozen=True)
class LayerPlan:
    """What is left of one decomposed layer.

    Attributes:
        kept_bases: which bases of the full decomposition are left, in rising order.
    """

    kept_bases: list[int]


@dataclass(frozen=True)
class ChannelPlan:
    """What is left of the channels of one module.

    Attributes:
        kept_inputs: which of the original inputs are left, in rising order; None where all are, and for a module that
            hands on each channel as it is, such as a norm.
        kept_outputs: which of the original outputs are left, in rising order; None where all are.
    """

    kept_inputs: list[int] | None = None
    kept_outputs: list[int] | None = None


@dataclass(frozen=True)
class PruningPlan:
    """What was done to a network, as plain data: enough to build the pruned architecture from the original one.

    Attributes:
        layers: one :class:`LayerPlan` for each decomposed layer, by dotted name.
        architecture: the shapes of all entries of the original network's state dict.
        modules: the types and settings of the original network's modules, as far as they change its output; see
            :func:`~monai_basisprune.fingerprint.module_settings`. What the code of a network does by itself, in no
            module, is not in it.
        weights_sha256: SHA-256 of the weights file that belongs to the plan, or None.
        package_version: the version of monai_basisprune that wrote it.
        channels: one :class:`ChannelPlan` for each module of which channels were removed, by dotted name.
    """

    layers: dict[str, LayerPlan]
    architecture: dict[str, list[int]]
    modules: dict[str, dict[str, Any]]
    weights_sha256: str | None = None
    package_version: str = field(default=__version__)
    channels: dict[str, ChannelPlan] = field(default_factory=dict)

    @classmethod
    def from_network(cls, network: nn.Module) -> PruningPlan:
        """Describe a decomposed network.

        Raises:
            LayerSelectionError: if it holds no decomposed layer.
        """
        network = fold_channel_scaling(network)
        layers = {name: LayerPlan(list(layer.kept_bases)) for name, layer in decomposed_layers(network)}
        cut = [(name, kept_channels(module)) for name, module in cut_modules(network)]
        channels = {name: ChannelPlan(kept.get("in"), kept.get("out")) for name, kept in cut}
        architecture, modules = architecture_of(network), module_settings(network)
        return cls(layers=layers, architecture=architecture, modules=modules, channels=channels)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        content = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **asdict(self)}
        content["channels"] = {
            name: {side: kept for side, kept in plan.items() if kept is not None}
            for name, plan in content["channels"].items()
        }
        return content

    @classmethod
    def from_dict(cls, content: Any) -> PruningPlan:
        """Read a plan from JSON types.

        Raises:
            PlanMismatchError: if it is not a plan of this format version, or malformed; all problems are listed, up
                to the fiftieth.
        """
        problem = _json_problem(content)
        if problem is not None:
            raise PlanMismatchError(f"This is no pruning plan that can be used: {problem}")
        if isinstance(content, dict) and content.get("format") == _FORMAT:
            _check_version(content.get("format_version"), content.get("package_version"))
        errors = islice(_VALIDATOR.iter_errors(content), _MAX_LINES)
        problems = [f"{_shortened(error.json_path)}: {_shortened(error.message)}" for error in errors]
        if not problems:
            problems = [
                f"{_shortened(name)}: its {key} are not in rising order"
                for part in (content["layers"], content["channels"])
                for name, lists in part.items()
                for key, kept in lists.items()
                if any(first >= second for first, second in pairwise(kept))
            ]
        if problems:
            lines = "\n".join(f"  - {line}" for line in problems[:_MAX_LINES])
            raise PlanMismatchError(f"This is no pruning plan that can be used:\n{lines}")
        return cls(
            layers={name: LayerPlan(**layer) for name, layer in content["layers"].items()},
            architecture=content["architecture"],
            modules=content["modules"],
            weights_sha256=content["weights_sha256"],
            package_version=content["package_version"],
            channels={name: ChannelPlan(**lists) for name, lists in content["channels"].items()},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, atomically."""
        write_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningPlan:
        """Read a plan that :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            PlanMismatchError: if it is not a plan, or one of another format version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no plan {path.name}.")
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise PlanMismatchError(
                f"{path.name} is no pruning plan: it is larger than {_MAX_BYTES >> 20} MiB, and was not read."
            )
        try:
            content = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:  # too long a number is a ValueError of its own
            reason = _shortened(str(error))
            raise PlanMismatchError(f"{path.name} is not JSON, so it is no pruning plan: {reason}") from error
        return cls.from_dict(content)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} stands twice in one object")
        content[key] = value
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _json_problem(content: Any) -> str | None:
    """Return what keeps a value from being JSON of a size that can be checked, or None."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen + len(waiting) > _MAX_VALUES:
            return f"it holds more than {_MAX_VALUES} values"
        if type(value) in (dict, list):
            if depth == _MAX_DEPTH:
                return f"it is nested deeper than {_MAX_DEPTH} levels"
            if type(value) is dict and not all(type(key) is str for key in value):
                return "it holds a key that is no text"
            waiting += [(entry, depth + 1) for entry in (value.values() if type(value) is dict else value)]
        elif type(value) is int and value.bit_length() > 3 * _MAX_DIGITS:
            return f"it holds a number of more than {_MAX_DIGITS * 9 // 10} digits"
        elif value is not None and type(value) not in (bool, int, float, str):
            return f"it holds a {_shortened(type(value).__name__)}, which is no type of JSON"
    return None


def _check_version(version: Any, package_version: Any) -> None:
    if type(version) is int and version != _FORMAT_VERSION:
        raise PlanMismatchError(
            f"The plan is of format version {_shortened(str(version))}, written by monai_basisprune "
            f"{_shortened(str(package_version))}; monai_basisprune {__version__} reads format version "
            f"{_FORMAT_VERSION}. Read it with the release that wrote it, or make it anew: prune the original network "
            f"again and call save_pruned, which writes the plan beside the weights."
        )


def _shortened(message: str) -> str:
    # the value comes first and may be long, the reason last; control characters could speak to a terminal
    short = message if len(message) <= 200 else f"{message[:100]} … {message[-90:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in short)
