from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_scaling_layer import (
    ChannelScaling,
    attach_scaling_,
    channel_scalings,
    detach_scalings_,
    fold_channel_scaling,
)
from monai_basisprune.layers import decompose_layer

from .networks import relative_error, same_bits, snapshot

# modules that a scaling can stand behind, with the shape of what they read
PLACES = {
    "1D": (lambda: nn.Conv1d(3, 4, 3), (3, 6)),
    "2D with groups": (lambda: nn.Conv2d(4, 4, 3, groups=2), (4, 6, 6)),
    "3D without a bias": (lambda: nn.Conv3d(2, 4, 2, bias=False), (2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (4, 5, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 5, 5)),
    "decomposed": (lambda: decompose_layer(nn.Conv2d(3, 4, 3)), (3, 6, 6)),
    "decomposed with groups, without a bias": (
        lambda: decompose_layer(nn.Conv2d(4, 4, 3, groups=2, bias=False)),
        (4, 6, 6),
    ),
}
FACTORS = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)


def scaled(name: str) -> nn.Sequential:
    """Return a network of one module, scaled by :data:`FACTORS`."""
    torch.manual_seed(0)
    module = PLACES[name][0]().double().eval()
    for value in module.parameters():
        value.data.uniform_(-1, 1)
    attach_scaling_(module, 4)
    module.channel_scaling.weight.data.copy_(FACTORS)
    return nn.Sequential(module)


def image(name: str) -> torch.Tensor:
    return torch.randn(2, *PLACES[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spatial_dims", [0, 1, 2, 3])
def test_each_channel_is_multiplied_by_its_weight_which_is_one_at_the_start(spatial_dims):
    layer, x = ChannelScaling(3), torch.randn(2, 3, *[4] * spatial_dims)
    assert torch.equal(layer(x), x)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["weight"]
    layer.weight.data.copy_(torch.tensor([2.0, 0.0, -1.0]))
    assert torch.equal(layer(x), torch.stack([2 * x[:, 0], 0 * x[:, 1], -x[:, 2]], dim=1))
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.transpose(0, 1).flatten(1).sum(dim=1))
    assert repr(layer) == "ChannelScaling(3)"


@pytest.mark.parametrize("name", PLACES)
def test_a_scaling_stands_behind_the_module_and_is_folded_into_it_without_a_trace(name):
    network, x = scaled(name), image(name)
    module = network[0]
    assert [(where, type(found.channel_scaling)) for where, found in channel_scalings(network)] == [
        ("0", ChannelScaling)
    ]
    assert module.channel_scaling.weight.dtype == torch.float64
    before, wanted = snapshot(network), network(x)
    plain = copy.deepcopy(network)
    detach_scalings_(plain)
    factors = FACTORS.reshape(-1, *[1] * (x.ndim - 2))
    torch.testing.assert_close(wanted, plain(x) * factors)
    folded = fold_channel_scaling(network)
    assert relative_error(folded(x), wanted) < 1e-12
    for one in (plain, folded):
        assert channel_scalings(one) == []
        assert not one[0]._forward_hooks
        assert list(one.state_dict()) == [key for key in before if "channel_scaling" not in key]
    assert same_bits(snapshot(network), before)
    assert torch.equal(network(x), wanted)


def test_a_network_without_scaling_is_what_is_returned():
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    assert fold_channel_scaling(network) is network
    assert channel_scalings(network) == []
    detach_scalings_(network)
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


def test_a_module_that_is_met_twice_is_scaled_at_both_places_and_folded_once():
    torch.manual_seed(0)
    shared = nn.Conv2d(2, 2, 1).double()
    attach_scaling_(shared, 2)
    shared.channel_scaling.weight.data.copy_(torch.tensor([2.0, 3.0]))
    network = nn.Sequential(shared, nn.Sequential(shared))
    assert [name for name, _ in channel_scalings(network)] == ["0"]
    x = torch.randn(1, 2, 3, 3).double()
    wanted = shared(shared(x))
    folded = fold_channel_scaling(network)
    assert folded[0] is folded[1][0]
    assert relative_error(folded(x), wanted) < 1e-12


def test_other_hooks_and_modules_of_the_same_name_stay():
    calls = []
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
    attach_scaling_(network[0], 2)
    network[0].register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    network[1].channel_scaling = nn.Identity()  # of somebody else
    assert [name for name, _ in channel_scalings(network)] == ["0"]
    detach_scalings_(network)
    network(torch.rand(1, 1, 3, 3))
    assert calls == [2]
    assert isinstance(network[1].channel_scaling, nn.Identity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_have_the_type_of_the_module(dtype):
    layer = nn.Conv2d(1, 3, 1).to(dtype)
    attach_scaling_(layer, 3)
    assert layer.channel_scaling.weight.dtype == dtype
    assert layer.channel_scaling.weight.requires_grad


def test_copies_are_scaled_by_their_own_weights():
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))
    scaled = mbp.add_channel_scaling(mbp.decompose(network), (1, 8, 8)).eval()
    other, x = copy.deepcopy(scaled), torch.rand(2, 1, 8, 8)
    before = scaled(x)
    for _, module in channel_scalings(other):
        module.channel_scaling.weight.data.uniform_(2, 3)
    torch.testing.assert_close(scaled(x), before)
    assert relative_error(other(x), before) > 1e-3
