from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import network_cost
from monai_basisprune.decomposition import decomposed_layers

from .networks import MONAI_NETWORKS, TinyClassifier, relative_error, same_bits, snapshot, tiny_classifier

SHAPE = TinyClassifier.input_shape


def redundant(width: int = 12, independent: int = 4, bias: bool = True) -> nn.Sequential:
    """Return two convolutions; the first makes channels that are sums of a few before the activation, an identity."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=bias), nn.Conv2d(width, 6, 3, padding=0, bias=bias))
    mixing = torch.randn(width, independent)
    network[0].weight.data = torch.einsum("wi,ichk->wchk", mixing, torch.randn(independent, 3, 3, 3) / 5)
    return network.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_what_tells_nothing_new_goes_without_a_loss(bias):
    network = redundant(bias=bias)
    if bias:
        network[0].bias.data.zero_()
    data = [torch.randn(8, 3, 10, 10) for _ in range(4)]
    found = mbp.decompose(network)
    result = mbp.prune_by_reconstruction_(found, data, mbp.Budget(parameters=0.6), (3, 10, 10), ridge=1e-9)
    assert result.parameter_reduction >= 0.6
    assert max(result.lost.values()) < 0.01
    x = torch.randn(4, 3, 10, 10)
    assert relative_error(found(x), network(x)) < 0.02
    assert found[0].out_channels < 8


@pytest.mark.parametrize("name", ["DenseNet with PReLU", "ResNet with shortcut B", "SE-ResNeXt block", "DynUNet"])
def test_networks_of_monai_are_cut_to_the_budget_saved_and_compensated(name, tmp_path):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    plain = make().eval()
    network = mbp.decompose(plain)
    data = [torch.rand(16, *shape) for _ in range(5)]
    reference = copy.deepcopy(network)
    for ratio in (0.3, 0.5):  # the second goes on from the first
        result = mbp.prune_by_reconstruction_(network, data, mbp.Budget(parameters=ratio), shape)
        assert result.parameter_reduction >= ratio
        assert result.images == 80
        sizes = [one.bases + one.channels for one in result.iterations]
        assert sizes == sorted(sizes, reverse=True)
        assert result.iterations[-1].threshold == pytest.approx(max(result.lost.values()))
    assert network_cost(network, mbp.Budget(parameters=0.0)).total == result.parameters
    compensated = mbp.compensate_(network, reference, data)
    assert compensated.output_error_after <= compensated.output_error_before
    x = torch.rand(2, *shape)
    wanted = network(x)
    small = mbp.recompose(network)
    assert relative_error(small(x), wanted) < 1e-4
    assert sum(p.numel() for p in small.parameters()) == result.parameters
    mbp.save_pruned(network, tmp_path / "model.pt")
    assert relative_error(mbp.load_pruned(plain, tmp_path / "model.pt")(x), wanted) < 1e-4


@pytest.mark.parametrize("shape", [None, (1, 10, 10)])
def test_a_layer_that_puts_out_nothing_but_zeros_goes_first(shape):
    class Dead(nn.Module):
        """One of two paths is dead: its activation lets nothing pass."""

        def __init__(self) -> None:
            super().__init__()
            convolutions = (nn.Conv2d(*sizes, bias=False) for sizes in ((1, 8, 3), (8, 8, 3), (8, 8, 1)))
            self.first, self.dead, self.last = convolutions
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            dead = self.last(torch.relu(self.dead(x)))
            return self.head((dead + x[:, :, 1:-1, 1:-1]).mean(dim=(2, 3)))

    torch.manual_seed(0)
    plain = Dead()
    plain.dead.weight.data.copy_(-plain.dead.weight.data.abs())
    network, x = mbp.decompose(plain), torch.rand(8, 1, 10, 10)
    data = [torch.rand(30, 1, 10, 10) for _ in range(3)]
    result = mbp.prune_by_reconstruction_(network, data, mbp.Budget(parameters=0.5), shape)
    assert result.parameter_reduction >= 0.5
    assert result.lost.get("last", 0.0) == 0.0
    assert relative_error(network(x), plain(x)) < 0.05


def test_without_an_input_shape_only_bases_go_and_no_layer_loses_more_than_a_step_at_once():
    network = mbp.decompose(tiny_classifier())
    ranks = {name: layer.rank() for name, layer in decomposed_layers(network)}
    data = [torch.rand(16, *SHAPE) for _ in range(3)]
    result = mbp.prune_by_reconstruction_(network, data, mbp.Budget(parameters=0.3), step=0.5)
    assert all(one.channels is None for one in result.iterations)
    assert mbp.PruningPlan.from_network(network).channels == {}
    for name, layer in decomposed_layers(network):
        assert layer.rank() >= ranks[name] * 0.5 ** len(result.iterations) - 1
    assert set(result.lost) <= {"stem", "grouped"}
    macs = mbp.prune_by_reconstruction_(network, data, mbp.Budget(macs=0.4, input_shape=SHAPE))
    assert (
        network_cost(network, mbp.Budget(macs=0.4, input_shape=SHAPE)).reduction(
            network_cost(network, mbp.Budget(macs=0.4, input_shape=SHAPE)).total
        )
        >= 0.4
    )
    assert macs.parameters <= result.parameters


def test_a_search_loses_less_of_the_output_than_an_equal_cut_of_all_layers():
    make, shape = MONAI_NETWORKS["ResNet with shortcut B"]
    torch.manual_seed(0)
    plain = make().eval()
    data, x = [torch.rand(16, *shape) for _ in range(5)], torch.rand(32, *shape)
    searched, cut = mbp.decompose(plain), mbp.decompose(plain)
    mbp.prune_by_reconstruction_(searched, data, mbp.Budget(parameters=0.4))
    mbp.prune_(cut, mbp.SingularValueImportance(cut, "max").scores(), mbp.Budget(parameters=0.4))
    with torch.no_grad():
        errors = [float((one(x) - plain(x)).square().mean()) for one in (searched, cut)]
    assert errors[0] < errors[1]


def test_everything_is_checked_before_anything_is_cut():
    network = mbp.decompose(tiny_classifier())
    before, x = snapshot(network), torch.rand(16, *SHAPE)
    budget = mbp.Budget(parameters=0.3)
    for act, error, words in (
        (lambda: mbp.prune_by_reconstruction_(network, [x], mbp.Budget(parameters=0.99), SHAPE), mbp.BudgetError,
         "one channel in every group"),
        (lambda: mbp.prune_by_reconstruction_(network, [x], mbp.Budget(parameters=0.99)), mbp.BudgetError,
         "with one basis left in every layer, "),
        (lambda: mbp.prune_by_reconstruction_(network, [x], mbp.Budget(bases=0.5)), mbp.BudgetError,
         "is none that a structural search meets: ask for a share of parameters or of macs"),
        (lambda: mbp.prune_by_reconstruction_(network, [], budget), mbp.ActivationError, "data: the loader is empty"),
        (lambda: mbp.prune_by_reconstruction_(network, [x * torch.nan], budget), mbp.ActivationError, "batch 1: NaN"),
        (lambda: mbp.prune_by_reconstruction_(network, [x], budget, step=0), ValueError, "step must be above 0"),
        (lambda: mbp.prune_by_reconstruction_(network, [x], budget, ridge=-1), ValueError, "ridge must be a positive"),
        (lambda: mbp.prune_by_reconstruction_(tiny_classifier(), [x], budget), mbp.LayerSelectionError,
         "holds no decomposed layer"),
    ):  # fmt: skip
        with pytest.raises(error, match=re.escape(words)):
            act()
    assert same_bits(snapshot(network), before)
    with pytest.raises(mbp.BudgetError) as caught:
        mbp.prune_by_reconstruction_(network, [x], mbp.Budget(parameters=0.99), SHAPE)
    largest = float(re.findall(r"that can be met is parameters=(0\.\d+)", str(caught.value))[0])
    assert mbp.prune_by_reconstruction_(network, [x], mbp.Budget(parameters=largest), SHAPE).parameter_reduction >= (
        largest
    )


def test_too_few_images_are_told_with_the_number_that_is_needed():
    network = mbp.decompose(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=3)))
    before = snapshot(network)
    with pytest.raises(mbp.ActivationError) as caught:
        mbp.prune_by_reconstruction_(network, [torch.rand(5, 3, 8, 8)], mbp.Budget(parameters=0.5))
    assert str(caught.value).splitlines() == [
        "Sequential cannot be searched:",
        "  - 2: 20 samples (5 images, 4 positions each) for 24 bases; at least 6 images are needed, or larger ones",
    ]
    assert same_bits(snapshot(network), before)
