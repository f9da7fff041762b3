from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_basisprune.basis_scaling import BasisScalingConv


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_basis_scaling_equals_scaling_the_features_and_transforming_them_back(spatial_dims):
    torch.manual_seed(0)
    layer = BasisScalingConv(spatial_dims, in_channels=6, out_channels=4, groups=2, dtype=torch.float64)
    layer.bias.data.normal_()
    layer.scaling_factors.data.normal_()
    x = torch.randn(3, 6, *[5] * spatial_dims, dtype=torch.float64)
    weight, factors = layer.weight.detach().reshape(4, 3), layer.scaling_factors.detach().clone().requires_grad_()
    wanted = []
    for channel in range(4):
        first = 3 * (channel // 2)  # the group of this output channel
        features = sum(weight[channel, i] * factors[first + i] * x[:, first + i] for i in range(3))
        wanted.append(features + layer.bias.detach()[channel])
    wanted = torch.stack(wanted, dim=1)
    found = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(layer.scaling_factors.grad, factors.grad, rtol=1e-11, atol=1e-11)
    assert layer.weight.grad is None


def test_reset_gives_the_start_of_a_new_layer():
    layer = BasisScalingConv(2, 4, 3)
    for parameter in layer.parameters():
        parameter.data.fill_(7.0)
    layer.reset_parameters()
    assert layer.scaling_factors.tolist() == [1.0] * 4
    assert layer.bias.tolist() == [0.0] * 3
    assert layer.weight.std() > 0
    assert layer.weight.abs().max() <= 0.5  # the bound of nn.Conv2d is 1 / sqrt(fan in)


def test_for_a_linear_layer_the_features_come_last():
    torch.manual_seed(0)
    layer = BasisScalingConv(0, in_channels=3, out_channels=5, dtype=torch.float64)
    layer.scaling_factors.data.copy_(torch.tensor([1.0, -2.0, 0.5]))
    layer.bias.data.normal_()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    weight = layer.weight.detach()
    assert weight.shape == (5, 3)
    wanted = x[..., :1] * weight[:, 0] - 2 * x[..., 1:2] * weight[:, 1] + 0.5 * x[..., 2:] * weight[:, 2] + layer.bias
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_folded_weight_holds_each_factor_in_the_column_of_its_basis(groups):
    torch.manual_seed(0)
    layer = BasisScalingConv(2, in_channels=2 * groups, out_channels=3 * groups, groups=groups, bias=False)
    layer.scaling_factors.data.copy_(torch.arange(1.0, 2 * groups + 1))
    folded, weight = layer.folded_weight().detach(), layer.weight.detach()
    assert folded.shape == weight.shape == (3 * groups, 2, 1, 1)
    for row in range(3 * groups):
        for column in range(2):
            factor = 2 * (row // 3) + column + 1
            assert float(folded[row, column]) == pytest.approx(factor * float(weight[row, column]))
    assert layer.bias is None


@pytest.mark.parametrize(("spatial_dims", "groups"), [(0, 1), (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_with_known_values_is_the_one_that_is_made_step_by_step(spatial_dims, groups, biased):
    torch.manual_seed(0)
    made = BasisScalingConv(spatial_dims, 2 * groups, 3 * groups, groups, biased, dtype=torch.float64)
    state = torch.get_rng_state()
    bias = None if made.bias is None else nn.Parameter(torch.ones(3 * groups, dtype=torch.float64))
    weight = torch.arange(6.0 * groups, dtype=torch.float64).reshape(made.weight.shape)
    found = BasisScalingConv.from_weight(weight, groups, bias)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.bias is bias
    with torch.no_grad():
        made.weight.copy_(weight)
        if made.bias is not None:
            made.bias.fill_(1.0)
    assert repr(found) == repr(made)
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in found.named_parameters()} == {
        n: (p.shape, p.dtype, p.requires_grad) for n, p in made.named_parameters()
    }
    shape = (2, 5, 2) if spatial_dims == 0 else (2, 2 * groups, *[4] * spatial_dims)
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.equal(found(x), made(x))
    assert torch.equal(torch.jit.script(found)(x), made(x))


def test_only_factors_and_bias_are_trained():
    layer = BasisScalingConv(2, 4, 3)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["scaling_factors", "bias"]
    assert list(layer.state_dict()) == ["weight", "scaling_factors", "bias"]
    assert "4, 3, groups=1, bias=True" in repr(layer)
