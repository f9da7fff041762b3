from __future__ import annotations

import re
import time

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.latency import device_name, median_seconds

from .networks import same_bits, snapshot, tiny_classifier


def test_the_measurement_tells_how_it_was_made():
    latency = mbp.measure_latency(tiny_classifier(), (1, 8, 8), batch_size=3, repeats=4, warm_up=1)
    assert (latency.batch_size, latency.repeats, latency.warm_up) == (3, 4, 1)
    assert latency.threads == torch.get_num_threads()
    assert latency.device == device_name("cpu")
    assert latency.device.startswith("cpu (")


class Waits(nn.Module):
    """Takes a known time and counts its calls."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.shapes = seconds, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        assert not self.training
        assert torch.is_inference_mode_enabled() or len(self.shapes) == 1
        time.sleep(self.seconds)
        return x


def test_a_known_time_is_found():
    network = Waits(0.004).train()
    latency = mbp.measure_latency(network, (1, 2), batch_size=2, repeats=5, warm_up=2)
    assert 4 <= latency.low_ms <= latency.median_ms <= latency.high_ms
    # one to see that the shape fits, warm-up and one to learn how long it takes, and the repeats
    assert network.shapes == [(2, 1, 2)] * (1 + 3 + 5)
    assert network.training


def test_nothing_of_the_network_changes():
    network = tiny_classifier().train()
    before = snapshot(network)
    mbp.measure_latency(network, (1, 8, 8), repeats=3)
    assert same_bits(snapshot(network), before)
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_functions_take_turns():
    calls = []

    def function(name: str):
        def call() -> None:
            calls.append(name)
            time.sleep(0.001)

        return call

    fast, slow = function("a"), function("b")
    seconds = median_seconds([fast, slow], torch.device("cpu"), repeats=3, warm_up=0)
    assert calls == ["a", "b"] + ["a", "b"] * 3
    assert all(one >= 0.001 for one in seconds)


@pytest.mark.parametrize("arguments", [{"repeats": 2}, {"warm_up": -1}, {"batch_size": 0}])
def test_what_cannot_be_measured_is_refused(arguments):
    with pytest.raises(ValueError, match="repeats of at least 3, warm_up of at least 0 and batch_size of at least 1"):
        mbp.measure_latency(tiny_classifier(), (1, 8, 8), **arguments)


def test_a_wrong_input_shape_is_named():
    with pytest.raises(ValueError, match=re.escape("cannot process an input of shape (1, 3, 8, 8)")):
        mbp.measure_latency(tiny_classifier(), (3, 8, 8))
