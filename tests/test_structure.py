from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channels import cut_channels_
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.pruning import keep_bases_
from monai_basisprune.structure import kept_parts, positions_of, removed_of, structure_of

from .networks import NETWORKS, TinyClassifier, random_scores, same_bits, snapshot, tiny_classifier

SHAPE = TinyClassifier.input_shape


def pruned(steps: int, seed: int = 0) -> nn.Module:
    """Return a network of which bases and channels were removed in turn, some more at each step."""
    network = mbp.decompose(tiny_classifier())
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        scores = {name: torch.rand(layer.rank(), generator=generator) for name, layer in decomposed_layers(network)}
        mbp.prune_(network, scores, mbp.Budget(bases=(0.2, 0.5)[step]))
        scores = {
            name: torch.rand(score.shape, generator=generator) for name, score in random_scores(network, SHAPE).items()
        }
        mbp.prune_channels_(network, scores, mbp.Budget(threshold=0.4), SHAPE)
    return network


def bring_(network: nn.Module, wanted: nn.Module) -> None:
    """Remove from a network what it has more than another one."""
    parts = kept_parts(wanted)
    positions, removed = positions_of(network, parts["kept_bases"]), removed_of(network, parts["kept_channels"])
    keep_bases_(network, positions)
    cut_channels_(network, removed, None)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_network_that_was_pruned_less_comes_to_what_a_checkpoint_has_left(start, seed):
    wanted, network = pruned(2, seed), pruned(start, seed)
    assert structure_of(pruned(0)) != structure_of(wanted)
    bring_(network, wanted)
    assert kept_parts(network) == kept_parts(wanted)
    assert structure_of(network) == structure_of(wanted)
    assert same_bits(snapshot(network), snapshot(wanted))  # the same values, so the same bases and channels


def test_positions_count_from_what_the_network_has_left():
    network = pruned(1)
    bases = {name: list(layer.kept_bases) for name, layer in decomposed_layers(network)}
    groups = {name: layer.groups for name, layer in decomposed_layers(network)}
    fewer = {name: [k for g in _parts(left, groups[name]) for k in g[1:]] for name, left in bases.items()}
    assert all(fewer.values())
    assert any(left[0] > 0 for left in fewer.values())
    for name, positions in positions_of(network, fewer).items():
        assert [bases[name][position] for position in positions] == fewer[name]


def _parts(left: list[int], groups: int) -> list[list[int]]:
    size = len(left) // groups
    return [left[group * size : (group + 1) * size] for group in range(groups)]


def test_what_is_lost_is_told_for_each_side_of_each_module_and_only_where_something_is():
    network = mbp.decompose(tiny_classifier())
    norm = {"norm": {"out": [0, 2, 3, 5]}}
    assert removed_of(network, norm) == {("norm", "out"): [1, 4]}
    everything = {"norm": {"out": list(range(6))}, "head": {"in": [1, 3, 5, 7]}}
    assert removed_of(network, everything) == {("head", "in"): [0, 2, 4, 6]}
    assert removed_of(network, {}) == {}
    cut_channels_(network, removed_of(network, norm), None)
    # of the original channels 0, 2, 3 and 5, which stand at 0, 1, 2 and 3 now
    assert removed_of(network, {"norm": {"out": [2, 5]}}) == {("norm", "out"): [0, 2]}


BASES = {"stem": list(range(6)), "grouped": list(range(8))}


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ({**BASES, "stem": [0, 6]}, "['stem']"),
        ({**BASES, "stem": []}, "['stem']"),
        ({**BASES, "stem": [2, 1]}, "['stem']"),
        ({**BASES, "stem": [-1, 1]}, "['stem']"),
        ({**BASES, "grouped": [0, 1, 4]}, "['grouped']"),  # its groups keep different numbers
        ({**BASES, "stem": [1, 1], "grouped": []}, "['stem', 'grouped']"),
        ({**BASES, "head": [0]}, "['head']"),
        ({"stem": [0]}, "other layers"),
        ({}, "other layers"),
    ],
)
def test_bases_that_the_network_does_not_have_are_refused(kept, names):
    words = (
        f"The checkpoint keeps bases that this network does not have, in {names}: start from the decomposed network "
        f"that the run started from."
    )
    with pytest.raises(mbp.PlanMismatchError, match=re.escape(words)):
        positions_of(mbp.decompose(tiny_classifier()), kept)


def test_bases_that_are_gone_do_not_come_back():
    network = pruned(1)
    with pytest.raises(mbp.PlanMismatchError, match="does not have, in"):
        positions_of(network, BASES)
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        positions_of(tiny_classifier(), BASES)


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ({"nowhere": {"out": [0]}}, "['nowhere']"),
        ({"pool": {"out": [0]}}, "['pool']"),
        ({"norm": {"in": [0]}}, "['norm']"),
        ({"norm": {"code": [0]}}, "['norm']"),
        ({"norm": {"out": []}}, "['norm']"),
        ({"norm": {"out": [0, 6]}}, "['norm']"),
        ({"norm": {"out": [2, 1]}}, "['norm']"),
        ({"grouped": {"in": [0, 4]}}, "['grouped']"),  # its groups keep different ones
        ({"stem": {"out": [9]}, "head": {"in": [-1]}, "norm": {"out": [0]}}, "['head', 'stem']"),
    ],
)
def test_channels_that_the_network_does_not_have_are_refused(kept, names):
    network = mbp.decompose(tiny_classifier())
    words = (
        f"The checkpoint keeps channels that this network does not have, in {names}: start from the decomposed network "
        f"that the run started from."
    )
    with pytest.raises(mbp.PlanMismatchError, match=re.escape(words)):
        removed_of(network, kept)


def test_channels_that_are_gone_do_not_come_back():
    network = pruned(1)
    name, sides = next(iter(kept_parts(network)["kept_channels"].items()))
    for kept in ({}, {name: {}}, {name: {side: [*range(8)] for side in sides}}):
        with pytest.raises(mbp.PlanMismatchError, match=f"'{re.escape(name)}'"):
            removed_of(network, kept)


def test_what_is_left_is_told_in_plain_types_that_do_not_change_with_the_network():
    network = pruned(1)
    parts = kept_parts(network)
    before = json.loads(json.dumps(parts))
    assert before == parts
    assert list(parts["kept_bases"]) == ["stem", "grouped"]
    assert parts["kept_channels"].keys() == {"stem", "norm", "grouped", "head"}
    bring_(network, pruned(2))
    assert parts == before
    assert kept_parts(network) != before
    assert kept_parts(mbp.decompose(tiny_classifier())) == {"kept_bases": BASES, "kept_channels": {}}
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        kept_parts(tiny_classifier())


def test_a_structure_has_the_same_name_wherever_it_is_and_another_for_another():
    whole = mbp.decompose(tiny_classifier())
    other = mbp.decompose(tiny_classifier(seed=5))  # its values are no part of it
    assert structure_of(other) == structure_of(whole)
    names = [structure_of(whole)]
    for keep in ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5]):  # as many, and not the same
        cut = copy.deepcopy(whole)
        keep_bases_(cut, {"stem": keep, "grouped": list(range(8))})
        names.append(structure_of(cut))
    cut = copy.deepcopy(whole)
    cut_channels_(cut, {("head", "in"): [0]}, None)
    names.append(structure_of(cut))
    assert len(set(names)) == 4
    assert [re.fullmatch(r"bases_(\d{6})_[0-9a-f]{12}", name)[1] for name in names] == [
        *("000014", "000013", "000013", "000014")
    ]
    make, shape = NETWORKS["DenseNet with PReLU"]
    deep = mbp.decompose(make())
    mbp.prune_(deep, mbp.SingularValueImportance(deep).scores(), mbp.Budget(bases=0.5))
    mbp.prune_channels_(deep, random_scores(deep, shape), mbp.Budget(threshold=0.3), shape)
    assert structure_of(copy.deepcopy(deep)) == structure_of(deep)
    assert structure_of(deep).startswith(f"bases_{sum(layer.rank() for _, layer in decomposed_layers(deep)):06d}_")
