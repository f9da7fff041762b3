from __future__ import annotations

from torch import nn

from monai_basisprune.traversal import parameter_count, walk


class Inner(nn.Module):
    """A module with a layer that may stand elsewhere too, and a place that is empty."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.empty = None
        self.layer = layer
        self.norm = nn.BatchNorm1d(4)
        self.register_module("none", None)


def network() -> nn.Sequential:
    shared = nn.Linear(4, 4)
    return nn.Sequential(Inner(shared), nn.Sequential(shared, Inner(nn.Linear(4, 2))), nn.ReLU())


def test_modules_come_as_pytorch_names_them_each_once():
    whole = network()
    assert list(walk(whole)) == list(whole.named_modules())
    assert list(walk(whole[2])) == [("", whole[2])]


def test_nothing_inside_of_some_types_is_met_there_or_elsewhere():
    whole = network()
    assert [name for name, _ in walk(whole, whole=(Inner,))] == ["", "0", "1", "1.1", "2"]


def test_what_only_modules_that_are_left_out_lead_to_is_left_out():
    whole = network()
    names = [name for name, _ in walk(whole, left_out=[whole[0]])]
    assert names == ["", "1", "1.0", "1.1", "1.1.layer", "1.1.norm", "2"]


def test_shared_parameters_are_counted_once():
    whole = network()
    assert parameter_count(whole) == sum(p.numel() for p in whole.parameters()) == 20 + 10 + 2 * 8
