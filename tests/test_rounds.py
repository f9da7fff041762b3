"""One round of pruning: what it checks, cuts and forgets, with and without channels."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.rounds import CollectsGradients, RoundPruner, RoundScores
from monai_basisprune.structure import structure_of

from .handlers.engines import SHAPE, cases, residual_classifier
from .networks import same_bits, snapshot, tiny_classifier


def bases_of(network: nn.Module) -> int:
    return sum(layer.rank() for _, layer in decomposed_layers(network))


def largest(error: BaseException) -> float:
    """Return the largest budget that an error names."""
    return float(re.search(r"parameters=(0\.\d+);", str(error)).group(1))


class Double:
    """A network whose bases and channels are ranked by a Taylor estimate, and a pruner of it."""

    def __init__(self, **more: Any) -> None:
        self.network = mbp.decompose(residual_classifier())
        self.optimizer = torch.optim.Adam(mbp.freeze_weights_(self.network), lr=0.1)
        self.bases = mbp.TaylorImportance(self.network)
        self.channels = mbp.ChannelTaylorImportance(self.network, SHAPE)
        self.pruner = RoundPruner(self.network, self.bases, self.optimizer, self.channels, **more)

    def scores(self) -> RoundScores:
        """Return scores of a seed, as these importances give after training."""
        generator = torch.Generator().manual_seed(0)
        bases = {name: torch.rand(layer.rank(), generator=generator) for name, layer in decomposed_layers(self.network)}
        channels = {group.name: torch.rand(len(group.units), generator=generator) for group in self.channels.groups}
        return RoundScores(bases, channels)

    def collect(self) -> None:
        self.network(torch.rand(2, *SHAPE)).square().mean().backward()
        assert self.bases.accumulate()
        assert self.channels.accumulate()


@pytest.fixture
def double() -> Iterator[Double]:
    made = Double()
    yield made
    made.channels.close()


def test_without_channels_a_round_is_a_call_of_prune():
    network, twin = (mbp.decompose(tiny_classifier()) for _ in range(2))
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network), lr=0.1)
    pruner = RoundPruner(network, mbp.SingularValueImportance(network), optimizer)
    scores = pruner.scores()
    assert scores.channels == {}
    result = pruner.cut(mbp.Budget(bases=0.4), scores)
    assert result == mbp.prune_(twin, mbp.SingularValueImportance(twin).scores(), mbp.Budget(bases=0.4))
    assert same_bits(snapshot(network), snapshot(twin))
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in mbp.trainable_parameters(network)}


def test_bases_and_channels_go_together_or_one_after_the_other(double):
    scores, budget = double.scores(), mbp.Budget(parameters=0.4)
    twin = mbp.decompose(residual_classifier())
    wanted = mbp.prune_jointly_(twin, scores.bases, scores.channels, budget, SHAPE)
    assert double.pruner.cut(budget, scores) == wanted
    assert same_bits(snapshot(double.network), snapshot(twin))

    other = Double(channel_budgets=[budget], channel_multiple=2)
    twin, few = mbp.decompose(residual_classifier()), mbp.Budget(bases=0.1)
    of_bases = mbp.prune_(twin, scores.bases, few)
    of_channels = mbp.prune_channels_(twin, scores.channels, budget, SHAPE, multiple=2)
    found = other.pruner.cut(few, scores, budget)
    assert same_bits(snapshot(other.network), snapshot(twin))
    assert (found.kept_bases, found.removed_bases) == (of_bases.kept, of_bases.removed_bases)
    assert (found.kept_channels, found.removed_channels) == (of_channels.kept, of_channels.removed_channels)
    assert (found.parameters, found.parameter_reduction) == (of_channels.parameters, of_channels.parameter_reduction)
    assert (found.macs, found.mac_reduction) == (of_channels.macs, of_channels.mac_reduction)
    assert 0 < found.removed_bases != found.removed_channels > 0
    other.channels.close()


def test_a_cut_that_cannot_be_made_leaves_the_network(double):
    before = snapshot(double.network)
    with pytest.raises(mbp.BudgetError, match="The largest that can be met is"):
        double.pruner.cut(mbp.Budget(parameters=0.999), double.scores())
    assert same_bits(snapshot(double.network), before)


def test_after_a_cut_what_was_collected_is_forgotten(double):
    double.collect()
    scores = double.pruner.scores()
    assert scores.bases.keys() == dict(decomposed_layers(double.network)).keys()
    assert scores.channels.keys() == {group.name for group in double.channels.groups}
    double.pruner.cut(mbp.Budget(parameters=0.3), scores)
    assert double.bases.batches == double.channels.batches == 0
    double.collect()  # of the ranks that are left now
    assert {name: len(of) for name, of in double.pruner.scores().bases.items()} == {
        name: layer.rank() for name, layer in decomposed_layers(double.network)
    }


def test_what_collects_gradients_is_told_from_what_does_not(double):
    assert isinstance(double.bases, CollectsGradients)
    assert isinstance(double.channels, CollectsGradients)
    assert not isinstance(mbp.ScalingImportance(double.network), CollectsGradients)


def test_where_one_channel_is_left_in_each_group_bases_go_on_alone():
    network = mbp.decompose(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 6, 3), nn.Flatten()))
    channels, bases = mbp.ChannelTaylorImportance(network, SHAPE), mbp.TaylorImportance(network)
    pruner = RoundPruner(network, bases, None, channels)

    def collect() -> None:
        network(torch.rand(2, *SHAPE)).square().mean().backward()
        assert bases.accumulate()
        assert channels.accumulate()

    collect()
    mbp.prune_channels_(network, {"0": torch.tensor([0.0, 1.0])}, mbp.Budget(threshold=0.5), SHAPE)
    pruner.reset()
    collect()
    assert pruner.scores().channels == {}
    total = bases_of(network)
    result = pruner.cut(mbp.Budget(parameters=0.5), pruner.scores())
    assert result.removed_bases == total - bases_of(network) > 0


# --- compensation


def test_a_compensation_is_given_the_network_before_the_cut_and_only_where_one_was_made():
    network, seen = mbp.decompose(tiny_classifier()), []

    def compensation(network: nn.Module, before: nn.Module) -> None:
        seen.append((structure_of(before), structure_of(network)))
        network.head.weight.data.fill_(7.0)

    pruner = RoundPruner(network, mbp.SingularValueImportance(network), compensation=compensation)
    whole = structure_of(network)
    pruner.cut(mbp.Budget(bases=0.0), pruner.scores())
    assert seen == []
    pruner.cut(mbp.Budget(bases=0.5), pruner.scores())
    assert seen == [(whole, structure_of(network))]
    assert bool((network.head.weight == 7.0).all())


def test_the_librarys_compensation_fits_as_it_is():
    images = [torch.stack([case["image"] for case in cases(24)])]
    network = mbp.decompose(residual_classifier())
    x, wanted = images[0], copy.deepcopy(network).eval()(images[0])
    errors = []
    for compensation in (None, functools.partial(mbp.compensate_, data=images)):
        twin = copy.deepcopy(network)
        pruner = RoundPruner(twin, mbp.SingularValueImportance(twin), compensation=compensation)
        pruner.cut(mbp.Budget(bases=0.6), pruner.scores())
        errors.append(float((twin.eval()(x) - wanted).square().mean().detach()))
    assert errors[1] < errors[0]


# --- checkpoints


def test_another_network_is_cut_to_what_a_checkpoint_has_kept(tmp_path, double):
    double.pruner.cut(mbp.Budget(parameters=0.5), double.scores())
    torch.save(double.pruner.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = Double()
    fresh.collect()
    fresh.pruner.load_state_dict(state)
    assert structure_of(fresh.network) == structure_of(double.network)
    assert fresh.bases.batches == fresh.channels.batches == 0
    fresh.network.load_state_dict(double.network.state_dict())
    assert {id(p) for p in fresh.optimizer.param_groups[0]["params"]} == {
        id(p) for p in mbp.trainable_parameters(fresh.network)
    }
    bases, channels = fresh.pruner.positions(state)
    assert {name: len(kept) for name, kept in bases.items()} == {
        name: layer.rank() for name, layer in decomposed_layers(double.network)
    }
    assert channels == {}  # it is there already
    fresh.channels.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept_bases": {"stem": [0, 99]}}, r"keeps bases that this network does not have, in \['stem'\]"),
        ({"kept_channels": {"inner": {"out": [0, 12]}}}, r"keeps channels .* does not have, in \['inner'\]"),
    ],
)
def test_what_a_network_lacks_is_refused_and_nothing_is_cut(double, change, words):
    state = double.pruner.state_dict()
    state = {**state, "kept_bases": {**state["kept_bases"], "inner": [0]}}
    state = {key: {**state[key], **change.get(key, {})} for key in state}
    double.collect()
    before = snapshot(double.network)
    with pytest.raises(mbp.PlanMismatchError, match=words):
        double.pruner.load_state_dict(state)
    assert same_bits(snapshot(double.network), before)
    assert double.bases.batches == 1


# --- what is refused before any training


def test_each_budget_of_bases_is_checked():
    network = mbp.decompose(tiny_classifier())
    pruner = RoundPruner(network, mbp.SingularValueImportance(network))
    pruner.check([])
    with pytest.raises(mbp.BudgetError, match=r"Budget\(parameters=0.99\) cannot be met") as caught:
        pruner.check([mbp.Budget(parameters=0.1), mbp.Budget(parameters=0.99)])
    pruner.check([mbp.Budget(parameters=largest(caught.value))])


@pytest.mark.parametrize(
    ("multiple", "fewest"), [(1, "one channel in every group"), (4, "one block of 4 channels in every group")]
)
def test_a_budget_that_nothing_would_meet_is_refused_with_the_largest_that_something_does(multiple, fewest):
    double = Double(channel_multiple=multiple)
    with pytest.raises(mbp.BudgetError, match=f"with one basis left in every layer and {fewest}") as caught:
        double.pruner.check([mbp.Budget(parameters=0.9999)])
    best = mbp.Budget(parameters=largest(caught.value))
    double.pruner.check([best])
    with pytest.raises(mbp.BudgetError) as of_the_cut:
        double.pruner.cut(mbp.Budget(parameters=0.9999), double.scores())
    assert largest(of_the_cut.value) == best.parameters
    assert double.pruner.cut(best, double.scores()).parameter_reduction >= best.parameters
    double.channels.close()


def test_budgets_of_channels_alone_do_not_count_on_bases():
    def pruner(share: float) -> RoundPruner:
        # the last layer keeps its outputs, so bases of it could go
        network = mbp.decompose(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()))
        channels = mbp.ChannelTaylorImportance(network, SHAPE)
        bases = mbp.SingularValueImportance(network)
        return RoundPruner(network, bases, None, channels, [mbp.Budget(parameters=share)])

    with pytest.raises(mbp.BudgetError, match="with one channel left in every group,") as caught:
        pruner(0.9999).check([])
    best = largest(caught.value)
    made = pruner(best)
    made.check([])
    scores = {group.name: torch.rand(len(group.units)) for group in made.channel_importance.groups}
    result = made.cut(None, RoundScores(made.importance.scores(), scores), mbp.Budget(parameters=best))
    assert result.removed_bases == 0
    assert result.parameter_reduction >= best


def test_a_threshold_counts_nothing_and_is_no_budget_of_both():
    own = Double(channel_budgets=[mbp.Budget(threshold=1e9)])
    own.pruner.check([mbp.Budget(bases=0.2)])
    own.channels.close()
    both = Double()
    with pytest.raises(mbp.BudgetError, match="is not one of bases and channels together"):
        both.pruner.check([mbp.Budget(threshold=0.1)])
    both.channels.close()


def test_channels_without_scaling_are_not_counted_on():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, affine=False)
            self.two, self.three = nn.Conv2d(16, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.three(torch.relu(self.two(torch.relu(self.norm(self.one(x)))))).mean(dim=(2, 3))

    network = mbp.add_channel_scaling(mbp.decompose(Partly()), SHAPE)
    importance = mbp.ChannelScalingImportance(network, SHAPE)
    assert [group.name for group in importance.groups] == list(importance.scores()) == ["two"]
    bases = mbp.SingularValueImportance(network)
    pruner = RoundPruner(network, bases, None, importance, [mbp.Budget(parameters=0.9)])
    with pytest.raises(mbp.BudgetError, match="with one channel left in every group"):
        pruner.check([])


def test_there_is_one_budget_of_channels_for_each_round_or_none_of_bases():
    double = Double(channel_budgets=[mbp.Budget(parameters=0.1)])
    words = "There are 2 budgets and 1 channel_budgets: give one of each for each round, or none of bases"
    with pytest.raises(mbp.ConfigurationError, match=words):
        double.pruner.check([mbp.Budget(bases=0.2), mbp.Budget(bases=0.5)])
    double.pruner.check([mbp.Budget(bases=0.2)])
    double.pruner.check([])
    double.channels.close()


def test_scores_of_two_kinds_are_not_compared():
    network = mbp.decompose(residual_classifier())
    channels = mbp.ChannelTaylorImportance(network, SHAPE)
    own = [mbp.Budget(parameters=0.9)]
    for importance in (
        mbp.ScalingImportance(network),
        mbp.TaylorImportance(network, reduction="abs"),
        mbp.TaylorImportance(network, normalization="l2"),
    ):
        words = f"same reduction and no normalization; got {type(importance).__name__} and ChannelTaylorImportance"
        with pytest.raises(mbp.ConfigurationError, match=words):
            RoundPruner(network, importance, None, channels)
        RoundPruner(network, importance, None, channels, own)
    with pytest.raises(mbp.ConfigurationError, match="channel_budgets need a channel_importance"):
        RoundPruner(network, mbp.ScalingImportance(network), None, None, own)
    channels.close()


@pytest.mark.parametrize("multiple", [0, -1, 2.0, True])
def test_a_block_holds_a_whole_number_of_channels(multiple):
    network = mbp.decompose(tiny_classifier())
    with pytest.raises(ValueError, match=f"multiple must be a whole number of at least 1.*got {multiple}"):
        RoundPruner(network, mbp.SingularValueImportance(network), channel_multiple=multiple)
