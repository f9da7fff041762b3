from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.snapshot import NetworkSnapshot, restore_, take_snapshot
from monai_basisprune.structure import structure_of

from .networks import MONAI_NETWORKS, same_bits, snapshot, tiny_classifier

OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW in two groups": lambda parameters: torch.optim.AdamW(
        [{"params": parameters[:2], "lr": 0.02}, {"params": parameters[2:]}]
    ),
}


def images(seed: int, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    return torch.rand(6, *shape, generator=torch.Generator().manual_seed(seed))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0, shape=(1, 8, 8)) -> None:
    network.train()
    for step in range(steps):
        optimizer.zero_grad()
        network(images(seed + step, shape)).square().mean().backward()
        optimizer.step()


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return copy.deepcopy(optimizer.state_dict()) | {
        "bases": [list(layer.kept_bases) for _, layer in decomposed_layers(network)]
    }


def cut(network: nn.Module, optimizer: torch.optim.Optimizer | None, share: float) -> None:
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=share), optimizer)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("before", [0.0, 0.3])
def test_network_and_optimizer_come_back_bit_by_bit_and_train_on_alike(kind, before):
    network = mbp.decompose(tiny_classifier())
    optimizer = OPTIMIZERS[kind](mbp.freeze_weights_(network))
    cut(network, optimizer, before)
    train(network, optimizer, 3)
    twin, twin_optimizer = copy.deepcopy((network, optimizer))
    wanted, state, saved = snapshot(network), state_of(network, optimizer), take_snapshot(network, optimizer)
    for times in range(2):  # a snapshot can be restored again
        cut(network, optimizer, 0.7)
        train(network, optimizer, 2 + times, seed=9)
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        restore_(network, optimizer, saved)
        assert same_bits(snapshot(network), wanted)
        torch.testing.assert_close(state_of(network, optimizer), state, rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in network.parameters())
    train(network, optimizer, 2, seed=5)
    train(twin, twin_optimizer, 2, seed=5)
    assert same_bits(snapshot(network), snapshot(twin))
    torch.testing.assert_close(state_of(network, optimizer), state_of(twin, twin_optimizer), rtol=0, atol=0)


def test_an_optimizer_that_has_not_stepped_forgets_what_it_learned_since():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    saved = take_snapshot(network, optimizer)
    train(network, optimizer, 2)
    cut(network, optimizer, 0.5)
    restore_(network, optimizer, saved)
    assert len(optimizer.state) == 0
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in mbp.trainable_parameters(network)
    }


def test_what_holds_the_network_goes_on_with_it():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    modules, head, calls = list(network.modules()), network.head.weight, []
    network.stem.basis.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    saved = take_snapshot(network, optimizer)
    cut(network, optimizer, 0.5)
    pruned = network.stem.scaling.scaling_factors
    network(images(0))
    restore_(network, optimizer, saved)
    network(images(0))
    assert all(one is other for one, other in zip(modules, network.modules(), strict=True))
    assert network.head.weight is head
    assert network.stem.scaling.scaling_factors is not pruned
    assert calls == [pruned.numel(), 6]
    assert [p.requires_grad for p in network.parameters()] == [
        any(p is one for one in mbp.trainable_parameters(network)) for p in network.parameters()
    ]


def test_a_snapshot_does_not_change_with_the_network():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    train(network, optimizer, 1)
    saved = take_snapshot(network, optimizer)
    before = copy.deepcopy(saved.to_dict())
    train(network, optimizer, 2)
    restore_(network, optimizer, saved)
    train(network, optimizer, 2)
    torch.testing.assert_close(saved.to_dict(), before, rtol=0, atol=0)


def test_importances_collect_again_and_rank_as_before():
    network = mbp.decompose(tiny_classifier())
    taylor = mbp.TaylorImportance(network)

    def scores() -> dict[str, torch.Tensor]:
        taylor.reset()
        network.zero_grad()
        network.eval()(images(3)).square().mean().backward()
        taylor.accumulate()
        return taylor.scores()

    before, saved = scores(), take_snapshot(network)
    cut(network, None, 0.5)
    restore_(network, None, saved)
    after = scores()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["DenseNet", "ResNet 3D with shortcut A", "ResNet 1D", "EfficientNet"])
def test_networks_of_monai_come_back(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network = mbp.decompose(make())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    train(network, optimizer, 1, shape=shape)
    wanted, saved = snapshot(network), take_snapshot(network, optimizer)
    x = images(1, shape)
    expected = network.eval()(x)
    cut(network, optimizer, 0.4)
    train(network, optimizer, 1, shape=shape)
    restore_(network, optimizer, saved)
    assert same_bits(snapshot(network), wanted)
    assert torch.equal(network.eval()(x), expected)
    assert all(layer.kept_bases == list(range(layer.max_rank)) for _, layer in decomposed_layers(network))


@pytest.mark.parametrize("name", ["DenseNet", "ResNet 1D"])
def test_channels_come_back_and_go_again(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network = mbp.decompose(make())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    train(network, optimizer, 1, shape=shape)
    x, states = images(1, shape), []
    for share in (0.0, 0.3, 0.6):
        scores = {n: torch.rand(layer.rank(), dtype=torch.float64) for n, layer in decomposed_layers(network)}
        free = [group for group in mbp.channel_status(network, shape) if group.skipped is None]
        channels = {group.name: torch.rand(group.channels, dtype=torch.float64) for group in free}
        mbp.prune_jointly_(network, scores, channels, mbp.Budget(parameters=share), shape, optimizer)
        train(network, optimizer, 1, shape=shape)
        saved = (take_snapshot(network, optimizer), snapshot(network), state_of(network, optimizer))
        states.append((*saved, network.eval()(x), mbp.PruningPlan.from_network(network), structure_of(network)))
    for index in (0, 2, 1, 0):  # larger and smaller, from either side
        saved, tensors, state, output, plan, structure = states[index]
        restore_(network, optimizer, NetworkSnapshot.from_dict(saved.to_dict()))
        assert same_bits(snapshot(network), tensors)
        torch.testing.assert_close(state_of(network, optimizer), state, rtol=0, atol=0)
        assert torch.equal(network.eval()(x), output)
        assert mbp.PruningPlan.from_network(network) == plan
        assert structure_of(network) == structure
        assert mbp.recompose(network)(x).shape == output.shape
    assert len({structure for *_, structure in states}) == 3


def test_means_of_bases_from_activations_come_back_after_channels_were_cut():
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    network = mbp.decompose(network, basis="activation", data=[images(0), images(1)])
    saved, means = take_snapshot(network), network[2].means.clone()
    mbp.prune_channels_(network, {"0": torch.arange(6.0)}, mbp.Budget(threshold=2.5), (1, 8, 8))
    assert network[2].means is None
    restore_(network, None, saved)
    assert torch.equal(network[2].means, means)
    assert network[2].in_channels == network[2].basis.in_channels == 6
    assert not hasattr(network[2], "kept_channels")


def test_decomposed_linear_layers_come_back():
    torch.manual_seed(0)
    network = mbp.decompose(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 8)), target_modules=["0", "2"]
    )
    saved, wanted = take_snapshot(network), snapshot(network)
    assert len(decomposed_layers(network)) == 2
    cut(network, None, 0.5)
    assert network[2].rank() < 8
    restore_(network, None, saved)
    assert same_bits(snapshot(network), wanted)
    assert network[2].basis.out_features == 8
    assert "out_features=8" in repr(network[2].basis)


def test_a_snapshot_goes_through_a_checkpoint_into_a_network_of_another_process(tmp_path):
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    train(network, optimizer, 2)
    cut(network, optimizer, 0.3)
    torch.save(take_snapshot(network, optimizer).to_dict(), tmp_path / "snapshot.pt")
    loaded = NetworkSnapshot.from_dict(torch.load(tmp_path / "snapshot.pt", weights_only=True))
    fresh = mbp.decompose(tiny_classifier(seed=1))
    fresh_optimizer = torch.optim.Adam(mbp.freeze_weights_(fresh))
    restore_(fresh, fresh_optimizer, loaded)
    assert same_bits(snapshot(fresh), snapshot(network))
    torch.testing.assert_close(state_of(fresh, fresh_optimizer), state_of(network, optimizer), rtol=0, atol=0)


def test_a_snapshot_that_was_read_onto_another_device_comes_to_that_of_the_network():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    train(network, optimizer, 1)
    saved = take_snapshot(network, optimizer)
    elsewhere = mbp.decompose(tiny_classifier()).to("meta")
    optimizer = torch.optim.Adam(mbp.freeze_weights_(elsewhere))
    mbp.prune_(elsewhere, {"stem": torch.arange(6.0)}, mbp.Budget(threshold=3.0))
    restore_(elsewhere, optimizer, saved)
    assert elsewhere.stem.rank() == 6
    assert len(optimizer.state) == len(optimizer.param_groups[0]["params"]) > 0
    for parameter, state in optimizer.state.items():
        assert parameter.is_meta
        assert {key: value.device.type for key, value in state.items()} == {
            "step": "cpu",  # Adam counts on the host
            **dict.fromkeys(("exp_avg", "exp_avg_sq"), "meta"),
        }


def test_a_snapshot_of_something_else_changes_nothing_and_lists_all_problems():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    other = tiny_classifier()
    other.head = nn.Linear(8, 3)
    saved = take_snapshot(mbp.decompose(other, exclude_modules=["grouped"]))
    saved.kept_bases["stem"] = [0, 7]
    before = snapshot(network)
    with pytest.raises(mbp.PlanMismatchError) as caught:
        restore_(network, optimizer, saved)
    message = str(caught.value)
    for words in (
        "The snapshot is not of this network and its optimizers; restore it where it was taken:",
        "grouped.basis.weight: only in one of the two",
        "grouped: decomposed in only one of the two",
        "head.weight: (2, 8) here, (3, 8) in it",
        "stem: keeps basis 7, there are 6",
        "optimizers: groups of [[6]] parameters here, of [] in it",
    ):
        assert words in message
    assert same_bits(snapshot(network), before)
    with pytest.raises(mbp.PlanMismatchError, match=re.escape("optimizers: groups of [[6], [6]]")):
        restore_(network, [optimizer, optimizer], take_snapshot(network, optimizer))
