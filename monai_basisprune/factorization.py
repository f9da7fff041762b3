"""Pure tensor maths: a convolution weight as orthonormal basis filters and the matrix that recombines them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Factors", "break_even_rank", "factorize", "reconstruct"]

# Below this ratio of the smallest to the largest singular value, the Gram matrix no longer gives rows of Vᵀ that are
# orthogonal to float32 precision (their error grows with the square of the inverse ratio), so a QR step is taken.
_GRAM_CONDITION = 1e-4


@dataclass(frozen=True)
class Factors:
    """A convolution weight in two factors.

    Attributes:
        basis: orthonormal filters, shape ``(groups * rank, in_channels / groups, *kernel_size)``; within each group
            sorted by falling singular value.
        scaling: ``U · S`` of the decomposition, shape ``(out_channels, rank, 1, ...)``; the column norms are the
            singular values.
    """

    basis: torch.Tensor
    scaling: torch.Tensor


def factorize(weight: torch.Tensor, groups: int = 1) -> Factors:
    """Decompose a convolution weight into orthonormal basis filters by singular value decomposition.

    For each group, the weight as a matrix ``W`` of shape ``(out_channels / groups, in_channels / groups * prod(k))``
    equals ``(U S) Vᵀ``; the rows of ``Vᵀ`` are the basis filters (Wong et al., arXiv 2108.02893, section 3). The
    computation runs in float64 through the Gram matrix of the short side, so that no square matrix of the long side
    is ever allocated, and has a sign convention: it gives the same bits whenever it is repeated on one machine.

    Args:
        weight: shape ``(out_channels, in_channels / groups, *kernel_size)``, a floating-point type.
        groups: the number of groups of the convolution.

    Returns:
        the factors at full rank, in the type and on the device of ``weight``.

    Raises:
        ValueError: if ``weight`` is not a finite floating-point tensor of at least two dimensions, or ``groups`` does
            not divide its first dimension.

    Example:
        >>> factors = factorize(torch.randn(8, 4, 3, 3))
        >>> factors.basis.shape, factors.scaling.shape
        (torch.Size([8, 4, 3, 3]), torch.Size([8, 8, 1, 1]))
    """
    if weight.ndim < 2 or not weight.is_floating_point():
        raise ValueError(
            f"factorize needs a floating-point weight of shape (out_channels, in_channels / groups, *kernel_size), "
            f"got {weight.dtype} of shape {tuple(weight.shape)}."
        )
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} output channels, got groups={groups}.")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("factorize needs finite values, the weight holds NaN or infinite ones.")
    device = weight.device
    # float64 does not exist on every accelerator, the host always has it
    matrix = weight.detach().to("cpu", torch.float64).reshape(groups, weight.shape[0] // groups, -1)
    scaling, basis = _economy_svd(matrix)
    sign = torch.gather(scaling, 1, scaling.abs().argmax(dim=1, keepdim=True)).sign()
    sign[sign == 0] = 1.0
    scaling, basis = scaling * sign, basis.mul_(sign.transpose(1, 2))
    rank = basis.shape[1]
    kernel_ones = [1] * (weight.ndim - 2)
    return Factors(
        basis=basis.to(device, weight.dtype).reshape(groups * rank, *weight.shape[1:]).contiguous(),
        scaling=scaling.to(device, weight.dtype).reshape(weight.shape[0], rank, *kernel_ones).contiguous(),
    )


def _economy_svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``U S`` of shape (groups, m, r) and ``Vᵀ`` of shape (groups, r, n), r = min(m, n)."""
    rows, columns = matrix.shape[1:]
    if rows > columns:
        # V comes straight from the eigenvectors, so it is orthonormal even for a weight that lacks rank
        v = torch.linalg.eigh(matrix.transpose(1, 2) @ matrix).eigenvectors.flip(-1)
        return matrix @ v, v.transpose(1, 2).contiguous()
    squares, u = torch.linalg.eigh(matrix @ matrix.transpose(1, 2))
    squares, u = squares.flip(-1).clamp_min(0), u.flip(-1)
    singular = squares.sqrt()
    if bool((singular[:, -1] > _GRAM_CONDITION * singular[:, 0]).all()):
        v_t = (u.transpose(1, 2) @ matrix) / singular.unsqueeze(-1)
        return u * singular.unsqueeze(1), v_t
    q, r = torch.linalg.qr(matrix.transpose(1, 2))
    left, singular, right_t = torch.linalg.svd(r)
    return right_t.transpose(1, 2) * singular.unsqueeze(1), left.transpose(1, 2) @ q.transpose(1, 2)


def reconstruct(basis: torch.Tensor, scaling: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Multiply the two factors back into one convolution weight, in float64.

    Args:
        basis: shape ``(groups * rank, in_channels / groups, *kernel_size)``.
        scaling: shape ``(out_channels, rank, 1, ...)``.
        groups: the number of groups of the convolution.

    Returns:
        the weight, shape ``(out_channels, in_channels / groups, *kernel_size)``, in the type of ``basis``.
    """
    rank = basis.shape[0] // groups
    rows = basis.detach().to("cpu", torch.float64).reshape(groups, rank, -1)
    columns = scaling.detach().to("cpu", torch.float64).reshape(groups, -1, rank)
    weight = (columns @ rows).reshape(scaling.shape[0], *basis.shape[1:])
    return weight.to(basis.device, basis.dtype)


def break_even_rank(out_channels: int, in_channels: int, kernel_size: tuple[int, ...], groups: int = 1) -> int:
    """Return the largest number of bases at which two convolutions hold fewer weights than the one they replace.

    Args:
        out_channels: output channels of the convolution.
        in_channels: input channels of the convolution.
        kernel_size: its kernel, one entry for each spatial dimension.
        groups: its groups; the result is a multiple of it.

    Returns:
        the rank, all groups together; 0 where even one basis per group saves nothing.

    Example:
        >>> break_even_rank(512, 512, (3, 3))
        460
    """
    rows, columns = out_channels // groups, in_channels // groups * math.prod(kernel_size)
    return groups * ((rows * columns - 1) // (rows + columns))
