from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.inspection import inspect_network, inspect_weights

from .networks import tiny_classifier


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, bias=False),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 16 * 16, 3),
    )


def test_sizes_operations_and_ranks_of_each_layer() -> None:
    network = layers()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = inspect_network(network, (2, 25, 25))  # 12, 10, 8, 16
    assert [layer.name for layer in found] == ["0", "1", "2", "3", "5"]
    assert [layer.type for layer in found] == ["Conv2d", "Conv2d", "Conv2d", "ConvTranspose2d", "Linear"]
    assert [layer.parameters for layer in found] == [144, 80, 4 * 4 * 9 + 4, 4 * 6 * 4 + 6, 6 * 256 * 3 + 3]
    by_hand = [8 * 144 * 18, 8 * 100 * 9, 4 * 64 * 36, 4 * 64 * 24, 1536 * 3]
    assert [layer.macs for layer in found] == by_hand
    assert sum(by_hand) == mbp.measure_complexity(network, (2, 25, 25)).macs
    assert [layer.max_rank for layer in found] == [8, None, 4, None, 3]
    assert found[0].skipped is None
    assert "depthwise" in str(found[1].skipped)
    assert "transposed" in str(found[3].skipped)
    assert "linear layer" in str(found[4].skipped)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert {layer.macs for layer in inspect_network(network)} == {None}


def test_the_spectrum_is_that_of_the_singular_values() -> None:
    network = layers()
    weight = network[0].weight.detach().double().reshape(8, -1)
    singular = torch.linalg.svdvals(weight)
    layer = inspect_network(network)[0]
    torch.testing.assert_close(torch.tensor(layer.spectrum, dtype=torch.float64), singular / singular[0])
    energy = singular.square().cumsum(0) / singular.square().sum()
    assert layer.rank_90 == int((energy < 0.9).sum()) + 1
    assert layer.rank_99 == int((energy < 0.99).sum()) + 1
    with torch.no_grad():  # a weight of rank 2
        network[0].weight.copy_((torch.randn(8, 2) @ torch.randn(2, 18)).reshape(8, 2, 3, 3))
    layer = inspect_network(network)[0]
    assert layer.rank_99 <= 2
    assert max(layer.spectrum[2:]) < 1e-6
    grouped = inspect_network(network)[2]
    halves = network[2].weight.detach().double().reshape(2, 2, -1)
    values = torch.cat([torch.linalg.svdvals(half) for half in halves]).sort(descending=True).values
    torch.testing.assert_close(torch.tensor(grouped.spectrum, dtype=torch.float64), values / values[0])


def test_a_pruned_network_and_its_state_dict_agree() -> None:
    network = mbp.decompose(tiny_classifier().eval())
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
    found = inspect_network(network, (1, 8, 8))
    assert sum(layer.macs or 0 for layer in found) == mbp.measure_complexity(network, (1, 8, 8)).macs
    status = {layer.name: layer for layer in mbp.layer_status(network)}
    state = inspect_weights(network.state_dict())
    for layer in found:
        assert (layer.rank, layer.max_rank) == (status[layer.name].rank, status[layer.name].max_rank) or not layer.rank
    ranked = {layer.name: (layer.rank, layer.shape, layer.parameters) for layer in found if layer.rank}
    assert ranked
    assert {name: ranked[name] for name in ranked} == {
        layer.name: (layer.rank, layer.shape, layer.parameters) for layer in state if layer.rank
    }
    spectra = {layer.name: layer.spectrum for layer in state}
    assert all(layer.spectrum == pytest.approx(spectra[layer.name], abs=1e-6) for layer in found)


def test_bases_are_counted_against_those_before_channels_went() -> None:
    shape = (1, 8, 8)
    network = mbp.decompose(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval())
    shapes = {"0": [8, 1, 3, 3], "3": [4, 8, 3, 3]}
    with mbp.ChannelTaylorImportance(network, shape) as importance:
        network(torch.rand(2, *shape)).square().mean().backward()
        importance.accumulate()
    mbp.prune_channels_(network, importance.scores(), mbp.Budget(parameters=0.5), shape)
    first = inspect_network(network)[0]
    assert first.shape[0] == 3
    assert (first.rank, first.max_rank) == (8, 8)  # not 8 of 3
    assert [(layer.rank, layer.max_rank) for layer in inspect_weights(network.state_dict(), None, shapes)] == [
        (layer.rank, layer.max_rank) for layer in inspect_network(network)
    ]


def test_broken_weights_are_named_and_wrong_inputs_refused() -> None:
    network = layers()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = torch.nan
        network[2].weight.zero_()
    found = inspect_network(network)
    assert found[0].skipped == "the weight holds NaN or infinite values"
    assert (found[0].rank_90, found[0].spectrum) == (None, ())
    assert (found[2].rank_90, found[2].spectrum) == (None, ())
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        inspect_network(network, (3, 25, 25))
    assert not any(module._forward_hooks for module in network.modules())
    assert inspect_weights({"a.running_mean": torch.ones(3), "n": torch.tensor(1), "e.weight": torch.ones(3)}) == []
