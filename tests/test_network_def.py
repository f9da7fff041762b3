"""The original network, however a caller names it."""

from __future__ import annotations

import functools
from types import MappingProxyType

import pytest
import torch
from torch import nn

from monai_basisprune.network_def import make_network

from .networks import TinyClassifier, same_bits, snapshot, tiny_classifier

COMPONENT = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": "$2 * 2", "kernel_size": 3}


def test_a_network_stands_for_itself():
    network = tiny_classifier()
    assert make_network(network) is network
    table = nn.ModuleDict({"_target_": nn.ReLU()})  # it has keys, and is a network all the same
    assert make_network(table) is table


@pytest.mark.parametrize("make", [TinyClassifier, tiny_classifier, functools.partial(tiny_classifier, 0)])
def test_a_function_or_a_class_makes_it_anew(make):
    first, second = make_network(make), make_network(make)
    assert first is not second
    assert type(first) is TinyClassifier
    if make is not TinyClassifier:
        assert same_bits(snapshot(first), snapshot(tiny_classifier()))


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_a_component_of_a_bundle_makes_it_and_stays_as_it_is(kind):
    component = kind(COMPONENT)
    network = make_network(component)
    assert type(network) is nn.Conv2d
    assert network.weight.shape == (4, 1, 3, 3)
    assert make_network(component) is not network
    assert dict(component) == COMPONENT


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("torch.nn.ReLU", "str"),
        (None, "NoneType"),
        ([nn.ReLU()], "list"),
        (lambda: None, "NoneType"),
        (lambda: {"weight": torch.zeros(1)}, "dict"),
        ({"network": "torch.nn.ReLU"}, "dict"),
        ({"_target_": "torch.zeros", "size": [2]}, "Tensor"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(wrong, found):
    words = "network_def must be a torch.nn.Module, or a function or a dictionary with _target_ that makes one"
    with pytest.raises(TypeError, match=f"{words}; got {found}."):
        make_network(wrong)
