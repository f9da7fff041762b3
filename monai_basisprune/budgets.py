"""How much to remove, and what each basis of a network costs in that currency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .complexity import evaluation_mode, example_input
from .decomposition import decomposed_layers

__all__ = ["Budget", "NetworkCost", "network_cost"]


@dataclass(frozen=True)
class Budget:
    """How much of a network to remove; exactly one quantity, always against the original network.

    Attributes:
        parameters: share of the parameters, in [0, 1), counted after ``recompose``.
        macs: share of the multiply-accumulate operations, in [0, 1), counted after ``recompose``; needs
            ``input_shape``.
        bases: share of the bases, in [0, 1).
        threshold: remove every basis whose score is below this.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Raises:
        ValueError: unless exactly one quantity is given, in its range.

    Example:
        >>> Budget(parameters=0.9)
        Budget(parameters=0.9)
    """

    parameters: float | None = None
    macs: float | None = None
    bases: float | None = None
    threshold: float | None = None
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = {
            name: getattr(self, name)
            for name in ("parameters", "macs", "bases", "threshold")
            if getattr(self, name) is not None
        }
        if len(given) != 1:
            raise ValueError(
                f"A Budget takes exactly one of parameters, macs, bases and threshold, got {given or 'none of them'}."
            )
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ValueError(f"Budget({name}=...) takes a number, got {value!r}.")
        if name != "threshold" and not 0 <= value < 1:
            raise ValueError(f"Budget({name}=...) is the share to remove, at least 0 and below 1, got {value!r}.")
        if name == "macs" and self.input_shape is None:
            raise ValueError(
                "Budget(macs=...) needs input_shape as well, the shape of one input without the batch, such as "
                "Budget(macs=0.75, input_shape=(1, 224, 224)): operations depend on the size of the image."
            )
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if v is not None)
        return f"Budget({shown})"

    @property
    def quantity(self) -> str:
        """The name of the quantity that is given: "parameters", "macs", "bases" or "threshold"."""
        return next(name for name in ("parameters", "macs", "bases", "threshold") if getattr(self, name) is not None)


@dataclass(frozen=True)
class NetworkCost:
    """A network in one currency, after recomposition.

    Attributes:
        original: what the original network costs.
        total: what the network costs now.
        allowed: what the budget leaves.
        slot: for each decomposed layer what one basis in each of its groups costs.
        dense: for each decomposed layer what one convolution in its place costs; None where bases are counted.
    """

    original: int
    total: int
    allowed: float
    slot: Mapping[str, int]
    dense: Mapping[str, int] | None

    def saving(self, name: str, slots: int) -> int:
        """Return what a layer costs less with one slot fewer than ``slots``, in the cheaper of its two forms."""
        before, after = slots * self.slot[name], (slots - 1) * self.slot[name]
        if self.dense is None:
            return before - after
        return min(before, self.dense[name]) - min(after, self.dense[name])

    def reduction(self, left: int) -> float:
        """Return the share of the original that is gone when ``left`` is left."""
        return 1.0 - left / self.original


def network_cost(network: nn.Module, budget: Budget) -> NetworkCost:
    """Count a decomposed network in the currency of a budget.

    Raises:
        ValueError: if operations are counted and the network cannot process ``budget.input_shape``.
    """
    layers = decomposed_layers(network)
    share = getattr(budget, budget.quantity)
    if budget.quantity == "bases":
        original = sum(layer.max_rank for _, layer in layers)
        total = sum(layer.rank() for _, layer in layers)
        slot = {name: layer.groups for name, layer in layers}
        return NetworkCost(original, total, _allowed(original, share), slot, None)
    if budget.quantity == "macs":
        assert budget.input_shape is not None
        positions, everything = _positions(network, budget.input_shape)
    else:
        positions = {name: 1 for name, _ in layers}
        # the scaling factors go into the weights, and the bias is no part of the two forms' difference
        everything = sum(p.numel() for p in network.parameters()) - sum(layer.rank() for _, layer in layers)
    rest = everything - sum(positions[name] * layer.rank() * layer.basis_size() for name, layer in layers)
    slot = {name: positions[name] * layer.groups * layer.basis_size() for name, layer in layers}
    dense = {name: positions[name] * layer.original_weights() for name, layer in layers}
    total = rest + sum(min(slot[name] * (layer.rank() // layer.groups), dense[name]) for name, layer in layers)
    original = rest + sum(dense.values())
    return NetworkCost(original, total, _allowed(original, share), slot, dense)


def _allowed(original: int, share: float) -> float:
    # 40 * (1 - 0.9) is 3.9999999999999996; rounding must not cost a basis more
    return original * (1 - share) + 1e-12 * original


def _positions(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[dict[str, int], int]:
    """Return how many output positions each decomposed layer computes, and the operations of the whole network."""
    positions = {name: 0 for name, _ in decomposed_layers(network)}
    handles = []
    for name, layer in decomposed_layers(network):

        def count(
            module: nn.Module,
            args: object,
            output: torch.Tensor,
            name: str = name,
            channels: int = layer.out_channels,
        ) -> None:
            # of all images and slices that a network makes of one input, with or without a batch dimension
            positions[name] += output.numel() // channels

        handles.append(layer.register_forward_hook(count))
    counter = FlopCounterMode(display=False)
    try:
        x = example_input(network, input_shape)
        with evaluation_mode(network), torch.no_grad(), counter:
            network(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{type(network).__name__} cannot process the budget's input_shape={input_shape}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return positions, int(counter.get_total_flops()) // 2
