"""Pure tensor maths: a convolution weight as basis filters and the matrix that recombines them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "Factors",
    "break_even_rank",
    "factorize",
    "factorize_alike",
    "factorize_by_outputs",
    "is_finite",
    "kept_bases_problem",
    "reconstruct",
    "short_side",
]

# Rows of the lower half of a Gram matrix that are multiplied at once
_BLOCK = 64

# Below this ratio of the smallest to the largest singular value, the Gram matrix no longer gives rows of Vᵀ that are
# orthogonal to float32 precision (their error grows with the square of the inverse ratio), so a QR step is taken.
_GRAM_CONDITION = 1e-4


@dataclass(frozen=True)
class Factors:
    """A convolution weight in two factors.

    Attributes:
        basis: filters, shape ``(groups * rank, in_channels / groups, *kernel_size)``; within each group sorted by
            falling singular value, or by the energy that they carry over images.
        scaling: shape ``(out_channels, rank, 1, ...)``.
        means: the mean of what each filter puts out over images, shape ``(groups * rank,)``; None where the layer
            has no bias to take it, or the factors come from the weight alone.
    """

    basis: torch.Tensor
    scaling: torch.Tensor
    means: torch.Tensor | None = None


def factorize(weight: torch.Tensor, groups: int = 1) -> Factors:
    """Decompose a convolution weight into orthonormal basis filters by singular value decomposition.

    For each group, the weight as a matrix ``W`` of shape ``(out_channels / groups, in_channels / groups * prod(k))``
    equals ``(U S) Vᵀ``; the rows of ``Vᵀ`` are the basis filters (Wong et al., arXiv 2108.02893, section 3), and the
    column norms of the scaling ``U S`` are the singular values. The computation runs in float64 through the Gram
    matrix of the short side, so that no square matrix of the long side is ever allocated, and has a sign convention: it
    gives the same bits whenever it is repeated on one machine.

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
    _check(weight, groups)
    return factorize_alike([weight], groups)[0]


def factorize_alike(weights: Sequence[torch.Tensor], groups: int = 1) -> list[Factors]:
    """Decompose several weights as :func:`factorize` does, with one call for the eigenvectors of all of them.

    Args:
        weights: finite weights of which :func:`short_side` is the same.
        groups: the number of groups of each of the convolutions.
    """
    matrices = [_as_matrix(weight, groups) for weight in weights]
    (tall, side), *_ = (short_side(weight, groups) for weight in weights)
    wide = [matrix.transpose(1, 2) for matrix in matrices] if tall else matrices
    squares, vectors = _falling_eigenvectors(_lower_grams(wide, side))
    if tall:
        # V comes straight from the eigenvectors, so it is orthonormal even for a weight that lacks rank
        return [_from_right(*each) for each in zip(vectors, wide, weights, strict=True)]
    singular = squares.clamp_min(0).sqrt().unsqueeze(3)
    vectors *= _signs(vectors)
    scaled, divided = vectors * singular, vectors / singular
    poor = (singular[:, :, -1] <= _GRAM_CONDITION * singular[:, :, 0]).flatten(1).any(dim=1).tolist()
    return [
        _by_qr(matrix, weight) if needs_qr else _factors(u_s, v_t_of @ matrix, weight)
        for needs_qr, u_s, v_t_of, matrix, weight in zip(poor, scaled, divided, matrices, weights, strict=True)
    ]


def short_side(weight: torch.Tensor, groups: int = 1) -> tuple[bool, int]:
    """Return whether a weight as a matrix has more rows than columns in each group, and the smaller of the two."""
    rows, columns = weight.shape[0] // groups, math.prod(weight.shape[1:])
    return rows > columns, min(rows, columns)


def _from_right(v_t: torch.Tensor, matrix_t: torch.Tensor, weight: torch.Tensor) -> Factors:
    """Return the factors of a matrix with more rows than columns; its right singular vectors are known."""
    scaling_t = v_t @ matrix_t
    sign = _signs(scaling_t)
    return _factors(scaling_t.mul_(sign), v_t * sign, weight)


def _by_qr(matrix: torch.Tensor, weight: torch.Tensor) -> Factors:
    """Return the factors of a matrix with more columns than rows that lacks rank, or almost does."""
    q, r = torch.linalg.qr(matrix.transpose(1, 2))
    left, values, u_t = torch.linalg.svd(r)
    sign = _signs(u_t)
    v_t = left.transpose(1, 2) @ q.transpose(1, 2)
    return _factors(u_t.mul_(sign * values.unsqueeze(2)), v_t.mul_(sign), weight)


def factorize_by_outputs(
    weight: torch.Tensor, moment: torch.Tensor, mean: torch.Tensor | None = None, groups: int = 1
) -> Factors:
    """Decompose a convolution weight so that few bases reproduce its outputs over images as well as possible.

    For the outputs ``Y = W X``, the ``r`` eigenvectors ``P`` of ``E[Y Yᵀ]`` with the largest eigenvalues give the
    approximation ``P (Pᵀ W) X`` with the smallest mean squared error of all with rank ``r``, and that error is the sum
    of the other eigenvalues (Eckart-Young). The basis filters are ``Pᵀ W`` and the scaling is ``P``: here the columns
    of the scaling are orthonormal, and the filters are not. The same holds for the covariance where the bias takes the
    mean of what is removed.

    Args:
        weight: shape ``(out_channels, in_channels / groups, *kernel_size)``, a floating-point type.
        moment: second moment ``E[Y Yᵀ]`` of the outputs without the bias in each group, or their covariance, or an
            estimate of one of these; shape ``(groups, out_channels / groups, out_channels / groups)``.
        mean: their mean ``E[Y]``, shape ``(groups, out_channels / groups)``, where the bias is to take it.
        groups: the number of groups of the convolution.

    Returns:
        the factors at full rank, in the type and on the device of ``weight``; equal to it to rounding, however few the
        images were.

    Raises:
        ValueError: as :func:`factorize`.

    Example:
        >>> factors = factorize_by_outputs(torch.randn(8, 4, 3, 3), torch.eye(8).unsqueeze(0))
        >>> factors.basis.shape, factors.scaling.shape
        (torch.Size([8, 4, 3, 3]), torch.Size([8, 8, 1, 1]))
    """
    _check(weight, groups)
    matrix = _as_matrix(weight, groups)
    moment = moment.detach().to("cpu", torch.float64)
    if matrix.shape[1] > matrix.shape[2]:
        # the outputs lie in the range of W: eigenvectors outside it would leave a part of W without a basis
        span = torch.linalg.qr(matrix).Q
        scaling_t = _falling_eigenvectors(span.transpose(1, 2) @ moment @ span)[1] @ span.transpose(1, 2)
    else:
        scaling_t = _falling_eigenvectors(moment)[1]
    scaling_t *= _signs(scaling_t)
    return _factors(scaling_t, scaling_t @ matrix, weight, mean)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds finite values only."""
    # a NaN or an infinite value is the smallest or the largest, and no tensor of the same size is needed to find it
    low, high = tensor.detach().aminmax() if tensor.numel() else (0.0, 0.0)
    return math.isfinite(low) and math.isfinite(high)


def _check(weight: torch.Tensor, groups: int) -> None:
    if weight.ndim < 2 or not weight.is_floating_point():
        raise ValueError(
            f"factorize needs a floating-point weight of shape (out_channels, in_channels / groups, *kernel_size), "
            f"got {weight.dtype} of shape {tuple(weight.shape)}."
        )
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} output channels, got groups={groups}.")
    if not is_finite(weight):
        raise ValueError("factorize needs finite values, the weight holds NaN or infinite ones.")


def _as_matrix(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return a weight as one matrix for each group, in float64 on the host."""
    # float64 does not exist on every accelerator, the host always has it
    return weight.detach().to("cpu", torch.float64).reshape(groups, weight.shape[0] // groups, -1)


def _factors(
    scaling_t: torch.Tensor, basis: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor | None = None
) -> Factors:
    """Return matrices of shape (groups, r, m) and (groups, r, n) as the weights of two layers."""
    groups, rank = basis.shape[:2]
    kernel_ones = [1] * (weight.ndim - 2)
    return Factors(
        basis=basis.to(weight).reshape(groups * rank, *weight.shape[1:]),
        scaling=scaling_t.to(weight).transpose(1, 2).reshape(weight.shape[0], rank, *kernel_ones).contiguous(),
        means=None if mean is None else (scaling_t @ mean.to(scaling_t).unsqueeze(-1)).reshape(-1).to(weight),
    )


def _falling_eigenvectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return falling eigenvalues of shape (..., m), and the eigenvectors as rows, of shape (..., m, m)."""
    values, vectors = torch.linalg.eigh(matrix)
    # they are stored as rows already; work along columns takes several times as long
    return values.flip(-1), vectors.mT.flip(-2)


def _signs(rows: torch.Tensor) -> torch.Tensor:
    """Return 1 or -1 for each row, of shape (..., r, 1), so that its largest entry becomes positive."""
    return torch.where(rows.amax(dim=-1, keepdim=True) < -rows.amin(dim=-1, keepdim=True), -1.0, 1.0).to(rows)


def _lower_grams(matrices: Sequence[torch.Tensor], side: int) -> torch.Tensor:
    """Return ``W Wᵀ`` of each; what is above its diagonal blocks is left as it is, as it is never read."""
    grams = matrices[0].new_zeros(len(matrices), matrices[0].shape[0], side, side)
    for gram, matrix in zip(grams, matrices, strict=True):
        for start in range(0, side, _BLOCK):
            end = start + _BLOCK
            gram[:, start:end, :end] = matrix[:, start:end] @ matrix[:, :end].transpose(1, 2)
    return grams


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


def kept_bases_problem(kept: Sequence[int], max_rank: int, groups: int) -> str | None:
    """Return what keeps a list of bases from being what is left of a layer, or None."""
    if not kept:
        return "keeps no basis"
    if max(kept) >= max_rank:
        return f"keeps basis {max(kept)}, there are {max_rank}"
    if list(kept) != sorted(set(kept)):
        return f"its bases {list(kept)} are not in rising order"
    counts = Counter(basis // (max_rank // groups) for basis in kept)
    if len(counts) != groups or len(set(counts.values())) != 1:
        return f"its {groups} groups keep different numbers of bases in {list(kept)}"
    return None
