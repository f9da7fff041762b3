from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_trial import cut_difference, removed_slots

from .networks import TinyClassifier, same_bits, snapshot, tiny_classifier

# the second channel of the stem's groups, wherever it passes
STEM = {("stem", "out"): [1, 4], ("norm", "out"): [1, 4], ("grouped", "in"): [1, 4]}


class Residual(nn.Module):
    """A sum of two paths, one of which may be padded with zeros to the width of the other."""

    def __init__(self, padded: int) -> None:
        super().__init__()
        self.padded = padded
        self.one, self.two = nn.Conv2d(1, 4 - padded, 1), nn.Conv2d(4 - padded, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(x))
        shortcut = torch.cat([x, x.new_zeros(len(x), 4 - x.shape[1], *x.shape[2:])], dim=1)
        both = torch.relu(self.two(x))
        return self.last(both + shortcut[:, : both.shape[1]])


class Outputs(nn.Module):
    """A network with several outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | int]:
        x = torch.relu(self.one(x))
        return {"two": self.two(x), "three": self.three(x), "count": 7}


def double(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return network.double().eval()


def image(size: int = 8) -> torch.Tensor:
    return torch.rand(2, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_what_each_module_loses_is_gathered_from_the_channels_that_go():
    groups = {
        "a": [{("a", "out"): [0, 2], ("b", "in"): [5]}, {("a", "out"): [1, 3], ("b", "in"): [4]}],
        "b": [{("b", "out"): [0]}, {("b", "out"): [1]}],
        "c": [{("b", "in"): [1]}, {("b", "in"): [0]}],
    }
    assert removed_slots(groups, {"a": [], "b": [1], "c": [1]}) == {
        ("a", "out"): [0, 1, 2, 3],
        ("b", "in"): [1, 4, 5],  # of two groups, rising
        ("b", "out"): [0],
    }
    assert removed_slots(groups, {"b": [0, 1]}) == {}  # groups that are left out keep all
    assert removed_slots({}, {}) == {}


@pytest.mark.parametrize("decomposed", [True, False])
def test_a_cut_that_is_whole_makes_no_difference_and_the_network_is_untouched(decomposed):
    network = double(tiny_classifier())
    network = mbp.decompose(network) if decomposed else network
    before, state = snapshot(network), torch.get_rng_state()
    assert cut_difference(network.train(), image(), STEM) < 1e-12
    assert same_bits(snapshot(network), before)
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert cut_difference(network, image(), {}) == 0.0


def test_the_difference_is_that_of_a_network_that_ignores_the_channels():
    network = double(Residual(padded=1))
    x = image()
    # the second channel of the first layer goes, and with it the one that it stands over in the sum is another
    removed = {("one", "out"): [1], ("two", "in"): [1]}
    with torch.no_grad():
        first = torch.relu(network.one(x))
        silent = first.clone()
        silent[:, 1] = 0.0  # what the layer that reads them ignores is still in the sum
        left = torch.cat([first[:, [0, 2]], torch.zeros_like(first[:, :2])], dim=1)
        wanted, found = (network.last(torch.relu(network.two(silent)) + shortcut) for shortcut in (
            torch.cat([first, torch.zeros_like(first[:, :1])], dim=1), left))  # fmt: skip
    expected = float((found - wanted).abs().max() / wanted.abs().max())
    assert expected > 0.01
    assert cut_difference(network, x, removed) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["transposed", "linear", "grouped"])
def test_layers_of_each_kind_ignore_what_they_would_read(kind):
    torch.manual_seed(0)
    reader, size = {
        "transposed": (nn.ConvTranspose2d(4, 3, 2), 1),
        "linear": (nn.Linear(4 * 9, 3), 9),
        "grouped": (nn.Conv2d(4, 4, 2, groups=2), 1),
    }[kind]
    flat = [nn.Flatten()] if kind == "linear" else []
    network = double(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sigmoid(), *flat, reader))
    # of a grouped layer both groups lose one, of a flattened channel all positions go
    gone = [0, 2]
    read = [c * size + position for c in gone for position in range(size)]
    removed = {("0", "out"): gone, (str(2 + len(flat)), "in"): read}
    assert cut_difference(network, image(3), removed) < 1e-12


@pytest.mark.parametrize("reader", ["two", "three"])
def test_all_outputs_count_the_one_that_differs_most(reader):
    network = double(Outputs())
    removed = {("one", "out"): [2], ("two", "in"): [2], ("three", "in"): [2]}
    assert cut_difference(network, image(), removed) < 1e-12
    found = cut_difference(network, image(), {**removed, (reader, "in"): [1]})
    with torch.no_grad():
        x, layer = torch.relu(network.one(image())), getattr(network, reader)
        wrong = nn.functional.conv2d(x[:, [0, 1, 3]], layer.weight[:, [0, 2, 3]], layer.bias)
        layer.weight[:, 1] = 0.0
        wanted = layer(x)
    assert found == pytest.approx(float((wrong - wanted).abs().max() / wanted.abs().max()), rel=1e-9)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({("stem", "out"): [1, 4]}, "TinyClassifier cannot process an input of shape"),  # the norm is left as it was
        ({("head", "out"): [1]}, r"The output has shape \(2, 1\) in place of \(2, 2\), or is NaN"),
    ],
)
def test_a_network_that_cannot_run_without_them_is_refused(removed, words):
    network = double(tiny_classifier())
    before = snapshot(network)
    with pytest.raises(ValueError, match=words):
        cut_difference(network, image(), removed)
    assert same_bits(snapshot(network), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_no_equality(value):
    network = double(tiny_classifier())
    network.head.bias.data[0] = value
    with pytest.raises(ValueError, match=r"The output has shape \(2, 2\) in place of \(2, 2\), or is NaN"):
        cut_difference(network, torch.rand(2, *TinyClassifier.input_shape, dtype=torch.float64), STEM)
