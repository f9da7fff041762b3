"""What is left of a network, in each currency of a budget, as its channels and bases go one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .budgets import Budget, count_positions, network_cost, shortfall
from .channel_slices import group_count, has_one_side, sizes
from .channel_trial import Side
from .layers import DecomposedLayer

__all__ = ["Tally"]


class Tally:
    """Counts a network down, and says what goes with a channel or a basis.

    Args:
        network: a decomposed network; it is left as it is.
        budget: of parameters, of macs, or of both.
        input_shape: shape of one input without the batch.
    """

    def __init__(self, network: nn.Module, budget: Budget, input_shape: Sequence[int]) -> None:
        self.budget = budget
        self.costs = {part.quantity: network_cost(network, part) for part in budget.parts}
        self.left = {quantity: cost.total for quantity, cost in self.costs.items()}
        self._positions = count_positions(network, input_shape)[0] if "macs" in self.costs else {}
        self._modules = dict(network.named_modules())
        self._sizes: dict[str, _Size] = {}

    @property
    def met(self) -> bool:
        """Whether what is left is no more than the budget leaves."""
        return all(self.left[quantity] <= cost.allowed for quantity, cost in self.costs.items())

    def remove(self, unit: Mapping[Side, Sequence[int]]) -> None:
        """Take one channel out of all the modules that it is in."""
        for quantity, saved in self._change(unit, -1).items():
            self.left[quantity] -= saved

    def saving(self, unit: Mapping[Side, Sequence[int]]) -> float:
        """Return what would go with one channel: its share of the original network, summed over the currencies."""
        saved = self._change(unit, -1)
        self._change(unit, 1)
        return self._share(saved)

    def basis_price(self, name: str) -> float:
        """Return what one basis of a layer holds in its two halves now, in the currency of :meth:`saving`."""
        return self._share(self._priced(name, self._size(name).basis(), 0))

    def remove_bases(self, name: str, count: int) -> None:
        """Take some bases out of a layer."""
        size = self._size(name)
        before = size.weights()
        assert size.rank is not None
        size.rank -= count
        for quantity, saved in self._priced(name, before - size.weights(), 0).items():
            self.left[quantity] -= saved

    def impossible(self, least: str) -> str:
        """Return why a budget cannot be met when all that can go is gone."""
        return (
            f"{self.budget} cannot be met {least}, {shortfall(self.costs, self.left)}; ask for less, or see "
            f"channel_status for the groups that keep their channels."
        )

    def _share(self, saved: Mapping[str, int]) -> float:
        return sum(amount / self.costs[quantity].original for quantity, amount in saved.items())

    def _change(self, unit: Mapping[Side, Sequence[int]], sign: int) -> dict[str, int]:
        """Remove one channel, or put it back, and return what was saved in each currency."""
        touched = {name: self._size(name) for name, _ in unit}
        before = {name: (size.weights(), size.outputs) for name, size in touched.items()}
        for (name, side), positions in unit.items():
            touched[name].change(side, sign * len(positions))
        saved = dict.fromkeys(self.costs, 0)
        for name, size in touched.items():
            weights, outputs = before[name]
            for quantity, amount in self._priced(name, weights - size.weights(), outputs - size.outputs).items():
                saved[quantity] += amount
        return saved

    def _priced(self, name: str, weights: int, outputs: int) -> dict[str, int]:
        """Return what weights of a module and the biases of its outputs come to in each currency."""
        biases = outputs if self._size(name).bias else 0
        prices = {"parameters": weights + biases, "macs": weights * self._positions.get(name, 0)}
        return {quantity: prices[quantity] for quantity in self.costs}

    def _size(self, name: str) -> _Size:
        if name not in self._sizes:
            self._sizes[name] = _Size(self._modules[name])
        return self._sizes[name]


class _Size:
    """How much of one module is left."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs, self.outputs = sizes(module)
        self.groups = group_count(module)
        self.rank: int | None = None
        bias = getattr(module, "bias", None)
        if isinstance(module, DecomposedLayer):
            self.rank, bias = module.rank(), module.scaling.bias
            self._of_input = module.basis.weight[0].numel() * self.groups // self.inputs
        else:
            weight: torch.Tensor | None = module.weight  # type: ignore[assignment]  # all sliceable modules have this
            self._all = 0 if weight is None else weight.numel()
            self._one_side = has_one_side(module)
            self._pairs = self.outputs if self._one_side else self.outputs * self.inputs
        self.bias = bias is not None

    def change(self, side: str, channels: int) -> None:
        """Add channels on the side "in" or "out"."""
        if side == "in":
            self.inputs += channels
        else:
            self.outputs += channels

    def basis(self) -> int:
        """Return how many weights one basis holds."""
        return self._of_input * (self.inputs // self.groups) + self.outputs // self.groups

    def weights(self) -> int:
        """Return how many weights are left, in the cheaper form of a decomposed layer."""
        if self.rank is not None:
            whole = self.outputs * self._of_input * (self.inputs // self.groups)
            return min(self.rank * self.basis(), whole)
        return self._all * (self.outputs if self._one_side else self.outputs * self.inputs) // self._pairs
