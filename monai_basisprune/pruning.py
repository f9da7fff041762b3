"""How much to remove, which bases that means, and the cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .budgets import Budget, NetworkCost, network_cost, shortfall
from .decomposition import decomposed_layers
from .errors import BudgetError
from .layers import DecomposedLayer, Slicer
from .threads import one_thread

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
    return _select(dict(decomposed_layers(network)), scores, budget, _costs(network, budget))


def _costs(network: nn.Module, budget: Budget) -> dict[str, NetworkCost]:
    """Return the network in each currency of a budget; a threshold has none."""
    return {} if budget.threshold is not None else {part.quantity: network_cost(network, part) for part in budget.parts}


def _select(
    layers: Mapping[str, DecomposedLayer],
    scores: Mapping[str, torch.Tensor],
    budget: Budget,
    costs: Mapping[str, NetworkCost],
) -> dict[str, list[int]]:
    check_scores(layers, scores)
    order = {name: score_slots(layers[name], scores[name]) for name in sorted(scores)}
    slots = [slot_scores.numpy() for _, slot_scores in order.values()]
    counts = np.array([len(slot_scores) for slot_scores in slots])
    # the first slot of a layer, with its best bases, is no candidate
    owner = np.repeat(np.arange(len(counts)), counts - 1)
    share = np.concatenate([np.arange(1, count) / count for count in counts])
    score = np.concatenate([slot_scores[1:] for slot_scores in slots])
    falling = np.lexsort((owner, -share, score))  # the last key counts most
    left = {}  # in each currency, with none to all of the candidates removed
    for quantity, cost in costs.items():
        savings = np.concatenate([np.diff(cost.layers[name])[1:] for name in order])[falling]
        left[quantity] = np.subtract.accumulate(np.concatenate([[cost.total], savings]))
    if budget.threshold is not None:
        removed = int((score < budget.threshold).sum())
    else:
        met = np.all([left[quantity] <= cost.allowed for quantity, cost in costs.items()], axis=0)
        removed = int(met.argmax()) if met.any() else len(falling)
    _check_left(budget, costs, {quantity: counted[removed].item() for quantity, counted in left.items()})
    keep = counts - np.bincount(owner[falling[:removed]], minlength=len(counts))
    kept = dict(zip(order, keep.tolist(), strict=True))
    return {name: order[name][0][:, : kept[name]].reshape(-1).sort().values.tolist() for name in scores}


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
    costs, layers = _costs(network, budget), dict(decomposed_layers(network))
    kept = _select(layers, scores, budget, costs)
    # what the budget itself has counted is not counted again, and all that can raise comes before the cut
    parameters = costs.get("parameters") or network_cost(network, Budget(parameters=0.0))
    parameters_left = int(_left(layers, parameters, kept))
    macs = macs_left = latency_reduction = None
    if budget.input_shape is not None:
        nothing = Budget(macs=0.0, input_shape=budget.input_shape)
        macs = costs.get("macs") or network_cost(network, nothing)
        macs_left = int(_left(layers, macs, kept))
    if "latency" in costs:
        latency_reduction = costs["latency"].reduction(_left(layers, costs["latency"], kept))
    removed = keep_bases_(network, kept, optimizer)
    return PruneResult(
        kept=kept,
        removed_bases=removed,
        bases=sum(layer.rank() for layer in layers.values()),
        parameters=parameters_left,
        parameter_reduction=parameters.reduction(parameters_left),
        macs=macs_left,
        mac_reduction=None if macs is None or macs_left is None else macs.reduction(macs_left),
        latency_reduction=latency_reduction,
    )


@one_thread()
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
    costs, layers = _costs(network, budget), dict(decomposed_layers(network))
    fewest = {name: range(layer.groups) for name, layer in layers.items()}
    _check_left(budget, costs, {quantity: _left(layers, cost, fewest) for quantity, cost in costs.items()})


def _left(layers: Mapping[str, DecomposedLayer], cost: NetworkCost, kept: Mapping[str, Sequence[int]]) -> float:
    """Return what the network will cost when these bases are left."""
    tables = {name: cost.layers[name] for name in kept}
    return cost.total - sum(table[-1] - table[len(kept[name]) // layers[name].groups] for name, table in tables.items())


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


def _check_left(budget: Budget, costs: Mapping[str, NetworkCost], left: Mapping[str, float]) -> None:
    """Raise a BudgetError with the largest budget that can be met, unless what is left meets this one."""
    missing = shortfall(costs, left)
    if missing:
        raise BudgetError(
            f"{budget} cannot be met: with one basis left in every layer, {missing}; ask for less, or decompose more "
            f"layers (see layer_status)."
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
