from __future__ import annotations

import random

import pytest

import monai_basisprune as mbp
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.channel_trial import removed_slots
from monai_basisprune.channels import cut_channels_
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.pruning import keep_bases_
from monai_basisprune.tally import Tally

from .networks import tiny_classifier
from .test_channels import NETWORKS, SHAPE, sound


@pytest.mark.parametrize("name", ["DenseNet with PReLU", "ResNet with shortcut B", "channel PReLU", "grouped"])
def test_what_is_left_is_what_a_real_network_holds(name):
    make, shape = NETWORKS[name]
    plain = sound(make)
    network = mbp.decompose(plain)
    tally = Tally(network, mbp.Budget(parameters=0.9, macs=0.9, input_shape=shape), shape)
    original = mbp.measure_complexity(plain, shape)
    assert tally.left == {"parameters": original.parameters, "macs": original.macs}
    draw = random.Random(0)
    groups = [group for group in channel_groups(network, shape) if group.kept_because is None]
    kept = {group.name: sorted(draw.sample(range(len(group.units)), (len(group.units) + 1) // 2)) for group in groups}
    layers = decomposed_layers(network)
    slots = {name: draw.randint(1, layer.rank() // layer.groups) for name, layer in layers}

    def remove_bases(chosen) -> None:
        for name, layer in chosen:
            tally.remove_bases(name, layer.rank() - layer.groups * slots[name])

    # channels between bases, as what one saves depends on what is left of the other
    remove_bases(layers[::2])
    for group in groups:
        for unit in (unit for number, unit in enumerate(group.units) if number not in kept[group.name]):
            before = dict(tally.left)
            expected = tally.saving(unit)
            assert tally.left == before
            tally.remove(unit)
            saved = sum((before[q] - left) / tally.costs[q].original for q, left in tally.left.items())
            assert expected == pytest.approx(saved)
    remove_bases(layers[1::2])
    bases = {
        name: [group * (layer.rank() // layer.groups) + n for group in range(layer.groups) for n in range(slots[name])]
        for name, layer in layers
    }
    cut_channels_(network, removed_slots({group.name: group.units for group in groups}, kept), None)
    keep_bases_(network, bases)
    left = mbp.measure_complexity(mbp.recompose(network), shape)
    assert tally.left == {"parameters": left.parameters, "macs": left.macs}


def test_a_basis_costs_its_filter_and_its_column():
    network = mbp.decompose(tiny_classifier())
    tally = Tally(network, mbp.Budget(parameters=0.5), SHAPE)
    # 9 weights of the filter and 6 of the column, of 306; in the grouped layer 27 and 4
    assert tally.basis_price("stem") == pytest.approx(15 / 306)
    assert tally.basis_price("grouped") == pytest.approx(31 / 306)
    both = Tally(network, mbp.Budget(parameters=0.5, macs=0.5, input_shape=SHAPE), SHAPE)
    assert both.basis_price("stem") == pytest.approx(15 / 306 + 64 * 15 / both.costs["macs"].original)


def test_a_budget_is_met_when_all_its_parts_are():
    network = mbp.decompose(tiny_classifier())
    tally = Tally(network, mbp.Budget(parameters=0.1, macs=0.5, input_shape=SHAPE), SHAPE)
    assert not tally.met
    tally.remove_bases("grouped", 4)
    assert tally.left["parameters"] <= tally.costs["parameters"].allowed
    assert not tally.met
    assert "macs remain" in tally.impossible("here")
    tally.remove_bases("stem", 5)
    assert tally.met
