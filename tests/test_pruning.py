from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers

from .networks import MONAI_NETWORKS, relative_error, same_bits, snapshot, tiny_classifier

EXAMPLES = settings(deadline=None, max_examples=80, derandomize=True)
SIZE = 6


@st.composite
def networks(draw) -> tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]:
    """Draw a chain of convolutions, the same decomposed, and scores that are all different."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels, modules = 2 * draw(st.integers(1, 3)), []
    for _ in range(draw(st.integers(1, 4))):
        # at least two channels per group, else the layer would be depthwise
        groups, width = draw(st.sampled_from([1, 1, 2])), 4 * draw(st.integers(1, 3))
        kernel, bias = draw(st.integers(1, 3)), draw(st.booleans())
        groups = groups if channels >= 4 else 1
        modules += [
            nn.Conv2d(channels, width, kernel, padding="same", groups=groups, bias=bias),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    network = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)).eval()
    decomposed = mbp.decompose(network)
    scores = {name: torch.rand(layer.rank(), dtype=torch.float64) for name, layer in decomposed_layers(decomposed)}
    return network, decomposed, scores


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def budget_of(quantity: str, share: float, channels: int) -> mbp.Budget:
    shape = (channels, SIZE, SIZE) if quantity == "macs" else None
    return mbp.Budget(**{quantity: share}, input_shape=shape)


def measured(network: nn.Module, quantity: str, channels: int) -> int:
    if quantity == "bases":
        return sum(layer.rank() for _, layer in decomposed_layers(network))
    cost = mbp.measure_complexity(mbp.recompose(network), (channels, SIZE, SIZE))
    return cost.parameters if quantity == "parameters" else cost.macs


@EXAMPLES
@given(networks(), st.sampled_from(["parameters", "macs", "bases"]), st.floats(0, 0.95))
def test_a_budget_is_hit_and_not_overshot_by_more_than_the_last_basis(drawn, quantity, share):
    network, decomposed, scores = drawn
    channels = network[0].in_channels
    original = measured(decomposed, quantity, channels)
    if quantity == "parameters":
        assert original == parameters_of(network)
    unpruned = copy.deepcopy(decomposed)
    budget, before = budget_of(quantity, share, channels), snapshot(decomposed)
    try:
        result = mbp.prune_(decomposed, scores, budget)
    except mbp.BudgetError as error:
        assert same_bits(snapshot(decomposed), before)
        largest = float(re.search(rf"largest that can be met is {quantity}=([0-9.e-]+)", str(error)).group(1))
        assert largest < share
        result = mbp.prune_(decomposed, scores, budget_of(quantity, largest, channels))
        assert all(layer.rank() == layer.groups for _, layer in decomposed_layers(decomposed))
        left = measured(decomposed, quantity, channels)
        assert left > original * (1 - share)
        assert left >= original * (1 - largest - 1e-4) - 1e-6
        return
    left = measured(decomposed, quantity, channels)
    assert left <= original * (1 - share) + 1e-9 * original
    plain = mbp.recompose(decomposed)
    assert result.parameters == parameters_of(plain)
    assert result.parameter_reduction == pytest.approx(1 - parameters_of(plain) / parameters_of(network), abs=1e-12)
    assert result.bases == measured(decomposed, "bases", channels)
    assert result.removed_bases == measured(unpruned, "bases", channels) - result.bases
    if quantity == "macs":
        assert result.macs == left
        assert result.mac_reduction == pytest.approx(1 - left / original, abs=1e-12)
    # the basis (one in each group) that went last was needed
    removed = [
        (columns.mean(dim=0)[len(result.kept[name]) // layer.groups].item(), name)
        for name, layer in decomposed_layers(unpruned)
        for columns in [scores[name].reshape(layer.groups, -1).sort(descending=True).values]
        if len(result.kept[name]) < layer.rank()
    ]
    if removed:
        name = max(removed)[1]
        layer, groups = dict(decomposed_layers(unpruned))[name], dict(decomposed_layers(unpruned))[name].groups
        order = scores[name].reshape(groups, -1).argsort(descending=True)
        slots = len(result.kept[name]) // groups + 1
        first = torch.arange(groups).unsqueeze(1) * (layer.rank() // groups)
        kept = {**result.kept, name: sorted((order[:, :slots] + first).flatten().tolist())}
        for other, positions in kept.items():
            dict(decomposed_layers(unpruned))[other].keep_bases_(positions, lambda old, new, slicer: None)
        assert measured(unpruned, quantity, channels) > original * (1 - share)


@EXAMPLES
@given(networks(), st.floats(0, 0.9))
def test_the_lowest_scores_go_and_groups_lose_equally_many(drawn, share):
    _, decomposed, scores = drawn
    layers = dict(decomposed_layers(decomposed))
    try:
        kept = mbp.select_bases(decomposed, scores, mbp.Budget(bases=share))
    except mbp.BudgetError:
        kept = mbp.select_bases(decomposed, scores, mbp.Budget(threshold=2.0))
    removed, losable = [], []
    for name, layer in layers.items():
        assert kept[name] == sorted(set(kept[name]))
        per_group = layer.rank() // layer.groups
        counts = [sum(p // per_group == group for p in kept[name]) for group in range(layer.groups)]
        assert len(set(counts)) == 1
        assert counts[0] >= 1
        columns = scores[name].reshape(layer.groups, -1).sort(descending=True).values
        for group in range(layer.groups):  # within each group, the best ones stay
            mine = [float(scores[name][p]) for p in kept[name] if p // per_group == group]
            assert sorted(mine, reverse=True) == columns[group, : counts[0]].tolist()
        means = columns.mean(dim=0).tolist()
        losable += means[1 : counts[0]]
        removed += means[counts[0] :]
    if removed and losable:  # across layers, whatever stays though it could go is better than all that went
        assert max(removed) < min(losable)


@EXAMPLES
@given(networks(), st.floats(0, 1))
def test_a_threshold_removes_exactly_what_is_below_it(drawn, threshold):
    _, decomposed, scores = drawn
    kept = mbp.select_bases(decomposed, scores, mbp.Budget(threshold=threshold))
    for name, layer in decomposed_layers(decomposed):
        means = scores[name].reshape(layer.groups, -1).sort(descending=True).values.mean(dim=0)
        assert len(kept[name]) == layer.groups * max(1, int((means >= threshold).sum()))


@EXAMPLES
@given(networks(), st.floats(0.05, 0.6), st.integers(0, 2**31))
def test_a_pruned_network_computes_what_is_left_when_the_other_bases_count_zero(drawn, share, seed):
    network, decomposed, scores = drawn
    torch.manual_seed(seed)
    for _, layer in decomposed_layers(decomposed):
        layer.scaling.scaling_factors.data.normal_()
    silenced = copy.deepcopy(decomposed)
    x = torch.randn(2, network[0].in_channels, SIZE, SIZE)
    result = mbp.prune_(decomposed, scores, mbp.Budget(threshold=share))
    for name, layer in decomposed_layers(silenced):
        gone = [j for j in range(layer.rank()) if j not in result.kept[name]]
        layer.scaling.scaling_factors.data[gone] = 0
    assert relative_error(decomposed(x), silenced(x)) <= 1e-4
    assert relative_error(mbp.recompose(decomposed)(x), silenced(x)) <= 1e-4


def test_pruning_by_singular_value_leaves_the_best_approximation_of_each_weight():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 12, 3), nn.Conv2d(12, 8, 3, groups=2)).double()
    reference = copy.deepcopy(network)
    decomposed = mbp.decompose(network)
    result = mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(bases=0.5))
    assert result.bases == 10
    for name, layer in decomposed_layers(decomposed):
        weight, groups = reference[int(name)].weight, layer.groups
        u, s, vh = torch.linalg.svd(weight.detach().reshape(groups, weight.shape[0] // groups, -1))
        k = layer.rank() // groups
        best = u[:, :, :k] @ torch.diag_embed(s[:, :k]) @ vh[:, :k]
        reference[int(name)].weight.data = best.reshape(weight.shape)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    assert relative_error(decomposed(x), reference(x)) <= 1e-9
    assert relative_error(mbp.recompose(decomposed)(x), reference(x)) <= 1e-9


def test_selection_changes_nothing_and_repeats_itself():
    network = mbp.decompose(tiny_classifier())
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(layer.rank(), generator=generator) for name, layer in decomposed_layers(network)}
    before, copies = snapshot(network), {name: value.clone() for name, value in scores.items()}
    first = mbp.select_bases(network, scores, mbp.Budget(parameters=0.5))
    assert mbp.select_bases(network, scores, mbp.Budget(parameters=0.5)) == first
    assert mbp.select_bases(network, dict(reversed(scores.items())), mbp.Budget(parameters=0.5)) == first
    assert same_bits(snapshot(network), before)
    assert all(torch.equal(scores[name], copies[name]) for name in scores)


def test_between_equal_scores_the_lower_singular_value_goes_and_layers_share():
    network = mbp.decompose(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3, groups=2)))
    scores = mbp.ScalingImportance(network).scores()
    kept = mbp.select_bases(network, scores, mbp.Budget(bases=0.5))
    assert kept == {"0": [0, 1], "1": [0, 1, 2, 3], "2": [0, 2]}
    assert mbp.select_bases(network, dict(reversed(scores.items())), mbp.Budget(bases=0.5)) == kept


def test_between_equal_scores_the_place_within_the_layer_decides():
    network = mbp.decompose(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    scores = {"0": torch.tensor([1.0, 1, 1, 0]), "1": torch.tensor([9.0, 9, 9, 1])}
    assert mbp.select_bases(network, scores, mbp.Budget(bases=0.25)) == {"0": [0, 1, 2], "1": [0, 1, 2]}


def test_at_least_one_basis_of_each_group_stays():
    network = mbp.decompose(tiny_classifier())
    result = mbp.prune_(network, mbp.ScalingImportance(network).scores(), mbp.Budget(threshold=float("inf")))
    assert {name: layer.rank() for name, layer in decomposed_layers(network)} == {"stem": 1, "grouped": 2}
    assert result.bases == 3
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 2)


def test_layers_without_scores_keep_their_bases():
    network = mbp.decompose(tiny_classifier())
    result = mbp.prune_(network, {"stem": torch.arange(6)}, mbp.Budget(threshold=4))
    assert result.kept == {"stem": [4, 5]}
    assert network.grouped.rank() == 8
    with pytest.raises(mbp.BudgetError, match="The largest that can be met is bases=0"):
        mbp.prune_(network, {"stem": torch.arange(2.0)}, mbp.Budget(bases=0.5))


def test_a_budget_that_cannot_be_met_names_the_largest_and_changes_nothing():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.SGD(mbp.trainable_parameters(network), lr=0.1)
    before, held = snapshot(network), list(optimizer.param_groups[0]["params"])
    scores = mbp.SingularValueImportance(network).scores()
    with pytest.raises(mbp.BudgetError) as caught:
        mbp.prune_(network, scores, mbp.Budget(parameters=0.9), optimizer)
    # one basis of stem (9 + 6) with 6 biases, two of grouped (2 · 27 + 8), norm and head: 15 + 6 + 62 + 12 + 18 = 113
    assert "113 of the original 306 parameters remain" in str(caught.value)
    assert "The largest that can be met is parameters=0.6307; ask for less" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert same_bits(snapshot(network), before)
    assert all(new is old for new, old in zip(optimizer.param_groups[0]["params"], held, strict=True))
    assert mbp.prune_(network, scores, mbp.Budget(parameters=0.6307)).parameters == 113


@pytest.mark.parametrize(("share", "left"), [(0.9, 4), (0.7, 12), (0.8, 8), (0.35, 26)])
def test_a_budget_that_can_be_met_exactly_is_met_exactly(share, left):
    # 40 · (1 - 0.9) is 3.9999999999999996 in floating point, which must not cost a basis more
    network = mbp.decompose(nn.Sequential(nn.Conv2d(2, 4, 2), nn.Conv2d(4, 12, 2), nn.Conv2d(12, 24, 3)))
    result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=share))
    assert result.bases == left


def test_all_problems_of_scores_are_listed_and_nothing_is_changed():
    network = mbp.decompose(nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(5)]))
    before = snapshot(network)
    scores = {
        "0": torch.ones(3),
        "1": torch.tensor([1.0, float("nan"), 1, 1]),
        "2": torch.ones(4, 1),
        "3": torch.tensor([1.0, float("inf"), 1, 1]),
        "4": torch.ones(4),
        "head": torch.ones(4),
    }
    with pytest.raises(ValueError, match="The scores do not fit the network") as caught:
        mbp.prune_(network, scores, mbp.Budget(bases=0.5))
    assert str(caught.value).splitlines()[1:] == [
        "  - 0: (3,) scores for 4 bases",
        "  - 1: scores are NaN or infinite",
        "  - 2: (4, 1) scores for 4 bases",
        "  - 3: scores are NaN or infinite",
        "  - head: not a decomposed layer of the network",
    ]
    assert same_bits(snapshot(network), before)


def test_no_scores_at_all_are_refused_with_the_layers_there_are():
    network = mbp.decompose(tiny_classifier())
    with pytest.raises(ValueError, match=re.escape("there are none; decomposed layers are ['stem', 'grouped']")):
        mbp.prune_(network, {}, mbp.Budget(bases=0.5))
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.prune_(tiny_classifier(), {"stem": torch.ones(6)}, mbp.Budget(bases=0.5))


@pytest.mark.parametrize(
    ("network", "budget"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 1)), mbp.Budget(parameters=0.5, input_shape=(7, 8, 8))),
        (nn.Sequential(nn.Conv2d(8, 8, 1)), mbp.Budget(bases=0.5, input_shape=(7, 8, 8))),
        (nn.Sequential(nn.Conv2d(8, 8, 1)), mbp.Budget(macs=0.5, input_shape=(7, 8, 8))),
        (nn.Sequential(nn.LazyConv2d(8, 1), nn.Conv2d(8, 8, 1)), mbp.Budget(bases=0.5)),
        (nn.Sequential(nn.LazyConv2d(8, 1), nn.Conv2d(8, 8, 1)), mbp.Budget(parameters=0.5)),
    ],
    ids=["parameters, wrong shape", "bases, wrong shape", "macs, wrong shape", "bases, lazy", "parameters, lazy"],
)
def test_where_pruning_raises_nothing_was_cut(network, budget):
    decomposed = mbp.decompose(network)
    ranks = [layer.rank() for _, layer in decomposed_layers(decomposed)]
    with pytest.raises(ValueError, match=r"cannot process an input of shape|uninitialized parameter"):
        mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), budget)
    assert [layer.rank() for _, layer in decomposed_layers(decomposed)] == ranks


def test_a_second_cut_counts_against_the_original_network():
    original = tiny_classifier()
    network = mbp.decompose(original)
    reductions = []
    for share in (0.2, 0.4, 0.4, 0.6):
        result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(parameters=share))
        assert result.parameter_reduction >= share
        assert result.parameters == parameters_of(mbp.recompose(network))
        assert result.parameter_reduction == pytest.approx(1 - result.parameters / parameters_of(original))
        reductions.append(result.removed_bases)
    assert reductions[2] == 0
    assert reductions[0] > 0
    assert reductions[1] > 0
    assert reductions[3] > 0
    once = mbp.decompose(original)
    mbp.prune_(once, mbp.SingularValueImportance(once).scores(), mbp.Budget(parameters=0.6))
    assert [layer.kept_bases for _, layer in decomposed_layers(once)] == [
        layer.kept_bases for _, layer in decomposed_layers(network)
    ]


def test_a_cut_of_nothing_keeps_every_basis():
    network = mbp.decompose(tiny_classifier())
    before = snapshot(network)
    result = mbp.prune_(network, mbp.ScalingImportance(network).scores(), mbp.Budget(parameters=0.0))
    assert (result.removed_bases, result.bases, result.parameters, result.parameter_reduction) == (0, 14, 306, 0.0)
    assert (result.macs, result.mac_reduction) == (None, None)
    assert same_bits(snapshot(network), before)


def test_operations_are_reported_for_any_budget_with_an_input_shape():
    network = mbp.decompose(tiny_classifier())
    budget = mbp.Budget(parameters=0.4, input_shape=(1, 8, 8))
    result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), budget)
    cost = mbp.measure_complexity(mbp.recompose(network), (1, 8, 8))
    assert (result.parameters, result.macs) == (cost.parameters, cost.macs)
    assert result.mac_reduction == pytest.approx(1 - cost.macs / (54 * 64 + 216 * 16 + 16))


@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_networks_of_monai_are_pruned_to_the_budget(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    original = make().eval()
    network = mbp.decompose(original)
    before = mbp.measure_complexity(original, shape)
    scores = mbp.SingularValueImportance(network).scores()
    result = mbp.prune_(network, scores, mbp.Budget(macs=0.15, input_shape=shape))
    plain = mbp.recompose(network)
    now = mbp.measure_complexity(plain, shape)
    assert (result.parameters, result.macs) == (now.parameters, now.macs)
    assert now.macs <= 0.85 * before.macs
    assert result.parameter_reduction == pytest.approx(1 - now.parameters / before.parameters)
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert relative_error(plain(x), network(x)) <= 1e-5


# --- the optimizer -------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, labels = torch.rand(4, 1, 8, 8, generator=generator), torch.tensor([0, 1, 1, 0])
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_that_of_an_optimizer_with_state_sliced_by_hand(name):
    network = mbp.decompose(tiny_classifier()).eval()
    trained = {
        key: p for key, p in network.named_parameters() if any(p is q for q in mbp.trainable_parameters(network))
    }
    optimizer = OPTIMIZERS[name](list(trained.values()))
    train(network, optimizer, 3)
    scores = {"stem": torch.tensor([6.0, 1, 8, 2, 0, 7]), "grouped": torch.tensor([1.0, 4, 2, 3, 8, 5, 6, 7])}
    # kept by hand: the three of stem above 4.5; the best pairs of grouped, at a mean of 6 and 5, not of 4 and 3
    rows = {"stem.scaling.scaling_factors": [0, 2, 5], "grouped.scaling.scaling_factors": [1, 3, 4, 7]}

    # the reference: plain tensors and an optimizer of their own
    references = {key: nn.Parameter(p.detach()[rows.get(key, slice(None))].clone()) for key, p in trained.items()}
    reference = OPTIMIZERS[name](list(references.values()))
    for key, p in trained.items():
        reference.state[references[key]] = {
            field: value[rows.get(key, slice(None))].clone() if value.ndim else value.clone()
            for field, value in optimizer.state[p].items()
        }

    kept = mbp.prune_(network, scores, mbp.Budget(threshold=4.5), optimizer).kept
    assert kept == {"stem": [0, 2, 5], "grouped": [1, 3, 4, 7]}
    now = {key: p for key, p in network.named_parameters() if key in trained}
    assert all(p is q for p, q in zip(optimizer.param_groups[0]["params"], now.values(), strict=True))
    assert len(optimizer.state) == len(now)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for key, p in now.items():
            p.grad = torch.randn(p.shape, generator=generator)
            references[key].grad = p.grad.clone()
        optimizer.step()
        reference.step()
        assert all(torch.equal(p.detach(), references[key].detach()) for key, p in now.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_and_checkpoints_go_on_after_a_cut(name):
    network = mbp.decompose(tiny_classifier())
    optimizer = OPTIMIZERS[name](mbp.trainable_parameters(network))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(network, optimizer, 2)
    mbp.prune_(network, mbp.ScalingImportance(network).scores(), mbp.Budget(bases=0.4), optimizer)
    before = snapshot(network)
    train(network, optimizer, 1)
    scheduler.step()
    after = snapshot(network)
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {"stem.scaling.scaling_factors", "grouped.scaling.scaling_factors", "head.weight"} <= changed
    assert not changed & {"stem.basis.weight", "stem.scaling.weight", "grouped.basis.weight", "stem.scaling.bias"}
    fresh = OPTIMIZERS[name](mbp.trainable_parameters(network))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = copy.deepcopy(network)
    other = OPTIMIZERS[name](mbp.trainable_parameters(twin))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(network, fresh, 2)
    train(twin, other, 2)
    assert same_bits(snapshot(network), snapshot(twin))


def test_gradients_are_sliced_too_so_that_a_step_may_follow_the_cut():
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.SGD(mbp.trainable_parameters(network), lr=0.1)
    nn.functional.cross_entropy(network(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 0, 1])).backward()
    factors = network.stem.scaling.scaling_factors
    gradient, values = factors.grad.clone(), factors.detach().clone()
    mbp.prune_(network, {"stem": torch.tensor([0.0, 5, 1, 4, 2, 3])}, mbp.Budget(threshold=2.5), optimizer)
    assert torch.equal(network.stem.scaling.scaling_factors.grad, gradient[[1, 3, 5]])
    optimizer.step()
    torch.testing.assert_close(network.stem.scaling.scaling_factors.detach(), (values - 0.1 * gradient)[[1, 3, 5]])


def test_several_optimizers_and_groups_keep_their_settings_and_order():
    network = mbp.decompose(tiny_classifier())
    factors = [network.stem.scaling.scaling_factors, network.grouped.scaling.scaling_factors]
    first = torch.optim.SGD(
        [{"params": [factors[0], network.norm.weight], "lr": 0.5}, {"params": [factors[1]], "lr": 0.25}], momentum=0.9
    )
    second = torch.optim.Adam(network.head.parameters(), lr=0.125)
    for optimizer in (first, second):
        train(network, optimizer, 1)
    moments = [first.state[p]["momentum_buffer"].clone() for p in factors]
    result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5), [first, second])
    now = [network.stem.scaling.scaling_factors, network.grouped.scaling.scaling_factors]
    assert [[tuple(p.shape) for p in group["params"]] for group in first.param_groups] == [
        [tuple(now[0].shape), (6,)],
        [tuple(now[1].shape)],
    ]
    assert [group["lr"] for group in first.param_groups] == [0.5, 0.25]
    assert first.param_groups[0]["params"][0] is now[0]
    assert first.param_groups[1]["params"][0] is now[1]
    for parameter, moment, kept in zip(now, moments, result.kept.values(), strict=True):
        assert torch.equal(first.state[parameter]["momentum_buffer"], moment[kept])
    assert all(p not in first.state for p in factors)
    assert len(second.state) == 2


def test_an_optimizer_that_holds_bases_and_scaling_weights_is_sliced_along_their_own_axes():
    network = mbp.decompose(nn.Conv2d(4, 6, 3, groups=2))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(1, 4, 5, 5)).square().sum().backward()
    optimizer.step()
    basis = optimizer.state[network.basis.weight]["momentum_buffer"].clone()
    scaling = optimizer.state[network.scaling.weight]["momentum_buffer"].clone()
    mbp.prune_(network, {"": torch.tensor([3.0, 1, 2, 1, 2, 3])}, mbp.Budget(bases=0.3), optimizer)
    assert network.kept_bases == [0, 2, 4, 5]
    assert torch.equal(optimizer.state[network.basis.weight]["momentum_buffer"], basis[[0, 2, 4, 5]])
    by_hand = torch.cat([scaling[:3][:, [0, 2]], scaling[3:][:, [1, 2]]])
    assert torch.equal(optimizer.state[network.scaling.weight]["momentum_buffer"], by_hand)
    assert network.basis.weight.requires_grad


def test_every_pair_of_cuts_leaves_the_positions_that_the_plan_tells():
    for first, second in itertools.product((0.2, 0.4), (0.5, 0.6)):
        network = mbp.decompose(tiny_classifier())
        full = mbp.SingularValueImportance(network).scores()
        for share in (first, second):
            mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=share))
        for name, layer in decomposed_layers(network):
            found = mbp.SingularValueImportance(network).scores()[name]
            torch.testing.assert_close(found, full[name][layer.kept_bases])
