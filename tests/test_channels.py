from __future__ import annotations

import copy
import json

import pytest
import torch
from monai.networks.nets import SEResNet50
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import network_cost
from monai_basisprune.channel_graph import channel_groups

from .networks import (
    NETWORKS,
    TinyClassifier,
    random_scores,
    relative_error,
    same_bits,
    snapshot,
    sound,
    tiny_classifier,
)

SHAPE = TinyClassifier.input_shape


UNSLICED = {"SegResNet 3D"}
LONG = {"ResNet 3D with shortcut A", "ResNet 1D", "BasicUNet", "DenseNet"}
SLICED = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in NETWORKS if name not in UNSLICED
]


def halved(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    scores = mbp.SingularValueImportance(network).scores()
    noisy = {name: s * (1 + torch.rand(s.shape, generator=generator, dtype=s.dtype)) for name, s in scores.items()}
    mbp.prune_(network, noisy, mbp.Budget(bases=0.3))
    return network


def silence_(network: nn.Module, groups, numbers) -> None:
    """Set everything to zero that makes some channels."""
    modules = dict(network.named_modules())
    with torch.no_grad():
        for group in groups:
            for number in numbers(group):
                for (name, side), positions in group.units[number].items():
                    if side != "out":
                        continue
                    owner = getattr(modules[name], "scaling", modules[name])
                    for part in (owner.weight, owner.bias) if hasattr(owner, "bias") else (owner.weight,):
                        if part is not None and getattr(owner, "transposed", False) and part.ndim > 1:
                            part[:, positions] = 0.0
                        elif part is not None:
                            part[positions] = 0.0


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", SLICED)
def test_channels_that_are_zero_go_without_a_trace_and_are_counted_exactly(name, tmp_path):
    make, shape = NETWORKS[name]
    plain = sound(make)
    before = mbp.measure_complexity(plain, shape)
    network = halved(mbp.decompose(plain))
    groups = [group for group in channel_groups(network, shape) if group.kept_because is None]
    silence_(network, groups, lambda group: range(1, len(group.units), 2))
    x = torch.randn(2, *shape, dtype=torch.float64)
    with mbp.ChannelTaylorImportance(network, shape) as importance:
        output = network(x)
        (output[0] if isinstance(output, (list, tuple)) else output).square().mean().backward()
        assert importance.accumulate()
    scores = importance.scores()
    marked = {}
    for group in groups:
        assert not scores[group.name][1::2].any()
        marked[group.name] = torch.arange(len(group.units)) % 2 == 0
    with torch.no_grad():
        wanted = network(x)
    result = mbp.prune_channels_(network, {n: m.double() for n, m in marked.items()}, mbp.Budget(threshold=0.5), shape)
    assert result.kept == {n: m.nonzero().flatten().tolist() for n, m in marked.items()}
    assert result.removed_channels == sum(len(group.units) // 2 for group in groups) > 0
    assert result.channels == sum((len(group.units) + 1) // 2 for group in groups)
    with torch.no_grad():
        assert relative_error(network(x), wanted) < 1e-9
        recomposed = mbp.recompose(network)
        assert relative_error(recomposed(x), wanted) < 1e-9
    after = mbp.measure_complexity(recomposed, shape)
    assert (result.parameters, result.macs) == (after.parameters, after.macs)
    assert result.parameter_reduction == pytest.approx(1 - after.parameters / before.parameters, abs=1e-12)
    assert result.mac_reduction == pytest.approx(1 - after.macs / before.macs, abs=1e-12)
    # and it travels
    mbp.save_pruned(network, tmp_path / "model.pt")
    loaded = mbp.load_pruned(lambda: make().double().eval(), tmp_path / "model.pt")
    assert same_bits(snapshot(loaded), snapshot(network))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), network(x))
    again = mbp.PruningPlan.from_network(loaded)
    assert again == mbp.PruningPlan.from_network(network)
    assert again.architecture == {key: list(value.shape) for key, value in plain.state_dict().items()}
    assert again.modules == mbp.PruningPlan.from_network(mbp.decompose(plain)).modules
    assert network_cost(loaded, mbp.Budget(parameters=0.0)).original == before.parameters


@pytest.mark.parametrize("name", ["DenseNet", "ResNet with shortcut A", "EfficientNet", "grouped", "channel PReLU"])
def test_a_cut_network_computes_what_one_does_that_ignores_the_channels(name):
    make, shape = NETWORKS[name]
    network = halved(mbp.decompose(sound(make)))
    deaf = copy.deepcopy(network)
    groups = {group.name: group for group in channel_groups(network, shape)}
    result = mbp.prune_channels_(network, random_scores(network, shape), mbp.Budget(threshold=0.6), shape)
    modules = dict(deaf.named_modules())
    for group, kept in result.kept.items():
        for number in set(range(len(groups[group].units))) - set(kept):
            for (reader, side), positions in groups[group].units[number].items():
                if side == "in":
                    layer = modules[reader]
                    weight = layer.basis.weight if hasattr(layer, "basis") else layer.weight
                    if getattr(layer, "transposed", False):
                        weight.data[positions] = 0.0
                    else:
                        weight.data[:, [p % weight.shape[1] for p in positions]] = 0.0
    x = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(network(x), deaf(x)) < 1e-9
    assert result.removed_channels > 0


@pytest.mark.parametrize("name", ["ResNet with shortcut B", "SegResNet 3D"])
def test_the_status_lists_every_group_with_its_modules_and_why_it_stays(name):
    make, shape = NETWORKS[name]
    network = mbp.decompose(sound(make))
    status, groups = mbp.channel_status(network, shape), channel_groups(network, shape)
    for one, group in zip(status, groups, strict=True):
        assert (one.name, one.channels, one.skipped) == (group.name, len(group.units), group.kept_because)
        assert set(one.layers) == {module for module, _ in group.units[-1]} - {""}
        assert len(one.layers) == len(set(one.layers))
    assert any(one.skipped for one in status)


@pytest.mark.parametrize("quantity", ["parameters", "macs"])
def test_a_budget_is_met_and_not_by_more_than_a_channel(quantity):
    make, shape = NETWORKS["ResNet with shortcut B"]
    plain = sound(make)
    network = halved(mbp.decompose(plain))
    already = network_cost(network, mbp.Budget(**{quantity: 0.0}, input_shape=shape))
    start = already.reduction(already.total)
    scores = random_scores(network, shape)
    for share in (0.55, 0.8):
        result = mbp.prune_channels_(network, scores, mbp.Budget(**{quantity: share}, input_shape=shape), shape)
        reached = result.parameter_reduction if quantity == "parameters" else result.mac_reduction
        assert share <= reached < share + 0.05
        assert reached > start
        scores = {name: scores[name][kept] for name, kept in result.kept.items()}
    before, after = mbp.measure_complexity(plain, shape), mbp.measure_complexity(mbp.recompose(network), shape)
    assert result.parameter_reduction == pytest.approx(1 - after.parameters / before.parameters, abs=1e-12)
    assert result.mac_reduction == pytest.approx(1 - after.macs / before.macs, abs=1e-12)
    # bases can go on after channels, against the same original
    bases = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(parameters=0.85))
    assert bases.parameters == parameter_count(mbp.recompose(network))
    assert bases.parameter_reduction == pytest.approx(1 - bases.parameters / before.parameters, abs=1e-12)
    status = mbp.layer_status(network)
    assert sum(s.original_parameters for s in status) == sum(s.original_parameters for s in mbp.layer_status(plain))


def test_the_least_important_channels_go_and_one_of_each_group_stays():
    network = mbp.decompose(tiny_classifier())
    scores = {"stem": torch.tensor([3.0, 1.0, 2.0]), "grouped": torch.tensor([0.5, 4.0, 0.1, 9.0])}
    found = {group.name: len(group.units) for group in channel_groups(network, SHAPE)}
    assert (found["stem"], found["grouped"]) == (3, 4)  # two groups: each unit is a channel of both
    result = mbp.prune_channels_(network, scores, mbp.Budget(threshold=1.5), SHAPE)
    assert result.kept == {"stem": [0, 2], "grouped": [1, 3]}
    assert (network.grouped.in_channels, network.grouped.out_channels) == (4, 4)
    result = mbp.prune_channels_(
        network, {"stem": torch.zeros(2), "grouped": torch.zeros(2)}, mbp.Budget(threshold=1.0), SHAPE
    )
    assert result.kept == {"stem": [0], "grouped": [0]}
    assert network(torch.rand(2, *SHAPE)).shape == (2, 2)


def test_everything_is_checked_before_anything_is_cut():
    network = mbp.decompose(tiny_classifier())
    before, optimizer = snapshot(network), torch.optim.Adam(mbp.trainable_parameters(network))
    scores = random_scores(network, SHAPE)
    wrong = {
        "stem": torch.zeros(9),
        "grouped": torch.full((4,), float("nan")),
        "head": torch.zeros(2),
        "x": scores["stem"],
    }
    with pytest.raises(ValueError) as error:
        mbp.prune_channels_(network, wrong, mbp.Budget(parameters=0.5), SHAPE, optimizer)
    for words in (
        "stem: (9,) scores for 3 channels",
        "grouped: scores are NaN or infinite",
        "head: its channels cannot be removed, no layer reads them",
        "x: no group of channels has this name",
    ):
        assert words in str(error.value)
    with pytest.raises(ValueError, match="there are none; groups whose channels can be removed are"):
        mbp.prune_channels_(network, {}, mbp.Budget(parameters=0.5), SHAPE)
    with pytest.raises(mbp.BudgetError, match=r"The largest that can be met is parameters=0\.\d+; ask for less"):
        mbp.prune_channels_(network, scores, mbp.Budget(parameters=0.99), SHAPE, optimizer)
    with pytest.raises(mbp.BudgetError, match="cannot be met by channels: ask for a share"):
        mbp.prune_channels_(network, scores, mbp.Budget(bases=0.5), SHAPE)
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        mbp.prune_channels_(network, scores, mbp.Budget(parameters=0.2), (3, 8, 8))
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.prune_channels_(tiny_classifier(), scores, mbp.Budget(parameters=0.2), SHAPE)
    assert same_bits(snapshot(network), before)
    assert mbp.PruningPlan.from_network(network).channels == {}


def test_the_largest_budget_named_can_be_met():
    network = mbp.decompose(tiny_classifier())
    scores = random_scores(network, SHAPE)
    with pytest.raises(mbp.BudgetError) as error:
        mbp.prune_channels_(network, scores, mbp.Budget(parameters=0.99), SHAPE)
    largest = float(str(error.value).partition("parameters=0.99")[2].partition("parameters=")[2].partition(";")[0])
    result = mbp.prune_channels_(network, scores, mbp.Budget(parameters=largest), SHAPE)
    assert result.channels == 2
    with pytest.raises(mbp.BudgetError, match="channels were removed"):
        network_cost(network, mbp.Budget(latency=0.5, input_shape=SHAPE))


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_an_optimizer_goes_on_with_what_is_left(kind):
    torch.manual_seed(0)
    network = mbp.decompose(tiny_classifier())
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(mbp.trainable_parameters(network), lr=0.1, **options)
    network(torch.rand(2, *SHAPE)).square().sum().backward()
    optimizer.step()
    key = "momentum_buffer" if kind == "SGD" else "exp_avg"
    momenta = {n: optimizer.state[p][key].clone() for n, p in network.named_parameters() if p in optimizer.state}
    frozen = {name: p.requires_grad for name, p in network.named_parameters()}

    def held() -> set[str]:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name for name, p in network.named_parameters() if id(p) in owned}

    trained = held()
    scores = {"stem": torch.tensor([3.0, 1.0, 2.0]), "grouped": torch.tensor([0.5, 4.0, 0.1, 9.0])}
    mbp.prune_channels_(network, scores, mbp.Budget(threshold=1.5), SHAPE, optimizer)
    assert {name: p.requires_grad for name, p in network.named_parameters()} == frozen
    assert torch.equal(optimizer.state[network.norm.weight][key], momenta["norm.weight"][[0, 2, 3, 5]])
    assert torch.equal(optimizer.state[network.head.weight][key], momenta["head.weight"][:, [1, 3, 5, 7]])
    assert held() == trained
    assert len(trained) == sum(len(group["params"]) for group in optimizer.param_groups)
    before = network.norm.weight.detach().clone()
    optimizer.zero_grad()
    network(torch.rand(2, *SHAPE)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(network.norm.weight, before)


def cut_network():
    network = halved(mbp.decompose(sound(TinyClassifier)).float())
    scores = {"stem": torch.tensor([3.0, 1.0, 2.0]), "grouped": torch.tensor([0.5, 4.0, 0.1, 9.0])}
    mbp.prune_channels_(network, scores, mbp.Budget(threshold=1.5), SHAPE)
    return network


def test_a_plan_carries_channels_through_json_and_a_second_cut():
    network = cut_network()
    plan = mbp.PruningPlan.from_network(network)
    content = json.loads(json.dumps(plan.to_dict()))
    assert content["channels"]["norm"] == {"kept_outputs": [0, 2, 3, 5]}
    assert content["channels"]["grouped"] == {"kept_inputs": [0, 2, 3, 5], "kept_outputs": [1, 3, 5, 7]}
    assert content["channels"]["head"] == {"kept_inputs": [1, 3, 5, 7]}
    assert mbp.PruningPlan.from_dict(content) == plan
    mbp.prune_channels_(network, {"grouped": torch.tensor([2.0, 1.0])}, mbp.Budget(threshold=1.5), SHAPE)
    assert mbp.PruningPlan.from_network(network).channels["head"].kept_inputs == [1, 5]
    built = mbp.build_pruned(TinyClassifier, mbp.PruningPlan.from_network(network))
    built.load_state_dict(network.state_dict(), strict=True)
    x = torch.rand(2, *SHAPE)
    assert torch.equal(built.eval()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"norm": {"kept_outputs": [2, 0]}}, "not in rising order"),
        ({"norm": {"kept_outputs": []}}, r"\$.channels.norm.kept_outputs"),
        ({"norm": {"kept_outputs": [-1]}}, r"\$.channels.norm.kept_outputs"),
        ({"norm": {"kept_outputs": [0.0]}}, r"\$.channels.norm.kept_outputs"),
        ({"norm": {}}, r"\$.channels.norm"),
        ({"norm": {"code": [1]}}, r"\$.channels.norm"),
        ({"norm": {"kept_outputs": None}}, r"\$.channels.norm"),
        ([], r"\$.channels"),
    ],
)
def test_a_malformed_plan_is_refused(channels, words):
    content = mbp.PruningPlan.from_network(cut_network()).to_dict()
    with pytest.raises(mbp.PlanMismatchError, match=words):
        mbp.PruningPlan.from_dict({**content, "channels": channels})


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"norm": {"kept_outputs": [0, 6]}}, "norm: keeps channel 6, there are 6"),
        ({"norm": {"kept_inputs": [0]}}, "norm: the inputs of a BatchNorm2d are its outputs"),
        ({"pool": {"kept_outputs": [0]}}, "pool: AdaptiveAvgPool2d cannot be sliced"),
        ({"grouped": {"kept_inputs": [0, 1, 4, 5]}}, "grouped: its 2 groups keep different channels"),
        ({"grouped": {"kept_outputs": [0, 1, 2]}}, "grouped: its 2 groups keep different channels"),
        ({"stem.basis": {"kept_inputs": [0]}}, "stem.basis: the network has no such module"),
        ({"nowhere": {"kept_inputs": [0]}}, "nowhere: the network has no such module"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(channels, words):
    content = mbp.PruningPlan.from_network(cut_network()).to_dict()
    with pytest.raises(mbp.PlanMismatchError, match=words):
        mbp.build_pruned(TinyClassifier, {**content, "channels": channels})


def test_a_cut_network_is_exported_scripted_and_wrapped(tmp_path):
    network = cut_network().eval()
    x = torch.rand(1, *SHAPE)
    scripted = torch.jit.script(network)
    assert relative_error(scripted(x), network(x)) < 1e-5
    result = mbp.export_network(network, tmp_path / "model.ts", input_shape=SHAPE)
    assert result is not None
    assert relative_error(torch.jit.load(tmp_path / "model.ts")(x), network(x)) < 1e-5
    # nothing of it is kept at the root of the network
    inside = nn.Sequential(network)
    assert network_cost(inside, mbp.Budget(parameters=0.0)).original == parameter_count(TinyClassifier())


def test_the_memory_format_and_the_mode_stay():
    network = mbp.decompose(sound(NETWORKS["ResNet with shortcut B"][0]).to(memory_format=torch.channels_last)).train()
    shape = NETWORKS["ResNet with shortcut B"][1]
    mbp.prune_channels_(network, random_scores(network, shape), mbp.Budget(threshold=0.5), shape)
    assert network.layer1[0].conv2.basis.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(module.training for module in network.modules())


@pytest.mark.slow
def test_squeeze_and_excitation_and_random_state():
    torch.manual_seed(0)
    network = mbp.decompose(SEResNet50(layers=(1, 1, 1, 1), spatial_dims=2, in_channels=1, num_classes=2).eval())
    shape = (1, 32, 32)
    state = torch.get_rng_state()
    result = mbp.prune_channels_(network, random_scores(network, shape), mbp.Budget(parameters=0.6), shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.parameters == parameter_count(mbp.recompose(network))
    assert 0.6 <= result.parameter_reduction < 0.62
    assert bool(torch.isfinite(network(torch.rand(1, *shape))).all())
