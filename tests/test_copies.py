from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.copies import copy_network, copy_parameter

from .networks import MONAI_NETWORKS, same_bits, snapshot, tiny_classifier


def storages(network: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}


@pytest.mark.parametrize("name", ["DenseNet", "DenseNet 3D with InstanceNorm", "EfficientNet", "UNet 3D"])
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_copy_is_what_deepcopy_makes(name: str, decomposed: bool) -> None:
    factory, shape = MONAI_NETWORKS[name]
    network = mbp.decompose(factory()) if decomposed else factory()
    next(network.children()).eval()
    before = snapshot(network)
    found, wanted = copy_network(network), copy.deepcopy(network)
    assert same_bits(snapshot(network), before)
    assert same_bits(snapshot(found), snapshot(wanted))
    assert not storages(found) & storages(network)
    for one, other in zip(found.modules(), wanted.modules(), strict=True):
        assert type(one) is type(other)
        assert vars(one).keys() == vars(other).keys()
        assert one.training == other.training
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in wanted.parameters()]
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(found.eval()(x), wanted.eval()(x))


def test_what_is_shared_stays_shared() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    network[1].weight = network[0].weight
    network.add_module("again", network[2])
    network[2].view = network[2].running_mean[:2]
    network[2].register_buffer("part", network[2].running_var[:2])
    twin = copy_network(network)
    assert twin[1].weight is twin[0].weight is not network[0].weight
    assert twin.again is twin[2]
    twin[2].running_var[0] = 7.0
    assert float(twin[2].part[0]) == 7.0
    assert float(network[2].part[0]) == 1.0


def test_what_is_replaced_stands_wherever_it_was_and_is_not_copied() -> None:
    network = tiny_classifier()
    network.alias = network.stem
    new = nn.Conv2d(1, 6, 1)
    twin = copy_network(network, {network.stem: new})
    assert twin.stem is twin.alias is new
    assert network.stem is network.alias is not new


def test_hooks_act_on_a_copy_and_gradients_stay_behind() -> None:
    network = tiny_classifier()
    network.register_forward_hook(lambda module, args, output: output + 1)
    x = torch.rand(2, 1, 8, 8)
    network(x).sum().backward()
    twin = copy_network(network)
    assert torch.equal(twin.eval()(x), network.eval()(x))
    assert all(parameter.grad is None for parameter in twin.parameters())


def test_weights_that_are_computed_are_copied() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        network = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    network(torch.rand(2, 4))
    twin = copy_network(network)
    x = torch.rand(2, 4)
    assert torch.equal(twin(x), network(x))


def test_a_copied_parameter_has_its_own_values() -> None:
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    twin = copy_parameter(frozen)
    twin.data[0] = 5.0
    assert (float(frozen[0]), twin.requires_grad) == (1.0, False)
