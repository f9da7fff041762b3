from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_scaling_layer import attach_scaling_
from monai_basisprune.channel_slices import (
    SLICEABLE_MODULES,
    channel_count,
    cut_modules,
    group_count,
    has_one_side,
    keep_channels_,
    kept_channels,
    kept_channels_problem,
    lost_parameters,
    lost_weights,
    original_channels,
    original_groups,
    original_shapes,
    sizes,
    slice_problem,
)
from monai_basisprune.layers import DecomposedLayer, decompose_layer
from monai_basisprune.snapshot import restore_, take_snapshot

from .networks import ChannelPReLU, relative_error, same_bits, snapshot

# how to make each kind, the shape of one input, whether it has one side, its inputs and outputs, its groups, and
# what can be kept on each side
KINDS = {
    "1D": (lambda: nn.Conv1d(4, 6, 3), (4, 7), False, (4, 6), 1, {"in": [0, 3], "out": [1, 2, 5]}),
    "2D": (lambda: nn.Conv2d(4, 6, 3, bias=False), (4, 7, 7), False, (4, 6), 1, {"in": [1], "out": [0]}),
    "3D": (lambda: nn.Conv3d(3, 4, 2), (3, 4, 4, 4), False, (3, 4), 1, {"in": [2], "out": [0, 3]}),
    "groups": (lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 5, 5), False, (6, 4), 2, {"in": [0, 2, 3, 5], "out": [1, 2]}),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5), True, (4, 4), 1, {"out": [0, 2, 3]}),
    "one output of each group": (
        *(lambda: nn.Conv2d(8, 4, 3, groups=4), (8, 5, 5), False, (8, 4), 4),
        {"in": [1, 3, 5, 7]},
    ),
    "transposed": (
        *(lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), False, (4, 6), 1),
        {"in": [0, 2], "out": [1, 5]},
    ),
    "linear": (lambda: nn.Linear(5, 3), (5,), False, (5, 3), 1, {"in": [0, 4], "out": [1]}),
    "batch norm": (lambda: nn.BatchNorm2d(5), (5, 3, 3), True, (5, 5), 1, {"out": [0, 1, 4]}),
    "batch norm without weights": (lambda: nn.BatchNorm1d(5, affine=False), (5, 3), True, (5, 5), 1, {"out": [2]}),
    "instance norm": (lambda: nn.InstanceNorm2d(5, affine=True), (5, 3, 3), True, (5, 5), 1, {"out": [0, 4]}),
    "instance norm without weights": (lambda: nn.InstanceNorm3d(5), (5, 2, 3, 3), True, (5, 5), 1, {"out": [0, 4]}),
    "PReLU": (lambda: nn.PReLU(4), (4, 3, 3), True, (4, 4), 1, {"out": [1, 2]}),
    "decomposed": (
        *(lambda: decompose_layer(nn.Conv2d(4, 6, 3)), (4, 7, 7), False, (4, 6), 1),
        {"in": [0, 3], "out": [1, 2, 5]},
    ),
    "decomposed with groups": (
        *(lambda: decompose_layer(nn.Conv2d(6, 4, 3, groups=2, bias=False)), (6, 5, 5), False, (6, 4), 2),
        {"in": [0, 2, 3, 5], "out": [1, 2]},
    ),
    "decomposed linear": (
        *(lambda: decompose_layer(nn.Linear(5, 3)), (5,), False, (5, 3), 1),
        {"in": [0, 4], "out": [1]},
    ),
}
CUTS = [(name, side) for name, kind in KINDS.items() for side in kind[-1]]


def made(name: str) -> nn.Module:
    """Make a module with random values in float64, in evaluation mode."""
    torch.manual_seed(0)
    module = KINDS[name][0]().double().eval()
    tensors = [*module.parameters(), *(b for n, b in module.named_buffers() if n.startswith("running"))]
    for tensor in tensors:
        tensor.data.uniform_(0.5, 1.5)
    if isinstance(module, DecomposedLayer):
        module.keep_bases_(list(range(0, module.rank(), module.rank() // module.groups)), lambda *args: None)
    return module


def images(name: str) -> torch.Tensor:
    return torch.randn(3, *KINDS[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def without(x: torch.Tensor, keep: list[int]) -> torch.Tensor:
    """Return images in which all channels are zero but some."""
    silent = torch.zeros_like(x)
    silent[:, keep] = x[:, keep]
    return silent


@pytest.mark.parametrize("name", KINDS)
def test_sides_sizes_and_groups_of_each_kind(name):
    module, (_, _, one_side, (inputs, outputs), groups, _) = made(name), KINDS[name]
    assert isinstance(module, SLICEABLE_MODULES)
    assert slice_problem(module) is None
    assert has_one_side(module) is one_side
    assert sizes(module) == (inputs, outputs)
    assert channel_count(module, "out") == outputs
    assert one_side or channel_count(module, "in") == inputs
    assert group_count(module) == groups
    assert kept_channels(module) == original_channels(module) == {}
    assert lost_weights(module) == lost_parameters(module) == 0


@pytest.mark.parametrize(("name", "side"), CUTS)
def test_what_is_left_computes_what_it_did_with_these_channels_alone(name, side):
    whole, x, keep = made(name), images(name), KINDS[name][-1][side]
    cut = copy.deepcopy(whole)
    keep_channels_(cut, side, keep)
    assert kept_channels_problem(whole, side, keep) is None
    if has_one_side(whole):
        wanted, x = whole(x)[:, keep], x[:, keep]
    elif side == "out":
        wanted = whole(x)[:, keep]
    else:
        wanted, x = whole(without(x, keep)), x[:, keep]
    assert relative_error(cut(x), wanted) < 1e-12
    assert same_bits(snapshot(cut), snapshot(torch.jit.script(cut)))  # which reads what was noted, too
    assert channel_count(cut, side) == len(keep)
    assert has_one_side(cut) == has_one_side(whole)
    assert group_count(cut) == group_count(whole)
    if isinstance(cut, DecomposedLayer):
        assert channel_count(cut.basis if side == "in" else cut.scaling, side) == len(keep)


@pytest.mark.parametrize(("name", "side"), CUTS)
def test_what_a_module_was_is_known_after_two_cuts(name, side):
    whole, keep = made(name), KINDS[name][-1][side]
    cut = copy.deepcopy(whole)
    keep_channels_(cut, side, keep)
    groups = group_count(cut)
    again = [position for position in range(len(keep)) if position % (len(keep) // groups) == 0]
    keep_channels_(cut, side, again)
    assert kept_channels(cut) == {side: [keep[position] for position in again]}
    assert original_channels(cut) == {side: channel_count(whole, side)}
    assert channel_count(cut, side) == len(again)
    plain = whole.to_plain(split=False) if isinstance(whole, DecomposedLayer) else whole
    state = {key: list(value.shape) for key, value in plain.state_dict().items()}
    assert original_shapes(cut) == state
    weights = [one.weight.numel() if one.weight is not None else 0 for one in (plain, _plain(cut))]
    assert lost_weights(cut) == weights[0] - weights[1]
    assert lost_parameters(cut) == sum(p.numel() for p in plain.parameters()) - sum(
        p.numel() for p in _plain(cut).parameters()
    )
    if hasattr(whole, "groups"):
        assert original_groups(cut) == whole.groups


def _plain(module: nn.Module) -> nn.Module:
    return module.to_plain(split=False) if isinstance(module, DecomposedLayer) else module


def test_both_sides_of_one_module_are_noted_side_by_side():
    for module in (made("groups"), made("decomposed with groups")):
        keep_channels_(module, "in", [1, 2, 4, 5])
        keep_channels_(module, "out", [0, 3])
        keep_channels_(module, "in", [0, 2])
        assert kept_channels(module) == {"in": [1, 4], "out": [0, 3]}
        assert original_channels(module) == {"in": 6, "out": 4}
        assert original_shapes(module)["weight"] == [4, 3, 3, 3]
        assert sizes(module) == (2, 2)
        assert lost_weights(module) == 4 * 3 * 9 - 2 * 1 * 9


@pytest.mark.parametrize(("name", "side"), [case for case in CUTS if made(case[0]).state_dict()])
def test_each_parameter_is_handed_over_with_what_slices_its_state(name, side):
    module, keep, calls = made(name), KINDS[name][-1][side], []
    parameters = list(module.parameters())
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(number != 1)
        parameter.grad = torch.rand_like(parameter) if parameter.requires_grad else None
    before = {id(parameter): name for name, parameter in module.named_parameters()}
    keep_channels_(module, side, keep, lambda *call: calls.append(call))
    after = dict(module.named_parameters())
    assert {before[id(old)] for old, _, _ in calls} == {
        before[id(old)] for old in parameters if after[before[id(old)]] is not old
    }
    for old, new, slicer in calls:
        assert after[before[id(old)]] is new
        assert new.shape != old.shape
        assert new.requires_grad == old.requires_grad
        assert torch.equal(slicer(old.detach()), new.detach())
        assert (new.grad is None) == (old.grad is None)
        assert new.grad is None or torch.equal(new.grad, slicer(old.grad))


def test_running_statistics_go_along_and_are_no_parameters():
    norm, calls = made("batch norm"), []
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    keep_channels_(norm, "out", [1, 3], lambda *call: calls.append(call))
    assert torch.equal(norm.running_mean, mean[[1, 3]])
    assert torch.equal(norm.running_var, variance[[1, 3]])
    assert set(dict(norm.named_buffers())) == {"running_mean", "running_var", "num_batches_tracked"}
    assert len(calls) == 2  # weight and bias


def test_a_channel_scaling_goes_along_and_is_no_part_of_what_the_module_was():
    for name in ("2D", "batch norm", "decomposed"):
        module = made(name)
        attach_scaling_(module, channel_count(module, "out"))
        module.channel_scaling.weight.data.uniform_(0.5, 2.0)
        weight, shapes = module.channel_scaling.weight.detach().clone(), original_shapes(module)
        wanted = module(images(name))[:, [0, 2]]
        keep_channels_(module, "out", [0, 2])
        assert torch.equal(module.channel_scaling.weight, weight[[0, 2]])
        assert original_shapes(module) == shapes
        assert "channel_scaling.weight" not in shapes
        x = images(name)[:, [0, 2]] if name == "batch norm" else images(name)
        torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3), lambda: decompose_layer(nn.Conv2d(4, 6, 3))])
def test_the_memory_format_stays(make):
    module = make().to(memory_format=torch.channels_last)
    keep_channels_(module, "in", [0, 2])
    keep_channels_(module, "out", [0, 2, 4])
    first = module.basis.weight if isinstance(module, DecomposedLayer) else module.weight
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert not first.is_contiguous()


def test_means_are_forgotten_with_the_inputs_that_they_are_of():
    data = [torch.rand(40, 4, 6, 6)]
    for side, known in (("out", True), ("in", False)):
        layer = mbp.decompose(nn.Sequential(nn.Conv2d(4, 6, 3)), "activation", data=data)[0]
        assert layer.means is not None
        keep_channels_(layer, side, [0, 1])
        assert (layer.means is not None) is known


def test_modules_that_were_cut_are_found_by_name():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 2, 1)))
    assert list(cut_modules(network)) == []
    keep_channels_(network[2][0], "in", [0])
    keep_channels_(network[0], "out", [0])
    assert list(cut_modules(network)) == [("0", network[0]), ("2.0", network[2][0])]


# --- convolutions with one channel left in each group ----------------------------------------------------------


class Bottleneck(nn.Module):
    """A convolution with two groups between others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))


@pytest.mark.parametrize(
    ("make", "exclude", "name", "depthwise"),
    [(ChannelPReLU, None, "body.2", True), (Bottleneck, ["grouped"], "grouped", False)],
)
def test_a_convolution_with_one_channel_left_in_each_group_is_still_what_it_was(
    make, exclude, name, depthwise, tmp_path
):
    torch.manual_seed(0)
    plain, shape = make().eval(), (1, 8, 8)
    network = mbp.decompose(plain, exclude_modules=exclude)
    whole = take_snapshot(network)
    scores = {one.name: torch.rand(one.channels) for one in mbp.channel_status(network, shape) if one.skipped is None}
    mbp.prune_channels_(network, scores, mbp.Budget(threshold=2.0), shape)  # all but one in each group
    layer, groups = network.get_submodule(name), plain.get_submodule(name).groups
    assert (layer.in_channels, layer.out_channels, layer.groups) == ((1, 1, 1) if depthwise else (2, 2, 2))
    assert has_one_side(layer) is depthwise
    assert original_groups(layer) == groups
    assert {one.skipped for one in mbp.channel_status(network, shape)[:-1]} == {"there is only one"}
    mbp.save_pruned(network, tmp_path / "model.pt")
    loaded = mbp.load_pruned(plain, tmp_path / "model.pt")
    assert same_bits(snapshot(loaded), snapshot(network))
    # as well where a snapshot brings it to this size, and back
    small, fresh = take_snapshot(network), mbp.decompose(plain, exclude_modules=exclude)
    restore_(fresh, None, small)
    assert mbp.PruningPlan.from_network(fresh) == mbp.PruningPlan.from_network(network)
    for one in (fresh, network):
        restore_(one, None, whole)
        assert has_one_side(one.get_submodule(name)) is depthwise
        assert mbp.PruningPlan.from_network(one) == mbp.PruningPlan.from_network(
            mbp.decompose(plain, exclude_modules=exclude)
        )


# --- what cannot be cut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.GroupNorm(2, 4), "GroupNorm cannot be sliced"),
        (nn.ReLU(), "ReLU cannot be sliced"),
        (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
            "the weight of this ParametrizedConv2d is parametrized",
        ),
        (nn.utils.spectral_norm(nn.Linear(4, 4)), "the weight of this Linear is parametrized"),
        (nn.ConvTranspose2d(4, 4, 2, groups=2), "transposed convolutions with groups cannot be sliced"),
        (nn.ConvTranspose1d(4, 4, 2, groups=4), "transposed convolutions with groups cannot be sliced"),
    ],
)
def test_what_cannot_be_sliced_says_why(module, words):
    assert slice_problem(module) == words
    assert kept_channels_problem(module, "out", [0]) == words


@pytest.mark.parametrize(
    ("module", "side", "keep", "words"),
    [
        (nn.BatchNorm2d(4), "in", [0], "the inputs of a BatchNorm2d are its outputs"),
        (nn.Conv2d(4, 4, 1, groups=4), "in", [0], "the inputs of a Conv2d are its outputs"),
        (nn.PReLU(), "out", [0], "a PReLU with one weight has no channels"),
        (nn.Linear(4, 3), "in", [], "keeps no channel"),
        (nn.Linear(4, 3), "in", [2, 1], "its channels [2, 1] are not in rising order"),
        (nn.Linear(4, 3), "in", [1, 1], "its channels [1, 1] are not in rising order"),
        (nn.Linear(4, 3), "out", [-1, 2], "its channels [-1, 2] are not in rising order"),
        (nn.Linear(4, 3), "in", [0, 4], "keeps channel 4, there are 4"),
        (nn.Linear(4, 3), "out", [0, 3], "keeps channel 3, there are 3"),
        (nn.Conv2d(4, 6, 1, groups=2), "out", [0, 1, 3], "its 2 groups keep different channels"),
        (nn.Conv2d(4, 6, 1, groups=2), "out", [0, 1], "its 2 groups keep different channels"),
        (nn.Conv2d(4, 6, 1, groups=2), "in", [0, 3], "its 2 groups keep different channels"),
        (nn.Conv2d(4, 6, 1, groups=2), "in", [0, 2], None),
        (nn.Conv2d(4, 6, 1, groups=2), "out", [0, 5], None),  # each group makes outputs of its own
        (nn.PReLU(2), "out", [1], None),
    ],
)
def test_a_list_of_channels_that_cannot_be_what_is_left_says_why(module, side, keep, words):
    assert kept_channels_problem(module, side, keep) == words


def test_of_a_long_list_only_the_start_is_shown():
    words = f"its channels {list(range(99, 79, -1))} are not in rising order"
    assert kept_channels_problem(nn.Linear(100, 2), "in", list(range(99, -1, -1))) == words
