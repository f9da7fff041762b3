from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune import layer_timing
from monai_basisprune.layer_timing import faster_split, latency_tables, layer_inputs

from .networks import same_bits, snapshot, tiny_classifier


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 24, 3), nn.Conv2d(24, 24, 3), nn.Conv2d(24, 24, 3), nn.Conv2d(24, 4, 1)).eval()


def test_inputs_are_those_of_one_image():
    network = mbp.decompose(tiny_classifier())
    shapes = {name: tuple(x.shape) for name, x in layer_inputs(network, (1, 8, 8)).items()}
    assert shapes == {"stem": (1, 1, 8, 8), "grouped": (1, 6, 8, 8)}
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        layer_inputs(network, (2, 8, 8))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_table_has_an_entry_for_each_rank_and_one_for_the_whole_layer():
    network = mbp.decompose(small_network())
    before = snapshot(network)
    tables = latency_tables(network, (2, 16, 16))
    assert {name: len(table) for name, table in tables.items()} == {"0": 20, "1": 26, "2": 26, "3": 6}
    for table in tables.values():
        assert table[0] == 0
        assert all(0 < time <= table[-1] for time in table[1:])
        assert table[:-1] == sorted(table[:-1])
    assert same_bits(snapshot(network), before)


def test_layers_of_equal_geometry_are_measured_once(monkeypatch):
    measured = []
    seconds = layer_timing._seconds
    monkeypatch.setattr(layer_timing, "_seconds", lambda layers, x: measured.append(len(layers)) or seconds(layers, x))
    network = mbp.decompose(nn.Sequential(*(nn.Conv2d(24, 24, 3, padding=1) for _ in range(4))))
    tables = latency_tables(network, (24, 8, 8))
    assert measured == [1 + len([1, 2, 4, 8, 16, 24])]
    assert tables["0"] == tables["3"]


def test_what_takes_no_part_in_the_pass_costs_nothing():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    network = mbp.decompose(Unused())
    assert latency_tables(network, (2, 8, 8))["unused"] == [0.0] * 6
    assert faster_split(network, (2, 8, 8))["unused"] is False


@pytest.mark.parametrize(("one", "two", "wanted"), [(4.0, 1.0, True), (1.0, 4.0, False), (1.0, 0.99, False)])
def test_the_faster_form_is_taken_whatever_holds_fewer_weights(monkeypatch, one, two, wanted):
    def seconds(functions, device, repeats, warm_up):
        assert [isinstance(function.func, nn.Sequential) for function in functions] == [False, True]
        return [one, two]

    monkeypatch.setattr(layer_timing, "median_seconds", seconds)
    assert faster_split(mbp.decompose(nn.Sequential(nn.Conv2d(8, 8, 3))), (8, 8, 8)) == {"0": wanted}


def test_a_clock_that_wavers_gives_a_rising_table_below_the_whole_layer(monkeypatch):
    # of the whole layer, and of ranks 1, 2, 4 and 6
    monkeypatch.setattr(layer_timing, "median_seconds", lambda *arguments: [5.0, 2.0, 1.0, 4.0, 9.0])
    table = latency_tables(mbp.decompose(nn.Sequential(nn.Conv2d(6, 6, 3))), (6, 8, 8))["0"]
    assert table == [0.0, 2.0, 2.0, 2.5, 4.0, 5.0, 5.0, 5.0]
