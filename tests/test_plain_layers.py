"""Ordinary layers made without their constructor are what the constructor makes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from monai_basisprune.plain_layers import SUPPORTED_CONVOLUTIONS, SUPPORTED_LAYERS, layer_like, pointwise

SETTINGS = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "bias": False},
    "grouped": {"kernel_size": 1, "groups": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "groups": 4},
}


def layer_and_inputs(kind: type[nn.Module], name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a layer with 4 inputs and 8 outputs, and inputs for it and for one with twice as many."""
    if kind is nn.Linear:
        return nn.Linear(4, 8, bias=SETTINGS[name].get("bias", True)), torch.rand(2, 3, 4), torch.rand(2, 3, 8)
    size = [7] * (SUPPORTED_CONVOLUTIONS.index(kind) + 1)
    return kind(4, 8, **SETTINGS[name]), torch.rand(2, 4, *size), torch.rand(2, 8, *size)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", SUPPORTED_LAYERS)
def test_a_layer_like_another_computes_the_same_with_the_same_values(kind, name):
    layer, x, _ = layer_and_inputs(kind, name)
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    new = layer_like(layer, weight, bias, training=False)
    assert type(new) is kind
    assert new.weight is weight
    assert new.bias is bias
    assert not new.training
    assert layer.training
    assert repr(new) == repr(layer)
    assert vars(new).keys() == vars(layer).keys()
    assert {n for n, p in new.named_parameters() if not p.requires_grad} == {"weight"}
    torch.testing.assert_close(new(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", SUPPORTED_LAYERS)
def test_a_layer_has_as_many_channels_as_its_weight(kind, name):
    """Of a layer with other channels, all that depends on the channels follows the new weight."""
    layer, _, x = layer_and_inputs(kind, name)
    settings = {key: value for key, value in SETTINGS[name].items() if kind is not nn.Linear or key == "bias"}
    wanted = kind(8, 12, **settings)
    new = layer_like(layer, wanted.weight, wanted.bias, training=True)
    assert repr(new) == repr(wanted)
    torch.testing.assert_close(new(x), wanted(x), rtol=0, atol=0)


class Watched(nn.Conv2d):
    """A convolution of somebody else, with an attribute, a buffer and a hook of its own."""

    def __init__(self) -> None:
        super().__init__(2, 3, 3)
        self.note = "mine"
        self.register_buffer("count", torch.zeros(1))
        self.register_forward_hook(lambda *_: torch.zeros(1))


def test_nothing_of_a_subclass_or_of_hooks_is_taken_over():
    layer = Watched()
    new = layer_like(layer, layer.weight, layer.bias, training=True)
    assert type(new) is nn.Conv2d
    assert not hasattr(new, "note")
    assert list(new.state_dict()) == ["weight", "bias"]
    assert new(torch.rand(1, 2, 5, 5)).shape == (1, 3, 3, 3)
    assert len(layer._forward_hooks) == 1


def test_a_made_layer_goes_where_an_ordinary_one_goes():
    layer = nn.Conv2d(4, 8, 3, groups=2)
    made = layer_like(layer, nn.Parameter(layer.weight.detach().clone()), None, training=True)
    x = torch.rand(1, 4, 5, 5)
    wanted = made(x)
    stream = io.BytesIO()
    torch.save(made.state_dict(), stream)
    stream.seek(0)
    fresh = nn.Conv2d(4, 8, 3, groups=2, bias=False)
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    for other in (copy.deepcopy(made), torch.jit.script(made), fresh):
        torch.testing.assert_close(other(x), wanted, rtol=0, atol=0)
    assert copy.deepcopy(made).double().weight.dtype == torch.float64
    made.register_forward_hook(lambda module, args, output: output + 1)
    torch.testing.assert_close(made(x), wanted + 1)


def test_two_made_layers_share_nothing():
    layer = nn.Conv2d(1, 2, 3)
    first, second = (layer_like(layer, nn.Parameter(torch.ones(2, 1, 3, 3)), None, training=True) for _ in range(2))
    first.register_forward_hook(lambda module, args, output: output * 0)
    first.eval()
    assert second.training
    assert bool((second(torch.ones(1, 1, 3, 3)) == 9).all())


@pytest.mark.parametrize("kind", SUPPORTED_CONVOLUTIONS)
def test_a_pointwise_convolution_has_a_kernel_of_1_and_its_groups(kind):
    layer = pointwise(kind, 3)
    dims = SUPPORTED_CONVOLUTIONS.index(kind) + 1
    assert type(layer) is kind
    assert (layer.groups, layer.kernel_size, layer.stride, layer.padding) == (3, (1,) * dims, (1,) * dims, (0,) * dims)
    assert layer.weight.is_meta
    weight = nn.Parameter(torch.rand(6, 2, *[1] * dims))
    new = layer_like(layer, weight, None, training=True)
    x = torch.rand(2, 6, *[4] * dims)
    wanted = torch.einsum("goi,bgi...->bgo...", weight.detach().reshape(3, 2, 2), x.reshape(2, 3, 2, *x.shape[2:]))
    torch.testing.assert_close(new(x), wanted.reshape(2, 6, *x.shape[2:]))


def test_a_pointwise_linear_layer_is_one():
    assert repr(pointwise(nn.Linear)) == repr(nn.Linear(1, 1))
