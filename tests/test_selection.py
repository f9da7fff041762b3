from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import monai_basisprune as mbp
from monai_basisprune.selection import decomposable_layers, is_lazy, linear_layers, select_layers, skip_reasons

from .networks import NESTED, Nested, relative_error, same_bits, snapshot, tiny_classifier

# --- what is left alone, and why ---------------------------------------------------------------------------------


class ScaledConv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class StandardizedConv2d(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.free = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.free(self.second(self.first(x)))


class WeightOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.free = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.weight = self.conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.free(self.conv(x) * self.weight.mean())


class BiasTiedToNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.free = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.norm.bias = self.conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.free(self.norm(self.conv(x)))


def with_hook(register: str) -> nn.Module:
    convolution = nn.Conv2d(4, 4, 1)
    getattr(convolution, register)(lambda *args: None)
    return convolution


SKIPPED = {
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), "depthwise convolution: one channel per group"),
    "depthwise with multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4), "depthwise convolution"),
    "one output per group": (lambda: nn.Conv2d(8, 4, 3, groups=4), "depthwise convolution"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), "transposed convolution"),
    "transposed 1D": (lambda: nn.ConvTranspose1d(4, 4, 3), "transposed convolution"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "lazy layer without a shape yet: run one forward pass first"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "its weight is parametrized"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "its weight is parametrized"),
    "old spectral norm": (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), "its weight is parametrized"),
    "own forward": (lambda: ScaledConv2d(4, 4, 3), "ScaledConv2d has a forward pass of its own"),
    "own inner forward": (lambda: StandardizedConv2d(4, 4, 3), "StandardizedConv2d has a forward pass of its own"),
    "complex": (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), "its weight is of type torch.complex64"),
    "forward hook": (lambda: with_hook("register_forward_hook"), "hooks are registered on it"),
    "forward pre-hook": (lambda: with_hook("register_forward_pre_hook"), "hooks are registered on it"),
    "backward hook": (lambda: with_hook("register_full_backward_hook"), "hooks are registered on it"),
    "backward pre-hook": (lambda: with_hook("register_full_backward_pre_hook"), "hooks are registered on it"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_what_cannot_be_decomposed_is_left_alone_with_a_reason(case):
    make, reason = SKIPPED[case]
    network = nn.Sequential(make(), nn.Conv2d(4, 4, 3))
    reasons = skip_reasons(network)
    assert list(reasons) == ["0"]
    assert reason in reasons["0"]
    assert select_layers(network, None, None) == {"1": network[1]}
    words = f"target_modules names layers that cannot be decomposed:\n  - 0: {reasons['0']}"
    with pytest.raises(mbp.LayerSelectionError, match=re.escape(words)):
        select_layers(network, ["1", "0"], None)
    # a pattern asks for whatever it finds that can be
    assert select_layers(network, ".*", None) == {"1": network[1]}
    decomposed = mbp.decompose(network)
    assert type(decomposed[0]) is type(network[0])
    assert isinstance(decomposed[1], mbp.DecomposedConv)
    assert mbp.layer_status(decomposed)[0].skipped == reasons["0"]


@pytest.mark.parametrize(
    ("network", "tied"), [(Tied(), {"first", "second"}), (WeightOutside(), {"conv"}), (BiasTiedToNorm(), {"conv"})]
)
def test_tied_parameters_stay_tied(network, tied):
    reason = "its parameters are tied to those of another layer"
    assert skip_reasons(network) == dict.fromkeys(sorted(tied), reason)
    assert list(select_layers(network, None, None)) == ["free"]
    decomposed = mbp.decompose(network)
    x = torch.randn(2, 4, 3, 3)
    assert relative_error(decomposed.eval()(x), network.eval()(x)) <= 1e-5


def test_a_lazy_layer_can_be_decomposed_after_its_first_pass():
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 3))
    network(torch.rand(1, 2, 8, 8))
    assert skip_reasons(network) == {}
    assert list(select_layers(network, None, None)) == ["0", "1"]


def test_a_forward_that_was_replaced_on_the_layer_itself_is_left_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3))
    inner = network[0].forward
    network[0].forward = lambda x: 2 * inner(x)
    x = torch.rand(1, 2, 8, 8)
    decomposed = mbp.decompose(network)
    assert relative_error(decomposed(x), network(x)) <= 1e-5
    assert skip_reasons(network) == {"0": "Conv2d has a forward pass of its own"}


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer])
def test_linear_layers_whose_weights_are_read_past_them_are_left_alone(kind):
    torch.manual_seed(0)
    network = nn.ModuleDict({"inner": kind(8, 2, batch_first=True), "free": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
    assert list(select_layers(network, ".*", None)) == ["free"]
    reasons = skip_reasons(network)
    assert "inner.linear1" in reasons or "inner.out_proj" in reasons
    assert {name.partition(".")[0] for name in reasons} == {"inner"}
    assert all(reason.endswith("reads its weight directly") for reason in reasons.values())


def test_a_layer_without_a_shape_is_told_from_one_that_has_it():
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 3))
    assert [is_lazy(parameter) for parameter in network.parameters()] == [True, True, False, False]
    network(torch.rand(1, 2, 8, 8))
    assert not any(is_lazy(parameter) for parameter in network.parameters())


# --- which layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "exclude", "chosen"),
    [
        (None, None, NESTED),
        (["conv1"], None, ["conv1", "layer10.conv1"]),  # the name itself and every name that ends with it
        (["layer1"], None, ["layer1.0.0", "layer1.0.1"]),  # everything inside, and nothing of layer10
        (["layer1.0"], None, ["layer1.0.0", "layer1.0.1"]),
        (["0.1"], None, ["layer1.0.1"]),
        (["layer10.conv1", "layer1.0.0"], None, ["layer1.0.0", "layer10.conv1"]),
        (("layer10",), None, ["layer10.conv1", "layer10.myconv1"]),
        ("conv1", None, ["conv1"]),  # one regular expression matches whole names
        (r".*conv1", None, ["conv1", "layer10.conv1", "layer10.myconv1"]),
        (r"layer1\..*", None, ["layer1.0.0", "layer1.0.1"]),
        (None, ["conv1"], ["layer1.0.0", "layer1.0.1", "layer10.myconv1"]),
        (None, r"layer.*", ["conv1"]),
        (["layer1"], ["layer1.0.1"], ["layer1.0.0"]),
        (r"layer.*", ["conv1", "0.0"], ["layer1.0.1", "layer10.myconv1"]),
    ],
)
def test_targets_and_excludes_choose_by_name(target, exclude, chosen):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = Nested()
        assert select_layers(network, target, exclude) == {name: network.get_submodule(name) for name in chosen}


@pytest.mark.parametrize(
    "target", [["nowhere"], "nowhere", ["conv1", "nowhere"], ["conv"], ["layer"], "layer1", "onv1"]
)
def test_a_target_that_matches_nothing_is_an_error_that_names_it_and_the_candidates(target):
    pattern = target if isinstance(target, str) else target[-1]
    network = Nested()
    before = snapshot(network)
    with pytest.raises(mbp.LayerSelectionError) as caught:
        select_layers(network, target, None)
    assert f"target_modules: {pattern!r} matches no layer" in str(caught.value)
    assert str(NESTED) in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert same_bits(snapshot(network), before)


@pytest.mark.parametrize(
    "arguments",
    [{"target_modules": []}, {"exclude_modules": ".*"}, {"target_modules": ["conv1"], "exclude_modules": ["conv1"]}],
)
def test_to_choose_no_layer_is_an_error_that_names_the_candidates(arguments):
    with pytest.raises(mbp.LayerSelectionError, match="No layer to decompose in Nested") as caught:
        select_layers(Nested(), **{"target_modules": None, "exclude_modules": None, **arguments})
    words = "Layers that can be decomposed, linear ones where target_modules names them"
    assert f"{words}: {NESTED}" in str(caught.value)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.ReLU()), "where target_modules names them: none. Left alone: none."),
        (nn.Sequential(nn.Linear(2, 2)), "where target_modules names them: ['0']. Left alone: none."),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 2, 3)),
            "Left alone: 0: depthwise convolution: one channel per group has nothing to decompose; "
            "1: transposed convolution.",
        ),
        (nn.Conv2d(4, 4, 3, groups=4), "Left alone: the network itself: depthwise convolution"),
    ],
)
def test_a_network_without_convolutions_to_decompose_is_an_error_with_the_reasons(network, words):
    with pytest.raises(mbp.LayerSelectionError, match=re.escape(words)):
        select_layers(network, None, None)


def test_a_target_that_cannot_be_decomposed_is_refused_by_name():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3))
    with pytest.raises(
        mbp.LayerSelectionError, match=r"target_modules names .* cannot be decomposed:\n  - 0: depthwise"
    ):
        select_layers(network, ["0", "1"], None)


def test_a_regular_expression_that_is_none_is_an_error_that_names_it():
    for name, arguments in (("target_modules", ("(", None)), ("exclude_modules", (None, "("))):
        with pytest.raises(mbp.LayerSelectionError, match=re.escape(f"{name}: '(' is no regular expression: ")):
            select_layers(Nested(), *arguments)


@pytest.mark.parametrize(
    ("exclude", "chosen"),
    [(["nowhere"], NESTED), ("nowhere", NESTED), (["layer10", "nowhere", "conv1"], ["layer1.0.0", "layer1.0.1"])],
)
def test_an_exclude_that_matches_nothing_is_a_warning_and_the_others_count(exclude, chosen):
    words = f"exclude_modules: 'nowhere' matches no layer. Convolutions and linear layers found: {NESTED}."
    with pytest.warns(UserWarning, match=re.escape(words)):
        assert list(select_layers(Nested(), None, exclude)) == chosen


class Heads(nn.Module):
    """Linear layers beside a convolution, the last of them the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(1, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(self.conv(x).mean(dim=(2, 3)))))


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        (None, ["conv"]),  # linear layers are decomposed only where they are asked for
        (["inner"], ["inner"]),
        (".*", ["conv", "inner"]),
        (["conv", "head"], ["conv", "head"]),  # the head where a list names it in full
        (["head"], ["head"]),
        ("conv|head", ["conv"]),  # and not where a pattern matches it
    ],
)
def test_the_head_stays_whole_unless_a_list_names_it_in_full(target, chosen):
    assert list(select_layers(Heads(), target, None)) == chosen


def test_a_pattern_of_the_head_alone_leaves_nothing():
    words = "No layer to decompose in Heads with target_modules='head' and exclude_modules=None."
    with pytest.raises(mbp.LayerSelectionError, match=re.escape(words)):
        select_layers(Heads(), "head", None)


def test_the_head_is_the_last_linear_layer_decomposed_or_not():
    network = Heads()
    assert linear_layers(network) == ["inner", "head"]
    assert linear_layers(mbp.decompose(network, target_modules=["head", "conv"])) == ["inner", "head"]
    assert linear_layers(nn.Sequential(nn.Conv2d(1, 2, 1))) == []


def test_layers_are_found_in_order_each_once_and_none_inside_decomposed_ones():
    network = tiny_classifier()
    network.again = network.stem
    network.up = nn.ConvTranspose2d(2, 2, 2)
    assert [name for name, _ in decomposable_layers(network)] == ["stem", "grouped", "head", "up"]
    assert all(module is network.get_submodule(name) for name, module in decomposable_layers(network))
    decomposed = mbp.decompose(network)
    kinds = {name: type(module).__name__ for name, module in decomposable_layers(decomposed)}
    assert kinds == {"stem": "DecomposedConv", "grouped": "DecomposedConv", "head": "Linear", "up": "ConvTranspose2d"}
    assert skip_reasons(decomposed) == {"up": "transposed convolution"}
    assert list(decomposable_layers(nn.ReLU())) == []


def test_layers_that_are_decomposed_are_not_chosen_again():
    part = mbp.decompose(Nested(), target_modules=["layer1"])
    assert list(select_layers(part, None, None)) == ["conv1", "layer10.conv1", "layer10.myconv1"]
    with pytest.raises(mbp.LayerSelectionError, match="target_modules: 'layer1' matches no layer"):
        select_layers(part, ["layer1"], None)
