from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_basisprune.layers import SUPPORTED_CONVOLUTIONS, DecomposedConv, decompose_layer

from .networks import relative_error, same_bits, snapshot

EXAMPLES = settings(deadline=None, max_examples=100, derandomize=True)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "padding_mode",
    "dilation",
    "groups",
    "transposed",
    "output_padding",
    "training",
)
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}


@st.composite
def convolutions(draw) -> nn.Module:
    """Draw a convolution with any attributes that PyTorch takes, the depthwise ones included."""
    spatial_dims = draw(st.integers(1, 3))

    def sizes(low: int, high: int):
        return draw(st.tuples(*[st.integers(low, high)] * spatial_dims))

    groups = draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["number", "sizes", "same", "valid"]))
    if padding == "number":
        padding = draw(st.integers(0, 2))
    elif padding == "sizes":
        padding = sizes(0, 2)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    convolution = CONVOLUTIONS[spatial_dims](
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 4)),
        sizes(1, 3),
        stride=1 if padding == "same" else sizes(1, 3),
        padding=padding,
        dilation=sizes(1, 2),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
    ).train(draw(st.booleans()))
    convolution.weight.requires_grad_(draw(st.booleans()))
    if convolution.bias is not None:
        convolution.bias.requires_grad_(draw(st.booleans()))
    return convolution


def image(convolution: nn.Module, size: int = 7) -> torch.Tensor:
    return torch.randn(2, convolution.in_channels, *[size] * len(convolution.kernel_size)).to(convolution.weight)


def pruned(layer: DecomposedConv, slots: int) -> DecomposedConv:
    """Keep the last of the bases of each group."""
    per_group = layer.rank() // layer.groups
    keep = [group * per_group + slot for group in range(layer.groups) for slot in range(per_group - slots, per_group)]
    layer.keep_bases_(keep, lambda old, new, slicer: None)
    return layer


@EXAMPLES
@given(convolutions())
def test_a_decomposed_convolution_computes_what_the_convolution_does(convolution):
    before, state = snapshot(convolution), torch.get_rng_state()
    layer = decompose_layer(convolution)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(snapshot(convolution), before)
    x = image(convolution)
    assert relative_error(layer(x), convolution(x)) <= LIMIT[x.dtype]
    assert all(module.training == convolution.training for module in layer.modules())
    assert not layer.basis.weight.requires_grad
    assert not layer.scaling.weight.requires_grad
    assert layer.scaling.scaling_factors.requires_grad
    assert layer.scaling.scaling_factors.dtype == layer.basis.weight.dtype == layer.scaling.weight.dtype == x.dtype


@EXAMPLES
@given(convolutions())
def test_a_recomposed_convolution_is_the_original_one(convolution):
    again = decompose_layer(convolution).to_plain()
    assert type(again) is type(convolution)
    assert {name: getattr(again, name) for name in ATTRIBUTES} == {
        name: getattr(convolution, name) for name in ATTRIBUTES
    }
    wanted = dict(convolution.named_parameters())
    assert dict(again.named_parameters()).keys() == wanted.keys()
    for name, parameter in again.named_parameters():
        assert parameter.requires_grad == wanted[name].requires_grad
        assert relative_error(parameter.detach(), wanted[name].detach()) <= LIMIT[parameter.dtype]
    x = image(convolution)
    assert relative_error(again(x), convolution(x)) <= LIMIT[x.dtype]


@EXAMPLES
@given(convolutions(), st.integers(1, 4), st.integers(0, 2**31))
def test_a_pruned_layer_recomposes_into_the_cheaper_form_with_the_same_output(convolution, slots, seed):
    layer = decompose_layer(convolution)
    layer = pruned(layer, min(slots, layer.rank() // layer.groups))
    torch.manual_seed(seed)
    layer.scaling.scaling_factors.data.normal_()
    plain = layer.to_plain()
    x = image(convolution)
    assert relative_error(plain(x), layer(x)) <= LIMIT[x.dtype]
    weights = layer.basis.weight.numel() + layer.scaling.weight.numel()
    assert isinstance(plain, nn.Sequential) == (weights < convolution.weight.numel())
    assert layer.recomposed_parameters() == sum(p.numel() for p in plain.parameters())
    assert all(type(module) in (nn.Sequential, type(convolution)) for module in plain.modules())
    assert all(module.training == convolution.training for module in plain.modules())
    if isinstance(plain, nn.Sequential):
        first, last = plain
        for name in ("in_channels", "kernel_size", "stride", "padding", "padding_mode", "dilation", "groups"):
            assert getattr(first, name) == getattr(convolution, name)
        assert first.bias is None
        assert (last.kernel_size, last.groups) == ((1,) * len(convolution.kernel_size), convolution.groups)
        assert (last.bias is None) == (convolution.bias is None)
        assert first.weight.requires_grad == last.weight.requires_grad == convolution.weight.requires_grad


@EXAMPLES
@given(convolutions())
def test_the_counts_are_those_of_the_convolution(convolution):
    layer = decompose_layer(convolution)
    groups, rank = convolution.groups, layer.rank()
    assert layer.original_parameters == sum(p.numel() for p in convolution.parameters())
    assert layer.whole_weights() == convolution.weight.numel()
    assert layer.rank() == layer.max_rank == len(layer.kept_bases)
    assert layer.rank() // groups == min(convolution.out_channels // groups, convolution.weight[0].numel())
    assert layer.basis_size() * rank == layer.basis.weight.numel() + layer.scaling.weight.numel()


def test_supported_convolutions_are_a_visible_tuple():
    assert (nn.Conv1d, nn.Conv2d, nn.Conv3d) == SUPPORTED_CONVOLUTIONS


def test_a_layer_without_values_is_random_frozen_and_of_the_rank_asked_for():
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, groups=2)
    layer = DecomposedConv(convolution, rank=2)
    assert (layer.rank(), layer.max_rank) == (2, 6)
    assert layer.basis.weight.std() > 0
    assert torch.equal(layer.scaling.bias, convolution.bias)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == [
        "scaling.scaling_factors",
        "scaling.bias",
    ]
    assert layer(torch.rand(1, 4, 5, 5)).shape == (1, 6, 3, 3)


@pytest.mark.parametrize("rank", [0, -2, 1, 3, 8])
def test_a_rank_that_does_not_exist_is_refused(rank):
    words = f"rank must be a multiple of groups=2 from 2 to 6, got {rank}."
    with pytest.raises(ValueError, match=re.escape(words)):
        DecomposedConv(nn.Conv2d(4, 6, 3, groups=2), rank=rank)


def test_bases_that_are_kept_are_those_at_their_positions():
    torch.manual_seed(0)
    layer = decompose_layer(nn.Conv2d(4, 6, 3, groups=2))
    layer.scaling.scaling_factors.data.normal_()
    basis, scaling = layer.basis.weight.clone(), layer.scaling.weight.clone()
    factors, bias = layer.scaling.scaling_factors.clone(), layer.scaling.bias.clone()
    frozen, calls = [p.requires_grad for p in layer.parameters()], []
    layer.keep_bases_([0, 2, 3, 4], lambda old, new, slicer: calls.append((old, new, slicer)))
    assert torch.equal(layer.basis.weight, torch.stack([basis[0], basis[2], basis[3], basis[4]]))
    assert torch.equal(layer.scaling.scaling_factors, factors[[0, 2, 3, 4]])
    assert torch.equal(layer.scaling.weight[:3], scaling[:3][:, [0, 2]])  # the first group
    assert torch.equal(layer.scaling.weight[3:], scaling[3:][:, [0, 1]])
    assert torch.equal(layer.scaling.bias, bias)
    assert layer.kept_bases == [0, 2, 3, 4]
    assert [p.requires_grad for p in layer.parameters()] == frozen == [False, False, True, True]
    assert layer.basis.out_channels == layer.scaling.in_channels == 4
    assert [tuple(new.shape) for _, new, _ in calls] == [(4, 2, 3, 3), (6, 2, 1, 1), (4,)]
    for old, new, slicer in calls:
        assert torch.equal(slicer(old.detach()), new.detach())
        assert old.shape != new.shape


def test_positions_of_a_second_cut_count_from_what_the_first_left():
    layer = decompose_layer(nn.Conv1d(5, 5, 1))
    layer.keep_bases_([1, 3, 4], lambda old, new, slicer: None)
    layer.keep_bases_([0, 2], lambda old, new, slicer: None)
    assert layer.kept_bases == [1, 4]
    assert (layer.rank(), layer.max_rank) == (2, 5)


def test_the_backward_pass_works_after_bases_were_removed_between_two_of_them():
    torch.manual_seed(0)
    layer = decompose_layer(nn.Conv2d(3, 5, 3))
    x = torch.randn(2, 3, 6, 6)
    layer(x).square().mean().backward()
    gradient = layer.scaling.scaling_factors.grad.clone()
    layer.keep_bases_([0, 3], lambda old, new, slicer: None)
    assert torch.equal(layer.scaling.scaling_factors.grad, gradient[[0, 3]])
    layer.scaling.scaling_factors.grad = None
    layer(x).square().mean().backward()
    assert layer.scaling.scaling_factors.grad.shape == (2,)
    assert (layer.scaling.scaling_factors.grad != 0).all()


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_a_layer_can_be_copied_pickled_and_scripted(spatial_dims):
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[spatial_dims](
        4, 6, 3, padding=1, groups=2, padding_mode="circular", bias=spatial_dims > 1
    )
    layer = pruned(decompose_layer(convolution), 2)
    x = image(convolution)
    wanted = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.jit.script(layer)):
        assert torch.equal(again(x), wanted)
    assert pickle.loads(pickle.dumps(layer)).kept_bases == layer.kept_bases == [1, 2, 4, 5]


def test_the_state_dict_holds_both_halves_and_nothing_else():
    layer = decompose_layer(nn.Conv2d(3, 4, 3))
    assert set(layer.state_dict()) == {
        "basis.weight",
        "scaling.weight",
        "scaling.scaling_factors",
        "scaling.bias",
    }


def test_print_shows_the_rank():
    text = repr(DecomposedConv(nn.Conv2d(3, 4, 3, bias=False), rank=2))
    assert "BasisScalingConv(2, 4, groups=1, bias=False)" in text
