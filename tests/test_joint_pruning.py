from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import network_cost
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.decomposition import decomposed_layers

from .networks import same_bits, snapshot, tiny_classifier
from .test_channels import NETWORKS, SHAPE, sound


def taylor(network, shape, seed=0):
    """Both kinds of scores, of the same batch."""
    torch.manual_seed(seed)
    bases = mbp.TaylorImportance(network)
    with mbp.ChannelTaylorImportance(network, shape) as channels:
        x = torch.randn(4, *shape, dtype=next(network.parameters()).dtype)
        nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 1, 0])).backward()
        bases.accumulate()
        channels.accumulate()
    return bases.scores(), channels.scores()


@pytest.mark.parametrize("quantity", ["parameters", "macs"])
@pytest.mark.parametrize("name", ["DenseNet", "ResNet with shortcut B", "grouped"])
def test_bases_and_channels_go_under_one_budget(name, quantity):
    make, shape = NETWORKS[name]
    plain = sound(make)
    network = mbp.decompose(plain)
    optimizer = torch.optim.SGD(mbp.trainable_parameters(network), lr=0.1, momentum=0.9)
    scores = taylor(network, shape)
    optimizer.step()
    result = mbp.prune_jointly_(network, *scores, mbp.Budget(**{quantity: 0.8}, input_shape=shape), shape, optimizer)
    before, after = mbp.measure_complexity(plain, shape), mbp.measure_complexity(mbp.recompose(network), shape)
    assert (result.parameters, result.macs) == (after.parameters, after.macs)
    assert result.parameter_reduction == pytest.approx(1 - after.parameters / before.parameters, abs=1e-12)
    assert result.mac_reduction == pytest.approx(1 - after.macs / before.macs, abs=1e-12)
    assert 0.8 <= (result.parameter_reduction if quantity == "parameters" else result.mac_reduction) < 0.9
    assert result.removed_bases == sum(scores[0][n].numel() - len(kept) for n, kept in result.kept_bases.items()) > 0
    assert result.removed_channels > 0
    assert all(result.kept_bases.values())
    assert all(result.kept_channels.values())
    again = mbp.build_pruned(lambda: make().double(), mbp.PruningPlan.from_network(network))
    again.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.equal(again.eval()(x), network.eval()(x))
    network(x).sum().backward()
    optimizer.step()


def test_what_matters_least_for_its_size_goes_first():
    network = mbp.decompose(tiny_classifier())
    bases = {name: torch.full((layer.rank(),), 1e6) for name, layer in (("stem", network.stem),)}
    channels = {"stem": torch.tensor([5.0, 1.0, 3.0]), "grouped": torch.tensor([1e6, 1e6, 1e6, 1e6])}
    start = network_cost(network, mbp.Budget(parameters=0.0))
    share = start.reduction(start.total) + 1e-3
    result = mbp.prune_jointly_(network, bases, channels, mbp.Budget(parameters=share), SHAPE)
    assert (result.removed_bases, result.removed_channels) == (0, 1)
    assert result.kept_channels == {"stem": [0, 2], "grouped": [0, 1, 2, 3]}
    # with cheap bases, those go instead, though a channel scores less: it saves less
    network = mbp.decompose(tiny_classifier())
    bases = {name: torch.full((layer.rank(),), 1e-9) for name, layer in (("grouped", network.grouped),)}
    result = mbp.prune_jointly_(network, bases, channels, mbp.Budget(parameters=share), SHAPE)
    assert (result.removed_bases > 0, result.removed_channels) == (True, 0)


@pytest.mark.parametrize("multiple", [2, 4])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.75])
def test_channels_go_in_blocks_beside_bases(multiple, share):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 18, 3, padding=1), nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 12, 3), nn.ReLU()]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2))
    network = mbp.decompose(plain)
    bases, channels = taylor(network, SHAPE)
    result = mbp.prune_jointly_(network, bases, channels, mbp.Budget(parameters=share), SHAPE, multiple=multiple)
    assert result.parameter_reduction >= share
    assert result.parameters == sum(p.numel() for p in mbp.recompose(network).parameters())
    assert result.removed_channels > 0
    for name, values in channels.items():
        kept = result.kept_channels[name]
        assert len(kept) == len(values) or len(kept) % multiple == 0
        gone = [position for position in range(len(values)) if position not in kept]
        assert not gone or max(values[gone]) <= min(values[kept])


@pytest.mark.parametrize(
    ("multiple", "kept"), [(1, {"0": [1, 2, 3], "1": [0, 1, 2, 3]}), (2, {"0": [0, 1, 2, 3], "1": [2, 3]})]
)
def test_a_block_competes_by_the_sum_of_its_scores(multiple, kept):
    network = mbp.decompose(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)))
    bases = {name: torch.full((layer.rank(),), 1e6) for name, layer in decomposed_layers(network)}
    channels = {"0": torch.tensor([0.0, 10.0, 20.0, 20.0]), "1": torch.tensor([4.0, 4.0, 20.0, 20.0])}
    result = mbp.prune_jointly_(network, bases, channels, mbp.Budget(parameters=0.05), SHAPE, multiple=multiple)
    assert result.kept_channels == kept


def test_a_joint_budget_is_checked_before_anything_is_cut():
    network = mbp.decompose(tiny_classifier())
    bases, channels = taylor(network, SHAPE)
    before = snapshot(network)
    with pytest.raises(mbp.BudgetError, match="is not one of bases and channels together"):
        mbp.prune_jointly_(network, bases, channels, mbp.Budget(bases=0.5), SHAPE)
    with pytest.raises(
        mbp.BudgetError, match=r"one channel in every group .* The largest that can be met is parameters"
    ):
        mbp.prune_jointly_(network, bases, channels, mbp.Budget(parameters=0.995), SHAPE)
    with pytest.raises(ValueError, match=r"at least 0; below it are some of \['stem'\]"):
        mbp.prune_jointly_(network, {"stem": -bases["stem"] - 1}, channels, mbp.Budget(parameters=0.5), SHAPE)
    with pytest.raises(ValueError, match="no group of channels has this name"):
        mbp.prune_jointly_(network, bases, {"x": channels["stem"]}, mbp.Budget(parameters=0.5), SHAPE)
    assert same_bits(snapshot(network), before)


@pytest.mark.parametrize(("parameters", "macs"), [(0.8, 0.3), (0.3, 0.8), (0.7, 0.7)])
def test_a_budget_of_parameters_and_macs_is_met_in_both(parameters, macs):
    make, shape = NETWORKS["ResNet with shortcut B"]
    network = mbp.decompose(sound(make))
    budget = mbp.Budget(parameters=parameters, macs=macs, input_shape=shape)
    result = mbp.prune_jointly_(network, *taylor(network, shape), budget, shape)
    assert result.parameter_reduction >= parameters
    assert result.mac_reduction >= macs
    # and not more than one unit beyond it
    assert min(result.parameter_reduction - parameters, result.mac_reduction - macs) < 0.1


def test_the_largest_budget_is_named_in_each_quantity_that_is_not_met():
    network = mbp.decompose(tiny_classifier())
    scores = taylor(network, SHAPE)
    budget = mbp.Budget(parameters=0.2, macs=0.999, input_shape=SHAPE)
    with pytest.raises(mbp.BudgetError, match=r"of the original [\d,]+ macs remain") as caught:
        mbp.prune_jointly_(network, *scores, budget, SHAPE)
    assert "parameters remain" not in str(caught.value)
    largest = float(re.search(r"that can be met is macs=([\d.]+)", str(caught.value))[1])
    budget = mbp.Budget(parameters=0.2, macs=largest, input_shape=SHAPE)
    assert mbp.prune_jointly_(network, *scores, budget, SHAPE).mac_reduction >= largest


def test_groups_that_are_known_are_not_looked_for_again():
    make, shape = NETWORKS["grouped"]
    results = []
    for known in (False, True):
        network = mbp.decompose(sound(make))
        scores = taylor(network, shape)
        groups = [group for group in channel_groups(network, shape) if group.kept_because is None] if known else None
        results.append(mbp.prune_jointly_(network, *scores, mbp.Budget(parameters=0.7), shape, groups=groups))
    assert results[0] == results[1]
    assert results[0].removed_channels > 0


def test_groups_of_another_network_are_refused():
    make, shape = NETWORKS["grouped"]
    network = mbp.decompose(sound(make))
    bases, channels = taylor(network, shape)
    before, groups = snapshot(network), channel_groups(mbp.decompose(tiny_classifier()), SHAPE)
    with pytest.raises(ValueError, match="The scores do not fit the channels of the network"):
        mbp.prune_jointly_(network, bases, channels, mbp.Budget(parameters=0.5), shape, groups=groups)
    assert same_bits(snapshot(network), before)
