"""Which layers of a network can be decomposed, and which of them were asked for."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from .errors import LayerSelectionError
from .layers import SUPPORTED_CONVOLUTIONS, SUPPORTED_LAYERS, DecomposedLayer
from .traversal import walk

__all__ = ["decomposable_layers", "is_lazy", "linear_layers", "select_layers", "skip_reasons"]

# They hand the weights of the linear layers inside them to fused functions, past the layers' own forward passes
_WEIGHT_READERS: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def decomposable_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield decomposed layers, convolutions of any kind and linear layers, without looking inside decomposed ones."""
    for name, module in walk(network, whole=(DecomposedLayer,)):
        if isinstance(module, (DecomposedLayer, _ConvNd, nn.Linear)):
            yield name, module


def linear_layers(network: nn.Module) -> list[str]:
    """Return the names of the linear layers of a network; the last one is its head, unless told otherwise."""
    return [
        name
        for name, module in decomposable_layers(network)
        if isinstance(module, nn.Linear)
        or (isinstance(module, DecomposedLayer) and isinstance(module.basis, nn.Linear))
    ]


def select_layers(
    network: nn.Module, target_modules: Sequence[str] | str | None, exclude_modules: Sequence[str] | str | None
) -> dict[str, nn.Module]:
    """Return the layers to decompose: convolutions by default, and any layer that can be where it is asked for.

    The head, which is the last linear layer, stays whole unless a list names it in full.

    Raises:
        LayerSelectionError: if a layer that a list names in full cannot be decomposed, or nothing is left; what there
            is, and what is left alone, is listed.
    """
    layers = {name: m for name, m in decomposable_layers(network) if not isinstance(m, DecomposedLayer)}
    reasons = skip_reasons(network)
    candidates = [name for name in layers if name not in reasons]
    if target_modules is None:
        chosen = {name for name in candidates if not isinstance(layers[name], nn.Linear)}
    else:
        asked = _match(target_modules, list(layers), "target_modules")
        head = linear_layers(network)[-1:]
        named = set() if isinstance(target_modules, str) else set(target_modules)
        refused = [f"  - {name}: {reasons[name]}" for name in sorted(named & reasons.keys())]
        if refused:
            raise LayerSelectionError("target_modules names layers that cannot be decomposed:\n" + "\n".join(refused))
        asked -= set(head) - named
        chosen = asked & set(candidates)
    if exclude_modules is not None:
        chosen -= _match(exclude_modules, candidates, "exclude_modules", required=False)
    if not chosen:
        found = "; ".join(f"{name or 'the network itself'}: {reason}" for name, reason in reasons.items())
        raise LayerSelectionError(
            f"No layer to decompose in {type(network).__name__} with target_modules={target_modules!r} and "
            f"exclude_modules={exclude_modules!r}. Layers that can be decomposed, linear ones where target_modules "
            f"names them: {candidates or 'none'}. Left alone: {found or 'none'}."
        )
    return {name: layer for name, layer in layers.items() if name in chosen}


def skip_reasons(network: nn.Module) -> dict[str, str]:
    """Return, for each convolution or linear layer that cannot be decomposed, its name and the reason."""
    owners: Counter[int] = Counter()
    readers: dict[nn.Module, str] = {}
    for _, module in walk(network):
        owners.update({id(p) for p in module._parameters.values()})
        if isinstance(module, _WEIGHT_READERS):
            readers.update(dict.fromkeys(module.modules(), type(module).__name__))
    reasons = {}
    for name, module in decomposable_layers(network):
        if not isinstance(module, DecomposedLayer):
            reason = f"{readers[module]} reads its weight directly" if module in readers else _reason(module, owners)
            if reason is not None:
                reasons[name] = reason
    return reasons


def _reason(layer: nn.Module, owners: Counter[int]) -> str | None:
    module: Any = layer
    if getattr(module, "transposed", False):
        return "transposed convolution"
    if is_parametrized(module) or not isinstance(getattr(module, "_parameters", {}).get("weight"), nn.Parameter):
        return "its weight is parametrized (weight norm, spectral norm or alike)"
    if not isinstance(layer, SUPPORTED_LAYERS):
        return f"type {type(module).__name__} is not one of {[t.__name__ for t in SUPPORTED_LAYERS]}"
    if any(is_lazy(p) for p in module._parameters.values()):
        return "lazy layer without a shape yet: run one forward pass first"
    if _computes_otherwise(layer):
        return f"{type(module).__name__} has a forward pass of its own"
    if not module.weight.is_floating_point():
        return f"its weight is of type {module.weight.dtype}"
    groups = getattr(module, "groups", 1)
    if groups > 1 and (module.in_channels == groups or module.out_channels == groups):
        return "depthwise convolution: one channel per group has nothing to decompose"
    if any(owners[id(p)] > 1 for p in module._parameters.values() if p is not None):
        return "its parameters are tied to those of another layer"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "hooks are registered on it"
    return None


def _computes_otherwise(layer: nn.Module) -> bool:
    """Return whether a subclass, or this one layer, computes something else than the supported type does."""
    kind = type(layer)
    plain = next(supported for supported in SUPPORTED_LAYERS if isinstance(layer, supported))
    methods = ("forward", "_conv_forward") if plain in SUPPORTED_CONVOLUTIONS else ("forward",)
    return any(getattr(kind, name) is not getattr(plain, name) or name in vars(layer) for name in methods)


def is_lazy(parameter: nn.Parameter) -> bool:
    """Return whether a parameter has no shape yet."""
    return isinstance(parameter, UninitializedParameter)


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
            message = f"{argument}: {pattern!r} matches no layer. Convolutions and linear layers found: {names}."
            if required:
                raise LayerSelectionError(message)
            warnings.warn(message, stacklevel=4)
        matched |= found
    return matched
