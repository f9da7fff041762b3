"""What is measured of the features of a network, and what its layers and channels lose as some go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.activation import Moments
from monai_basisprune.channel_graph import ChannelGroup, channel_groups
from monai_basisprune.channel_slices import group_count
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.layers import DecomposedLayer
from monai_basisprune.pruning import keep_bases_
from monai_basisprune.reconstruction import feature_moment, measure_features, removal_curves

from .handlers.engines import SHAPE, calls, images, residual_classifier
from .networks import same_bits, snapshot, tiny_classifier

TINY_RIDGE = 1e-12


def free_groups(network: nn.Module) -> list[ChannelGroup]:
    return [group for group in channel_groups(network, SHAPE) if group.kept_because is None]


def test_features_are_the_scaled_bases_and_what_the_readers_of_channels_read():
    network = mbp.decompose(residual_classifier()).train()
    with torch.no_grad():
        for _, layer in decomposed_layers(network):
            layer.scaling.scaling_factors.uniform_(0.5, 2.0)
    groups, x = free_groups(network), images()
    before, modes = snapshot(network), [module.training for module in network.modules()]
    moments = measure_features(network, groups, [x[:4], x[4:]])
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    readers = {reader for group in groups for reader in group.readers()}
    assert moments.keys() == {("bases", name) for name, _ in decomposed_layers(network)} | {
        ("inputs", name) for name in readers
    }
    for name, layer in decomposed_layers(network):
        _, features = calls(network, layer.basis, x)
        features = features * layer.scaling.scaling_factors.detach().double().reshape(-1, 1)
        one = moments["bases", name]
        assert one.samples == features.shape[1]
        torch.testing.assert_close(one.second_moment()[0], features @ features.T / features.shape[1])
    for name in readers:
        inputs, _ = calls(network, network.get_submodule(name), x)
        one = moments["inputs", name]
        torch.testing.assert_close(one.second_moment()[0], inputs @ inputs.T / inputs.shape[1])
        torch.testing.assert_close(one.mean()[0], inputs.mean(dim=1))


def test_bases_of_a_grouped_layer_are_measured_group_by_group():
    network = mbp.decompose(tiny_classifier())
    x = images()
    one = measure_features(network, [], [x])["bases", "grouped"]
    _, features = calls(network, network.grouped.basis, x)
    halves = features.reshape(2, -1, features.shape[1])
    torch.testing.assert_close(one.second_moment(), halves @ halves.transpose(1, 2) / features.shape[1])


def test_a_layer_with_a_bias_is_judged_by_its_covariance():
    x = torch.randn(2, 3, 50, dtype=torch.float64) + 5.0
    moments = Moments()
    moments.add(x)
    for group in range(2):
        torch.testing.assert_close(feature_moment(moments, True)[group], torch.cov(x[group], correction=0))
        torch.testing.assert_close(feature_moment(moments, False)[group], x[group] @ x[group].T / 50)


@pytest.mark.parametrize("make", [residual_classifier, tiny_classifier])
def test_bases_lose_what_least_squares_on_the_others_cannot_give_back(make):
    network, x = mbp.decompose(make()), images()
    moments = measure_features(network, [], [x])
    curves = removal_curves(network, [], moments, {}, step=1.0, ridge=TINY_RIDGE)
    assert [curve.key for curve in curves] == [name for name, _ in decomposed_layers(network)]
    for curve in curves:
        layer = network.get_submodule(curve.name)
        slots = layer.rank() // layer.groups
        assert curve.limit == len(curve.order) == slots - 1
        _, features = calls(network, layer.basis, x)
        _, outputs = calls(network, layer, x)
        if layer.scaling.bias is not None:
            features, outputs = (t - t.mean(dim=1, keepdim=True) for t in (features, outputs))
        features, outputs = (t.reshape(layer.groups, -1, t.shape[1]) for t in (features, outputs))
        for count, loss in enumerate(curve.losses, 1):
            kept = [slot for slot in range(slots) if slot not in curve.order[:count]]
            solution = torch.linalg.lstsq(features[:, kept].transpose(1, 2), outputs.transpose(1, 2)).solution
            rest = outputs - (features[:, kept].transpose(1, 2) @ solution).transpose(1, 2)
            assert loss == pytest.approx(float(rest.square().sum() / outputs.square().sum()), rel=1e-3, abs=1e-6)


class Readers(nn.Module):
    """Channels that an ordinary, a grouped, a transposed and a linear layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.plain = nn.Conv2d(4, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2, bias=False)
        self.crossed = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.head = nn.Linear(5, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.plain(torch.relu(self.first(x))))
        return self.head(torch.relu(self.crossed(torch.relu(self.grouped(x)))).mean(dim=(2, 3)))


def readers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mbp.decompose(Readers())


def weight_of(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a layer as ``(groups, outputs, inputs, positions of the kernel)`` in float64."""
    plain = layer.to_plain(split=False) if isinstance(layer, DecomposedLayer) else layer
    weight = plain.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    groups = getattr(plain, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def loss_without(network: nn.Module, group: ChannelGroup, gone: list[int], x: torch.Tensor) -> float:
    """Return the shares of what the readers of some channels lose by them, from least squares on their inputs.

    A ridge is the same as samples in which each input is there alone.
    """
    data = {}
    for name in group.readers():
        layer = network.get_submodule(name)
        inputs, _ = calls(network, layer, x)
        bias = layer.scaling.bias if isinstance(layer, DecomposedLayer) else layer.bias
        data[name] = inputs if bias is None else inputs - inputs.mean(dim=1, keepdim=True)
    ridge = max(one.shape[0] / group_count(network.get_submodule(name)) / one.shape[1] for name, one in data.items())
    total = 0.0
    for name, inputs in data.items():
        weight = weight_of(network.get_submodule(name))
        groups, _, size, _ = weight.shape
        alone = torch.eye(len(inputs), dtype=torch.float64) * (ridge * inputs.square().sum() / len(inputs)).sqrt()
        out = {position for unit in gone for position in group.units[unit][name, "in"]}
        lost = whole = 0.0
        for number in range(groups):
            rows = range(number * size, (number + 1) * size)
            kept = [row for row in rows if row not in out]
            own, both = inputs[rows], torch.cat([inputs, alone], dim=1)
            rest = both[rows] - torch.linalg.lstsq(both[kept].T, both[rows].T).solution.T @ both[kept]
            lost += float(torch.einsum("rnt,ns->rts", weight[number], rest).square().sum())
            whole += float(torch.einsum("rnt,ns->rts", weight[number], own).square().sum())
        total += lost / whole
    return total


def test_channels_lose_what_all_their_readers_lose():
    network, x = readers(), images(12)
    groups = free_groups(network)
    moments = measure_features(network, groups, [x])
    curves = removal_curves(network, groups, moments, {}, step=1.0, ridge=TINY_RIDGE)
    of_channels = {curve.name: curve for curve in curves if curve.key == f"channels of {curve.name}"}
    assert [network.get_submodule(r).__class__.__name__ for g in groups for r in g.readers()] == [
        "DecomposedConv", "DecomposedConv", "ConvTranspose2d", "Linear",
    ]  # fmt: skip
    assert of_channels.keys() == {group.name for group in groups}
    for group in groups:
        curve, units = of_channels[group.name], range(len(group.units))
        assert curve.limit == len(curve.order) == len(units) - 1
        for count, loss in enumerate(curve.losses, 1):
            wanted = loss_without(network, group, curve.order[:count], x)
            assert loss == pytest.approx(wanted, rel=1e-4)
            before = curve.order[: count - 1]
            others = [loss_without(network, group, [*before, u], x) for u in units if u not in before]
            assert wanted <= min(others) * (1 + 1e-9)


def test_two_readers_of_one_channel_count_both():
    network, x = mbp.decompose(residual_classifier()), images()
    groups = free_groups(network)
    (shared,) = (group for group in groups if len(group.readers()) == 2)
    curves = removal_curves(network, groups, measure_features(network, groups, [x]), {}, step=0.2, ridge=TINY_RIDGE)
    (curve,) = (curve for curve in curves if curve.key == f"channels of {shared.name}")
    assert curve.losses[0] == pytest.approx(loss_without(network, shared, curve.order[:1], x), rel=1e-4)


@pytest.mark.parametrize(("step", "limit"), [(0.01, 1), (0.25, 2), (0.4, 3), (1.0, 7)])
def test_a_step_limits_what_goes_and_the_curve_goes_on_to_twice_that(step, limit):
    network, x = mbp.decompose(residual_classifier()), images()
    curve = removal_curves(network, [], measure_features(network, [], [x]), {}, step, 1e-9)[0]
    assert network.get_submodule(curve.name).rank() == 8
    assert (curve.limit, len(curve.order)) == (limit, min(2 * limit, 7))


def test_what_was_lost_before_is_added_and_what_has_one_left_is_left_out():
    network, x = mbp.decompose(tiny_classifier()), images()
    moments = measure_features(network, [], [x])
    plain, more = (removal_curves(network, [], moments, lost, 0.5, 1e-9) for lost in ({}, {"grouped": 0.25}))
    assert [curve.name for curve in plain] == [curve.name for curve in more] == ["stem", "grouped"]
    assert more[0] == plain[0]
    assert more[1].order == plain[1].order
    assert more[1].losses == pytest.approx([loss + 0.25 for loss in plain[1].losses])
    keep_bases_(network, {"stem": [0]})
    left = removal_curves(network, [], measure_features(network, [], [x]), {}, 0.5, 1e-9)
    assert [curve.name for curve in left] == ["grouped"]


# --- what cannot be measured


class Partly(nn.Module):
    """A layer that no image reaches, one with one position in each image, and one that can be broken."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.whole, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.whole(x)).mean(dim=(2, 3))


def test_all_problems_are_told_in_one_error():
    network = mbp.decompose(Partly())
    network.last.scaling.scaling_factors.data[0] = float("nan")
    with pytest.raises(mbp.ActivationError) as caught:
        measure_features(network, [], [images(2), images(1)])
    assert str(caught.value).splitlines() == [
        "Partly cannot be searched:",
        "  - idle: no image reaches it",
        "  - whole: 3 samples (3 images, 1 positions each) for 8 bases; at least 8 images are needed, or larger ones",
        "  - last: what it reads or puts out is NaN or infinite",
    ]
    assert not any(module._forward_hooks for module in network.modules())


def test_as_many_images_as_an_error_asks_for_are_enough():
    network = mbp.decompose(nn.Sequential(nn.Conv2d(1, 8, 8), nn.Flatten()))
    assert measure_features(network, [], [images(8)])["bases", "0"].samples == 8
    with pytest.raises(mbp.ActivationError, match="at least 8 images"):
        measure_features(network, [], [images(7)])


def test_images_that_do_not_fit_are_an_error_and_leave_no_hook():
    network = mbp.decompose(tiny_classifier())
    with pytest.raises(ValueError, match=r"cannot process an input of shape \(2, 3, 8, 8\)"):
        measure_features(network, free_groups(network), [torch.rand(2, 3, 8, 8)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
