from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune import budgets, layer_timing
from monai_basisprune.budgets import network_cost

from .networks import same_bits, snapshot, tiny_classifier


@pytest.mark.parametrize("quantity", ["parameters", "macs", "latency", "bases", "threshold"])
def test_exactly_one_quantity_is_kept_and_shown(quantity):
    shape = (1, 8, 8) if quantity in ("macs", "latency") else None
    budget = mbp.Budget(**{quantity: 0.5}, input_shape=shape)
    assert budget.quantity == quantity
    assert repr(budget) == f"Budget({quantity}=0.5{', input_shape=(1, 8, 8)' if shape else ''})"
    assert eval(repr(budget), {"Budget": mbp.Budget}) == budget


def test_parameters_and_macs_are_one_budget_of_two_parts():
    budget = mbp.Budget(parameters=0.5, macs=0.25, input_shape=(1, 8, 8))
    assert (budget.quantity, budget.share) == ("parameters and macs", 0.25)
    assert [(part.quantity, part.share, part.input_shape) for part in budget.parts] == [
        ("parameters", 0.5, (1, 8, 8)),
        ("macs", 0.25, (1, 8, 8)),
    ]
    assert mbp.Budget(bases=0.5).parts == (mbp.Budget(bases=0.5),)


def test_a_budget_is_frozen_and_takes_lists_from_json():
    budget = mbp.Budget(macs=0, input_shape=[1, 8, 8])
    assert budget.input_shape == (1, 8, 8)
    assert hash(budget) == hash(mbp.Budget(macs=0, input_shape=(1, 8, 8)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.macs = 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "one of parameters, macs, latency, bases, threshold and auc_margin, or parameters and macs together"),
        ({}, "got none of them"),
        ({"parameters": 0.5, "bases": 0.25}, "got {'parameters': 0.5, 'bases': 0.25}"),
        ({"parameters": 1}, "Budget(parameters=...) is the share to remove, at least 0 and below 1, got 1"),
        ({"parameters": 90}, "at least 0 and below 1, got 90"),
        ({"bases": -0.1}, "Budget(bases=...) is the share to remove, at least 0 and below 1, got -0.1"),
        ({"bases": float("inf")}, "below 1, got inf"),
        ({"parameters": float("nan")}, "Budget(parameters=...) takes a number, got nan"),
        ({"threshold": float("nan")}, "Budget(threshold=...) takes a number, got nan"),
        ({"parameters": "0.5"}, "Budget(parameters=...) takes a number, got '0.5'"),
        ({"parameters": True}, "Budget(parameters=...) takes a number, got True"),
        ({"macs": 0.5}, "Budget(macs=...) needs input_shape as well"),
        ({"parameters": 0.5, "macs": 0.5}, "Budget(macs=...) needs input_shape as well"),
        ({"parameters": 0.5, "macs": 1.5, "input_shape": (1, 8, 8)}, "Budget(macs=...) is the share to remove"),
        ({"latency": 0.5}, "Budget(latency=...) needs input_shape as well"),
        ({"latency": 1.5, "input_shape": (1, 8, 8)}, "at least 0 and below 1, got 1.5"),
    ],
)
def test_what_is_no_budget_is_refused(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        mbp.Budget(**arguments)


def test_threshold_may_be_any_number():
    assert mbp.Budget(threshold=-3).quantity == "threshold"
    assert mbp.Budget(threshold=1e9).quantity == "threshold"


def test_costs_of_a_classifier_by_hand():
    network = mbp.decompose(tiny_classifier())
    parameters = network_cost(network, mbp.Budget(parameters=0.25))
    assert (parameters.original, parameters.total) == (306, 306)
    assert parameters.allowed == pytest.approx(306 * 0.75)
    # one basis of stem: 9 weights and 6 of the scaling; one in each of two groups of grouped: 2·(27 + 4)
    assert parameters.layers == {"stem": [0, 15, 30, 45, 54, 54, 54], "grouped": [0, 62, 124, 186, 216]}
    macs = network_cost(network, mbp.Budget(macs=0.25, input_shape=(1, 8, 8)))
    assert (macs.original, macs.total) == (54 * 64 + 216 * 16 + 16,) * 2
    assert macs.layers["stem"] == [64 * count for count in parameters.layers["stem"]]
    assert macs.layers["grouped"] == [16 * count for count in parameters.layers["grouped"]]
    bases = network_cost(network, mbp.Budget(bases=0.25))
    assert (bases.original, bases.total, bases.allowed) == (14, 14, pytest.approx(10.5))
    assert bases.layers == {"stem": [0, 1, 2, 3, 4, 5, 6], "grouped": [0, 2, 4, 6, 8]}


def test_a_basis_saves_nothing_until_two_convolutions_are_cheaper_than_one():
    def saving(cost, name, slots):
        return cost.layers[name][slots] - cost.layers[name][slots - 1]

    cost = network_cost(mbp.decompose(tiny_classifier()), mbp.Budget(parameters=0.5))
    # 6, 5, 4 bases of stem cost 90, 75, 60, one convolution 54; then 45, 30, 15
    assert [saving(cost, "stem", slots) for slots in (6, 5, 4, 3, 2, 1)] == [0, 0, 9, 15, 15, 15]
    assert [saving(cost, "grouped", slots) for slots in (4, 3, 2, 1)] == [30, 62, 62, 62]
    bases = network_cost(mbp.decompose(tiny_classifier()), mbp.Budget(bases=0.5))
    assert [saving(bases, "grouped", slots) for slots in (4, 1)] == [2, 2]


def test_reduction_is_the_share_of_the_original():
    cost = network_cost(mbp.decompose(tiny_classifier()), mbp.Budget(parameters=0.5))
    assert cost.reduction(306) == 0
    assert cost.reduction(153) == 0.5


@pytest.mark.parametrize("slots", [(6, 4), (3, 4), (2, 1), (1, 1)])
def test_original_and_total_are_those_of_real_networks(slots):
    original = tiny_classifier()
    network = mbp.decompose(original)
    scores = {"stem": torch.arange(6.0).flip(0), "grouped": torch.arange(4.0).flip(0).repeat(2)}
    for name, left in zip(scores, slots, strict=True):
        mbp.prune_(network, {name: scores[name]}, mbp.Budget(threshold=float(scores[name].max()) - left + 0.5))
    plain = mbp.recompose(network)
    before, now = (mbp.measure_complexity(one, (1, 8, 8)) for one in (original, plain))
    parameters = network_cost(network, mbp.Budget(parameters=0.5))
    macs = network_cost(network, mbp.Budget(macs=0.5, input_shape=(1, 8, 8)))
    assert (parameters.original, parameters.total) == (before.parameters, now.parameters)
    assert now.parameters == sum(p.numel() for p in plain.parameters())
    assert (macs.original, macs.total) == (before.macs, now.macs)


class Called(nn.Module):
    """One convolution on two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.pool(self.conv(x))).mean((2, 3)))


class SlicesInBatch(nn.Module):
    """A 2D network for volumes, as in multiple-instance learning: the slices become the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.flatten(0, 1))).mean((2, 3)).reshape(*x.shape[:2], -1)


class WithoutBatch(nn.Module):
    """A network that hands a convolution an image without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.second(self.first(image)) for image in x])


@pytest.mark.parametrize(
    ("kind", "shape"), [(Called, (4, 8, 8)), (SlicesInBatch, (5, 1, 8, 8)), (WithoutBatch, (1, 8, 9))]
)
def test_operations_are_counted_wherever_a_layer_runs(kind, shape):
    torch.manual_seed(0)
    original = kind()
    network = mbp.decompose(original)
    result = mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(macs=0.5, input_shape=shape))
    before, now = (mbp.measure_complexity(one, shape).macs for one in (original, mbp.recompose(network)))
    assert result.macs == now
    assert now <= before / 2
    assert result.mac_reduction == pytest.approx(1 - now / before)


def test_counting_operations_changes_nothing():
    network = mbp.decompose(tiny_classifier()).train()
    network.norm.eval()
    before, modes = snapshot(network), [module.training for module in network.modules()]
    network_cost(network, mbp.Budget(macs=0.5, input_shape=(1, 8, 8)))
    with pytest.raises(ValueError, match=r"TinyClassifier cannot process an input of shape \(1, 2, 8, 8\)"):
        network_cost(network, mbp.Budget(macs=0.5, input_shape=(2, 8, 8)))
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_that_is_not_decomposed_is_refused():
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        network_cost(tiny_classifier(), mbp.Budget(parameters=0.5))


def wide_classifier() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)).eval()


@pytest.fixture
def known_times(monkeypatch):
    """Clocks that go by operations, with 2 ms for what is between the layers; real ones differ from run to run."""

    def seconds(layers, x):
        return [1e-9 * mbp.measure_complexity(layer, x.shape[1:]).macs for layer in layers]

    def latency(network, shape):
        ms = 2 + 1e-6 * mbp.measure_complexity(network, shape).macs
        return mbp.Latency(ms, ms, ms, batch_size=1, repeats=3, warm_up=0, threads=1, device="by operations")

    monkeypatch.setattr(layer_timing, "_seconds", seconds)
    monkeypatch.setattr(budgets, "measure_latency", latency)


@pytest.mark.usefixtures("known_times")
def test_latency_counts_each_layer_and_what_is_between_them():
    network, shape = mbp.decompose(wide_classifier()), (8, 32, 32)
    cost = network_cost(network, mbp.Budget(latency=0.5, input_shape=shape))
    macs = network_cost(network, mbp.Budget(macs=0.5, input_shape=shape))
    assert cost.original == cost.total == pytest.approx(2e-3 + 1e-9 * macs.original)
    assert cost.allowed == pytest.approx(cost.original / 2)
    for name, table in cost.layers.items():
        assert list(table) == pytest.approx([1e-9 * count for count in macs.layers[name]])


@pytest.mark.usefixtures("known_times")
def test_a_budget_of_latency_is_met():
    network, shape = mbp.decompose(wide_classifier()), (8, 32, 32)
    for share in (0.3, 0.6):
        scores = mbp.SingularValueImportance(network).scores()
        result = mbp.prune_(network, scores, mbp.Budget(latency=share, input_shape=shape))
        now = 2 + 1e-6 * mbp.measure_complexity(mbp.recompose(network), shape).macs
        before = 2 + 1e-6 * mbp.measure_complexity(wide_classifier(), shape).macs
        assert result.latency_reduction == pytest.approx(1 - now / before)
        assert share <= result.latency_reduction < share + 0.02


@pytest.mark.usefixtures("known_times")
def test_a_latency_that_cannot_be_reached_is_refused_in_milliseconds():
    network = mbp.decompose(wide_classifier())
    before, scores = snapshot(network), mbp.SingularValueImportance(network).scores()
    words = r"2\.\d\d ms of the original \d+\.\d\d ms latency remain.*latency=0\.\d+"
    with pytest.raises(mbp.BudgetError, match=words):
        mbp.prune_(network, scores, mbp.Budget(latency=0.99, input_shape=(8, 32, 32)))
    assert same_bits(snapshot(network), before)


def test_a_budget_of_latency_is_measured_for_real():
    network = mbp.decompose(wide_classifier())
    cost = network_cost(network, mbp.Budget(latency=0.5, input_shape=(8, 32, 32)))
    assert {name: len(table) for name, table in cost.layers.items()} == {"0": 65, "2": 65}
    assert cost.original >= cost.total >= sum(table[-1] for table in cost.layers.values()) > 0
