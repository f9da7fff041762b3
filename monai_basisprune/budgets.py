"""How much to remove, and what each basis of a network costs in that currency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .channel_scaling_layer import channel_scalings
from .channel_slices import channel_count, cut_modules, lost_parameters, lost_weights
from .copies import copy_network
from .decomposition import decomposed_layers
from .errors import BudgetError
from .forward import example_input, forward_pass
from .latency import measure_latency
from .layer_timing import latency_tables
from .layers import DecomposedLayer
from .selection import decomposable_layers
from .traversal import parameter_count

__all__ = ["Budget", "NetworkCost", "count_positions", "network_cost", "shortfall"]

_QUANTITIES = ("parameters", "macs", "latency", "bases", "threshold", "auc_margin")


@dataclass(frozen=True)
class Budget:
    """How much of a network to remove, always against the original network: one quantity, or parameters and macs.

    With ``parameters`` and ``macs`` given, the budget is met when both shares are gone.

    Attributes:
        parameters: share of the parameters, in [0, 1), counted after ``recompose``.
        macs: share of the multiply-accumulate operations, in [0, 1), counted after ``recompose``; needs
            ``input_shape``.
        latency: share of the time of a forward pass with one image, in [0, 1), as modeled from measurements of each
            layer on the device that the network is on; needs ``input_shape``. Unlike a count, it differs a little
            from one call to the next.
        bases: share of the bases, in [0, 1).
        threshold: remove every basis whose score is below this.
        auc_margin: as much as costs no more AUC than this, above 0 and below 1. No single cut can meet it: a
            :class:`~monai_basisprune.handlers.MetricSearchRounds` trains and evaluates until it is met.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Raises:
        ValueError: unless one quantity is given, or parameters and macs, in its range.

    Example:
        >>> Budget(parameters=0.9)
        Budget(parameters=0.9)
        >>> Budget(parameters=0.9, macs=0.8, input_shape=(1, 224, 224)).quantity
        'parameters and macs'
    """

    parameters: float | None = None
    macs: float | None = None
    latency: float | None = None
    bases: float | None = None
    threshold: float | None = None
    auc_margin: float | None = None
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = self.shares
        if len(given) != 1 and set(given) != {"parameters", "macs"}:
            raise ValueError(
                f"A Budget takes exactly one of {', '.join(_QUANTITIES[:-1])} and {_QUANTITIES[-1]}, or parameters and "
                f"macs together, got {given or 'none of them'}."
            )
        for name, value in given.items():
            self._check(name, value)
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))

    def _check(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ValueError(f"Budget({name}=...) takes a number, got {value!r}.")
        if name == "auc_margin" and not 0 < value < 1:
            raise ValueError(f"Budget(auc_margin=...) is a loss of AUC above 0 and below 1, got {value!r}.")
        if name != "threshold" and not 0 <= value < 1:
            raise ValueError(f"Budget({name}=...) is the share to remove, at least 0 and below 1, got {value!r}.")
        if name in ("macs", "latency") and self.input_shape is None:
            raise ValueError(
                f"Budget({name}=...) needs input_shape as well, the shape of one input without the batch, such as "
                f"Budget({name}=0.75, input_shape=(1, 224, 224)): it depends on the size of the image."
            )

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if v is not None)
        return f"Budget({shown})"

    @property
    def shares(self) -> dict[str, float]:
        """What is given, by the name of its quantity."""
        return {name: getattr(self, name) for name in _QUANTITIES if getattr(self, name) is not None}

    @property
    def quantity(self) -> str:
        """The name of the quantity that is given, such as "parameters", or "parameters and macs"."""
        return " and ".join(self.shares)

    @property
    def share(self) -> float:
        """The number that is given, the smaller one of two."""
        return min(self.shares.values())

    @property
    def parts(self) -> tuple[Budget, ...]:
        """One budget for each quantity that is given."""
        shares = self.shares.items()
        return tuple(Budget(**{name: share}, input_shape=self.input_shape) for name, share in shares)


@dataclass(frozen=True)
class NetworkCost:
    """A network in one currency, after recomposition.

    Attributes:
        original: what the original network costs.
        total: what the network costs now.
        allowed: what the budget leaves.
        layers: for each decomposed layer what it costs, in the cheaper of its two forms, with ``n`` bases in each
            group, at position ``n``, up to those that it has now.
    """

    original: float
    total: float
    allowed: float
    layers: Mapping[str, Sequence[float]]

    def reduction(self, left: float) -> float:
        """Return the share of the original that is gone when ``left`` is left."""
        return 1.0 - left / self.original


def network_cost(network: nn.Module, budget: Budget) -> NetworkCost:
    """Count a decomposed network in the currency of a budget.

    Args:
        network: a decomposed network.
        budget: of one quantity: one of ``parts``.

    Raises:
        ValueError: if operations are counted and the network cannot process ``budget.input_shape``.
        BudgetError: if the budget is a margin of AUC, or of latency for a network of which channels were removed.
    """
    if budget.auc_margin is not None:
        raise BudgetError(
            f"{budget} says how much AUC may be lost, and no single cut can tell: search for the network with a "
            f"MetricSearchRounds of monai_basisprune.handlers, or ask for a share, such as Budget(parameters=0.9)."
        )
    layers = decomposed_layers(network)
    ((quantity, share),) = budget.shares.items()
    if quantity == "bases":
        original = sum(layer.max_rank for _, layer in layers)
        total = sum(layer.rank() for _, layer in layers)
        tables = {name: [layer.groups * n for n in range(_slots(layer) + 1)] for name, layer in layers}
        return NetworkCost(original, total, _allowed(original, share), tables)
    if quantity == "latency":
        assert budget.input_shape is not None
        if any(cut_modules(network)):
            raise BudgetError(
                f"{budget} cannot be counted: channels were removed, and how long the original network took is no "
                f"longer to be measured on this one. Ask for a share of parameters or of macs."
            )
        return _latency_cost(network, budget.input_shape, share)
    if quantity == "macs":
        assert budget.input_shape is not None
        positions, everything = count_positions(network, budget.input_shape)
        lost = sum(positions[name] * lost_weights(m) for name, m in cut_modules(network) if name in positions)
    else:
        positions = {name: 1 for name, _ in layers}
        # the scaling factors go into the weights, and the bias is no part of the two forms' difference
        everything = parameter_count(network) - sum(layer.rank() for _, layer in layers)
        everything -= sum(module.channel_scaling.weight.numel() for _, module in channel_scalings(network))
        lost = sum(lost_parameters(module) for _, module in cut_modules(network))
    rest = everything - sum(positions[name] * layer.rank() * layer.basis_size() for name, layer in layers)
    dense = {name: positions[name] * layer.whole_weights() for name, layer in layers}
    counts = {}
    for name, layer in layers:
        rising = range(0, dense[name], max(positions[name] * layer.groups * layer.basis_size(), 1))[: _slots(layer) + 1]
        counts[name] = [*rising, *[dense[name]] * (_slots(layer) + 1 - len(rising))]
    original = rest + sum(dense.values()) + lost
    return NetworkCost(original, rest + sum(c[-1] for c in counts.values()), _allowed(original, share), counts)


def shortfall(costs: Mapping[str, NetworkCost], left: Mapping[str, float]) -> str:
    """Return what remains and what the largest budget is where it is not met, and nothing where it is.

    Args:
        costs: the network in each currency of a budget.
        left: what is left of it in each.
    """

    def shown(quantity: str, count: float) -> str:
        # seconds have no whole numbers worth printing
        return f"{count * 1e3:.2f} ms" if quantity == "latency" else f"{count:,}"

    unmet = {quantity: cost for quantity, cost in costs.items() if left[quantity] > cost.allowed}
    remain = [f"{shown(q, left[q])} of the original {shown(q, cost.original)} {q}" for q, cost in unmet.items()]
    largest = [f"{q}={math.floor(cost.reduction(left[q]) * 1e4) / 1e4}" for q, cost in unmet.items()]
    if not unmet:
        return ""
    return f"{' and '.join(remain)} remain. The largest that can be met is {', '.join(largest)}"


def _latency_cost(network: nn.Module, input_shape: tuple[int, ...], share: float) -> NetworkCost:
    """Return the cost in seconds: layers as measured one by one, the rest as what the whole network takes besides."""
    tables = latency_tables(network, input_shape)
    split: dict[nn.Module, nn.Module]
    split = {layer: layer.to_plain(tables[name][-2] < tables[name][-1]) for name, layer in decomposed_layers(network)}
    now = measure_latency(copy_network(network, split), input_shape).median_ms / 1e3
    rest = max(now - sum(table[-2] for table in tables.values()), 0.0)
    original = rest + sum(table[-1] for table in tables.values())
    total = rest + sum(table[-2] for table in tables.values())
    return NetworkCost(original, total, _allowed(original, share), {name: table[:-1] for name, table in tables.items()})


def _slots(layer: DecomposedLayer) -> int:
    return layer.rank() // layer.groups


def _allowed(original: float, share: float) -> float:
    # 40 * (1 - 0.9) is 3.9999999999999996; rounding must not cost a basis more
    return original * (1 - share) + 1e-12 * original


def count_positions(network: nn.Module, input_shape: Sequence[int]) -> tuple[dict[str, int], int]:
    """Return how often each convolution or linear layer applies its weights, and the operations of the whole network.

    Args:
        network: any network.
        input_shape: shape of one input without the batch.

    Raises:
        ValueError: if the network cannot process it.
    """
    positions = {name: 0 for name, _ in decomposable_layers(network)}
    handles = []
    for name, layer in decomposable_layers(network):

        def count(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor, name: str = name) -> None:
            # of all images and slices that a network makes of one input, with or without a batch dimension
            if getattr(module, "transposed", False):
                positions[name] += args[0].numel() // channel_count(module, "in")
            else:
                positions[name] += output.numel() // channel_count(module, "out")

        handles.append(layer.register_forward_hook(count))
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            forward_pass(network, example_input(network, input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return positions, int(counter.get_total_flops()) // 2
