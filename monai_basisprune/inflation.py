"""The weights of a network in the network of one spatial dimension more: a 2D classifier becomes a 3D one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .copies import copy_network
from .errors import InflationError
from .fingerprint import BLOCK_SETTINGS, LAYER_SETTINGS
from .layers import SUPPORTED_CONVOLUTIONS, DecomposedLayer
from .network_def import make_network

__all__ = ["inflate"]

_PADDINGS = (nn.Identity, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_DIMENSIONS = re.compile(r"[123]d$")
_SETTINGS = {*LAYER_SETTINGS, *BLOCK_SETTINGS}
_PLAIN = (bool, int, float, str, tuple)


def inflate(
    network: nn.Module, network_def: nn.Module | Callable[[], nn.Module] | Mapping[str, Any], axis: int = -1
) -> nn.Module:
    """Turn a network with its weights into that of one spatial dimension more, such as a 2D classifier into a 3D one.

    A kernel of the network is repeated ``T`` times along the new axis and divided by ``T``, where ``T`` is the size
    of the new kernel along it; all other values are copied. Inside a volume that does not change along that axis,
    the features are those of the image. The rank of every kernel is unchanged and its singular values are multiplied
    by ``1 / sqrt(T)``: the inflated network is redundant along the new axis, and basis pruning takes that out again.
    Inflate first, then :func:`~monai_basisprune.decompose` and prune.

    Args:
        network: the network that has the weights; it is left as it is.
        network_def: the same network with one spatial dimension more, which is left as it is too; or a function or a
            bundle component (a dictionary with ``_target_``) that makes it.
        axis: which of the spatial dimensions of the new network is the new one; MONAI's volumes are
            ``(channel, height, width, depth)``, so by default the last.

    Returns:
        a new network, with the modes and on the device of ``network_def``.

    Raises:
        InflationError: if the two networks differ in anything but the dimensions of their kernels; every difference is
            listed by its dotted name.
        TypeError: if ``network`` is no module, or ``network_def`` makes none.

    Example:
        >>> image, volume = nn.Conv2d(1, 4, 3), nn.Conv3d(1, 4, (3, 3, 5))
        >>> inflated = inflate(image, volume)
        >>> torch.allclose(inflated.weight.sum(-1), image.weight)
        True
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
    if not isinstance(axis, int):
        raise TypeError(f"axis must be a whole number, got {axis!r}.")
    target = make_network(network_def)
    problems = _unusable(network, "network") + _unusable(target, "network_def")
    values: dict[str, torch.Tensor] = {}
    if not problems:
        problems = _differing_modules(network, target, axis) + _fill(values, network, target, axis)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise InflationError(
            f"{type(network).__name__} cannot be inflated; network_def must be the same network with one spatial "
            f"dimension more:\n{lines}"
        )
    inflated = copy_network(target) if target is network_def else target
    inflated.load_state_dict(values, strict=True)
    return inflated


def _unusable(network: nn.Module, argument: str) -> list[str]:
    problems = []
    for name, module in network.named_modules():
        if isinstance(module, DecomposedLayer):
            problems.append(f"{name}: is decomposed in {argument}; inflate first, then decompose")
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(value, (UninitializedBuffer, UninitializedParameter)):
            problems.append(f"{name}: has no shape yet in {argument}, run it once")
        elif value.is_meta:
            problems.append(f"{name}: is on the meta device in {argument} and has no values")
    return problems


def _differing_modules(network: nn.Module, target: nn.Module, axis: int) -> list[str]:
    """Return what state dicts do not tell: other types of layers, and other settings such as strides and paddings."""
    problems = []
    theirs = dict(network.named_modules(remove_duplicate=False))
    for name, module in target.named_modules(remove_duplicate=False):
        other = theirs.get(name)
        if other is None or isinstance(module, _PADDINGS):  # MONAI pads by the size of the image, that may differ
            continue
        kinds = [_DIMENSIONS.sub("", type(value).__name__) for value in (other, module)]
        if kinds[0] != kinds[1]:
            problems.append(f"{name}: is a {type(other).__name__}, network_def has a {type(module).__name__}")
            continue
        for key in sorted(_SETTINGS & vars(other).keys() & vars(module).keys()):
            found, wanted = vars(other)[key], vars(module)[key]
            if isinstance(found, tuple) and isinstance(wanted, tuple) and len(wanted) == len(found) + 1:
                place = axis % len(wanted)
                wanted = wanted[:place] + wanted[place + 1 :]
            if isinstance(found, _PLAIN) and isinstance(wanted, _PLAIN) and _same(found) != _same(wanted):
                problems.append(f"{name}: {key} {found}, network_def has {wanted} in the same dimensions")
    return problems


def _same(setting: Any) -> Any:
    """Return a setting as it is written in any number of dimensions."""
    if isinstance(setting, tuple) and len(set(setting)) == 1:
        setting = setting[0]
    return "linear" if setting in ("linear", "bilinear", "trilinear") else setting


def _fill(values: dict[str, torch.Tensor], network: nn.Module, target: nn.Module, axis: int) -> list[str]:
    """Put the inflated values into a dictionary and return what keeps them from being complete."""
    source, wanted = network.state_dict(), target.state_dict()
    kernels = {
        f"{name}.weight".lstrip(".")
        for name, module in target.named_modules(remove_duplicate=False)
        if isinstance(module, SUPPORTED_CONVOLUTIONS)
    }
    problems = [] if kernels else ["network_def holds no convolution: there is nothing to inflate"]
    problems += [
        f"{name}: missing, expected with shape {list(wanted[name].shape)}" for name in wanted if name not in source
    ]
    problems += [f"{name}: unexpected, shape {list(source[name].shape)}" for name in source if name not in wanted]
    for name in (name for name in wanted if name in source):
        old, new = source[name], wanted[name]
        dims = new.ndim - 2
        if old.dtype != new.dtype:
            problems.append(f"{name}: type {old.dtype}, expected {new.dtype}")
        elif not bool(torch.isfinite(old).all()):
            problems.append(f"{name}: holds NaN or infinite values")
        elif name not in kernels:
            values[name] = old
            if old.shape != new.shape:
                problems.append(
                    f"{name}: shape {list(old.shape)}, expected {list(new.shape)}; only the kernels of convolutions "
                    f"are inflated"
                )
        elif old.ndim != new.ndim - 1:
            problems.append(
                f"{name}: {old.ndim - 2} spatial dimensions, {dims - 1} are needed for {dims} in network_def"
            )
        elif not -dims <= axis < dims:
            problems.append(f"{name}: has {dims} spatial dimensions in network_def, axis {axis} is none of them")
        else:
            at = 2 + axis % dims
            rest = [*new.shape[:at], *new.shape[at + 1 :]]
            values[name] = (old / new.shape[at]).unsqueeze(at).expand([*old.shape[:at], new.shape[at], *old.shape[at:]])
            if list(old.shape) != rest:
                problems.append(f"{name}: shape {list(old.shape)}, expected {rest} to become {list(new.shape)}")
    return problems
