"""The ordinary layers that can be decomposed, and how to make more of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["SUPPORTED_CONVOLUTIONS", "SUPPORTED_LAYERS", "layer_like", "pointwise"]

SUPPORTED_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layer types that are decomposed by default."""

SUPPORTED_LAYERS: tuple[type[nn.Module], ...] = (*SUPPORTED_CONVOLUTIONS, nn.Linear)
"""All layer types that can be decomposed: linear layers only where they are asked for."""


def layer_like(layer: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None, training: bool) -> nn.Module:
    """Return a layer with the attributes of another, but with parameters of its own and as many channels as these have.

    To construct it in the usual way would take several times as long, most of it for random values.
    """
    kind: Any = next(supported for supported in SUPPORTED_LAYERS if isinstance(layer, supported))
    new: nn.Module = kind.__new__(kind)
    nn.Module.__init__(new)
    attributes = vars(layer)
    own = {name: attributes.get(name, value) for name, value in _own_attributes(kind).items()}
    if kind is nn.Linear:
        own.update(out_features=weight.shape[0], in_features=weight.shape[1])
    else:
        own.update(out_channels=weight.shape[0], in_channels=weight.shape[1] * own["groups"])
    vars(new).update(own, training=training)
    new._parameters.update(weight=weight, bias=bias)
    return new


@cache
def pointwise(kind: type[nn.Module], groups: int = 1) -> nn.Module:
    """Return a layer of one of the supported types, as by default; a convolution has a kernel of 1 and some groups."""
    return kind(groups, groups, device="meta", **({} if kind is nn.Linear else {"kernel_size": 1, "groups": groups}))


@cache
def _own_attributes(kind: type[nn.Module]) -> dict[str, Any]:
    """Return what a layer of one of the supported types holds beside what any module does, parameters left out."""
    example = pointwise(kind)  # type: ignore[arg-type]
    return {name: value for name, value in vars(example).items() if name not in vars(nn.Module())}
