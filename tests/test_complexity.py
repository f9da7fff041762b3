from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp

from .networks import same_bits, snapshot, tiny_classifier


class OwnConv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Product(nn.Module):
    """A matrix product as in attention: (n × c) · (c × n)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)
        return tokens.transpose(1, 2) @ tokens


@pytest.mark.parametrize(
    ("network", "shape", "parameters", "macs"),
    [
        # output channels · input channels of a group · kernel · output positions
        (nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32), 8 * 3 * 9 + 8, 8 * 3 * 9 * 32 * 32),
        (nn.Conv2d(3, 8, 3, stride=2, bias=False), (3, 9, 11), 8 * 3 * 9, 8 * 3 * 9 * 4 * 5),
        (nn.Conv2d(4, 8, (3, 1), dilation=2), (4, 9, 6), 8 * 4 * 3 + 8, 8 * 4 * 3 * 5 * 6),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5), 8 * 2 * 9 + 8, 8 * 2 * 9 * 9),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5), 4 * 1 * 9 + 4, 4 * 1 * 9 * 9),
        (nn.Conv1d(2, 5, 3), (2, 10), 5 * 2 * 3 + 5, 5 * 2 * 3 * 8),
        (nn.Conv3d(1, 2, 3), (1, 5, 6, 7), 2 * 1 * 27 + 2, 2 * 1 * 27 * 3 * 4 * 5),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"), (2, 6, 6), 76, 4 * 2 * 9 * 36),
        (OwnConv2d(3, 8, 3), (3, 6, 6), 8 * 3 * 9 + 8, 8 * 3 * 9 * 16),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), (3, 4, 4), 3 * 8 * 4 + 8, 3 * 8 * 4 * 16),  # by input positions
        (nn.Linear(10, 7), (10,), 77, 70),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2), 26, 24),
        (Product(), (5, 2, 3), 0, 6 * 5 * 6),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), (3, 4, 4), 0, 0),
    ],
)
def test_parameters_and_operations_by_hand(network, shape, parameters, macs):
    cost = mbp.measure_complexity(network, shape)
    assert (cost.parameters, cost.macs, cost.latency) == (parameters, macs, None)


def test_a_classifier_by_hand():
    # stem: 6·1·9 on 64 positions; grouped: 8·3·9 on 16 positions; head: 8·2
    cost = mbp.measure_complexity(tiny_classifier(), (1, 8, 8))
    assert cost.parameters == (54 + 6) + 12 + 216 + 18
    assert cost.macs == 54 * 64 + 216 * 16 + 16


def test_a_decomposed_network_counts_both_halves():
    network = mbp.decompose(nn.Conv2d(3, 8, 3, padding=1))
    cost = mbp.measure_complexity(network, (3, 4, 4))
    assert cost.parameters == 8 * 27 + 8 * 8 + 8 + 8  # basis, scaling, scaling factors, bias
    assert cost.macs == (8 * 27 + 8 * 8) * 16


def test_shared_parameters_count_once_and_their_operations_every_time():
    linear = nn.Linear(4, 4, bias=False)
    cost = mbp.measure_complexity(nn.Sequential(linear, nn.ReLU(), linear), (4,))
    assert (cost.parameters, cost.macs, cost.bytes_on_disk) == (16, 32, 64)


def test_bytes_on_disk_are_parameters_and_buffers(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 200, 3), nn.BatchNorm2d(200))
    cost = mbp.measure_complexity(network, (1, 8, 8))
    assert cost.bytes_on_disk == 4 * (200 * 9 + 200 + 4 * 200) + 8  # and one counter of the norm, of 8 bytes
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert cost.bytes_on_disk <= (tmp_path / "model.pt").stat().st_size <= cost.bytes_on_disk + 8000


@pytest.mark.parametrize(
    ("network", "shape", "numbers"),
    [
        (nn.Conv2d(1, 4, 3, padding=1), (1, 8, 8), 64 + 256),  # input and output
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 2, 1)), (1, 8, 8), 64 + 256 + 64),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True)), (1, 8, 8), 64 + 256),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU()), (1, 8, 8), 64 + 256 + 256),  # the input waits for its caller
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2), 12 + 3),  # a view takes no memory of its own
    ],
)
def test_peak_of_the_activations_by_hand(network, shape, numbers):
    assert mbp.measure_complexity(network, shape).peak_activation_bytes == 4 * numbers


def test_latency_is_measured_on_request():
    cost = mbp.measure_complexity(tiny_classifier(), (1, 8, 8), latency=True)
    assert isinstance(cost.latency, mbp.Latency)
    assert 0 < cost.latency.low_ms <= cost.latency.median_ms <= cost.latency.high_ms


def test_network_is_left_as_it_is():
    network = tiny_classifier().train()
    network.norm.eval()
    network.head.eval()
    before, modes = snapshot(network), [module.training for module in network.modules()]
    state = torch.get_rng_state()
    mbp.measure_complexity(network, [1, 8, 8])
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_an_error_too():
    network = tiny_classifier().train()
    network.norm.eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        mbp.measure_complexity(network, (2, 8, 8))
    assert [module.training for module in network.modules()] == modes


def test_an_input_that_does_not_fit_is_an_error_that_shows_what_was_asked():
    words = "TinyClassifier cannot process an input of shape (1, 3, 8, 8) (batch first): "
    with pytest.raises(ValueError, match=re.escape(words) + ".*3 channels"):
        mbp.measure_complexity(tiny_classifier(), (3, 8, 8))


@pytest.mark.parametrize("shape", [(), (1, 0, 8), (1, -8, 8), (1, 8.0, 8), ("1", 8, 8)])
def test_a_shape_of_other_than_positive_whole_numbers_is_refused(shape):
    with pytest.raises(ValueError, match="input_shape must hold positive whole numbers") as caught:
        mbp.measure_complexity(tiny_classifier(), shape)
    assert f"got {shape!r}" in str(caught.value)
