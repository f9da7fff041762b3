from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.channel_trial import removed_slots
from monai_basisprune.channels import cut_channels_

from .networks import MONAI_NETWORKS, TinyClassifier, relative_error, same_bits, snapshot, tiny_classifier


class DigitNetwork(nn.Module):
    """A small classifier of digits, with and without batch norms and biases."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate([(1, 16), (16, 32), (32, 32)]):
            layers += [nn.Conv2d(before, after, 3, stride=2 if index == 1 else 1, padding=1, bias=not norm)]
            layers += [nn.BatchNorm2d(after)] if norm else []
            layers += [nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    x = torch.from_numpy(found.images).float().unsqueeze(1) / 8 - 1
    return x, torch.from_numpy(found.target)


@pytest.fixture(scope="module")
def trained(digits):
    """Train both networks on the first thousand digits for some seconds."""
    x, y = digits
    networks = {}
    for norm in (True, False):
        torch.manual_seed(0)
        network = DigitNetwork(norm)
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for epoch in range(25):
            for index in torch.randperm(1000, generator=torch.Generator().manual_seed(epoch)).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[index]), y[index]).backward()
                optimizer.step()
        networks[norm] = network.eval()
        assert accuracy(network, x[1200:], y[1200:]) > 0.9
    return networks


def accuracy(network, x, y) -> float:
    with torch.no_grad():
        return float((network(x).argmax(dim=1) == y).double().mean())


def output_error(network, reference, x) -> float:
    with torch.no_grad():
        wanted = reference(x)
        return float((network(x) - wanted).square().mean() / wanted.var(dim=0, correction=0).mean())


def cut(network: nn.Module, share: float) -> nn.Module:
    """Keep the same share of the bases of every layer: the first ones, which each kind of bases holds as the best."""
    for _, layer in mbp.decomposition.decomposed_layers(network):
        slots, per_group = max(1, round(share * layer.max_rank / layer.groups)), layer.max_rank // layer.groups
        layer.keep_bases_([g * per_group + s for g in range(layer.groups) for s in range(slots)], lambda *args: None)
    return network


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_at_equal_rank_activation_bases_lose_less_and_compensation_wins_some_back(trained, digits, norm, share):
    network, (x, _) = trained[norm], digits
    data, unseen = list(x[:100].split(25)), x[1200:]  # what the network was trained on may be unlabeled all the same
    weight = cut(mbp.decompose(network), share)
    activation = cut(mbp.decompose(network, "activation", data=data), share)
    errors = [output_error(one, network, unseen) for one in (weight, activation)]
    assert errors[1] < errors[0]
    for one, before in zip((weight, activation), errors, strict=True):
        result = mbp.compensate_(one, network, data)
        assert output_error(one, network, unseen) < before
        assert result.images == 100
        assert result.output_error_after < result.output_error_before
        assert list(result.layers) == [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
        assert any(layer.changed for layer in result.layers.values())
        assert all((layer.error_after < layer.error_before) == layer.changed for layer in result.layers.values())


def test_a_smaller_network_from_unlabeled_images_and_no_training(trained, digits):
    network, (x, y) = trained[True], digits
    data, unseen = list(x[:100].split(25)), x[1200:]
    found = mbp.decompose(network, "activation", data=data)
    result = mbp.prune_(found, mbp.ActivationImportance(found, data).scores(), mbp.Budget(parameters=0.5))
    assert result.parameter_reduction >= 0.5
    mbp.compensate_(found, network, data)
    assert accuracy(found, unseen, y[1200:]) > accuracy(network, unseen, y[1200:]) - 0.05
    plain = mbp.recompose(found)
    assert sum(p.numel() for p in plain.parameters()) < 0.55 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make", [lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), lambda bias: nn.Linear(9, 6, bias)]
)
def test_the_new_scaling_is_the_least_squares_solution(make, bias):
    torch.manual_seed(0)
    reference = nn.Sequential(make(bias)).double()
    groups = getattr(reference[0], "groups", 1)
    x = torch.rand(40, *((4, 6, 6) if groups == 2 else (9,)), dtype=torch.float64) + 0.5
    network = mbp.decompose(reference, target_modules=["0"])
    layer = network[0]
    per_group = layer.rank() // groups
    layer.keep_bases_([g * per_group + s for g in range(groups) for s in (0, 2)], lambda *args: None)
    layer.scaling.scaling_factors.data.uniform_(0.5, 1.5)
    factors = layer.scaling.scaling_factors.detach().clone()
    result = mbp.compensate_(network, reference, [x], ridge=1e-10)
    assert result.layers["0"].changed
    torch.testing.assert_close(layer.scaling.scaling_factors.detach(), factors)
    fit = x[torch.arange(40) % 4 != 3]  # the others are kept aside
    with torch.no_grad():
        features, wanted = (
            one(fit).movedim(1, -1).reshape(-1, channels).numpy()
            for one, channels in ((layer.basis, 2 * groups), (reference, 6))
        )
    for group in range(groups):
        z, y = features[:, 2 * group : 2 * group + 2], wanted[:, group * 6 // groups : (group + 1) * 6 // groups]
        if bias:
            z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        solution = np.linalg.lstsq(z, y, rcond=None)[0].T
        rows = slice(group * 6 // groups, (group + 1) * 6 // groups)
        found = layer.scaling.folded_weight().detach()[rows].reshape(-1, 2).numpy()
        np.testing.assert_allclose(found, solution[:, :2], rtol=1e-5, atol=1e-7)
        if bias:
            np.testing.assert_allclose(layer.scaling.bias.detach()[rows], solution[:, 2], rtol=1e-5, atol=1e-7)


def test_the_errors_are_those_of_the_layer_on_the_images_kept_aside():
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Conv2d(2, 6, 3))
    x = torch.rand(20, 2, 6, 6)
    network = cut(mbp.decompose(reference), 0.5)
    aside = x[3::4]
    before = (network(aside) - reference(aside)).detach().square().mean().item()
    result = mbp.compensate_(network, reference, list(x.split(6)))
    after = (network(aside) - reference(aside)).detach().square().mean().item()
    assert result.layers["0"].error_before == pytest.approx(before, rel=1e-4)
    assert result.layers["0"].error_after == pytest.approx(after, rel=1e-4)
    assert result.output_error_before == pytest.approx(before, rel=1e-4)
    assert result.output_error_after == pytest.approx(after, rel=1e-4)
    assert after < before


def test_a_strong_ridge_leaves_a_layer_as_it_is():
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False))
    network = cut(mbp.decompose(reference), 0.5)
    weight = network[0].scaling.weight.clone()
    mbp.compensate_(network, reference, [torch.rand(8, 2, 6, 6)], ridge=1e12)
    torch.testing.assert_close(network[0].scaling.weight, weight)


def test_a_network_that_lost_nothing_keeps_its_values():
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)).double()
    network = mbp.decompose(reference)
    result = mbp.compensate_(network, reference, [torch.rand(8, 2, 9, 9)])
    assert result.output_error_after <= result.output_error_before < 1e-20


def test_where_the_output_gets_worse_all_layers_get_their_values_back():
    class Opposed(nn.Module):
        """Two layers whose errors cancel: mending one of them makes the output worse."""

        def __init__(self, second: nn.Module) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), second

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + self.second(x)

    torch.manual_seed(0)
    reference = Opposed(nn.Linear(3, 3, bias=False)).double()
    network = mbp.decompose(reference, target_modules=["first"])
    error = 0.5 * network.first.scaling.weight.detach()
    network.first.scaling.weight.data += error
    with torch.no_grad():
        network.second.weight -= error @ network.first.basis.weight
    before = snapshot(network)
    result = mbp.compensate_(network, reference, [torch.rand(16, 3).double()])
    assert same_bits(snapshot(network), before)
    assert not result.layers["first"].changed
    assert result.layers["first"].error_after < result.layers["first"].error_before
    assert result.output_error_after == result.output_error_before


def test_all_problems_stand_in_one_error_and_nothing_is_changed():
    network = mbp.decompose(tiny_classifier()).train()
    reference = tiny_classifier()
    reference.stem = nn.Conv2d(1, 5, 3, padding=1)
    del reference.grouped
    before = snapshot(network)
    with pytest.raises(mbp.ActivationError) as caught:
        mbp.compensate_(network, reference, [torch.full((2, 1, 8, 8), torch.nan)])
    assert str(caught.value).splitlines() == [
        "TinyClassifier cannot be compensated:",
        "  - stem: 6 output channels, 5 in the reference",
        "  - grouped: the reference has no such layer",
        "  - batch 1: NaN or infinite values in the images at [0, 1]",
    ]
    x = torch.rand(8, 1, 8, 8)
    reference = tiny_classifier()
    broken = copy.deepcopy(reference)
    broken.head.bias.data.fill_(torch.nan)
    for other, data, words in (
        (reference, [x[:3]], "data: 3 images; at least 4 are needed, and some 100 are of use"),
        (reference, [], "data: the loader is empty"),
        (broken, [x], "output: NaN or infinite values in that of the network or the reference"),
    ):
        with pytest.raises(mbp.ActivationError, match=re.escape(words)):
            mbp.compensate_(network, other, data)
    with pytest.raises(ValueError, match=re.escape("ridge must be a positive number, got 0")):
        mbp.compensate_(network, reference, [x], ridge=0)
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.compensate_(reference, reference, [x])
    assert same_bits(snapshot(network), before)
    assert network.training
    assert not any(m._forward_hooks for one in (network, reference) for m in one.modules())


def test_images_come_in_batches_of_one_and_as_dictionaries():
    torch.manual_seed(0)
    reference, x = tiny_classifier().eval(), torch.rand(12, 1, 8, 8)
    results = []
    for data in ([x], [{"image": part} for part in x.split(1)]):
        network = cut(mbp.decompose(reference), 0.5)
        results.append((mbp.compensate_(network, reference, data), network(x)))
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)
    assert results[0][0].images == results[1][0].images == 12


@pytest.mark.parametrize("name", ["DenseNet with PReLU", "ResNet 3D with shortcut A", "UNet 3D", "DynUNet"])
def test_networks_of_monai_are_cut_and_compensated(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    data = [torch.rand(8, *shape) for _ in range(2)]
    found = mbp.decompose(network, "activation", data=data)
    assert relative_error(found(data[0]), network(data[0])) < 1e-5
    mbp.prune_(found, mbp.ActivationImportance(found, data).scores(), mbp.Budget(bases=0.4))
    result = mbp.compensate_(found, network, data)
    assert result.output_error_after < result.output_error_before


def test_a_layer_that_is_used_twice_is_compensated_for_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.once = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.once(torch.relu(self.layer(torch.relu(self.layer(x)))))

    torch.manual_seed(0)
    reference, data = Twice(), [torch.randn(16, 3, 8, 8)]
    network = cut(mbp.decompose(reference, "activation", data=data), 0.67)
    result = mbp.compensate_(network, reference, data)
    assert list(result.layers) == ["layer", "once"]
    assert result.output_error_after < result.output_error_before


def channel_cut(network: nn.Module, shape: tuple[int, ...], share: float = 0.5) -> nn.Module:
    """Remove the last channels of each group that can be cut."""
    groups = [group for group in channel_groups(network, shape) if group.kept_because is None]
    kept = {group.name: list(range(max(1, round((1 - share) * len(group.units))))) for group in groups}
    cut_channels_(network, removed_slots({group.name: group.units for group in groups}, kept), None)
    return network


@pytest.mark.parametrize("decomposed", [True, False])
def test_removed_channels_are_read_off_those_that_are_left(decomposed):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.Conv2d(6, 5, 1), nn.ReLU()).double()
    # the last three channels are sums of the first three
    plain[0].weight.data[3:] = torch.einsum("ij,jchk->ichk", torch.randn(3, 3).double(), plain[0].weight.data[:3])
    reference = mbp.decompose(plain, target_modules=["0", "1"] if decomposed else ["0"])
    network = channel_cut(copy.deepcopy(reference), (2, 8, 8))
    x = [torch.randn(40, 2, 8, 8, dtype=torch.float64)]
    before = relative_error(network(x[0]), plain(x[0]))
    assert before > 0.05
    result = mbp.compensate_(network, reference, x, ridge=1e-10)
    assert list(result.layers) == ["0", "1"]
    assert result.layers["1"].changed
    assert relative_error(network(x[0]), plain(x[0])) < 0.02 * before
    again = mbp.compensate_(network, reference, x, ridge=1e-10)
    assert again.output_error_after <= result.output_error_after * (1 + 1e-9)


@pytest.mark.parametrize("name", ["DenseNet with PReLU", "ResNet with shortcut B", "SE-ResNeXt block"])
def test_networks_of_monai_that_lost_channels_are_compensated(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    reference = mbp.decompose(make().eval())
    network = channel_cut(copy.deepcopy(reference), shape, 0.3)
    assert all(m.means is None for m in network.modules() if isinstance(m, mbp.DecomposedConv))
    data = [torch.rand(20, *shape) for _ in range(4)]
    result = mbp.compensate_(network, reference, data)
    assert any(layer.changed for layer in result.layers.values())
    assert result.output_error_after < result.output_error_before


def test_a_reference_that_does_not_know_the_channels_is_refused():
    plain = tiny_classifier().eval()
    network = channel_cut(mbp.decompose(plain), TinyClassifier.input_shape)
    before, x = snapshot(network), [torch.rand(16, *TinyClassifier.input_shape)]
    for reference, words in (
        (plain, "grouped: has lost channels, and this layer of the reference has not the same bases with all channels"),
        (cut(mbp.decompose(plain), 0.3), "give the network as it was before they were removed, a copy.deepcopy"),
        (mbp.decompose(nn.Sequential(nn.Conv2d(1, 2, 3))), "grouped: the reference has no such layer"),
    ):
        with pytest.raises(mbp.ActivationError, match=re.escape(words)):
            mbp.compensate_(network, reference, x)
    assert same_bits(snapshot(network), before)


def test_too_few_images_for_the_bases_of_a_layer_are_told_with_the_number_that_is_needed():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 24, 3, stride=3))
    network = mbp.decompose(plain)
    with pytest.raises(mbp.ActivationError) as caught:
        mbp.compensate_(network, plain, [torch.rand(5, 3, 8, 8)])
    assert str(caught.value).splitlines() == [
        "Sequential cannot be compensated:",
        "  - 2: 16 samples (4 of 5 images, 4 positions each; the others are kept aside) for 24 bases; at least 8 "
        "images are needed, or larger ones",
    ]
