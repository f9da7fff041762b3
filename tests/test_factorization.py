from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_basisprune.factorization import (
    break_even_rank,
    factorize,
    factorize_alike,
    is_finite,
    reconstruct,
    short_side,
)

EXAMPLES = settings(deadline=None, max_examples=120, derandomize=True)

# what rounding to the type of the weight leaves of a factor, relative to the largest singular value
ROUNDING = {torch.float16: 8e-3, torch.bfloat16: 6e-2, torch.float32: 4e-6, torch.float64: 1e-11}
# float64 keeps more digits than a Gram matrix gives for the smallest singular values: half of them
NORM_ROUNDING = {**ROUNDING, torch.float64: 1e-7}
ORTHONORMAL = {torch.float16: 8e-3, torch.bfloat16: 6e-2, torch.float32: 4e-6, torch.float64: 1e-7}


@st.composite
def weights(draw) -> tuple[torch.Tensor, int]:
    """Draw a convolution weight and its groups: of full rank, of lower rank, zero, or with equal or tiny values."""
    kernel = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    groups, rows, channels = draw(st.integers(1, 3)), draw(st.integers(1, 10)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["full", "lower rank", "zero", "equal values", "decaying", "one group zero"]))
    dtype = draw(st.sampled_from(list(ROUNDING)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    columns = channels * int(torch.tensor([*kernel, 1]).prod())
    weight = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    if kind == "zero":
        weight.zero_()
    elif kind == "one group zero":
        weight[0] = 0
    elif kind == "lower rank":
        weight = weight[:, :, :1] @ torch.randn(groups, 1, columns, generator=generator, dtype=torch.float64)
    elif kind != "full":
        left, singular, right = torch.linalg.svd(weight, full_matrices=False)
        exponents = torch.zeros_like(singular) if kind == "equal values" else -4 * torch.arange(singular.shape[1])
        weight = left @ torch.diag_embed(10.0 ** exponents.double() * torch.ones_like(singular)) @ right
    weight = weight * 10.0 ** draw(st.integers(-2, 1))
    return weight.reshape(groups * rows, channels, *kernel).to(dtype), groups


def singular_values(weight: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.linalg.svdvals(weight.double().reshape(groups, weight.shape[0] // groups, -1))


@EXAMPLES
@given(weights())
def test_factors_multiply_back_into_the_weight(drawn):
    weight, groups = drawn
    factors = factorize(weight, groups)
    again = reconstruct(factors.basis, factors.scaling, groups)
    assert (again.shape, again.dtype) == (weight.shape, weight.dtype)
    largest = singular_values(weight, groups).max()
    assert (again.double() - weight.double()).abs().max() <= ROUNDING[weight.dtype] * largest


@EXAMPLES
@given(weights())
def test_basis_is_orthonormal_in_each_group_whatever_the_rank_of_the_weight(drawn):
    weight, groups = drawn
    rows = factorize(weight, groups).basis.double().reshape(groups, -1, weight[0].numel())
    rank = min(weight.shape[0] // groups, weight[0].numel())
    assert rows.shape[1] == rank
    assert (rows @ rows.transpose(1, 2) - torch.eye(rank)).abs().max() <= ORTHONORMAL[weight.dtype]


@EXAMPLES
@given(weights())
def test_norms_of_the_scaling_columns_are_the_singular_values_and_fall(drawn):
    weight, groups = drawn
    scaling = factorize(weight, groups).scaling
    norms = scaling.double().reshape(groups, weight.shape[0] // groups, -1).norm(dim=1)
    wanted = singular_values(weight, groups)
    tolerance = NORM_ROUNDING[weight.dtype] * wanted.max()
    assert (norms - wanted).abs().max() <= tolerance
    assert (norms.diff(dim=1) <= tolerance).all()


@EXAMPLES
@given(weights())
def test_shapes_types_and_sign_convention(drawn):
    weight, groups = drawn
    factors = factorize(weight, groups)
    rank = min(weight.shape[0] // groups, weight[0].numel())
    assert factors.basis.shape == (groups * rank, *weight.shape[1:])
    assert factors.scaling.shape == (weight.shape[0], rank, *[1] * (weight.ndim - 2))
    assert factors.basis.dtype == factors.scaling.dtype == weight.dtype
    columns = factors.scaling.double().reshape(groups, -1, rank)
    # entries of opposite sign and equal to rounding may change places when they are rounded
    assert (columns.amax(dim=1) >= columns.abs().amax(dim=1) * (1 - 2 * torch.finfo(weight.dtype).eps)).all()


@EXAMPLES
@given(weights())
def test_repetition_gives_the_same_bits_and_touches_neither_the_weight_nor_the_random_state(drawn):
    weight, groups = drawn
    before, state = weight.clone(), torch.get_rng_state()
    first, second = factorize(weight, groups), factorize(weight.clone(), groups)
    assert torch.equal(first.basis, second.basis)
    assert torch.equal(first.scaling, second.scaling)
    assert torch.equal(weight, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_layout_does_not_change_the_bits(dtype):
    weight = torch.randn(6, 5, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain, last = factorize(weight), factorize(weight.to(memory_format=torch.channels_last))
    assert torch.equal(plain.basis, last.basis)
    assert torch.equal(plain.scaling, last.scaling)
    assert last.basis.is_contiguous()


@EXAMPLES
@given(weights(), st.integers(1, 10))
def test_truncation_loses_exactly_the_discarded_singular_energy(drawn, keep):
    weight, groups = drawn[0].double(), drawn[1]  # Eckart and Young, Psychometrika 1, 1936
    factors = factorize(weight, groups)
    values = singular_values(weight, groups)
    keep = min(keep, values.shape[1])
    basis = factors.basis.reshape(groups, values.shape[1], *weight.shape[1:])[:, :keep].flatten(0, 1)
    truncated = reconstruct(basis, factors.scaling[:, :keep], groups)
    lost, energy = (weight - truncated).square().sum(), values[:, keep:].square().sum()
    assert abs(lost - energy) <= 1e-6 * energy + 1e-13 * values.max().square()


def test_no_square_matrix_of_the_long_side_is_allocated():
    # 160 000 × 160 000 values of float64 would take 200 GB
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 400, 20, 20, generator=generator)
    lower_rank = torch.cat([wide[:1], 2 * wide[:1]])
    tall = torch.randn(160_000, 2, 1, 1, generator=generator)
    for weight in (wide, lower_rank, tall):
        factors = factorize(weight)
        again = reconstruct(factors.basis, factors.scaling)
        torch.testing.assert_close(again, weight, rtol=0, atol=1e-4)


def test_a_gradient_is_not_recorded():
    factors = factorize(torch.randn(4, 3, 3).requires_grad_())
    assert not factors.basis.requires_grad
    assert not factors.scaling.requires_grad


@pytest.mark.parametrize(
    ("weight", "groups", "words"),
    [
        (torch.zeros(4, 3, 3, dtype=torch.int64), 1, "floating-point weight of shape (out_channels"),
        (torch.zeros(4, 3, 3, dtype=torch.int64), 1, "got torch.int64 of shape (4, 3, 3)"),
        (torch.zeros(4), 1, "got torch.float32 of shape (4,)"),
        (torch.zeros(4, 3), 3, "groups must divide the 4 output channels, got groups=3"),
        (torch.zeros(4, 3), 0, "got groups=0"),
        (torch.zeros(4, 3), -2, "got groups=-2"),
        (torch.tensor([[1.0, float("nan")]]), 1, "needs finite values, the weight holds NaN or infinite ones"),
        (torch.tensor([[1.0, float("inf")]]), 1, "needs finite values"),
    ],
)
def test_what_cannot_be_factorized_is_refused(weight, groups, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        factorize(weight, groups)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 6),
    st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple),
)
def test_break_even_rank_by_counting_the_weights_of_real_layers(groups, rows, channels, kernel):
    out_channels, in_channels = groups * rows, groups * channels
    one = torch.empty(out_channels, channels, *kernel).numel()
    saving = [0]
    for rank in range(groups, groups * 40, groups):
        first = torch.empty(rank, channels, *kernel).numel()
        second = torch.empty(out_channels, rank // groups, *[1] * len(kernel)).numel()
        if first + second < one:
            saving.append(rank)
    assert break_even_rank(out_channels, in_channels, kernel, groups) == max(saving)


def test_break_even_rank_of_layers_from_the_documentation():
    assert break_even_rank(512, 512, (3, 3)) == 460
    assert break_even_rank(4, 1, (1, 1)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_is_what_holds_no_nan_and_nothing_infinite(dtype):
    largest = torch.finfo(dtype).max
    assert is_finite(torch.tensor([largest, largest, -largest], dtype=dtype))
    assert is_finite(torch.empty(0, dtype=dtype))
    for bad in (float("nan"), float("inf"), -float("inf")):
        for position in range(3):
            values = torch.ones(3, dtype=dtype)
            values[position] = bad
            assert not is_finite(values)


@pytest.mark.parametrize("rows", [63, 64, 65, 130])
def test_weights_of_more_rows_than_one_block_of_the_gram_matrix(rows):
    weight = torch.randn(2 * rows, 20, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one in (weight, weight[:, :2]):
        factors = factorize(one, groups=2)
        again = reconstruct(factors.basis, factors.scaling, groups=2)
        torch.testing.assert_close(again, one, rtol=0, atol=1e-10)
        norms = factors.scaling.reshape(2, rows, -1).norm(dim=1)
        torch.testing.assert_close(norms, singular_values(one, 2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_small_singular_values_are_orthonormal_as_those_of_large_ones(groups):
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(groups, 64, 64, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(groups, 180, 64, generator=generator, dtype=torch.float64)).Q
    values = 10.0 ** torch.linspace(0, -3.5, 64, dtype=torch.float64)
    weight = ((left * values) @ right.transpose(1, 2)).float().reshape(groups * 64, 20, 3, 3)
    factors = factorize(weight, groups)
    rows = factors.basis.double().reshape(groups, 64, 180)
    assert (rows @ rows.transpose(1, 2) - torch.eye(64)).abs().max() <= 1e-6
    norms = factors.scaling.double().reshape(groups, 64, 64).norm(dim=1)
    torch.testing.assert_close(norms, values.expand(groups, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(reconstruct(factors.basis, factors.scaling, groups), weight, rtol=0, atol=2e-7)


@pytest.mark.parametrize("tall", [False, True])
def test_weights_of_one_short_side_are_decomposed_together_as_they_are_alone(tall):
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 2, 3, 3), (60, 2, 3, 3), (38, 2, 3, 3)] if tall else [(10, 8, 3, 3), (10, 40, 1, 1), (10, 5, 7)]
    weights = [torch.randn(*shape, generator=generator) for shape in shapes]
    weights[1][:5] = weights[1][5:10]  # lacks rank
    assert len({short_side(weight, groups=2) for weight in weights}) == 1
    for weight, factors in zip(weights, factorize_alike(weights, groups=2), strict=True):
        alone = factorize(weight, groups=2)
        torch.testing.assert_close(reconstruct(factors.basis, factors.scaling, 2), weight, rtol=0, atol=2e-6)
        assert (factors.basis.shape, factors.scaling.shape) == (alone.basis.shape, alone.scaling.shape)
        norms = (both.scaling.reshape(2, weight.shape[0] // 2, -1).norm(dim=1) for both in (factors, alone))
        torch.testing.assert_close(*norms, rtol=1e-6, atol=1e-5)
