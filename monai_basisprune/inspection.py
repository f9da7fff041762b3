"""What stands in a network before anything is pruned: size, operations and singular spectrum of every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .decomposition import layer_status
from .factorization import break_even_rank
from .forward import example_input, forward_pass
from .layers import DecomposedLayer
from .selection import decomposable_layers, is_lazy, skip_reasons

__all__ = ["LayerInspection", "inspect_network", "inspect_weights"]

_SAMPLES = 8
_TYPES = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


@dataclass(frozen=True)
class LayerInspection:
    """What one convolution or linear layer is, and how much of it bases could save.

    Attributes:
        name: its dotted name in the network.
        type: the type of the layer, such as ``"Conv2d"``.
        shape: the shape of its weight, or of the weight that basis and scaling stand for.
        parameters: number of parameters as it stands, bias included.
        macs: multiply-accumulate operations in one forward pass; None where no input was passed.
        rank: bases that are left; None where the layer is not decomposed.
        max_rank: bases of the full decomposition; None where there is none.
        break_even_rank: the most bases with which two layers hold fewer weights than one.
        rank_90: the fewest bases that hold 90 % of the energy, the sum of the squared singular values.
        rank_99: the same for 99 %.
        spectrum: singular values at eight evenly spaced places, the largest first, relative to the largest.
        skipped: why the layer would not be decomposed, or None.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    rank: int | None
    max_rank: int | None
    break_even_rank: int | None
    rank_90: int | None
    rank_99: int | None
    spectrum: tuple[float, ...]
    skipped: str | None


def inspect_network(network: nn.Module, input_shape: Sequence[int] | None = None) -> list[LayerInspection]:
    """Inspect every convolution and linear layer of a network, decomposed or not, in the order of the network.

    Args:
        network: any network; it is left as it is.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``, to count operations; None to
            leave them out.

    Raises:
        ValueError: if the network cannot process an input of that shape.

    Example:
        >>> layer = inspect_network(nn.Sequential(nn.Conv2d(8, 16, 3)), (8, 6, 6))[0]
        >>> layer.parameters, layer.macs, layer.max_rank, layer.break_even_rank
        (1168, 18432, 16, 13)
    """
    reasons = {status.name: status.skipped for status in layer_status(network)}
    cannot = skip_reasons(network)
    macs: dict[str, int] = {}
    if input_shape is not None:
        x = example_input(network, input_shape)
        with _counted(network, macs):
            forward_pass(network, x)
    found = []
    for name, module in decomposable_layers(network):
        layer: Any = module
        count = macs.get(name, 0) if input_shape is not None else None
        if isinstance(module, DecomposedLayer):
            basis, scaling = layer.basis.weight.detach(), layer.scaling
            weight = _product(basis, scaling.weight.detach(), scaling.scaling_factors.detach(), layer.groups)
            kind, rank, reason = type(layer.basis).__name__, layer.rank(), None
            most = layer.max_rank  # before any channel went, which the weight does not tell
        else:
            lazy = any(is_lazy(parameter) for parameter in module.parameters())
            weight = torch.zeros(0) if lazy else layer.weight.detach()
            kind, rank, most = type(module).__name__, None, None
            reason = cannot.get(name) or (reasons[name] if isinstance(module, nn.Linear) else None)
        size = sum(p.numel() for p in module.parameters() if not is_lazy(p))
        groups = 0 if name in cannot else getattr(layer, "groups", 1)
        found.append(_inspection(name, kind, weight, size, count, rank, groups, reason, most))
    return found


def inspect_weights(
    state: Mapping[str, torch.Tensor],
    groups: Mapping[str, int] | None = None,
    original_shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[LayerInspection]:
    """Inspect the layers of a state dict, of which only the shapes tell what they are.

    A transposed convolution looks like one that is not, a table of embeddings like a linear layer, and operations
    cannot be counted: inspect the network where it can be built.

    Args:
        state: tensors by name.
        groups: the groups of convolutions by name, where they are known; by default 1.
        original_shapes: the shapes of weights by name of the layer, where channels were removed since.
    """
    known = dict(groups or {})
    found = []
    for key, tensor in state.items():
        name, _, kind = key.rpartition(".")
        if kind != "weight" or tensor.ndim not in _TYPES or not tensor.is_floating_point():
            continue
        owner, _, part = name.rpartition(".")
        if part == "scaling" and f"{owner}.basis.weight" in state:
            continue
        bias, rank, size = state.get(f"{name}.bias"), None, tensor.numel()
        weight = tensor
        scaling = state.get(f"{owner}.scaling.weight") if part == "basis" else None
        if scaling is not None:
            factors = state.get(f"{owner}.scaling.scaling_factors", torch.ones(len(tensor)))
            name, rank, bias = owner, len(tensor), state.get(f"{owner}.scaling.bias")
            known[name] = len(tensor) // scaling.shape[1]
            weight = _product(tensor, scaling, factors, known[name])
            size += scaling.numel() + factors.numel()
        size += 0 if bias is None else bias.numel()
        original = (original_shapes or {}).get(name)
        share = known.get(name, 1)
        most = None if rank is None or original is None else _most_bases(original, share)
        found.append(_inspection(name, _TYPES[tensor.ndim], weight, size, None, rank, share, None, most))
    return found


def _product(basis: torch.Tensor, scaling: torch.Tensor, factors: torch.Tensor, groups: int) -> torch.Tensor:
    rows = (basis.double() * factors.double().reshape(-1, *[1] * (basis.ndim - 1))).reshape(
        groups, len(basis) // groups, -1
    )
    columns = scaling.double().reshape(groups, -1, len(basis) // groups)
    return (columns @ rows).reshape(len(scaling), *basis.shape[1:])


def _inspection(
    name: str,
    kind: str,
    weight: torch.Tensor,
    size: int,
    macs: int | None,
    rank: int | None,
    groups: int,
    reason: Any,
    most: int | None,
) -> LayerInspection:
    shape = tuple(weight.shape)
    if not groups or not weight.numel():  # nothing of it can be decomposed
        return LayerInspection(name, kind, shape, size, macs, rank, None, None, None, None, (), reason)
    if not bool(torch.isfinite(weight).all()):
        reason, energies = "the weight holds NaN or infinite values", []
    else:
        energies = _energies(weight, groups)
    kernel = shape[2:]
    return LayerInspection(
        name=name,
        type=kind,
        shape=shape,
        parameters=size,
        macs=macs,
        rank=rank,
        max_rank=_most_bases(shape, groups) if most is None else most,
        break_even_rank=break_even_rank(shape[0], shape[1] * groups, kernel, groups),
        rank_90=_fewest(energies, 0.9),
        rank_99=_fewest(energies, 0.99),
        spectrum=_samples(energies),
        skipped=reason,
    )


def _most_bases(shape: Sequence[int], groups: int) -> int:
    return groups * min(shape[0] // groups, math.prod(shape[1:]))


def _energies(weight: torch.Tensor, groups: int) -> list[float]:
    """Return the squared singular values of a weight, all groups together, the largest first."""
    matrix = weight.detach().to("cpu", torch.float64).reshape(groups, weight.shape[0] // groups, -1)
    short = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.transpose(1, 2)
    squares = torch.linalg.eigvalsh(short @ short.transpose(1, 2)).clamp_min(0).flatten()
    return [float(value) for value in squares.sort(descending=True).values]


def _fewest(energies: Sequence[float], share: float) -> int | None:
    total, running = sum(energies), 0.0
    if not total:
        return None
    for number, energy in enumerate(energies, start=1):
        running += energy
        if running >= share * total:
            return number
    return len(energies)


def _samples(energies: Sequence[float]) -> tuple[float, ...]:
    if not energies or not energies[0]:
        return ()
    count = min(_SAMPLES, len(energies))
    places = [round(i * (len(energies) - 1) / max(count - 1, 1)) for i in range(count)]
    return tuple(math.sqrt(energies[place] / energies[0]) for place in places)


@contextmanager
def _counted(network: nn.Module, macs: dict[str, int]) -> Iterator[None]:
    """Count the operations of each layer while the network runs."""
    handles = []

    def count(name: str, layer: nn.Module) -> None:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            # each value that is put in (transposed) or comes out takes one operation for each weight of its filter
            values = inputs[0] if getattr(module, "transposed", False) else output
            macs[name] = macs.get(name, 0) + values.numel() * module.weight[0].numel()

        handles.append(layer.register_forward_hook(hook))

    for name, module in decomposable_layers(network):
        parts = [module.basis, module.scaling] if isinstance(module, DecomposedLayer) else [module]
        for part in parts:
            count(name, part)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
