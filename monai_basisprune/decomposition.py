"""Decompose the convolutions of a network, put them together again, and tell what stands in it."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from .errors import LayerSelectionError
from .layers import SUPPORTED_CONVOLUTIONS, DecomposedConv

__all__ = ["LayerStatus", "decompose", "decomposed_layers", "layer_status", "recompose", "skip_reasons"]


@dataclass(frozen=True)
class LayerStatus:
    """What has become of one convolution.

    Attributes:
        name: its dotted name in the network.
        type: the type of the convolution, such as ``"Conv2d"``.
        rank: bases that are left, all groups together; None where the layer is not decomposed.
        max_rank: bases of the full decomposition; None where the layer is not decomposed.
        parameters: number of parameters, bias included, after :func:`recompose`.
        original_parameters: number of parameters of the convolution in the original network.
        skipped: why the layer is not decomposed, or None where it is.
    """

    name: str
    type: str
    rank: int | None
    max_rank: int | None
    parameters: int
    original_parameters: int
    skipped: str | None


def decompose(
    network: nn.Module,
    basis: str = "weight",
    target_modules: Sequence[str] | str | None = None,
    exclude_modules: Sequence[str] | str | None = None,
) -> nn.Module:
    """Replace every convolution by orthonormal basis filters and a :class:`~monai_basisprune.BasisScalingConv`.

    The result equals the network to rounding (a relative error of some 1e-6). Convolutions that cannot be decomposed
    are left alone; :func:`layer_status` says why. After Wong, Kashyap and Moradi, arXiv 2108.02893.

    Args:
        network: any network with 1D, 2D or 3D convolutions; it is left as it is.
        basis: where the bases come from: ``"weight"``, the singular value decomposition of the weights.
        target_modules: which convolutions to decompose; all that can be, by default. A list of dotted names, where a
            name also stands for every layer inside that module and for every layer whose name ends with it
            (``"conv1"`` for ``"layer1.0.conv1"``), or one regular expression that matches whole names.
        exclude_modules: which of them to leave alone, given in the same way.

    Returns:
        a new network. Bases and ``U · S`` are frozen, the scaling factors require a gradient.

    Raises:
        LayerSelectionError: if nothing is left to decompose, or a weight holds NaN or infinite values; all problems
            are listed.
        ValueError: if ``basis`` is unknown.

    Example:
        >>> from monai.networks.nets import DenseNet121
        >>> network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2).eval()
        >>> decomposed = decompose(network)
        >>> x = torch.rand(1, 1, 64, 64)
        >>> torch.allclose(decomposed(x), network(x), atol=1e-4)
        True
    """
    if basis != "weight":
        raise ValueError(f"basis must be 'weight', got {basis!r}.")
    layers = {name: module for name, module in _convolutions(network) if not isinstance(module, DecomposedConv)}
    reasons = skip_reasons(network)
    candidates = [name for name in layers if name not in reasons]
    chosen = set(candidates)
    if target_modules is not None:
        chosen &= _match(target_modules, list(layers), "target_modules")
    if exclude_modules is not None:
        excluded = _match(exclude_modules, candidates, "exclude_modules", required=False)
        chosen -= excluded
    if not chosen:
        found = "; ".join(f"{name or 'the network itself'}: {reason}" for name, reason in reasons.items())
        raise LayerSelectionError(
            f"No convolution to decompose in {type(network).__name__} with target_modules={target_modules!r} and "
            f"exclude_modules={exclude_modules!r}. Convolutions that can be decomposed: {candidates or 'none'}. "
            f"Left alone: {found or 'none'}."
        )
    broken = [name for name in chosen if not bool(torch.isfinite(layers[name].weight).all())]  # type: ignore[arg-type]
    if broken:
        lines = "\n".join(f"  - {name}: the weight holds NaN or infinite values" for name in sorted(broken))
        raise LayerSelectionError(f"{type(network).__name__} cannot be decomposed; load sound weights first:\n{lines}")
    return replace_modules(network, {layers[name]: DecomposedConv.from_convolution(layers[name]) for name in chosen})


def recompose(network: nn.Module) -> nn.Module:
    """Turn every decomposed layer back into ordinary convolutions.

    A layer becomes one convolution, or two in an ``nn.Sequential`` where two hold fewer weights (which, stride or not,
    are also fewer operations). The result is equal in output and needs nothing of this package to run.

    Args:
        network: a network with decomposed layers; it is left as it is.

    Returns:
        a new network.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer.
    """
    return replace_modules(network, {layer: layer.to_convolution() for _, layer in decomposed_layers(network)})


def layer_status(network: nn.Module) -> list[LayerStatus]:
    """List every convolution of a network, decomposed or not, in the order in which the network holds them.

    Args:
        network: any network, before or after :func:`decompose`.

    Returns:
        one :class:`LayerStatus` for each; a convolution that could be decomposed but is not, is reported as
        ``"not selected"``.
    """
    reasons = skip_reasons(network)
    status = []
    for name, module in _convolutions(network):
        if isinstance(module, DecomposedConv):
            kind, rank, max_rank = type(module.basis).__name__, module.rank(), module.max_rank
            now, before, skipped = module.recomposed_parameters(), module.original_parameters, None
        else:
            kind, rank, max_rank = type(module).__name__, None, None
            now = before = sum(p.numel() for p in module.parameters() if not _is_lazy(p))
            skipped = reasons.get(name, "not selected by target_modules and exclude_modules")
        status.append(LayerStatus(name, kind, rank, max_rank, now, before, skipped))
    return status


def decomposed_layers(network: nn.Module) -> list[tuple[str, DecomposedConv]]:
    """Return the decomposed layers of a network by name.

    Raises:
        LayerSelectionError: if there is none.
    """
    layers = [(name, module) for name, module in _convolutions(network) if isinstance(module, DecomposedConv)]
    if not layers:
        raise LayerSelectionError(
            f"{type(network).__name__} holds no decomposed layer: call monai_basisprune.decompose(network) first."
        )
    return layers


def skip_reasons(network: nn.Module) -> dict[str, str]:
    """Return, for each convolution that cannot be decomposed, its name and the reason."""
    owners: Counter[int] = Counter()
    for module in network.modules():
        owners.update({id(p) for p in module.parameters(recurse=False)})
    reasons = {}
    for name, module in _convolutions(network):
        reason = None if isinstance(module, DecomposedConv) else _skip_reason(module, owners)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _skip_reason(convolution: nn.Module, owners: Counter[int]) -> str | None:
    module: Any = convolution
    kind: Any = type(convolution)
    if getattr(convolution, "transposed", False):
        return "transposed convolution"
    if is_parametrized(module) or not isinstance(getattr(module, "_parameters", {}).get("weight"), nn.Parameter):
        return "its weight is parametrized (weight norm, spectral norm or alike)"
    if not isinstance(convolution, SUPPORTED_CONVOLUTIONS):
        return f"type {type(module).__name__} is not one of {[t.__name__ for t in SUPPORTED_CONVOLUTIONS]}"
    plain: Any = next(t for t in SUPPORTED_CONVOLUTIONS if isinstance(convolution, t))
    if any(_is_lazy(p) for p in module.parameters()):
        return "lazy layer without a shape yet: run one forward pass first"
    if (
        kind.forward is not plain.forward
        or kind._conv_forward is not plain._conv_forward
        or not {"forward", "_conv_forward"}.isdisjoint(vars(module))
    ):
        return f"{type(module).__name__} has a forward pass of its own"
    if not module.weight.is_floating_point():
        return f"its weight is of type {module.weight.dtype}"
    if module.groups > 1 and (module.in_channels == module.groups or module.out_channels == module.groups):
        return "depthwise convolution: one channel per group has nothing to decompose"
    if any(owners[id(p)] > 1 for p in module.parameters()):
        return "its parameters are tied to those of another layer"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "hooks are registered on it"
    return None


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter)


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield decomposed layers and every other convolution, without looking inside decomposed ones."""
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if isinstance(module, DecomposedConv):
            inside.update(module.modules())
            yield name, module
        elif isinstance(module, _ConvNd) and module not in inside:
            yield name, module


def _match(patterns: Sequence[str] | str, names: list[str], argument: str, required: bool = True) -> set[str]:
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if isinstance(patterns, str):
            try:
                found = {name for name in names if re.fullmatch(pattern, name)}
            except re.error as error:
                raise LayerSelectionError(f"{argument}: {pattern!r} is no regular expression: {error}.") from error
        else:
            found = {name for name in names if f".{name}".endswith(f".{pattern}") or name.startswith(f"{pattern}.")}
        if not found:
            message = f"{argument}: {pattern!r} matches no convolution. Convolutions found: {names}."
            if required:
                raise LayerSelectionError(message)
            warnings.warn(message, stacklevel=3)
        matched |= found
    return matched


def replace_modules(network: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a network with some of its modules replaced, wherever it refers to them.

    What is replaced is never copied, so the peak of memory stays near the size of the two networks.
    """
    memo: dict[int, object] = {id(old): new for old, new in replacements.items()}
    for module in network.modules():
        for value in vars(module).values():
            # the weight that an old-style weight or spectral norm computed; it is computed anew at the next pass
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(network, memo)
