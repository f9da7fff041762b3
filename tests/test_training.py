from __future__ import annotations

import io
import re

import pytest
import torch
from monai.networks.nets import DenseNet, ResNet
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.training import NORM_LAYERS, recombination_weights

from .networks import MONAI_NETWORKS, same_bits, snapshot, tiny_classifier


def names_of(network: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    known = {id(p): name for name, p in network.named_parameters()}
    return [known[id(p)] for p in parameters]


def test_a_classifier_trains_scaling_factors_norms_and_head():
    network = mbp.decompose(tiny_classifier())
    assert names_of(network, mbp.trainable_parameters(network)) == [
        "stem.scaling.scaling_factors",
        "norm.weight",
        "norm.bias",
        "grouped.scaling.scaling_factors",
        "head.weight",
        "head.bias",
    ]


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (MONAI_NETWORKS["DenseNet"][0], "class_layers.out"),
        (MONAI_NETWORKS["DenseNet 3D with InstanceNorm"][0], "class_layers.out"),
        (MONAI_NETWORKS["ResNet with shortcut B"][0], "fc"),
        (MONAI_NETWORKS["ResNet 3D with shortcut A"][0], "fc"),
        (MONAI_NETWORKS["EfficientNet"][0], "_fc"),
    ],
    ids=["DenseNet", "DenseNet InstanceNorm", "ResNet B", "ResNet A", "EfficientNet"],
)
def test_networks_of_monai_train_nothing_else(make, head):
    network = mbp.decompose(make())
    found = names_of(network, mbp.trainable_parameters(network))
    assert len(found) == len(set(found))
    norms = {name for name, module in network.named_modules() if "Norm" in type(module).__name__}
    wanted = {
        name
        for name, _ in network.named_parameters()
        if name.endswith("scaling_factors") or name.rpartition(".")[0] in {*norms, head}
    }
    assert norms
    assert set(found) == wanted
    assert found == [name for name, _ in network.named_parameters() if name in wanted]  # in the network's order
    assert {name for name in found if name.startswith(head)} == {f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize("name", ["DenseNet", "ResNet with shortcut A", "ResNet with shortcut B"])
def test_training_moves_these_parameters_and_nothing_else(name):
    torch.manual_seed(0)
    if name == "DenseNet":
        network = DenseNet(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)
    else:
        network = ResNet("basic", [1] * 4, [4, 8, 12, 16], 2, 1, num_classes=2, shortcut_type=name[-1])
    network = mbp.decompose(network)
    trained = mbp.trainable_parameters(network)
    names, before = set(names_of(network, trained)), snapshot(network)
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for seed in range(3):
        x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {key for key in before if "running_" in key or "num_batches" in key}
    assert moved - statistics == names
    assert moved & statistics == statistics


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ("grouped", set()),  # of a head that is decomposed, the weights stay frozen
        (["head", "norm"], {"head.weight", "head.bias"}),
        ([], set()),
    ],
)
def test_the_head_can_be_named(head, wanted):
    network = mbp.decompose(tiny_classifier())
    always = {"stem.scaling.scaling_factors", "grouped.scaling.scaling_factors", "norm.weight", "norm.bias"}
    assert set(names_of(network, mbp.trainable_parameters(network, head))) == always | wanted


def test_the_head_is_the_last_of_several_linear_layers():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 2))
    network = mbp.decompose(network)
    assert names_of(network, mbp.trainable_parameters(network)) == [
        "0.scaling.scaling_factors",
        "4.weight",
        "4.bias",
    ]


def test_a_head_that_does_not_exist_is_an_error_that_names_the_linear_layers():
    network = mbp.decompose(tiny_classifier())
    words = "head: ['fc'] not found; the linear layers of the network are ['head']"
    with pytest.raises(mbp.LayerSelectionError, match=re.escape(words)):
        mbp.trainable_parameters(network, ["head", "fc"])
    with pytest.raises(mbp.LayerSelectionError, match=re.escape("head: ['fc'] not found")):
        mbp.trainable_parameters(network, "fc")
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.trainable_parameters(tiny_classifier())


def test_what_requires_a_gradient_is_not_changed():
    network = mbp.decompose(tiny_classifier())
    network.norm.weight.requires_grad_(False)
    before = [p.requires_grad for p in network.parameters()]
    assert any(p is network.norm.weight for p in mbp.trainable_parameters(network))
    assert [p.requires_grad for p in network.parameters()] == before


@pytest.mark.parametrize("head", [None, "grouped"])
def test_frozen_weights_need_no_gradient_and_the_others_do(head):
    network = mbp.decompose(tiny_classifier())
    network.norm.requires_grad_(False)
    before = snapshot(network)
    found = mbp.freeze_weights_(network, head)
    assert all(p is q for p, q in zip(found, mbp.trainable_parameters(network, head), strict=True))
    assert [p for p in network.parameters() if p.requires_grad] == found
    assert same_bits(snapshot(network), before)
    nn.functional.cross_entropy(network(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 1, 0])).backward()
    assert [p.grad is not None for p in network.parameters()] == [p.requires_grad for p in network.parameters()]


def test_recombination_is_a_group_of_its_own_that_waits_frozen():
    network = mbp.decompose(tiny_classifier(), target_modules=["stem", "grouped", "head"])
    groups = mbp.parameter_groups(network, 0.125)
    weights = recombination_weights(network)
    assert names_of(network, weights) == ["stem.scaling.weight", "grouped.scaling.weight", "head.scaling.weight"]
    assert all(p is q for p, q in zip(groups[0]["params"], mbp.trainable_parameters(network), strict=True))
    assert all(p is q for p, q in zip(groups[1]["params"], weights, strict=True))
    optimizer = torch.optim.Adam(groups, lr=0.25, weight_decay=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125]
    x, labels, trained = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0]), []
    for wanted in (False, True, False):
        mbp.train_recombination_(network, wanted)
        before = snapshot(network)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
        after = snapshot(network)
        trained.append([not torch.equal(after[name], before[name]) for name in names_of(network, weights)])
        assert all(torch.equal(after[name], before[name]) for name in after if "basis" in name)
        assert not torch.equal(after["stem.scaling.scaling_factors"], before["stem.scaling.scaling_factors"])
    assert trained == [[False] * 3, [True] * 3, [False] * 3]


def test_weights_stay_as_they_are_where_the_head_does_not_exist():
    network = mbp.decompose(tiny_classifier())
    before = [p.requires_grad for p in network.parameters()]
    with pytest.raises(mbp.LayerSelectionError, match="not found"):
        mbp.freeze_weights_(network, "fc")
    assert [p.requires_grad for p in network.parameters()] == before


def test_the_learning_rate_falls_by_a_cosine_and_anew_in_each_round():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = mbp.round_schedule(optimizer, transfer_steps=4, round_steps=2, floor=0.2)
    found = []
    for _ in range(9):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    half = 0.5 * (0.2 + 0.8 * 0.5)  # in the middle of a cosine
    early, late = (0.5 * (0.2 + 0.4 * (1 + c * 2**-0.5)) for c in (1, -1))  # at a quarter and three quarters
    assert found == pytest.approx([0.5, early, half, late, 0.5, half, 0.5, half, 0.5])


def test_the_learning_rate_goes_on_after_a_cut_and_after_a_checkpoint():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.trainable_parameters(network), lr=0.5)
    scheduler = mbp.round_schedule(optimizer, 2, 2)
    optimizer.step()
    scheduler.step()
    before = optimizer.param_groups[0]["lr"]
    mbp.prune_(network, mbp.ScalingImportance(network).scores(), mbp.Budget(bases=0.5), optimizer)
    assert optimizer.param_groups[0]["lr"] == before
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    fresh = torch.optim.Adam(mbp.trainable_parameters(network), lr=0.5)
    again = mbp.round_schedule(fresh, 2, 2)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one, other in ((optimizer, scheduler), (fresh, again)):
        one.step()
        other.step()
    assert again.get_last_lr() == scheduler.get_last_lr() == [0.5]  # a new round


@pytest.mark.parametrize("arguments", [(0, 1, 0.1), (1, 0, 0.1), (1, 1, -0.1), (1, 1, 1.1), (1, 1, float("nan"))])
def test_a_schedule_without_steps_or_with_a_floor_outside_is_refused(arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    words = "transfer_steps and round_steps must be at least 1 and floor in [0, 1], got"
    with pytest.raises(ValueError, match=re.escape(words)):
        mbp.round_schedule(optimizer, *arguments)


def test_norm_layers_are_a_visible_tuple():
    for kind in (nn.BatchNorm1d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm):
        assert issubclass(kind, NORM_LAYERS)
    assert not issubclass(nn.Linear, NORM_LAYERS)


# --- running statistics --------------------------------------------------------------------------------------------


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [3 * torch.randn(4, 1, 8, 8, generator=generator) + i for i in range(count)]


def test_frozen_statistics_stay_and_are_used_though_the_network_trains():
    network = tiny_classifier().train()
    handles = mbp.freeze_norm_statistics_(network)
    before = snapshot(network)
    x = images(1)[0]
    found = network(x)
    assert network.training
    assert same_bits(snapshot(network), before)
    assert torch.equal(found, network.eval()(x))
    network.train()
    network(x).sum().backward()
    assert network.norm.weight.grad is not None  # the affine parameters go on to learn
    for handle in handles:
        handle.remove()
    network.train()
    network(x)
    assert int(network.norm.num_batches_tracked) == int(before["norm.num_batches_tracked"]) + 1


def test_only_batch_norms_with_statistics_are_frozen():
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.InstanceNorm2d(1), nn.Dropout())
    assert mbp.freeze_norm_statistics_(network) == []


@pytest.mark.parametrize("training", [True, False])
def test_recalibration_gives_the_plain_average_of_the_batches(training):
    network, data = tiny_classifier().train(training), images(3)
    network.stem.eval()
    network.norm.momentum = 0.3
    parameters, modes = dict(snapshot(network)), [module.training for module in network.modules()]
    with torch.no_grad():
        features = [network.stem(x) for x in data]
    means = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variances = torch.stack([f.var((0, 2, 3), unbiased=True) for f in features]).mean(0)
    assert mbp.recalibrate_norm_statistics_(network, data) == 3
    torch.testing.assert_close(network.norm.running_mean, means)
    torch.testing.assert_close(network.norm.running_var, variances)
    assert network.norm.momentum == 0.3
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(p.detach(), parameters[name]) for name, p in network.named_parameters())


def test_recalibration_switches_dropout_off():
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1)).train()
    x = torch.rand(8, 1, 4, 4)
    mbp.recalibrate_norm_statistics_(network, iter([x]))
    torch.testing.assert_close(network[1].running_mean, x.mean().reshape(1))


def test_recalibration_without_batches_is_an_error_and_changes_nothing():
    network = tiny_classifier()
    before = snapshot(network)
    with pytest.raises(ValueError, match="needs at least one batch of images, got none"):
        mbp.recalibrate_norm_statistics_(network, [])
    assert same_bits(snapshot(network), before)


def test_recalibration_that_fails_on_the_way_changes_nothing():
    network = tiny_classifier().train()
    network.norm.momentum = 0.3
    before = snapshot(network)
    with pytest.raises(RuntimeError, match="channels"):
        mbp.recalibrate_norm_statistics_(network, [*images(2), torch.rand(4, 3, 8, 8)])
    assert same_bits(snapshot(network), before)
    assert network.training
    assert network.norm.momentum == 0.3


def test_recalibration_of_frozen_norms_does_not_wipe_out_their_statistics():
    network = tiny_classifier()
    mbp.freeze_norm_statistics_(network)
    before = snapshot(network)
    with pytest.raises(ValueError, match="frozen"):
        mbp.recalibrate_norm_statistics_(network, images(2))
    assert same_bits(snapshot(network), before)
