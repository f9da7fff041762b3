from __future__ import annotations

import copy
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import DenseNet, ResNet, ViT
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers

from .networks import (
    MONAI_NETWORKS,
    NESTED,
    Nested,
    TinyClassifier,
    relative_error,
    same_bits,
    snapshot,
    tiny_classifier,
)
from .test_selection import SKIPPED

NOT_ASKED = "linear layer: decomposed only where target_modules names it"


def two_convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3))


def statuses(network: nn.Module) -> dict[str, mbp.LayerStatus]:
    return {status.name: status for status in mbp.layer_status(network)}


@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_networks_of_monai_stay_what_they_are_and_come_back(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network, x = make().eval(), torch.rand(2, *shape)
    before, state = snapshot(network), torch.get_rng_state()
    decomposed = mbp.decompose(network)
    plain = mbp.recompose(decomposed)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(snapshot(network), before)
    with torch.no_grad():
        wanted = network(x)
        assert relative_error(decomposed(x), wanted) <= 1e-5
        assert relative_error(plain(x), wanted) <= 1e-5
    assert repr(plain) == repr(network)
    assert plain.state_dict().keys() == network.state_dict().keys()
    for status in mbp.layer_status(decomposed):
        assert status.skipped is None or "convolution" in status.skipped or status.type == "Linear"
    wanted_shapes = {key: value.shape for key, value in before.items()}
    assert {key: value.shape for key, value in plain.state_dict().items()} == wanted_shapes


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_chain_of_convolutions_comes_back_with_its_attributes(layers, spatial_dims, training, dtype):
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]
    modules, channels = [], 2
    for width, kernel, bias, frozen in layers:
        modules += [kind(channels, 2 * width, kernel, padding="same", bias=bias), norm(2 * width), nn.ReLU()]
        modules[-3].weight.requires_grad_(not frozen)
        channels = 2 * width
    network = nn.Sequential(*modules).to(dtype).train(training)
    before, modes = snapshot(network), [module.training for module in network.modules()]
    decomposed = mbp.decompose(network)
    again = mbp.recompose(decomposed)
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert [module.training for module in again.modules()] == modes
    assert repr(again) == repr(network)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in network.parameters()]
    x = torch.randn(4, 2, *[4] * spatial_dims, dtype=dtype)
    limit = 1e-4 if dtype == torch.float32 else 1e-10  # batch statistics of few numbers enlarge what rounding does
    outputs = [one.eval()(x) for one in (network, decomposed, again)]
    assert relative_error(outputs[1], outputs[0]) <= limit
    assert relative_error(outputs[2], outputs[0]) <= limit


def test_mixed_modes_are_kept_module_by_module():
    network = tiny_classifier().train()
    network.grouped.eval()
    decomposed = mbp.decompose(network)
    assert decomposed.stem.training
    assert decomposed.stem.basis.training
    assert not decomposed.grouped.training
    assert not decomposed.grouped.scaling.training
    plain = mbp.recompose(decomposed)
    assert [plain.stem.training, plain.norm.training, plain.grouped.training] == [True, True, False]


def test_only_the_scaling_factors_of_a_layer_are_new_and_trainable():
    network = tiny_classifier()
    network.norm.weight.requires_grad_(False)
    network.stem.bias.requires_grad_(False)
    wanted = {
        "stem.scaling.scaling_factors",
        "grouped.scaling.scaling_factors",
        "norm.bias",
        "head.weight",
        "head.bias",
    }
    decomposed = mbp.decompose(network)
    assert {name for name, p in decomposed.named_parameters() if p.requires_grad} == wanted
    assert all((p == 1).all() for name, p in decomposed.named_parameters() if name.endswith("scaling_factors"))


def test_nothing_is_shared_with_the_network_that_was_passed_in():
    network = tiny_classifier()
    decomposed = mbp.decompose(network)
    plain = mbp.recompose(decomposed)
    memory = [{p.data_ptr() for p in one.state_dict().values()} for one in (network, decomposed, plain)]
    assert not memory[0] & memory[1]
    assert not memory[0] & memory[2]
    assert not memory[1] & memory[2]


def test_status_tells_rank_and_parameters_by_hand():
    decomposed = mbp.decompose(tiny_classifier())
    assert mbp.layer_status(decomposed) == [
        mbp.LayerStatus("stem", "Conv2d", 6, 6, 60, 60, None, 6, 6),  # 6·1·9 weights and 6 biases
        mbp.LayerStatus("grouped", "Conv2d", 8, 8, 216, 216, None, 8, 8),  # 8·3·9 weights
        mbp.LayerStatus("head", "Linear", None, None, 18, 18, NOT_ASKED, 2, 2),
    ]
    mbp.prune_(decomposed, {"grouped": torch.arange(8.0)}, mbp.Budget(threshold=6.5))
    # two bases, one in each group: 2·27 weights of the bases and 8·1 of the scaling
    assert statuses(decomposed)["grouped"] == mbp.LayerStatus("grouped", "Conv2d", 2, 8, 62, 216, None, 8, 8)
    assert sum(p.numel() for p in mbp.recompose(decomposed).grouped.parameters()) == 62


def test_status_of_a_network_that_is_not_decomposed():
    found = statuses(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 3)))
    assert found["0"].skipped == "not selected by target_modules and exclude_modules"
    assert (found["0"].rank, found["0"].max_rank, found["0"].parameters) == (None, None, 76)
    assert found["1"].skipped == "transposed convolution"


# --- what is left alone, and why ---------------------------------------------------------------------------------


class OnlyANewName(nn.Conv2d):
    pass


@pytest.mark.parametrize("case", ["depthwise", "transposed", "weight norm", "spectral norm", "old spectral norm"])
def test_what_is_left_alone_goes_on_to_work(case):
    torch.manual_seed(0)
    network = nn.Sequential(SKIPPED[case][0](), nn.Conv2d(4, 4, 3)).eval()
    x = torch.randn(1, 4, 8, 8)
    assert relative_error(mbp.decompose(network)(x), network(x)) <= 1e-5
    assert relative_error(mbp.recompose(mbp.decompose(network))(x), network(x)) <= 1e-5


@pytest.mark.parametrize("layer", [lambda: nn.Conv2d(4, 4, 3), lambda: nn.Linear(8, 8)], ids=["convolution", "linear"])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight norm", "spectral norm"])
def test_old_norms_of_weights_are_left_alone_after_a_forward_pass(norm, layer):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = nn.Sequential(norm(layer()), nn.Conv2d(4, 4, 3)).eval()
    x = torch.randn(1, 4, 8, 8)
    wanted = network(x)
    decomposed = mbp.decompose(network)
    assert "its weight is parametrized" in statuses(decomposed)["0"].skipped
    assert relative_error(decomposed(x), wanted) <= 1e-5
    assert relative_error(mbp.recompose(decomposed)(x), wanted) <= 1e-5


def test_a_subclass_that_computes_what_its_base_does_is_decomposed():
    network = nn.Sequential(OnlyANewName(2, 4, 3))
    plain = mbp.recompose(mbp.decompose(network))
    assert type(plain[0]) is nn.Conv2d
    x = torch.rand(1, 2, 6, 6)
    assert relative_error(plain(x), network(x)) <= 1e-5


# --- which layers -------------------------------------------------------------------------------------------------


def test_the_status_tells_layers_that_were_chosen_from_others():
    found = statuses(mbp.decompose(Nested(), target_modules=["layer1"], exclude_modules=["layer1.0.1"]))
    assert list(found) == NESTED
    assert [name for name, status in found.items() if status.skipped is None] == ["layer1.0.0"]
    reasons = {status.skipped for name, status in found.items() if name != "layer1.0.0"}
    assert reasons == {"not selected by target_modules and exclude_modules"}


@pytest.mark.parametrize("exclude", [["nowhere"], "nowhere"])
def test_an_exclude_that_matches_nothing_is_a_warning_that_names_it_and_the_candidates(exclude):
    words = f"exclude_modules: 'nowhere' matches no layer. Convolutions and linear layers found: {NESTED}"
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        decomposed = mbp.decompose(Nested(), exclude_modules=exclude)
    assert [name for name, _ in decomposed_layers(decomposed)] == NESTED
    assert caught[0].filename == __file__


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_listed_all_together(value):
    network = Nested()
    for name in ("conv1", "layer1.0.1"):
        network.get_submodule(name).weight.data[0, 0, 0, 0] = value
    with pytest.raises(mbp.LayerSelectionError) as caught:
        mbp.decompose(network)
    lines = str(caught.value).splitlines()
    assert lines == [
        "Nested cannot be decomposed; load sound weights first:",
        "  - conv1: the weight holds NaN or infinite values",
        "  - layer1.0.1: the weight holds NaN or infinite values",
    ]
    assert len(decomposed_layers(mbp.decompose(network, target_modules=["layer10"]))) == 2


def test_an_unknown_basis_is_an_error_that_names_what_there_is():
    with pytest.raises(ValueError, match="basis must be 'weight' or 'activation', got 'data'"):
        mbp.decompose(Nested(), basis="data")


@pytest.mark.parametrize("call", [mbp.recompose, decomposed_layers, mbp.SingularValueImportance])
def test_a_network_that_is_not_decomposed_is_an_error_that_says_what_to_do(call):
    words = "Nested holds no decomposed layer: call monai_basisprune.decompose(network) first."
    with pytest.raises(mbp.LayerSelectionError, match=re.escape(words)):
        call(Nested())


def test_a_network_that_is_decomposed_in_parts_keeps_the_first_part():
    torch.manual_seed(0)
    network = Nested()
    part = mbp.decompose(network, target_modules=["layer1"])
    mbp.prune_(part, {"layer1.0.0": torch.tensor([1.0, 0.0])}, mbp.Budget(threshold=0.5))
    x = torch.rand(1, 1, 6, 6)
    both = mbp.decompose(part)
    assert relative_error(both(x), part(x)) <= 1e-5
    assert [name for name, _ in decomposed_layers(both)] == NESTED
    assert statuses(both)["layer1.0.0"].rank == 1


def test_to_decompose_a_network_again_is_an_error():
    with pytest.raises(mbp.LayerSelectionError, match="No layer to decompose"):
        mbp.decompose(mbp.decompose(Nested()))


# --- linear layers --------------------------------------------------------------------------------------------------


def transformer() -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": (16, 16), "patch_size": (8, 8), "hidden_size": 24, "mlp_dim": 32, "num_layers": 2}
    return ViT(in_channels=1, num_heads=4, classification=True, spatial_dims=2, **arguments).eval()


def test_linear_layers_are_decomposed_only_on_request():
    network = transformer()
    assert [name for name, _ in decomposed_layers(mbp.decompose(network))] == ["patch_embedding.patch_embeddings"]
    decomposed = mbp.decompose(network, target_modules=["linear1"])
    assert [name for name, _ in decomposed_layers(decomposed)] == ["blocks.0.mlp.linear1", "blocks.1.mlp.linear1"]
    assert isinstance(decomposed.blocks[0].mlp.linear1, mbp.DecomposedLinear)
    assert statuses(decomposed)["blocks.0.attn.qkv"].skipped == NOT_ASKED


def test_a_transformer_is_pruned_and_comes_back():
    network, x = transformer(), torch.rand(3, 1, 16, 16)
    decomposed = mbp.decompose(network, target_modules=".*")
    with torch.no_grad():
        wanted = network(x)[0]
        assert relative_error(decomposed(x)[0], wanted) <= 1e-5
        assert repr(mbp.recompose(decomposed)) == repr(network)
        assert relative_error(mbp.recompose(decomposed)(x)[0], wanted) <= 1e-5
        result = mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(parameters=0.5))
        plain = mbp.recompose(decomposed)
        assert relative_error(plain(x)[0], decomposed(x)[0]) <= 1e-5
    assert sum(p.numel() for p in plain.parameters()) == result.parameters
    assert 0.5 <= result.parameter_reduction < 0.51
    before = sum(p.numel() for p in network.parameters())
    assert result.parameter_reduction == pytest.approx(1 - result.parameters / before)


def test_the_head_stays_whole_unless_a_list_names_it_in_full():
    head = "classification_head.0"
    for target in (".*", ["classification_head", "linear1"], ["0", "linear1"]):
        assert head not in dict(decomposed_layers(mbp.decompose(transformer(), target_modules=target)))
    decomposed = mbp.decompose(transformer(), target_modules=[head])
    assert list(dict(decomposed_layers(decomposed))) == [head]
    names = {name for name, p in decomposed.named_parameters() for q in mbp.trainable_parameters(decomposed) if p is q}
    trained = {f"{head}.scaling.scaling_factors", f"{head}.scaling.bias"}
    assert {name for name in names if "norm" not in name} == trained


# --- shapes of networks -------------------------------------------------------------------------------------------


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.conv(x)))


class TwoNames(CalledTwice):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.relu(self.conv(x)))


@pytest.mark.parametrize("kind", [CalledTwice, TwoNames])
def test_a_convolution_that_is_used_twice_stays_one(kind):
    torch.manual_seed(0)
    network, x = kind(), torch.randn(1, 4, 6, 6)
    decomposed = mbp.decompose(network)
    assert len(decomposed_layers(decomposed)) == 1
    assert relative_error(decomposed(x), network(x)) <= 1e-5
    plain = mbp.recompose(decomposed)
    assert relative_error(plain(x), network(x)) <= 1e-5
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in network.parameters())
    if kind is TwoNames:
        assert decomposed.again is decomposed.conv
        assert plain.again is plain.conv


def test_a_network_that_is_one_convolution():
    torch.manual_seed(0)
    network, x = nn.Conv3d(2, 4, 2), torch.randn(1, 2, 4, 4, 4)
    decomposed = mbp.decompose(network)
    assert isinstance(decomposed, mbp.DecomposedConv)
    assert [status.name for status in mbp.layer_status(decomposed)] == [""]
    plain = mbp.recompose(decomposed)
    assert type(plain) is nn.Conv3d
    assert relative_error(plain(x), network(x)) <= 1e-5
    assert isinstance(mbp.decompose(network, target_modules=[""]), mbp.DecomposedConv)


def test_a_layer_that_a_module_refers_to_in_a_list_is_replaced_there_too():
    network = tiny_classifier()
    network.taps = [network.stem, network.grouped]
    decomposed = mbp.decompose(network)
    assert decomposed.taps == [decomposed.stem, decomposed.grouped]
    assert network.taps == [network.stem, network.grouped]
    assert mbp.recompose(decomposed).taps[0] is not network.stem


# --- copies, scripts, and life without this package ----------------------------------------------------------------


def pruned_classifier() -> TinyClassifier:
    network = mbp.decompose(tiny_classifier()).eval()
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.4))
    return network


def test_a_decomposed_network_can_be_copied_and_pickled():
    network, x = pruned_classifier(), torch.rand(2, 1, 8, 8)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(x), network(x))
        assert mbp.layer_status(again) == mbp.layer_status(network)
        assert again.stem.kept_bases == network.stem.kept_bases


@pytest.mark.parametrize("name", ["DenseNet", "ResNet with shortcut B", "SegResNet 3D"])
def test_decomposed_and_recomposed_networks_can_be_scripted(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    decomposed, x = mbp.decompose(make().eval()), torch.rand(1, *shape)
    mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(bases=0.3))
    plain = mbp.recompose(decomposed)
    with torch.no_grad():
        wanted = decomposed(x)
        assert relative_error(torch.jit.script(decomposed)(x), wanted) <= 1e-5
        assert relative_error(torch.jit.script(plain)(x), wanted) <= 1e-5


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["monai_basisprune"] = None  # an import of it now raises
import torch
folder = sys.argv[1]
torch.set_num_threads(1)
x, wanted = torch.load(f"{folder}/plain.values", weights_only=True)
for found in (torch.load(f"{folder}/plain.pickle", weights_only=False), torch.jit.load(f"{folder}/plain.script")):
    torch.testing.assert_close(found(x), wanted)
assert "monai" not in sys.modules
x, wanted = torch.load(f"{folder}/monai.values", weights_only=True)
torch.testing.assert_close(torch.jit.load(f"{folder}/monai.script")(x), wanted)
torch.testing.assert_close(torch.load(f"{folder}/monai.pickle", weights_only=False)(x), wanted)
try:
    torch.load(f"{folder}/decomposed.pickle", weights_only=False)
except ImportError:
    print("done")
"""


def test_a_recomposed_network_runs_where_this_package_cannot_be_imported(tmp_path):
    torch.manual_seed(0)
    networks = {
        "plain": (nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)), (1, 8, 8)),
        "monai": (DenseNet(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2), (1, 32, 32)),
    }
    for name, (network, shape) in networks.items():
        decomposed = mbp.decompose(network.eval())
        mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(bases=0.5))
        plain = mbp.recompose(decomposed)
        assert all(not type(module).__module__.startswith("monai_basisprune") for module in plain.modules())
        assert any(isinstance(m, nn.Sequential) and len(m) == 2 for m in plain.modules())
        x = torch.rand(1, *shape)
        with torch.no_grad():
            torch.save((x, plain(x)), tmp_path / f"{name}.values")
        torch.save(plain, tmp_path / f"{name}.pickle")
        torch.jit.save(torch.jit.script(plain), tmp_path / f"{name}.script")
        torch.save(decomposed, tmp_path / "decomposed.pickle")
    environment = {**os.environ, "PYTHONPATH": str(Path(mbp.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


def test_a_recomposed_network_has_ordinary_parameter_names_in_its_state_dict():
    network = pruned_classifier()
    plain = mbp.recompose(network)
    stored = io.BytesIO()
    torch.save(plain.state_dict(), stored)
    stored.seek(0)
    names = set(torch.load(stored, weights_only=True))
    assert not any("scaling" in name or "basis" in name for name in names)


def test_training_goes_on_after_decomposition():
    torch.manual_seed(0)
    network = mbp.decompose(ResNet("basic", [1] * 4, [4, 8, 12, 16], 2, 1, num_classes=2))
    frozen = {name: p.detach().clone() for name, p in network.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    x, labels = torch.rand(8, 1, 32, 32), torch.arange(8) % 2
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    parameters = dict(network.named_parameters())
    assert frozen
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())


def test_threads_change_no_bits_and_keep_their_number():
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Conv2d(24, 24, 3) for _ in range(6)])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(mbp.decompose(network).state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_layer_above_the_size_of_those_side_by_side_is_decomposed_as_well(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).eval()
    wanted = mbp.decompose(network).state_dict()
    monkeypatch.setattr(mbp.decomposition, "_LARGE", network[0].weight.numel())
    found = mbp.decompose(network)
    assert {type(layer).__name__ for layer in found} == {"DecomposedConv"}
    x = torch.randn(1, 3, 8, 8)
    assert relative_error(found(x), network(x)) <= 1e-5
    assert wanted.keys() == found.state_dict().keys()


def test_a_copy_shares_nothing_with_the_network_and_keeps_what_its_buffers_share():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.norm = nn.BatchNorm2d(2)
            whole = torch.arange(4.0)
            self.register_buffer("whole", whole)
            self.register_buffer("part", whole[:2])
            self.register_buffer("alone", torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))

    network = Shared()
    copied = mbp.decompose(network)
    copied.whole[0] = 7.0
    assert float(copied.part[0]) == 7.0
    assert float(network.whole[0]) == 0.0
    assert copied.alone.is_contiguous(memory_format=torch.channels_last)
    copied.alone.zero_()
    copied.norm.running_mean.fill_(5.0)
    assert bool((network.alone == 1).all() & (network.norm.running_mean == 0).all())
    copied.norm.register_forward_hook(lambda *_: None)
    copied.norm.register_buffer("more", torch.ones(1), persistent=False)
    assert not network.norm._forward_hooks
    assert "more" not in network.norm._buffers
    assert "more" not in network.norm._non_persistent_buffers_set


class Counting(nn.Module):
    """A module that is copied in a way of its own, and refers to another one outside its children."""

    def __init__(self, watched: nn.Module) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(2)
        self.watched = [watched]
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Counting:
        new = Counting(copy.deepcopy(self.watched[0], memo))
        new.inner, new.copies = copy.deepcopy(self.inner, memo), self.copies + 1
        return new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_module_with_a_way_to_be_copied_is_copied_that_way():
    convolution = nn.Conv2d(1, 2, 3)
    network = nn.Sequential(convolution, Counting(convolution))
    copied = mbp.decompose(network)
    assert (network[1].copies, copied[1].copies) == (0, 1)
    assert copied[1].watched[0] is copied[0]
    assert isinstance(copied[0], mbp.DecomposedConv)
    copied[1].inner.weight.data.zero_()
    assert bool((network[1].inner.weight == 1).all())
