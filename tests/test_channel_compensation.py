from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from monai_basisprune.activation import Moments, grouped_features
from monai_basisprune.channel_compensation import (
    lost_inputs,
    positions_in,
    refit_inputs_,
    spatial_dims,
    take_inputs,
)
from monai_basisprune.channel_slices import keep_channels_
from monai_basisprune.layers import decompose_layer

from .networks import relative_error


def moments_of(parts: list[torch.Tensor], repeated: int = 1) -> Moments:
    """Return the moments of what layers read, as if each sample had been seen several times."""
    moments = Moments()
    moments.add(torch.cat(parts, dim=1))
    assert moments.sums is not None
    assert moments.products is not None
    moments.samples *= repeated
    moments.sums, moments.products = moments.sums * repeated, moments.products * repeated
    return moments


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(6, 4, 3),
        lambda: nn.Conv2d(6, 4, 3, stride=2, bias=False),
        lambda: nn.Conv2d(6, 4, 3, groups=2),
        # one with strides has positions that get different parts of the kernel, which no bias can tell apart
        lambda: nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False),
    ],
)
def test_the_new_weights_are_those_of_the_least_squares_solution_for_what_is_read(make):
    torch.manual_seed(0)
    twin = make().double()
    layer, groups, bias = copy.deepcopy(twin), twin.groups, twin.bias is not None
    keep = [0, 2, 3, 5]  # the same in both groups
    keep_channels_(layer, "in", keep)
    x = torch.einsum("ij,njhw->nihw", torch.randn(6, 6).double(), torch.rand(30, 6, 5, 5).double() + 0.3)
    # so often that the ridge that few images ask for is none
    moments = moments_of([grouped_features(one, groups, 2) for one in (x[:, keep], x)], 10**9)
    refit_inputs_(layer, twin, moments, 1e-12)
    told = torch.zeros_like(x)
    for group in range(groups):
        inside = [c for c in keep if c // (6 // groups) == group]
        everything = list(range(group * 6 // groups, (group + 1) * 6 // groups))
        z, y = (x[:, names].movedim(1, -1).reshape(-1, len(names)).numpy() for names in (inside, everything))
        if bias:
            z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        solution = np.linalg.lstsq(z, y, rcond=None)[0]
        told[:, everything] = torch.from_numpy(z @ solution).reshape(30, 5, 5, -1).movedim(-1, 1)
    # what the layer makes of the channels that are left is what its twin makes of all, as they are told by these
    assert relative_error(layer(x[:, keep]), twin(told)) < 1e-6


def test_a_decomposed_layer_gets_new_bases_and_its_bias_the_means():
    torch.manual_seed(0)
    twin = decompose_layer(nn.Conv2d(4, 5, 1).double())
    twin.scaling.scaling_factors.data.uniform_(0.5, 1.5)
    layer, keep = copy.deepcopy(twin), [0, 3]
    keep_channels_(layer, "in", keep)
    layer.keep_bases_([0, 2, 3], lambda *args: None)
    scaling = layer.scaling.weight.detach().clone()
    # the channels that went are sums of those that are left and a constant, which only the bias can carry
    left = torch.randn(20, 2, 5, 5).double()
    x = torch.zeros(20, 4, 5, 5).double()
    x[:, keep], x[:, 1], x[:, 2] = left, 2 * left[:, 0] - left[:, 1] + 3, left[:, 1] - 1
    moments = moments_of([grouped_features(one, 1, 2) for one in (left, x)], 10**9)
    refit_inputs_(layer, twin, moments, 1e-12)
    assert torch.equal(layer.scaling.weight, scaling)
    wanted = copy.deepcopy(twin)
    wanted.keep_bases_([0, 2, 3], lambda *args: None)  # only the inputs are made up for, not the bases
    assert relative_error(layer(left), wanted(x)) < 1e-6
    assert float((layer.scaling.bias - wanted.scaling.bias).detach().abs().max()) > 0.1


def test_the_bias_of_an_up_sampling_layer_takes_the_mean_over_the_positions_of_its_kernel():
    torch.manual_seed(0)
    twin = nn.ConvTranspose2d(3, 2, 2, stride=2).double()
    layer = copy.deepcopy(twin)
    keep_channels_(layer, "in", [0, 2])
    x = torch.randn(20, 3, 4, 4).double()
    x[:, 1] = x[:, 0] - x[:, 2] + 5
    refit_inputs_(layer, twin, moments_of([grouped_features(one, 1, 2) for one in (x[:, [0, 2]], x)], 10**9), 1e-12)
    means = [one.mean(dim=(0, 2, 3)) for one in (layer(x[:, [0, 2]]), twin(x))]
    torch.testing.assert_close(means[0], means[1], rtol=1e-6, atol=1e-8)


def test_a_linear_layer_that_lost_outputs_too_gets_its_own_rows():
    torch.manual_seed(0)
    twin = nn.Linear(5, 4).double()
    layer = copy.deepcopy(twin)
    keep_channels_(layer, "in", [1, 2, 4])
    keep_channels_(layer, "out", [0, 3])
    x = torch.randn(60, 5).double()
    x[:, 0], x[:, 3] = x[:, 1] + 1, x[:, 2] - x[:, 4]
    moments = moments_of([grouped_features(one, 1, 0) for one in (x[:, [1, 2, 4]], x)], 10**9)
    refit_inputs_(layer, twin, moments, 1e-12)
    assert relative_error(layer(x[:, [1, 2, 4]]), twin(x)[:, [0, 3]]) < 1e-6


def test_a_stronger_ridge_stays_nearer_to_the_layer_as_it_was_cut():
    torch.manual_seed(0)
    twin = nn.Conv2d(4, 3, 1, bias=False).double()
    cut = copy.deepcopy(twin)
    keep_channels_(cut, "in", [0, 1])
    x = torch.randn(20, 4, 4, 4).double()
    x[:, 2:] += x[:, :2]
    moments = moments_of([grouped_features(one, 1, 2) for one in (x[:, :2], x)])
    distances = []
    for ridge in (1e-9, 1.0, 1e12):
        layer = copy.deepcopy(cut)
        refit_inputs_(layer, twin, moments, ridge)
        distances.append(float((layer.weight - cut.weight).detach().norm()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-9


def test_few_samples_are_trusted_less():
    torch.manual_seed(0)
    twin = nn.Linear(6, 3, bias=False).double()
    cut = copy.deepcopy(twin)
    keep_channels_(cut, "in", [0, 1])
    x = torch.randn(12, 6).double()
    changes = []
    for repeated in (1, 10**9):
        layer = copy.deepcopy(cut)
        parts = [grouped_features(one, 1, 0) for one in (x[:, :2], x)]
        refit_inputs_(layer, twin, moments_of(parts, repeated), 1e-12)
        # W A with A = argmin |X - A Z|^2 + (2 / samples) mean(z^2) |A - A0|^2, A0 what is left of an identity
        z, full = x[:, :2].numpy(), x.numpy()
        start, ridge = np.eye(6, 2), 1e-12 + 2 / (12 * repeated)
        gram = z.T @ z / 12
        damped = gram + ridge * np.trace(gram) / 2 * np.eye(2)
        read = start + (full.T @ z / 12 - start @ gram) @ np.linalg.inv(damped)
        np.testing.assert_allclose(layer.weight.detach(), twin.weight.detach().numpy() @ read, rtol=1e-9, atol=1e-12)
        changes.append(float((layer.weight - cut.weight).detach().norm()))
    assert changes[0] < 0.95 * changes[1]


# --- its parts -----------------------------------------------------------------------------------------------------


def test_a_group_that_reads_nothing_but_zeros_keeps_its_weights_and_the_other_gets_its_own():
    torch.manual_seed(0)
    twin = nn.Conv2d(4, 2, 1, groups=2).double()
    layer = copy.deepcopy(twin)
    keep_channels_(layer, "in", [0, 2])
    before = layer.weight.detach().clone()
    x = torch.randn(20, 4, 4, 4).double()
    x[:, 1] = 2 * x[:, 0]
    x[:, 2] = 0.0
    refit_inputs_(layer, twin, moments_of([grouped_features(one, 2, 2) for one in (x[:, [0, 2]], x)], 10**9), 1e-12)
    assert relative_error(layer(x[:, [0, 2]])[:, :1], twin(x)[:, :1]) < 1e-6
    assert torch.equal(layer.weight[1], before[1])
    # of the channel that went and had no other to be read off, the bias takes the mean
    mean = twin.weight.detach()[1, 1] * x[:, 3].mean()
    torch.testing.assert_close(layer.bias[1:], twin.bias[1:] + mean.reshape(-1))


def test_positions_are_those_of_the_channels_that_are_left_in_what_the_twin_has():
    whole = nn.Conv2d(6, 8, 1)
    twin, layer = copy.deepcopy(whole), copy.deepcopy(whole)
    for module in (twin, layer):
        keep_channels_(module, "in", [1, 2, 4, 5])
    keep_channels_(layer, "in", [1, 3])  # of the original ones 2 and 5
    assert positions_in(layer, whole, "in") == [2, 5]
    assert positions_in(layer, twin, "in") == [1, 3]
    assert positions_in(whole, whole, "in") == list(range(6))
    assert positions_in(layer, whole, "out") == list(range(8))
    assert positions_in(twin, layer, "in") is None  # the other one has lost some of them
    assert positions_in(whole, layer, "in") is None
    assert positions_in(layer, nn.Conv2d(7, 8, 1), "in") is None  # and these never were the same


def test_inputs_are_lost_where_the_twin_has_more():
    whole, cut = nn.Linear(4, 3), nn.Linear(4, 3)
    keep_channels_(cut, "out", [0])
    assert not lost_inputs(cut, whole)
    keep_channels_(cut, "in", [0, 3])
    assert lost_inputs(cut, whole)
    assert not lost_inputs(whole, cut)
    assert not lost_inputs(cut, cut)


@pytest.mark.parametrize("make", [lambda layer: layer, decompose_layer])
@pytest.mark.parametrize(
    ("layer", "dims"),
    [(nn.Linear(4, 6), 0), (nn.Conv1d(4, 6, 1), 1), (nn.Conv2d(4, 6, 3, groups=2), 2), (nn.Conv3d(4, 6, 1), 3)],
)
def test_what_a_layer_reads_is_kept_by_groups_with_each_position_as_a_sample(layer, dims, make):
    torch.manual_seed(0)
    groups, layer = getattr(layer, "groups", 1), make(layer)
    assert spatial_dims(layer) == dims
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(take_inputs(layer, seen))
    x = torch.rand(5, 4, *[3] * dims)
    wanted = layer(x)
    handle.remove()
    assert torch.equal(layer(x), wanted)
    assert len(seen) == 1
    assert seen[0].dtype == torch.float64
    assert seen[0].shape == (groups, 4 // groups, 5 * 3**dims)
    samples = np.moveaxis(x.numpy(), 1, 0).reshape(groups, 4 // groups, -1)
    np.testing.assert_array_equal(seen[0], samples.astype(np.float64))
