from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from monai.networks.nets import ResNet
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_graph import ChannelGroup, channel_groups, probe_network
from monai_basisprune.channel_scaling_layer import channel_scalings

from .networks import NETWORKS, Grouped, TinyClassifier, same_bits, snapshot, sound, tiny_classifier

SHAPE = TinyClassifier.input_shape
OUTPUTS = "no layer reads them: they are outputs of the network"
UNSEEN = "something depends on them that the graph does not show, such as a shortcut that is padded with zeros"


def found(plain: nn.Module, shape: tuple[int, ...]) -> dict[str, ChannelGroup]:
    return {group.name: group for group in channel_groups(mbp.decompose(plain), shape)}


def test_groups_are_those_of_the_wiring():
    plain = ResNet("basic", [2, 1, 1, 1], [4, 8, 12, 16], 2, 1, num_classes=2, shortcut_type="B")
    groups = found(plain, (1, 32, 32))
    inside = [("layer1.0.bn1", "out"), ("layer1.0.conv1", "out"), ("layer1.0.conv2", "in")]
    assert groups["layer1.0.conv1"].sides() == inside
    assert groups["layer1.0.conv1"].units == [{side: [channel] for side in inside} for channel in range(4)]
    assert groups["layer1.0.conv1"].readers() == ["layer1.0.conv2"]
    # what a shortcut adds up goes together
    assert {
        *(("bn1", "out"), ("conv1", "out"), ("layer1.0.conv1", "in"), ("layer1.0.conv2", "out")),
        *(("layer1.1.conv2", "out"), ("layer2.0.conv1", "in"), ("layer2.0.downsample.0", "in")),
    } <= set(groups["conv1"].sides())
    assert groups["fc"].kept_because == OUTPUTS
    assert [name for name, group in groups.items() if group.kept_because] == ["fc"]


def test_tied_weights_parameters_of_no_layer_and_single_channels_stay():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.three.weight = self.two.weight
            self.narrow, self.shift = nn.Conv2d(4, 1, 1), nn.Parameter(torch.rand(3, 1, 1))
            self.wide, self.last = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x))))))
            return self.last(torch.relu(self.wide(torch.relu(self.narrow(x)))) + self.shift)

    reasons = {name: group.kept_because for name, group in found(Odd(), (1, 6, 6)).items()}
    assert reasons["one"] == "two: its parameters are tied to those of another layer"
    assert reasons["narrow"] == "there is only one"
    assert reasons["wide"] == "shift is a parameter of no layer"


def test_a_network_that_the_graph_cannot_trace_is_refused():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x)).detach()

    words = r"cannot trace Detached.*no gradient leads from its output to a layer.*use prune_, or, in a bundle"
    with pytest.raises(mbp.LayerSelectionError, match=words):
        found(Detached(), (1, 8, 8))


def test_all_groups_of_a_convolution_lose_channels_at_the_same_place():
    groups = found(tiny_classifier(), SHAPE)
    assert list(groups) == ["stem", "grouped", "head"]
    assert groups["stem"].units == [
        {("grouped", "in"): [c, c + 3], ("norm", "out"): [c, c + 3], ("stem", "out"): [c, c + 3]} for c in range(3)
    ]
    assert groups["grouped"].units == [{("grouped", "out"): [c, c + 4], ("head", "in"): [c, c + 4]} for c in range(4)]


def test_a_channel_that_is_flattened_takes_all_its_positions_and_one_that_is_joined_those_behind_the_others():
    unit = found(Grouped(), (1, 4, 4))["two"].units[1]
    assert unit == {("head", "in"): list(range(16, 32)), ("two", "out"): [1]}

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(torch.cat([self.one(x), self.two(x)], dim=1)))

    groups = found(Joined(), (1, 4, 4))
    assert groups["two"].units == [
        {("last", "in"): [3], ("two", "out"): [0]},
        {("last", "in"): [4], ("two", "out"): [1]},
    ]
    assert [group.kept_because for group in groups.values()] == [None, None, OUTPUTS]


def test_a_depthwise_convolution_goes_along_and_makes_no_group_of_its_own():
    make, shape = NETWORKS["channel PReLU"]
    groups = found(make(), shape)
    assert list(groups) == ["body.0", "body.4", "body.6"]
    # the PReLU, the depthwise convolution and the instance norm hand every channel on; the up-sampling one reads it
    handed = [("body.0", "out"), ("body.1", "out"), ("body.2", "out"), ("body.3", "out"), ("body.4", "in")]
    assert groups["body.0"].sides() == handed
    assert groups["body.0"].units[5] == {side: [5] for side in handed}


def test_what_cannot_be_sliced_keeps_its_channels_and_says_why():
    make, shape = NETWORKS["ResNet 3D with shortcut A"]
    groups = found(make(), shape)
    assert groups["conv1"].kept_because.endswith(UNSEEN)
    assert groups["layer1.0.conv1"].kept_because is None
    make, shape = NETWORKS["SegResNet 3D"]
    reasons = {group.kept_because.rpartition(": ")[2] for group in found(make(), shape).values()}
    assert reasons == {"GroupNorm cannot be sliced", "they are outputs of the network"}


def test_groups_that_the_graph_gets_wrong_are_found_by_trying_them_and_the_others_still_go():
    class Split(nn.Module):
        """Torch-Pruning takes the two parts of what is split for each other."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
            self.first, self.second = nn.Conv2d(4, 3, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = torch.split(self.one(x), [4, 2], dim=1)
            return self.last(torch.cat([self.first(first), self.second(second)], dim=1))

    class Read(nn.Module):
        """An output that is read inside the network too."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.relu(self.one(x))
            return self.last(torch.relu(self.two(x))), x

    groups = found(Split(), (1, 6, 6))
    parts = [groups[name] for name in ("one", "one (2)")]  # both are of the same layer
    assert sorted(unit["one", "out"] for group in parts for unit in group.units) == [[c] for c in range(6)]
    assert all(group.kept_because.endswith(UNSEEN) for group in parts)
    assert groups["first"].kept_because is groups["second"].kept_because is None
    groups = found(Read(), (1, 6, 6))
    assert groups["one"].kept_because.endswith(UNSEEN)
    assert groups["two"].kept_because is None


def test_a_weight_that_is_computed_keeps_the_channels():
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    nn.utils.parametrizations.weight_norm(plain[2])
    network = mbp.decompose(plain)
    assert {type(module).__name__ for module in network[::2]} == {"DecomposedConv", "ParametrizedConv2d"}
    groups = {group.name: group.kept_because for group in channel_groups(network, (1, 4, 4))}
    assert groups["0"] == groups["2"] == "2: the weight of this ParametrizedConv2d is parametrized"


@pytest.mark.parametrize("name", ["channel PReLU", "DenseNet with PReLU"])
def test_to_find_groups_changes_nothing_and_gives_the_same_ones_again(name):
    make, shape = NETWORKS[name]
    network = mbp.decompose(sound(make)).train()
    before, state = snapshot(network), torch.get_rng_state()
    groups = channel_groups(network, shape)
    assert channel_groups(network, shape) == groups
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(snapshot(network), before)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():  # values do not matter, only the wiring
        for parameter in network.parameters():
            parameter.zero_()
    assert channel_groups(network, shape) == groups


def test_what_is_no_network_to_find_groups_in_is_refused():
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        channel_groups(tiny_classifier(), SHAPE)
    network = mbp.decompose(tiny_classifier())
    with pytest.raises(ValueError, match=re.escape("cannot process an input of shape (2, 3, 8, 8)")):
        channel_groups(network, (3, 8, 8))
    with pytest.raises(ValueError, match="input_shape must hold positive whole numbers"):
        channel_groups(network, ())

    class Boxed(TinyClassifier):
        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=super().forward(x))

    words = r"Torch-Pruning cannot trace Boxed, so none of its channels can be removed \(\w+: .*\)\. Its bases can"
    with pytest.raises(mbp.LayerSelectionError, match=words):
        channel_groups(mbp.decompose(Boxed()), SHAPE)


def test_a_probe_has_the_wiring_of_the_network_with_whole_layers_and_values_of_its_own():
    layers = [nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.PReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4)]
    plain = nn.Sequential(*layers)
    network = mbp.add_channel_scaling(
        mbp.decompose(nn.Sequential(plain, nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))), (1, 9, 9)
    )
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.4))
    assert "0.4" in dict(channel_scalings(network))
    before = snapshot(network)
    network.requires_grad_(False)
    probe = probe_network(network.train())
    assert same_bits(snapshot(network), before)
    assert channel_scalings(network)
    assert not channel_scalings(probe)
    types = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.Conv2d, nn.BatchNorm2d, nn.PReLU]
    assert [type(module) for module in probe[0]] == types
    assert not probe.training
    for name, parameter in probe.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.requires_grad, name
        assert bool((parameter != 0).all())
    shapes = {name: p.shape for name, p in plain[3].named_parameters()}
    assert {name: p.shape for name, p in probe[0][3].named_parameters()} == shapes
    assert same_bits(snapshot(probe_network(network)), snapshot(probe))
