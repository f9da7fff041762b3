"""Which features go first when those that are left make up for each of them: pure matrix arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Elimination", "compensated", "damped_solution", "eliminate"]


@dataclass
class Elimination:
    """What one layer reads and does with it, for :func:`eliminate`.

    Attributes:
        moment: ``C``, the second moment (or covariance) of the features, shape ``(features, features)``, float64.
        metric: ``WᵀW`` for the weights that read them, of the same shape: what an error of the features counts.
        places: the features that go together, shape ``(units, features per unit)``.
    """

    moment: torch.Tensor
    metric: torch.Tensor
    places: torch.Tensor


def eliminate(layers: Sequence[Elimination], count: int, ridge: float) -> tuple[list[int], list[float]]:
    """Remove units one by one, each time the one whose loss the others make up for best.

    What layer ``W`` loses with the features outside ``keep``, when those inside take their place by ``A = C[:, keep] ·
    C[keep, keep]⁻¹``, is ``tr(W R Wᵀ)`` for the residual ``R = C - A C[keep, :]``. It grows, when unit ``b`` goes next,
    by ``tr(P[b, b]⁻¹ Q[b, b])`` for ``P = C[keep, keep]⁻¹`` and ``Q = Aᵀ WᵀW A``, and both follow by an update of the
    rank of the unit: the optimal brain surgeon for features in place of weights.

    Args:
        layers: all layers that read the features; each has the same units, though not in the same places.
        count: how many units to remove; fewer than there are.
        ridge: what is added to the diagonal of ``C``, as a share of its mean.

    Returns:
        the units in the order in which they go, and what all layers together have lost after each, each layer's as a
        share of what it puts out.
    """
    states = []
    for layer in layers:
        features = layer.moment.shape[0]
        scale = layer.moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        damped = layer.moment + ridge * scale * torch.eye(features, dtype=torch.float64)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        total = (layer.metric * layer.moment).sum().clamp_min(torch.finfo(torch.float64).tiny)
        states.append((inverse, layer.metric.clone(), layer.places, total))
    units = len(layers[0].places)
    alive = torch.ones(units, dtype=torch.bool)
    order: list[int] = []
    losses: list[float] = []
    lost = 0.0
    for _ in range(count):
        costs = torch.zeros(units, dtype=torch.float64)
        for inverse, error, places, total in states:
            rows, columns = places.unsqueeze(2), places.unsqueeze(1)
            costs += _trace_of_solution(inverse[rows, columns], error[rows, columns], alive) / total
        costs[~alive] = torch.inf
        unit = int(costs.argmin())
        lost += max(float(costs[unit]), 0.0)
        order.append(unit)
        losses.append(lost)
        alive[unit] = False
        for inverse, error, places, _ in states:
            _remove_(inverse, error, places[unit])
    return order, losses


def compensated(moment: torch.Tensor, keep: Sequence[int], ridge: float) -> torch.Tensor:
    """Return ``A = C[:, keep] · (C[keep, keep] + λ I)⁻¹``, which tells all features by those that are left.

    Args:
        moment: ``C``, shape ``(groups, features, features)``.
        keep: the features that are left, the same in every group.
        ridge: ``λ`` as a share of the mean of the diagonal of ``C[keep, keep]``.
    """
    index = torch.tensor(keep)
    kept = moment[:, index][:, :, index]
    # next to what tells the features that are left by themselves
    own = torch.zeros(moment.shape[0], moment.shape[1], len(keep), dtype=torch.float64)
    own[:, index, range(len(keep))] = 1.0
    return damped_solution(own, kept, moment[:, :, index], ridge)


def damped_solution(start: torch.Tensor, features: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the least squares solution of ``W Z = Y`` next to a start: ``W + (Y - W Z) Zᵀ (Z Zᵀ + λ I)⁻¹``.

    Args:
        start: ``W``, shape ``(groups, rows, columns)``.
        features: the moment ``Z Zᵀ``, shape ``(groups, columns, columns)``.
        targets: the moment ``Y Zᵀ``, shape ``(groups, rows, columns)``.
        ridge: ``λ`` as a share of the mean square of the features.
    """
    scale = features.diagonal(dim1=1, dim2=2).mean(dim=1)
    scale = torch.where(scale > 0, scale, 1.0)  # features that are always zero leave the start as it is
    eye = torch.eye(features.shape[1], dtype=torch.float64)
    damped = features + ridge * scale.reshape(-1, 1, 1) * eye
    return start + torch.linalg.solve(damped, (targets - start @ features).transpose(1, 2)).transpose(1, 2)


def _trace_of_solution(inverse: torch.Tensor, error: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Return ``tr(inverse⁻¹ error)`` of each unit that is left."""
    if inverse.shape[1] == 1:
        return error[:, 0, 0] / torch.where(alive, inverse[:, 0, 0], 1.0)
    eye = torch.eye(inverse.shape[1], dtype=torch.float64)
    blocks = torch.where(alive.reshape(-1, 1, 1), inverse, eye)
    return torch.linalg.solve(blocks, error).diagonal(dim1=1, dim2=2).sum(dim=1)


def _remove_(inverse: torch.Tensor, error: torch.Tensor, unit: torch.Tensor) -> None:
    """Update both matrices for the features that are left when those of one unit are gone, in place."""
    columns = inverse[:, unit]
    block = inverse[unit][:, unit]
    share = torch.linalg.solve(block, columns.T)  # shape (unit, features)
    half = error[:, unit] - 0.5 * share.T @ error[unit][:, unit]
    error.addmm_(half, share, alpha=-1).addmm_(share.T, half.T, alpha=-1)
    inverse.addmm_(columns, share, alpha=-1)
    for matrix in (inverse, error):
        matrix[unit] = 0.0
        matrix[:, unit] = 0.0
