"""Copies of networks."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .threads import one_thread
from .traversal import walk

__all__ = ["copy_network", "copy_parameter"]

# what a type of module defines to be copied in a way of its own
_WAYS_TO_COPY = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__")

_CONSTANTS = {bool, int, float, str, type(None)}
_CONTAINERS = {dict, OrderedDict, set}


@one_thread()
def copy_network(network: nn.Module, replaced: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """Return a copy of a network, as ``copy.deepcopy`` does, but several times faster.

    Args:
        network: the network; it is left as it is.
        replaced: modules, and what stands in their place in the copy, wherever the network refers to them. They are
            never copied, so the peak of memory stays near the size of the two networks.
    """
    replaced = {} if replaced is None else replaced
    memo: dict[int, Any] = {id(old): new for old, new in replaced.items()}
    modules = [module for _, module in walk(network, left_out=replaced)]
    buffers = [b for m in modules for b in m._buffers.values() if type(b) is torch.Tensor and _is_plain(b)]
    places = Counter(buffer.untyped_storage().data_ptr() for buffer in buffers)
    for buffer in buffers:
        # the general way, for buffers that share their memory, takes several times longer
        if places[buffer.untyped_storage().data_ptr()] == 1:
            memo[id(buffer)] = buffer.clone()
    # to copy a module in the general way takes most of the time
    as_usual = {kind for kind in set(map(type, modules)) if _is_copied_as_usual(kind)}
    for module in modules:
        if type(module) in as_usual:
            memo[id(module)] = type(module).__new__(type(module))
        else:
            memo.update((id(v), v.detach().clone()) for v in vars(module).values() if _is_computed(v))
    for module in modules:
        if type(module) in as_usual:
            vars(memo[id(module)]).update(_copied_entries(vars(module), memo))
    return copy.deepcopy(network, memo)


def copy_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter with the same values, without a gradient."""
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _is_plain(buffer: torch.Tensor) -> bool:
    return buffer.layout is torch.strided and not buffer.requires_grad and not vars(buffer)


def _is_computed(value: Any) -> bool:
    """Return whether it is a weight that an old-style weight or spectral norm computed, and will compute anew."""
    return isinstance(value, torch.Tensor) and not value.is_leaf


def _is_copied_as_usual(kind: type[nn.Module]) -> bool:
    """Return whether to copy a module of this type is to copy its attributes."""
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _WAYS_TO_COPY)


def _copied_entries(entries: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """Return deep copies of the attributes of a module, by name; the common kinds are copied here, which is faster."""
    copies = {}
    for name, value in entries.items():
        kind = type(value)
        if kind in _CONSTANTS:
            copies[name] = value
        elif id(value) in memo:
            copies[name] = memo[id(value)]
        elif kind in _CONTAINERS and not value:
            copies[name] = memo[id(value)] = kind()
        elif kind is nn.Parameter:
            copies[name] = memo[id(value)] = copy_parameter(value)
        elif _is_computed(value):
            copies[name] = memo[id(value)] = value.detach().clone()
        elif kind is dict and name in ("_parameters", "_buffers", "_modules"):
            copies[name] = memo[id(value)] = _copied_entries(value, memo)
        else:
            copies[name] = copy.deepcopy(value, memo)
    return copies
