from __future__ import annotations

import re

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import network_cost
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.channel_scaling_layer import channel_scalings

from .networks import MONAI_NETWORKS, TinyClassifier, relative_error, same_bits, snapshot, tiny_classifier

SHAPE = TinyClassifier.input_shape


def chain(norm: bool = True, width: int = 6) -> nn.Sequential:
    """Return three convolutions in a row."""
    layers: list[nn.Module] = []
    for before, after in ((1, width), (width, width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def residual_unet() -> UNet:
    return UNet(2, 1, 2, (4, 8), (2,), num_res_units=1, norm="BATCH")


def random_weights_(network: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, module in channel_scalings(network):
        weight = module.channel_scaling.weight
        weight.data.copy_(torch.rand(weight.shape, generator=generator) + 0.5)


def scaled_names(network: nn.Module) -> list[str]:
    return [name for name, _ in channel_scalings(network)]


@pytest.mark.parametrize(
    "name",
    [
        *("DenseNet with PReLU", "DenseNet 3D with InstanceNorm", "ResNet with shortcut B", "ResNet 1D"),
        *("SE-ResNeXt block", "HighResNet", "DynUNet", "EfficientNet"),
    ],
)
def test_scaling_changes_nothing_at_the_start_and_is_folded_without_a_trace(name, tmp_path):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    plain = make().eval()
    network = mbp.decompose(plain)
    before, x = snapshot(network), torch.rand(2, *shape)
    scaled = mbp.add_channel_scaling(network, shape)
    assert same_bits(snapshot(network), before)
    assert relative_error(scaled(x), network(x)) < 1e-6
    assert scaled_names(scaled)
    assert all(weight.eq(1).all() for _, m in channel_scalings(scaled) for weight in [m.channel_scaling.weight])
    # counted, planned and listed as the network is without
    for budget in (mbp.Budget(parameters=0.5), mbp.Budget(macs=0.5, input_shape=shape)):
        assert network_cost(scaled, budget) == network_cost(network, budget)
    assert mbp.PruningPlan.from_network(scaled) == mbp.PruningPlan.from_network(network)
    assert mbp.layer_status(scaled) == mbp.layer_status(network)
    random_weights_(scaled)
    wanted = scaled(x)
    assert relative_error(wanted, network(x)) > 1e-3
    folded = mbp.fold_channel_scaling(scaled)
    assert relative_error(folded(x), wanted) < 1e-4
    assert list(folded.state_dict()) == list(network.state_dict())
    assert not any(module._forward_hooks for module in folded.modules())
    assert relative_error(mbp.recompose(scaled)(x), wanted) < 1e-4
    assert scaled_names(scaled)  # the one that is folded is a copy
    mbp.save_pruned(scaled, tmp_path / "model.pt")
    assert relative_error(mbp.load_pruned(plain, tmp_path / "model.pt")(x), wanted) < 1e-4


@pytest.mark.parametrize("name", ["DenseNet with PReLU", "ResNet with shortcut B", "UNet", "HighResNet"])
def test_channels_with_weights_of_zero_go_without_a_trace(name, tmp_path):
    make, shape = {**MONAI_NETWORKS, "UNet": (residual_unet, (1, 16, 16))}[name]
    torch.manual_seed(0)
    plain = make().eval()
    scaled = mbp.add_channel_scaling(mbp.decompose(plain), shape)
    random_weights_(scaled)
    groups = [group for group in channel_groups(scaled, shape) if group.kept_because is None]
    modules = dict(channel_scalings(scaled))
    cut = 0
    for group in groups:
        sides = [side for side in group.sides() if side[1] == "out" and side[0] in modules]
        for side in sides:
            for unit in group.units[::2]:
                modules[side[0]].channel_scaling.weight.data[unit[side]] = 0
        cut += len(group.units[::2]) if sides else 0
    x = torch.rand(2, *shape)
    wanted = scaled(x)
    optimizer = torch.optim.Adam(mbp.freeze_weights_(scaled), 0.0)
    (scaled(x).square().mean() + mbp.channel_scaling_penalty(scaled)).backward()
    optimizer.step()
    scores = mbp.ChannelScalingImportance(scaled, shape).scores()
    result = mbp.prune_channels_(scaled, scores, mbp.Budget(threshold=1e-6), shape, optimizer)
    assert result.removed_channels == cut
    assert relative_error(scaled(x), wanted) < 1e-4
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for _, module in channel_scalings(scaled):
        weight = module.channel_scaling.weight
        assert id(weight) in held
        assert optimizer.state[weight]["exp_avg"].shape == weight.shape
    optimizer.step()
    recomposed = mbp.recompose(scaled)
    assert relative_error(recomposed(x), wanted) < 1e-4
    assert sum(p.numel() for p in recomposed.parameters()) == result.parameters
    mbp.save_pruned(scaled, tmp_path / "model.pt")
    assert relative_error(mbp.load_pruned(plain, tmp_path / "model.pt")(x), wanted) < 1e-4


def test_weights_stand_behind_the_last_norm_and_else_behind_the_convolution():
    def places(network: nn.Module, shape: tuple[int, ...]) -> list[str]:
        return scaled_names(mbp.add_channel_scaling(mbp.decompose(network), shape))

    assert places(chain(), (1, 8, 8)) == ["1", "4"]
    assert places(chain(norm=False), (1, 8, 8)) == ["0", "2"]
    make, shape = MONAI_NETWORKS["DenseNet"]
    found = places(make(), shape)
    assert found
    assert all(".norm" in name for name in found)  # every convolution is followed by a norm, some by concatenation
    names = places(residual_unet(), (1, 16, 16))
    assert "model.0.residual" in names  # it is added to what comes from behind a norm
    assert "model.0.conv.unit0.adn.N" in names
    # an instance norm without weights has nowhere to fold into, and takes back what is in front of it
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    assert places(plain, (1, 8, 8)) == ["3"]
    # so channels that pass one on a path keep all, whatever stands on the other
    make, shape = MONAI_NETWORKS["UNet 3D"]
    with pytest.raises(mbp.LayerSelectionError, match="norms take its scaling back, and have no weights to hold it"):
        places(make(), shape)


def test_what_is_trained_are_the_weights_of_scaling_and_not_those_of_the_norms_they_stand_behind():
    network = mbp.add_channel_scaling(mbp.decompose(chain()), (1, 8, 8))
    chosen = {name for name, p in network.named_parameters() if id(p) in set(map(id, mbp.freeze_weights_(network)))}
    assert chosen == {
        *("0.scaling.scaling_factors", "1.bias", "1.channel_scaling.weight"),
        *("3.scaling.scaling_factors", "4.bias", "4.channel_scaling.weight", "8.weight", "8.bias"),
    }
    assert {name for name, p in network.named_parameters() if p.requires_grad} == chosen


def test_the_penalty_is_the_sum_of_magnitudes_and_its_gradient_the_sign():
    network = mbp.add_channel_scaling(mbp.decompose(chain()), (1, 8, 8))
    network[1].channel_scaling.weight.data.copy_(torch.tensor([1.0, -2, 3, 0.5, -0.5, 0.25]))
    assert mbp.channel_scaling_penalty(network).item() == pytest.approx(7.25 + 6)
    loss = mbp.ChannelScalingLoss(nn.CrossEntropyLoss(), network, 0.1)
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 0])
    value = loss(x, y)
    assert value.item() == pytest.approx(float(nn.functional.cross_entropy(x, y)) + 0.1 * 13.25)
    value.backward()
    wanted = 0.1 * torch.tensor([1.0, -1, 1, 1, -1, 1])
    torch.testing.assert_close(network[1].channel_scaling.weight.grad, wanted)


def test_scores_are_relative_to_the_largest_weight_of_the_network_and_coupled_ones_take_the_largest():
    make, shape = MONAI_NETWORKS["ResNet with shortcut B"]
    network = mbp.add_channel_scaling(mbp.decompose(make()), shape)
    random_weights_(network)
    weights = {name: m.channel_scaling.weight for name, m in channel_scalings(network)}
    weights["bn1"].data[2] = -4.0
    importance = mbp.ChannelScalingImportance(network, shape)
    scores = importance.scores()
    assert float(scores["conv1"][2]) == 1.0
    name = next(name for name in scores if name.startswith("layer1.0.conv3") or "downsample" in name)
    bn3, down = weights["layer1.0.bn3"].detach().abs(), weights["layer1.0.downsample.1"].detach().abs()
    torch.testing.assert_close(scores[name], (torch.maximum(bn3, down) / 4).double())
    mbp.prune_channels_(network, scores, mbp.Budget(parameters=0.4), shape)
    with pytest.raises(ValueError, match=re.escape("call reset() after a cut")):
        importance.scores()
    importance.reset()
    assert float(max(s.max() for s in importance.scores().values())) == 1.0


def test_training_with_the_penalty_finds_the_channels_that_are_of_no_use():
    torch.manual_seed(0)
    plain = chain(norm=False)
    for value in plain[0].parameters():
        value.data[:3] = 0  # three channels that tell nothing
    x = torch.randn(64, 1, 8, 8) + torch.linspace(-0.5, 0.5, 64).view(-1, 1, 1, 1)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    network = mbp.add_channel_scaling(mbp.decompose(plain), (1, 8, 8))
    loss = mbp.ChannelScalingLoss(nn.CrossEntropyLoss(), network, 0.003)
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()
    scores = mbp.ChannelScalingImportance(network, (1, 8, 8)).scores()["0"]
    assert float(scores[:3].max()) < 0.3 * float(scores[3:].max())


def test_what_cannot_be_done_is_said():
    network = mbp.decompose(tiny_classifier())
    for act in (
        mbp.channel_scaling_penalty,
        lambda n: mbp.ChannelScalingImportance(n, SHAPE),
        lambda n: mbp.ChannelScalingLoss(nn.CrossEntropyLoss(), n),
    ):
        with pytest.raises(mbp.LayerSelectionError, match=re.escape("call add_channel_scaling(network, input_shape)")):
            act(network)
    scaled = mbp.add_channel_scaling(network, SHAPE)
    with pytest.raises(mbp.LayerSelectionError, match="has channel scaling already: call fold_channel_scaling"):
        mbp.add_channel_scaling(scaled, SHAPE)
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.add_channel_scaling(tiny_classifier(), SHAPE)
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        mbp.add_channel_scaling(network, (3, 8, 8))
    with pytest.raises(mbp.LayerSelectionError) as caught:
        mbp.add_channel_scaling(mbp.decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))), (1, 8, 8))
    assert "No channel of Sequential can be scaled and removed; its bases can be, with prune_:" in str(caught.value)
    assert "  - 0: " in str(caught.value)
    with pytest.raises(ValueError, match=re.escape("weight must be a number of at least 0, got -1")):
        mbp.ChannelScalingLoss(nn.CrossEntropyLoss(), scaled, -1)
    importance = mbp.ChannelScalingImportance(scaled, SHAPE)
    for value, words in ((0.0, "All channel scaling weights are 0"), (float("nan"), "holds NaN or infinite weights")):
        for _, module in channel_scalings(scaled):
            module.channel_scaling.weight.data.fill_(value)
        with pytest.raises(ValueError, match=words):
            importance.scores()
    assert mbp.fold_channel_scaling(network) is network
