"""What tells one architecture from another: the shapes of its tensors, and the types and settings of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from .channel_slices import kept_channels, original_groups, original_shapes
from .layers import SUPPORTED_LAYERS, DecomposedLayer

__all__ = ["LAYER_SETTINGS", "architecture_of", "module_differences", "module_settings", "shape_differences"]

LAYER_SETTINGS: tuple[str, ...] = (
    # convolutions and pooling
    *("kernel_size", "stride", "padding", "output_padding", "padding_mode", "dilation", "groups"),
    *("output_size", "output_ratio", "ceil_mode", "count_include_pad", "divisor_override", "norm_type"),
    # norms
    *("eps", "num_groups", "normalized_shape", "size", "alpha", "beta", "k"),
    # activations
    *("negative_slope", "approximate", "dim", "lower", "upper", "min_val", "max_val", "lambd", "threshold", "value"),
    # shapes and sizes
    *("scale_factor", "mode", "align_corners", "upscale_factor", "downscale_factor", "start_dim", "end_dim"),
)
"""What is compared of a module without modules of its own, where it has it: what changes its output and no shape."""

BLOCK_SETTINGS: tuple[str, ...] = ("num_heads", "window_size", "shift_size")
"""What is compared of any other module: what attention holds itself."""

_WITHOUT_EFFECT = (nn.Identity, _DropoutNd)
# what set_swish of MONAI's EfficientNet exchanges before an export; both compute the same
_EQUIVALENT: dict[str, dict[str, Any]] = {"MemoryEfficientSwish": {"type": "Swish", "alpha": 1.0}}


def architecture_of(network: nn.Module) -> dict[str, list[int]]:
    """Return the shapes of the state dict that the network had before it was decomposed and lost channels."""
    # a module that has two names stands twice in the state dict
    named = dict(network.named_modules(remove_duplicate=False))
    decomposed = {name: m for name, m in named.items() if isinstance(m, DecomposedLayer)}
    inside = tuple(f"{name}." if name else "" for name in decomposed)
    shapes = {
        key: list(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not (inside and key.startswith(inside))
    }
    for name, module in named.items():
        if name in decomposed or kept_channels(module):
            prefix = f"{name}." if name else ""
            shapes.update({f"{prefix}{key}": shape for key, shape in original_shapes(module).items()})
    return shapes


def module_settings(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the type and the settings of the modules that the network had before it was decomposed, as JSON types.

    A module is listed where it holds no other module, or is attention, and takes part in inference: dropout and
    identity are left out, so that a release of MONAI that adds one does not part a network from its plan.

    Returns:
        for each dotted name the ``type`` and those of :data:`LAYER_SETTINGS` and :data:`BLOCK_SETTINGS` that it has.
        A setting that is the same in all dimensions is given once.
    """
    settings: dict[str, dict[str, Any]] = {}
    for name, module in _original_modules(network):
        layer = module.basis if isinstance(module, DecomposedLayer) else module
        names = BLOCK_SETTINGS
        if not any(layer.children()) or isinstance(layer, SUPPORTED_LAYERS):
            names = LAYER_SETTINGS
        # as they are stored: a property could run anything
        values = {key: _as_json(vars(layer)[key], key) for key in names if key in vars(layer)}
        if "groups" in values:
            values["groups"] = original_groups(module)
        found = {key: value for key, value in values.items() if value is not None}
        if not getattr(layer, "transposed", False):
            found.pop("output_padding", None)
        if found or (names is LAYER_SETTINGS and not isinstance(layer, _WITHOUT_EFFECT)):
            kind = _type_name(layer)[:100]
            settings[name] = dict(_EQUIVALENT.get(kind, {"type": kind, **found}))
    return settings


def _original_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules(remove_duplicate=False):  # outer modules come first
        if inside and name.startswith(inside):
            continue
        if isinstance(module, DecomposedLayer):
            inside += (f"{name}." if name else "",)
        yield name, module


def _type_name(module: nn.Module) -> str:
    kind: Any = type(module)
    for plain in SUPPORTED_LAYERS:
        # a subclass that computes what its parent does can be decomposed, and is the parent from then on
        parts = ("forward", "_conv_forward")
        if isinstance(module, plain) and all(getattr(kind, p, None) is getattr(plain, p, None) for p in parts):
            return plain.__name__
    return str(kind.__name__)


def _as_json(value: Any, key: str) -> bool | int | float | str | list[Any] | None:
    """Return a setting as a number, text or a short list of numbers, or None where it is nothing of that."""
    if not isinstance(value, (tuple, list)):
        return _scalar(value)
    entries = [_scalar(entry) for entry in value]
    if not 0 < len(entries) <= 16 or any(isinstance(entry, str) for entry in entries):
        return None
    same = all(entry == entries[0] for entry in entries) and key != "normalized_shape"
    return entries[0] if same else entries


def _scalar(value: Any) -> bool | int | float | str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) < 2**31:
        return str(value)[:100]  # infinity, which JSON has not
    return value if isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 100) else None


def shape_differences(found: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> list[str]:
    """Return one line for each tensor that is missing, unexpected, or of another shape."""
    lines = [f"{key}: missing, expected with shape {wanted[key]}" for key in wanted if key not in found]
    lines += [f"{key}: unexpected, shape {found[key]}" for key in found if key not in wanted]
    lines += [
        f"{key}: shape {found[key]}, expected {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    return lines


def module_differences(found: Mapping[str, dict[str, Any]], wanted: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return one line for each module that is missing, unexpected, or of another type or with other settings."""
    lines = [f"{name}: missing, the plan has a {wanted[name]['type']}" for name in wanted if name not in found]
    lines += [f"{name}: unexpected, a {found[name]['type']}" for name in found if name not in wanted]
    for name in wanted:
        if name in found and (one := found[name]) != (other := wanted[name]):
            keys = [key for key in {**other, **one} if one.get(key) != other.get(key)]
            lines.append(
                f"{name}: differs in { {key: one.get(key) for key in keys} }, the plan has "
                f"{ {key: other.get(key) for key in keys} }"
            )
    return lines
