"""Channels taken out of one module, in place, and what the module was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from .forward import memory_format
from .layers import DecomposedLayer, Slicer
from .traversal import walk

__all__ = [
    "SLICEABLE_MODULES",
    "channel_count",
    "cut_modules",
    "group_count",
    "has_one_side",
    "keep_channels_",
    "kept_channels",
    "kept_channels_problem",
    "lost_parameters",
    "lost_weights",
    "note_groups_",
    "original_channels",
    "original_groups",
    "original_shapes",
    "sizes",
    "slice_problem",
]

SLICEABLE_MODULES: tuple[type[nn.Module], ...] = (
    DecomposedLayer,
    _ConvNd,
    nn.Linear,
    _BatchNorm,
    _InstanceNorm,
    nn.PReLU,
)
"""The types of modules whose channels can be removed; all others keep theirs."""

_COUNTS = {
    "in": ("in_channels", "in_features"),
    "out": ("out_channels", "out_features", "num_features", "num_parameters"),
}


def has_one_side(module: nn.Module) -> bool:
    """Return whether a module hands each channel on as it is: its inputs and outputs are the same, named "out"."""
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.PReLU)) or _is_depthwise(module)


def channel_count(module: nn.Module, side: str) -> int:
    """Return how many channels a sliceable module has on the side "in" or "out"."""
    return int(next(getattr(module, name) for name in _COUNTS[side] if hasattr(module, name)))


def group_count(module: nn.Module) -> int:
    """Return how many groups of channels a module keeps apart; each has to lose equally many."""
    return 1 if has_one_side(module) else int(getattr(module, "groups", 1))


def slice_problem(module: nn.Module) -> str | None:
    """Return why the channels of a module cannot be removed, or None."""
    kind = type(module).__name__
    if not isinstance(module, SLICEABLE_MODULES):
        return f"{kind} cannot be sliced"
    if isinstance(module, DecomposedLayer):
        return None
    parameters: dict[str, Any] = module._parameters
    if "weight" not in parameters or hasattr(module, "parametrizations"):
        return f"the weight of this {kind} is parametrized"
    if getattr(module, "transposed", False) and group_count(module) > 1:
        return "transposed convolutions with groups cannot be sliced"
    return None


def keep_channels_(
    module: nn.Module,
    side: str,
    keep: Sequence[int],
    replaced: Callable[[nn.Parameter, nn.Parameter, Slicer], None] | None = None,
) -> None:
    """Remove all channels of one side of a module but some, in place, and note which of the original ones are left.

    Args:
        module: one of :data:`SLICEABLE_MODULES`.
        side: ``"in"`` or ``"out"``; ``"out"`` for what has only one side, such as a norm.
        keep: positions in the current order, rising; equally many in every group, and the same ones for inputs.
        replaced: called for each parameter with the old one, the new one and the function that slices any tensor of
            the old one's shape.
    """
    note_groups_(module)
    now, groups = channel_count(module, side), group_count(module)
    for owner, name, dim in _sliced_tensors(module, side):
        old = getattr(owner, name)
        # a weight holds the inputs of one group only
        rows = keep if old.shape[dim] == now else keep[: len(keep) // groups]
        slicer = _slicer(dim, torch.tensor(rows))
        values = slicer(old.detach()).clone()
        if not isinstance(old, nn.Parameter):
            setattr(owner, name, values)
            continue
        new = nn.Parameter(values, requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = slicer(old.grad)
        setattr(owner, name, new)
        if replaced is not None:
            replaced(old, new, slicer)
    if isinstance(module, DecomposedLayer) and side == "in":
        module.means = None  # they were those of bases with all inputs
    before = kept_channels(module)
    kept = before.get(side, range(now))
    originals = {**original_channels(module), **({} if side in before else {side: now})}
    # plain types, which TorchScript can read
    module.kept_channels = {**before, side: [int(kept[position]) for position in keep]}  # type: ignore[assignment]
    module.original_channels = originals  # type: ignore[assignment]
    _tell_count(module, side, len(keep))


def kept_channels(module: nn.Module) -> dict[str, list[int]]:
    """Return, for each side of which channels were removed, which of the original channels are left."""
    return dict(vars(module).get("kept_channels", {}))


def cut_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network, by name, of which channels were removed."""
    return ((name, module) for name, module in walk(network) if vars(module).get("kept_channels"))


def kept_channels_problem(module: nn.Module, side: str, keep: Sequence[int]) -> str | None:
    """Return what keeps a list of channels from being what is left of one side of a module, or None."""
    problem = slice_problem(module)
    if problem is not None:
        return problem
    if side == "in" and has_one_side(module):
        return f"the inputs of a {type(module).__name__} are its outputs"
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return "a PReLU with one weight has no channels"
    count, groups = channel_count(module, side), group_count(module)
    if not keep:
        return "keeps no channel"
    if list(keep) != sorted(set(keep)) or keep[0] < 0:
        return f"its channels {list(keep)[:20]} are not in rising order"
    if keep[-1] >= count:
        return f"keeps channel {keep[-1]}, there are {count}"
    size = count // groups
    parts = [[channel - group * size for channel in keep if channel // size == group] for group in range(groups)]
    if any(len(part) != len(parts[0]) or (side == "in" and part != parts[0]) for part in parts):
        return f"its {groups} groups keep different channels"
    return None


def original_shapes(module: nn.Module) -> dict[str, list[int]]:
    """Return the shapes of a module's parameters and buffers before any channel, or the layer itself, was taken apart.

    Args:
        module: a decomposed layer, or any module of which channels were removed.
    """
    counts = original_channels(module)
    if isinstance(module, DecomposedLayer):
        outputs, inputs = counts.get("out", module.out_channels), counts.get("in", module.in_channels)
        shapes = {"weight": [outputs, inputs // module.groups, *module.basis.weight.shape[2:]]}
        return shapes if module.scaling.bias is None else {**shapes, "bias": [outputs]}
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    shapes = {name: list(tensor.shape) for name, tensor in tensors}
    for side, count in counts.items():
        for owner, name, dim in _sliced_tensors(module, side):
            if owner is module:  # and not its channel scaling
                shapes[name][dim] = shapes[name][dim] * count // channel_count(module, side)
    return shapes


def original_groups(module: nn.Module) -> int:
    """Return how many groups a convolution had: a depthwise one loses them with its channels."""
    return int(vars(module).get("original_groups", module.groups))


def note_groups_(module: nn.Module) -> None:
    """Note that a convolution is a depthwise one, before it loses channels: with one left it looks like any other."""
    if _is_depthwise(module):
        vars(module).setdefault("original_groups", module.groups)


def lost_weights(module: nn.Module) -> int:
    """Return how many weights a module lost with its channels, counted as one whole layer."""
    shapes = original_shapes(module)
    if "weight" not in shapes:
        return 0
    now = module.whole_weights() if isinstance(module, DecomposedLayer) else module.weight.numel()  # type: ignore[operator]
    return prod(shapes["weight"]) - int(now)


def lost_parameters(module: nn.Module) -> int:
    """Return how many parameters a module lost with its channels, counted as one whole layer."""
    shapes = original_shapes(module)
    bias = prod(shapes["bias"]) - sizes(module)[1] if "bias" in shapes else 0
    return lost_weights(module) + bias


def sizes(module: nn.Module) -> tuple[int, int]:
    """Return how many inputs and outputs a sliceable module has."""
    outputs = channel_count(module, "out")
    return (outputs if has_one_side(module) else channel_count(module, "in")), outputs


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, _ConvNd) or module.transposed:
        return False
    if kept_channels(module):  # one channel in each group may be all that is left of others
        return "original_groups" in vars(module)
    return module.groups > 1 and module.groups == module.in_channels == module.out_channels


def original_channels(module: nn.Module) -> dict[str, int]:
    """Return, for each side of which channels were removed, how many there were."""
    return dict(getattr(module, "original_channels", {}))


def _sliced_tensors(module: nn.Module, side: str) -> Iterator[tuple[nn.Module, str, int]]:
    """Yield owner, name and dimension of each tensor that loses something when channels of one side go."""
    if isinstance(module, DecomposedLayer):
        places: list[tuple[nn.Module, str, int]] = [(module.basis, "weight", 1)]
        if side == "out":
            places = [(module.scaling, "weight", 0), (module.scaling, "bias", 0)]
    else:
        crossed = bool(getattr(module, "transposed", False))
        places = [(module, "weight", int((side == "in") != crossed))]
        if side == "out":
            places += [(module, name, 0) for name in ("bias", "running_mean", "running_var")]
    if side == "out" and hasattr(module, "channel_scaling"):
        places.append((module.channel_scaling, "weight", 0))  # type: ignore[arg-type]
    return ((owner, name, dim) for owner, name, dim in places if getattr(owner, name, None) is not None)


def _slicer(dim: int, index: torch.Tensor) -> Slicer:
    def take(tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.index_select(dim, index.to(tensor.device))
        return kept.contiguous(memory_format=memory_format(tensor))

    return take


def _tell_count(module: nn.Module, side: str, count: int) -> None:
    owners: list[Any] = [module]
    names = _COUNTS[side]
    if isinstance(module, DecomposedLayer):
        owners.append(module.basis if side == "in" else module.scaling)
    elif _is_depthwise(module):
        names = ("in_channels", "out_channels", "groups")
    for owner in owners:
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, count)
