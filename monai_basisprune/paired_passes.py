"""One layer of a network and its twin in a reference, watched while both see the same images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .activation import Moments, grouped_features
from .channel_compensation import positions_in, spatial_dims, take_inputs
from .channel_slices import group_count
from .forward import forward_pass
from .layers import DecomposedLayer

__all__ = ["input_pair_moments", "output_difference", "output_pair_moments"]


def output_pair_moments(
    network: nn.Module,
    reference: nn.Module,
    layer: nn.Module,
    twin: nn.Module,
    batches: Sequence[torch.Tensor],
) -> Moments:
    """Return the moments of the scaled features of a layer's bases and of the outputs wanted, in this order."""
    assert isinstance(layer, DecomposedLayer)
    factors = layer.scaling.scaling_factors.detach().cpu().double().reshape(layer.groups, -1, 1)

    def features(into: list[torch.Tensor]) -> Any:
        return lambda module, args, output: into.append(
            grouped_features(output, layer.groups, len(layer.kernel_size)) * factors.to(_host(output))
        )

    moments = Moments()
    for found, wanted in _pairs(
        network,
        reference,
        batches,
        lambda into: layer.basis.register_forward_hook(features(into)),
        lambda into: twin.register_forward_hook(_take_outputs(layer, twin, into)),
    ):
        moments.add(torch.cat([found, wanted.to(found.device)], dim=1))
    return moments


def input_pair_moments(
    network: nn.Module, reference: nn.Module, layer: nn.Module, twin: nn.Module, batches: Sequence[torch.Tensor]
) -> Moments:
    """Return the moments of what a layer reads and of what its twin reads, in this order."""
    moments = Moments()
    for found, wanted in _pairs(
        network,
        reference,
        batches,
        lambda into: layer.register_forward_pre_hook(take_inputs(layer, into)),
        lambda into: twin.register_forward_pre_hook(take_inputs(twin, into)),
    ):
        moments.add(torch.cat([found, wanted.to(found.device)], dim=1))
    return moments


def output_difference(
    network: nn.Module, reference: nn.Module, layer: nn.Module, twin: nn.Module, batches: Sequence[torch.Tensor]
) -> float:
    """Return the mean squared difference of a layer's outputs from its twin's, where they stand for the same."""
    squares, count = 0.0, 0
    for found, wanted in _pairs(
        network,
        reference,
        batches,
        lambda into: layer.register_forward_hook(_take_outputs(layer, layer, into)),
        lambda into: twin.register_forward_hook(_take_outputs(layer, twin, into)),
    ):
        squares += float((found - wanted.to(found.device)).square().sum())
        count += found.numel()
    return squares / count


def _take_outputs(layer: nn.Module, module: nn.Module, into: list[torch.Tensor]) -> Any:
    """Return a hook that keeps what a module puts out, of the channels that a layer has left."""
    dims, groups, positions = spatial_dims(layer), group_count(layer), positions_in(layer, module, "out")

    def take(hooked: nn.Module, args: object, output: torch.Tensor) -> None:
        index = torch.tensor(positions, device=output.device)
        into.append(grouped_features(output.index_select(output.ndim - 1 - dims, index), groups, dims))

    return take


def _pairs(
    network: nn.Module,
    reference: nn.Module,
    batches: Sequence[torch.Tensor],
    watch: Callable[[list[torch.Tensor]], RemovableHandle],
    watch_reference: Callable[[list[torch.Tensor]], RemovableHandle],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pass batches through both networks, and yield what was seen in both, call by call.

    The first batch tells how often each layer is called in a pass; the passes of the others end with the last call.
    """
    seen, wanted = _Calls(watch), _Calls(watch_reference)
    for batch in batches:
        seen.observe(network, batch)
        wanted.observe(reference, batch)
        yield from zip(seen, wanted, strict=True)


class _Calls(list[torch.Tensor]):
    """What was seen of one layer in the last pass, one tensor for each call.

    Args:
        watch: puts a hook on the layer that appends what it sees.
    """

    def __init__(self, watch: Callable[[list[torch.Tensor]], RemovableHandle]) -> None:
        super().__init__()
        self.watch = watch
        self.limit: int | None = None

    def observe(self, network: nn.Module, batch: torch.Tensor) -> None:
        """Pass a batch through the layer's network, as far as the layer is called."""
        self.clear()
        handle = self.watch(self)
        try:
            with contextlib.suppress(_AllSeen):
                forward_pass(network, batch)
        finally:
            handle.remove()
        self.limit = len(self)

    def append(self, tensor: torch.Tensor) -> None:
        """Add a call, and end the pass if no other is to come."""
        super().append(tensor)
        if len(self) == self.limit:
            raise _AllSeen


class _AllSeen(Exception):  # noqa: N818
    """Ends a pass of which all that is wanted was seen."""


def _host(tensor: torch.Tensor) -> torch.device:
    return tensor.device if tensor.device.type in ("cpu", "cuda") else torch.device("cpu")
