"""Batch norms multiplied into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .copies import copy_network
from .forward import example_input, forward_pass
from .layers import SUPPORTED_CONVOLUTIONS

__all__ = ["fold_norms", "foldable_norms"]


def fold_norms(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Multiply every batch norm that directly follows a convolution into that convolution.

    Args:
        network: a network of ordinary layers; it is left as it is.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Returns:
        a new network in evaluation mode, equal in output to rounding, with ``nn.Identity`` in place of these norms.

    Raises:
        ValueError: if the network cannot process the input.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, norm in foldable_norms(network, input_shape):
        replacements[convolution] = _folded(convolution, norm)
        replacements[norm] = nn.Identity()
    return copy_network(network, replacements).eval()


def foldable_norms(network: nn.Module, input_shape: Sequence[int]) -> list[tuple[nn.Module, nn.Module]]:
    """Return each convolution whose output goes into one batch norm and nowhere else, with that norm.

    Found by watching one forward pass: every function of PyTorch that takes the output is counted, so that an output
    that is added, concatenated or returned as well is left alone. So is a layer that is called more than once.
    """
    calls: Counter[nn.Module] = Counter()
    makers: dict[int, nn.Module] = {}
    takers: dict[int, nn.Module] = {}
    alive: list[Any] = []  # an id means something only as long as its object lives
    uses = _Uses()
    handles = []

    def made(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, SUPPORTED_CONVOLUTIONS):
            makers[id(output)] = module
            alive.append(output)

    def taken(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm) and args:
            takers[id(args[0])] = module

    for module in network.modules():
        if isinstance(module, (*SUPPORTED_CONVOLUTIONS, _BatchNorm)):
            handles.append(module.register_forward_hook(made))
            handles.append(module.register_forward_pre_hook(taken))
    try:
        with uses:
            result = forward_pass(network, example_input(network, input_shape))
    finally:
        for handle in handles:
            handle.remove()
    returned = {id(leaf) for leaf in tree_leaves(result)}
    return [
        (makers[key], takers[key])
        for key in makers
        if key in takers
        and key not in returned
        and uses.counts[key] == 1
        and calls[makers[key]] == calls[takers[key]] == 1
        and _has_statistics(takers[key])
        and not _is_watched(makers[key])
        and not _is_watched(takers[key])
    ]


def _folded(convolution: nn.Module, norm: nn.Module) -> nn.Module:
    new: Any = copy.deepcopy(convolution)
    batch_norm: Any = norm
    with torch.no_grad():
        # in float64, so that each weight is rounded only once
        scale = (batch_norm.running_var.double() + batch_norm.eps).rsqrt()
        if batch_norm.weight is not None:
            scale = scale * batch_norm.weight.double()
        shift = -batch_norm.running_mean.double()
        if new.bias is not None:
            shift = shift + new.bias.double()
        shift = shift * scale
        if batch_norm.bias is not None:
            shift = shift + batch_norm.bias.double()
        weight = new.weight.double() * scale.reshape(-1, *[1] * (new.weight.ndim - 1))
        new.bias = nn.Parameter(shift.to(new.weight), requires_grad=new.weight.requires_grad)
        new.weight.copy_(weight)
    return new.eval()


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "running_mean", None), torch.Tensor)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class _Uses(TorchFunctionMode):
    """Counts how many functions of PyTorch, methods and operators among them, take each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._alive: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        taken = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        # to ask a tensor for its shape or type uses none of its values
        if getattr(func, "__name__", "") not in ("__get__", "size", "dim", "is_contiguous"):
            self.counts.update(taken.keys())
        self._alive.extend(taken.values())
        return func(*args, **(kwargs or {}))
