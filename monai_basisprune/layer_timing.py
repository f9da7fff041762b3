"""How long each decomposed layer takes on the device that it is on, in each form and at each rank."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import nn

from .decomposition import decomposed_layers
from .forward import example_input, forward_pass, memory_format
from .latency import median_seconds
from .layers import DecomposedLayer, new_decomposed

__all__ = ["faster_split", "latency_tables", "layer_inputs"]

# Only the order of a layer's forms and the shape of a curve matter, of which hundreds are needed
_REPEATS, _WARM_UP = 7, 2
# Two layers where one would do have to be worth it: below this gain, the order of two medians is chance
_WORTH = 0.97


def layer_inputs(network: nn.Module, input_shape: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return, for each decomposed layer, an input like the first one that it gets from one image.

    Raises:
        ValueError: if the network cannot process the input.
    """
    inputs: dict[str, torch.Tensor] = {}
    handles = []
    for name, layer in decomposed_layers(network):

        def note(layer: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            inputs.setdefault(name, torch.ones_like(args[0]))

        handles.append(layer.register_forward_pre_hook(note))
    try:
        forward_pass(network, example_input(network, input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def faster_split(network: nn.Module, input_shape: Sequence[int]) -> dict[str, bool]:
    """Measure, for each decomposed layer, whether two layers are faster than one.

    Args:
        network: a decomposed network, on the device that the result will run on.
        input_shape: shape of one input without the batch.

    Returns:
        ``{layer name: whether to split}``; a layer that takes no part in the forward pass stays as its weights say.
    """
    inputs = layer_inputs(network, input_shape)
    known: dict[Hashable, bool] = {}
    split = {}
    for name, layer in decomposed_layers(network):
        if name not in inputs:
            split[name] = layer.splits()
            continue
        key = (_kind(layer, inputs[name]), layer.rank())
        if key not in known:
            one, two = _seconds([layer.to_plain(False), layer.to_plain(True)], inputs[name])
            known[key] = two < _WORTH * one
        split[name] = known[key]
    return split


def latency_tables(network: nn.Module, input_shape: Sequence[int]) -> dict[str, list[float]]:
    """Measure what each decomposed layer takes at each rank below its present one, in the faster of its forms.

    Layers of equal geometry are measured once, at some ranks; between these, the time is interpolated.

    Args:
        network: a decomposed network, on the device that the result will run on.
        input_shape: shape of one input without the batch.

    Returns:
        for each layer the seconds with ``n`` bases in each group at position ``n``; the last entry is the time as one
        layer, which no rank exceeds. Zeros where a layer takes no part in the forward pass.
    """
    inputs = layer_inputs(network, input_shape)
    measured: dict[Hashable, dict[int, float]] = {}
    tables = {}
    for name, layer in decomposed_layers(network):
        slots = layer.rank() // layer.groups
        if name not in inputs:
            tables[name] = [0.0] * (slots + 2)
            continue
        key = _kind(layer, inputs[name])
        ranks = [rank for rank in _grid(layer.max_rank // layer.groups) if rank < slots] + [slots]
        times = measured.setdefault(key, {})
        missing = [rank for rank in ranks if rank not in times]
        if missing or 0 not in times:
            whole = layer.to_plain(False)
            forms = [new_decomposed(whole, rank * layer.groups).to_plain(True) for rank in missing]
            dense, *others = _seconds([whole, *forms], inputs[name])
            times.setdefault(0, dense)
            times.update(zip(missing, others, strict=True))
        tables[name] = [*_interpolated(ranks, times, slots), times[0]]
    return tables


def _interpolated(ranks: Sequence[int], times: dict[int, float], slots: int) -> list[float]:
    table, last, highest = [0.0], 0, 0.0
    before = times[ranks[0]]
    for rank in ranks:
        for slot in range(last + 1, rank + 1):
            value = before + (times[rank] - before) * (slot - last) / (rank - last)
            # a further basis never makes a layer faster; where it seems so, that is the clock
            highest = max(highest, value)
            table.append(min(highest, times[0]))
        last, before = rank, times[rank]
    assert len(table) == slots + 1
    return table


def _grid(slots: int) -> list[int]:
    """Return the ranks to measure: each power of two, and what lies in the middle between the larger ones."""
    grid, rank = [], 1
    while rank <= slots:
        grid += [rank] if rank < 16 else [rank, rank + rank // 2]
        rank *= 2
    return [rank for rank in grid if rank <= slots]


def _kind(layer: DecomposedLayer, x: torch.Tensor) -> Hashable:
    geometry = (type(layer.basis), layer.in_channels, layer.out_channels, layer.kernel_size, layer.groups)
    more = tuple(getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode"))
    return geometry, more, tuple(x.shape), x.dtype, memory_format(x), layer.scaling.bias is None


def _seconds(layers: Sequence[nn.Module], x: torch.Tensor) -> list[float]:
    with torch.inference_mode():
        functions = [partial(layer.eval(), x) for layer in layers]
        return median_seconds(functions, x.device, _REPEATS, _WARM_UP)
