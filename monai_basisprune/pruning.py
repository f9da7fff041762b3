"""How much to remove, which bases that means, and the cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .budgets import Budget, NetworkCost, network_cost
from .decomposition import decomposed_layers
from .errors import BudgetError
from .layers import DecomposedLayer, Slicer

__all__ = [
    "PruneResult",
    "check_budget",
    "check_scores",
    "hand_over",
    "keep_bases_",
    "prune_",
    "score_slots",
    "select_bases",
]


@dataclass(frozen=True)
class PruneResult:
    """What a call of :func:`prune_` left, counted against the original network and after recomposition.

    Attributes:
        kept: for each layer the positions, in the order before this call, of the bases that were kept.
        removed_bases: number of bases that this call removed.
        bases: number of bases that are left.
        parameters: number of parameters that are left.
        parameter_reduction: the share of the original network's parameters that is gone.
        macs: multiply-accumulate operations that are left; None unless the budget gives ``input_shape``.
        mac_reduction: the share of the original network's that is gone; None likewise.
        latency_reduction: the share of the original network's time that is gone, as modeled; None unless the budget is
            of latency. Measure the network that :func:`recompose` gives to know.
    """

    kept: dict[str, list[int]]
    removed_bases: int
    bases: int
    parameters: int
    parameter_reduction: float
    macs: int | None = None
    mac_reduction: float | None = None
    latency_reduction: float | None = None


def select_bases(network: nn.Module, scores: Mapping[str, torch.Tensor], budget: Budget) -> dict[str, list[int]]:
    """Choose the bases to keep so that a budget is met; changes nothing.

    The bases of all layers compete: those with the lowest scores go first until the budget is met. At least one basis
    of each group of each layer stays. In a grouped convolution every group loses equally many, and the groups' n-th
    best bases go together, at the mean of their scores. Between equal scores, the basis with the lower rank goes first.

    Args:
        network: a decomposed network.
        scores: one score for each basis, ``{layer name: tensor of shape (rank,)}``; layers left out keep all bases.
        budget: how much to remove.

    Returns:
        for each layer in ``scores`` the positions to keep, rising.

    Raises:
        ValueError: if the scores do not fit the network or are not finite; all problems are listed.
        BudgetError: if the budget cannot be met; the message holds the largest one that can.
    """
    return _select(network, scores, budget, None if budget.threshold is not None else network_cost(network, budget))


def _select(
    network: nn.Module, scores: Mapping[str, torch.Tensor], budget: Budget, cost: NetworkCost | None
) -> dict[str, list[int]]:
    layers = dict(decomposed_layers(network))
    check_scores(layers, scores)
    order = {name: score_slots(layers[name], scores[name]) for name in scores}
    candidates = sorted(
        (score, -slot / len(slot_scores), name)
        for name, (_, slot_scores) in order.items()
        for slot, score in enumerate(slot_scores.tolist())
        if slot > 0
    )
    keep = {name: len(slot_scores) for name, (_, slot_scores) in order.items()}
    if cost is None:
        for score, _, name in candidates:
            keep[name] -= score < (budget.threshold or 0.0)
    else:
        left = cost.total
        for _, _, name in candidates:
            if left <= cost.allowed:
                break
            left -= cost.saving(name, keep[name])
            keep[name] -= 1
        if left > cost.allowed:
            raise BudgetError(_impossible(budget, cost, left))
    return {name: sorted(order[name][0][:, : keep[name]].reshape(-1).tolist()) for name in order}


def prune_(
    network: nn.Module,
    scores: Mapping[str, torch.Tensor],
    budget: Budget,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
) -> PruneResult:
    """Remove the least important bases of a decomposed network in place, until a budget is met.

    Everything is checked before anything is cut: where this raises, the network is untouched. The parameters that
    shrink are replaced by new ones, and an optimizer that holds them goes on with these and with the state (momenta)
    of what is left. Hand the network to DDP, ``torch.compile`` and the like again after the call.

    Args:
        network: a decomposed network.
        scores: one score for each basis, from an importance: ``{layer name: tensor of shape (rank,)}``.
        budget: how much of the original network to remove.
        optimizer: the optimizer, or optimizers, that train the network.

    Returns:
        what is left.

    Raises:
        ValueError: if the scores do not fit the network.
        BudgetError: if the budget cannot be met.

    Example:
        >>> import monai_basisprune as mbp
        >>> network = mbp.decompose(nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3)))
        >>> result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(parameters=0.5))
        >>> 0.5 <= result.parameter_reduction < 0.55
        True
    """
    cost = None if budget.threshold is not None else network_cost(network, budget)
    kept = _select(network, scores, budget, cost)
    # what the budget itself has counted is not counted again, and all that can raise comes before the cut
    parameters = cost if cost and budget.quantity == "parameters" else network_cost(network, Budget(parameters=0.0))
    parameters_left = int(_left(network, parameters, kept))
    macs = macs_left = latency_reduction = None
    if budget.input_shape is not None:
        nothing = Budget(macs=0.0, input_shape=budget.input_shape)
        macs = cost if cost and budget.quantity == "macs" else network_cost(network, nothing)
        macs_left = int(_left(network, macs, kept))
    if cost is not None and budget.latency is not None:
        latency_reduction = cost.reduction(_left(network, cost, kept))
    removed = keep_bases_(network, kept, optimizer)
    return PruneResult(
        kept=kept,
        removed_bases=removed,
        bases=sum(layer.rank() for _, layer in decomposed_layers(network)),
        parameters=parameters_left,
        parameter_reduction=parameters.reduction(parameters_left),
        macs=macs_left,
        mac_reduction=None if macs is None or macs_left is None else macs.reduction(macs_left),
        latency_reduction=latency_reduction,
    )


def keep_bases_(
    network: nn.Module,
    kept: Mapping[str, Sequence[int]],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
) -> int:
    """Remove all bases but those at some positions, in place, and take the state of optimizers along.

    Args:
        network: a decomposed network.
        kept: for each layer the positions to keep, rising, as from :func:`select_bases`.
        optimizer: the optimizer, or optimizers, that train the network.

    Returns:
        the number of bases that were removed.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    removed = 0

    def replaced(old: nn.Parameter, new: nn.Parameter, slicer: Slicer) -> None:
        for one in optimizers:
            hand_over(one, old, new, slicer)

    for name, layer in decomposed_layers(network):
        if name in kept and len(kept[name]) < layer.rank():
            removed += layer.rank() - len(kept[name])
            layer.keep_bases_(list(kept[name]), replaced)
    return removed


def check_budget(network: nn.Module, budget: Budget) -> None:
    """Check, before any training, that a budget can be met with one basis left in each group of each layer.

    Args:
        network: a decomposed network.
        budget: how much to remove.

    Raises:
        BudgetError: if it cannot; the message holds the largest budget that can.
    """
    if budget.threshold is None:
        cost = network_cost(network, budget)
        least = _left(network, cost, {name: range(layer.groups) for name, layer in decomposed_layers(network)})
        if least > cost.allowed:
            raise BudgetError(_impossible(budget, cost, least))


def _left(network: nn.Module, cost: NetworkCost, kept: Mapping[str, Sequence[int]]) -> float:
    """Return what the network will cost when these bases are left."""
    return cost.total - sum(
        cost.saving(name, slots)
        for name, layer in decomposed_layers(network)
        if name in kept
        for slots in range(layer.rank() // layer.groups, len(kept[name]) // layer.groups, -1)
    )


def check_scores(layers: Mapping[str, DecomposedLayer], scores: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError with all problems if the scores are not those of the bases of some layers."""
    problems = [f"{name}: not a decomposed layer of the network" for name in scores if name not in layers]
    for name in scores.keys() & layers.keys():
        if tuple(scores[name].shape) != (layers[name].rank(),):
            problems.append(f"{name}: {tuple(scores[name].shape)} scores for {layers[name].rank()} bases")
        elif not bool(torch.isfinite(scores[name]).all()):
            problems.append(f"{name}: scores are NaN or infinite")
    if not scores:
        problems.append(f"there are none; decomposed layers are {list(layers)}")
    if problems:
        raise ValueError("The scores do not fit the network:\n" + "\n".join(f"  - {line}" for line in sorted(problems)))


def score_slots(layer: DecomposedLayer, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions of shape (groups, rank / groups) by falling score, and the mean score of each column."""
    grouped = scores.detach().cpu().double().reshape(layer.groups, -1)
    falling = grouped.sort(dim=1, descending=True, stable=True)
    offset = torch.arange(layer.groups).unsqueeze(1) * grouped.shape[1]
    return falling.indices + offset, falling.values.mean(dim=0)


def _impossible(budget: Budget, cost: NetworkCost, least: float) -> str:
    largest = math.floor(cost.reduction(least) * 1e4) / 1e4
    # seconds have no whole numbers worth printing
    left, whole = (f"{n * 1e3:.2f} ms" if budget.latency is not None else f"{n:,}" for n in (least, cost.original))
    return (
        f"{budget} cannot be met: with one basis left in every layer, {left} of the original {whole} "
        f"{budget.quantity} remain. The largest that can be met is {budget.quantity}={largest}; ask "
        f"for less, or decompose more layers (see layer_status)."
    )


def hand_over(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, slicer: Slicer) -> None:
    """Put a new parameter into an optimizer in the old one's place, with the slice of its state."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state: dict[str, Any] | None = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: slicer(value).clone() if isinstance(value, torch.Tensor) and value.shape == old.shape else value
            for key, value in state.items()
        }
