from __future__ import annotations

import copy
import json

import pytest
import torch
from monai.networks.nets import BasicUNet, ResNet, SEResNet50, UNet
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import network_cost
from monai_basisprune.channel_graph import channel_groups

from .networks import MONAI_NETWORKS, TinyClassifier, relative_error, same_bits, snapshot, tiny_classifier

SHAPE = TinyClassifier.input_shape


class ChannelPReLU(nn.Module):
    """A PReLU with one weight for each channel, a depthwise convolution and an up-sampling one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.PReLU(6),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.InstanceNorm2d(6, affine=True),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(4, 2, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Grouped(nn.Module):
    """Grouped convolutions in a row, and a flattened feature map in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(12)
        self.two = nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(4 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.one(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.two(x)).flatten(1))


NETWORKS = {
    **MONAI_NETWORKS,
    "ResNet with shortcut A": (
        lambda: ResNet("basic", [1] * 4, [4, 8, 12, 16], 2, 1, num_classes=2, shortcut_type="A"),
        (1, 32, 32),
    ),
    "BasicUNet": (lambda: BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)), (1, 32, 32)),
    "UNet with PReLU": (lambda: UNet(2, 1, 2, (4, 8), (2,), num_res_units=0), (1, 16, 16)),
    "channel PReLU": (ChannelPReLU, (1, 8, 8)),
    "grouped": (Grouped, (1, 4, 4)),
}
UNSLICED = {"SegResNet 3D"}
LONG = {"ResNet 3D with shortcut A", "ResNet 1D", "BasicUNet", "DenseNet"}
SLICED = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in NETWORKS if name not in UNSLICED
]


def sound(make) -> nn.Module:
    """A network with norms as if it had been trained, in float64, so that rounding hides nothing."""
    torch.manual_seed(0)
    network = make().double().eval()
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.5)
    return network


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


def random_scores(network, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    free = [group for group in channel_groups(network, shape) if group.kept_because is None]
    return {group.name: torch.rand(len(group.units), generator=generator) for group in free}


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


def test_groups_are_those_of_the_wiring():
    network = mbp.decompose(ResNet("basic", [2, 1, 1, 1], [4, 8, 12, 16], 2, 1, num_classes=2, shortcut_type="B"))
    status = {one.name: one for one in mbp.channel_status(network, (1, 32, 32))}
    assert status["layer1.0.conv1"].layers == ("layer1.0.bn1", "layer1.0.conv1", "layer1.0.conv2")
    assert status["layer1.0.conv1"].channels == 4
    # what a shortcut adds up goes together
    assert {"bn1", "conv1", "layer1.0.conv2", "layer1.1.conv2", "layer2.0.downsample.0"} <= set(status["conv1"].layers)
    assert status["fc"].skipped == "no layer reads them: they are outputs of the network"
    assert [one.name for one in status.values() if one.skipped] == ["fc"]


def test_what_cannot_be_sliced_keeps_its_channels_and_says_why():
    make, shape = NETWORKS["ResNet 3D with shortcut A"]
    status = {one.name: one for one in mbp.channel_status(mbp.decompose(make()), shape)}
    assert "padded with zeros" in status["conv1"].skipped
    assert status["layer1.0.conv1"].skipped is None
    make, shape = NETWORKS["SegResNet 3D"]
    network = mbp.decompose(make())
    assert {one.skipped.partition(": ")[2] for one in mbp.channel_status(network, shape)} == {
        "GroupNorm cannot be sliced",
        "they are outputs of the network",
    } or all(one.skipped for one in mbp.channel_status(network, shape))
    words = (
        r"No channel of SegResNet can be removed:\n(.|\n)*GroupNorm cannot be sliced(.|\n)*lay configs/bases.json over"
    )
    with pytest.raises(mbp.LayerSelectionError, match=words):
        mbp.ChannelTaylorImportance(network, shape)


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

    reasons = {one.name: one.skipped for one in mbp.channel_status(mbp.decompose(Odd()), (1, 6, 6))}
    assert "tied" in reasons["one"]
    assert reasons["narrow"] == "there is only one"
    assert reasons["wide"] is not None


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


def test_a_network_that_the_graph_cannot_trace_is_refused():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x)).detach()

    network = mbp.decompose(Detached())
    with pytest.raises(mbp.LayerSelectionError, match=r"cannot trace Detached.*use prune_, or, in a bundle"):
        mbp.channel_status(network, (1, 8, 8))


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
