from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.copies import copy_network

from .networks import NETWORKS, TinyClassifier, random_scores, sound, tiny_classifier

SHAPE = TinyClassifier.input_shape


def test_scores_are_the_slope_of_the_loss_when_the_channel_is_turned_down():
    make, shape = NETWORKS["DenseNet"]
    network = mbp.decompose(sound(make))
    x, y = torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    groups = {g.name: g for g in channel_groups(network, shape)}
    importance = mbp.ChannelTaylorImportance(network, shape)
    for part in (slice(0, 2), slice(2, 4)):
        nn.functional.cross_entropy(network(x[part]), y[part]).backward()
        importance.accumulate()
    importance.close()
    scores, modules = importance.scores(), dict(network.named_modules())

    def loss(group, number, scale, part):
        other = copy.deepcopy(network)
        layers = dict(other.named_modules())
        for (name, side), positions in groups[group].units[number].items():
            if side == "in":
                weight = layers[name].basis.weight if hasattr(layers[name], "basis") else layers[name].weight
                weight.data[:, positions] *= scale
        with torch.no_grad():
            return float(nn.functional.cross_entropy(other(x[part]), y[part]))

    assert len(modules) > 10
    checked = 0
    for group in list(groups)[:3]:
        for number in range(0, len(groups[group].units), 3):
            slopes = [
                (loss(group, number, 1 + 1e-5, part) - loss(group, number, 1 - 1e-5, part)) / 2e-5
                for part in (slice(0, 2), slice(2, 4))
            ]
            wanted = sum(slope**2 for slope in slopes) / 2
            assert float(scores[group][number]) == pytest.approx(wanted, rel=1e-4, abs=1e-14)
            checked += wanted > 0
    assert checked > 3


def test_gates_change_no_output_and_no_gradient_and_come_off():
    torch.manual_seed(0)
    network = mbp.decompose(tiny_classifier())
    x = torch.rand(2, *SHAPE)
    wanted = network(x)
    wanted.sum().backward()
    gradient = network.stem.scaling.scaling_factors.grad.clone()
    network.zero_grad()
    with mbp.ChannelTaylorImportance(network, SHAPE) as importance:
        with pytest.raises(ValueError, match=r"no gradient at the inputs of \['grouped'"):
            importance.accumulate()
        found = network(x)
        assert torch.equal(found, wanted)
        found.sum().backward()
        assert torch.equal(network.stem.scaling.scaling_factors.grad, gradient)
        copied = copy.deepcopy(network)
        copied(x).sum().backward()  # a copy adds nothing
        assert importance.accumulate(gradient_scale=2.0)
        network(x).sum().backward()
        first = importance.scores()
        importance.accumulate(gradient_scale=2.0)
        assert torch.allclose(importance.scores()["stem"], first["stem"])
        other = mbp.ChannelTaylorImportance(copied, SHAPE)
        other.load_state_dict(importance.state_dict())
        assert torch.equal(other.scores()["stem"], importance.scores()["stem"])
        (network(x).sum() * float("nan")).backward()
        assert not importance.accumulate(skip_nonfinite=True)
        (network(x).sum() * float("nan")).backward()
        with pytest.raises(ValueError, match="infinite or NaN gradients"):
            importance.accumulate()
    assert not network.grouped._forward_pre_hooks
    state = importance.state_dict()
    state["channels"] = {**state["channels"], "stem": 5}
    with pytest.raises(ValueError, match=r"other channels: \['stem'\] differ"):
        importance.load_state_dict(state)


def test_an_importance_wants_to_be_reset_after_a_cut():
    network = mbp.decompose(tiny_classifier())
    importance = mbp.ChannelTaylorImportance(network, SHAPE)
    with pytest.raises(ValueError, match="No scores yet"):
        importance.scores()
    mbp.prune_channels_(network, random_scores(network, SHAPE), mbp.Budget(threshold=0.5), SHAPE)
    with pytest.raises(ValueError, match=r"call reset\(\) after a cut"):
        network(torch.rand(2, *SHAPE))
    importance.reset()
    network(torch.rand(2, *SHAPE)).sum().backward()
    assert importance.accumulate()
    importance.close()
    for wrong in ({"reduction": "cube"}, {"normalization": "l3"}):
        with pytest.raises(ValueError, match="must be"):
            mbp.ChannelTaylorImportance(network, SHAPE, **wrong)


def gradients(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what each channel of a tiny classifier times its gradient comes to, found with autograd alone."""
    first = torch.relu(network.norm(network.stem(x))).detach().requires_grad_()
    second = torch.relu(network.grouped(first))
    second.retain_grad()
    nn.functional.cross_entropy(network.head(network.pool(second).flatten(1)), y).backward()
    found = [(value.detach() * value.grad).sum(dim=(0, 2, 3)).double() for value in (first, second)]
    # both groups of the convolution lose a channel at the same place
    return {"stem": found[0].reshape(2, 3).sum(dim=0), "grouped": found[1].reshape(2, 4).sum(dim=0)}


@pytest.mark.parametrize("reduction", ["square", "abs"])
@pytest.mark.parametrize("normalization", ["none", "l2", "mean", "max"])
def test_scores_are_the_mean_over_batches_of_what_channels_times_gradients_come_to(reduction, normalization):
    network = mbp.decompose(tiny_classifier()).eval()
    batches = [(torch.rand(n, *SHAPE), torch.arange(n) % 2) for n in (3, 5)]
    wanted = {name: torch.zeros(size, dtype=torch.float64) for name, size in (("stem", 3), ("grouped", 4))}
    for x, y in batches:
        for name, total in gradients(network, x, y).items():
            wanted[name] += (total.square() if reduction == "square" else total.abs()) / len(batches)
    with mbp.ChannelTaylorImportance(network, SHAPE, reduction, normalization) as importance:
        assert [group.name for group in importance.groups] == ["stem", "grouped"]
        for x, y in batches:
            nn.functional.cross_entropy(network(x), y).backward()
            assert importance.accumulate()
    assert importance.batches == 2
    scores = importance.scores()
    assert scores.keys() == wanted.keys()
    for name, value in wanted.items():
        divisor = {"none": 1.0, "l2": value.norm(), "mean": value.mean(), "max": value.max()}[normalization]
        assert scores[name].dtype == torch.float64
        torch.testing.assert_close(scores[name], value / divisor, rtol=1e-4, atol=1e-12)


def test_the_channels_of_a_linear_layer_come_last():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    network, x = mbp.decompose(plain, target_modules=["0", "2"]), torch.randn(2, 6, 3)  # six tokens as well
    with mbp.ChannelTaylorImportance(network, (6, 3)) as importance:
        network(x).square().sum().backward()
        importance.accumulate()
    features = network[1](network[0](x)).detach().requires_grad_()
    network[2](features).square().sum().backward()
    wanted = (features.detach() * features.grad).sum(dim=(0, 1)).double().square()
    torch.testing.assert_close(importance.scores()["0"], wanted, rtol=1e-4, atol=1e-9)


def test_a_loss_that_was_scaled_gives_the_scores_of_the_loss_itself():
    network, x = mbp.decompose(tiny_classifier()).eval(), torch.rand(4, *SHAPE)
    found = []
    for scale in (1.0, 1024.0):
        with mbp.ChannelTaylorImportance(network, SHAPE) as importance:
            (network(x).square().mean() * scale).backward()
            assert importance.accumulate(gradient_scale=scale)
        found.append(importance.scores())
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, rtol=1e-5, atol=0)


def test_gates_do_not_act_in_copies_which_can_be_cut_and_trained():
    network, x = mbp.decompose(tiny_classifier()), torch.rand(2, *SHAPE)
    with mbp.ChannelTaylorImportance(network, SHAPE) as importance:
        for copied in (copy.deepcopy(network), copy_network(network)):
            mbp.prune_channels_(copied, random_scores(copied, SHAPE), mbp.Budget(threshold=0.5), SHAPE)
            copied(x).sum().backward()
        with pytest.raises(ValueError, match="found no gradient at the inputs of"):
            importance.accumulate()
        network(x).sum().backward()
        assert importance.accumulate()


def test_frozen_networks_are_ranked_and_passes_without_gradients_leave_nothing():
    network = mbp.decompose(tiny_classifier()).eval().requires_grad_(False)
    x = torch.rand(2, *SHAPE)
    with mbp.ChannelTaylorImportance(network, SHAPE) as importance:
        with torch.no_grad():
            network(x)
        with pytest.raises(ValueError, match=re.escape("no gradient at the inputs of ['grouped', 'head']")):
            importance.accumulate()
        network(x).square().sum().backward()
        assert importance.accumulate()
    assert all(bool(score.any()) for score in importance.scores().values())


def test_a_network_none_of_whose_channels_can_go_is_refused_with_the_reason_of_each_group():
    make, shape = NETWORKS["SegResNet 3D"]
    words = (
        r"No channel of SegResNet can be removed:\n(.|\n)*GroupNorm cannot be sliced(.|\n)*lay configs/bases.json over"
    )
    with pytest.raises(mbp.LayerSelectionError, match=words):
        mbp.ChannelTaylorImportance(mbp.decompose(make()), shape)
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.ChannelTaylorImportance(tiny_classifier(), SHAPE)
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        mbp.ChannelTaylorImportance(mbp.decompose(tiny_classifier()), (3, 8, 8))


def test_to_reset_forgets_the_batches_and_to_close_keeps_the_scores():
    network = mbp.decompose(tiny_classifier())
    importance = mbp.ChannelTaylorImportance(network, SHAPE)
    network(torch.rand(2, *SHAPE)).sum().backward()
    assert importance.accumulate()
    importance.close()
    importance.close()  # once is enough, twice does no harm
    assert importance.scores().keys() == {"stem", "grouped"}
    importance.reset()
    assert importance.batches == 0
    with pytest.raises(ValueError, match="No scores yet: call accumulate"):
        importance.scores()
    assert len(network.grouped._forward_pre_hooks) == len(network.head._forward_pre_hooks) == 1
