from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import zipfile

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet, ViT
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.files import sha256_of, write_atomically
from monai_basisprune.persistence import plan_path

from .networks import MONAI_NETWORKS, TinyClassifier, same_bits, snapshot, tiny_classifier

DENSE = {
    "_target_": "monai.networks.nets.DenseNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "init_features": 8,
    "growth_rate": 4,
    "block_config": [2, 2],
    "bn_size": 2,
}


def prune(network: nn.Module, share: float = 0.5) -> nn.Module:
    """Return a decomposed and pruned network with scaling factors and statistics that are not those of the start."""
    network = mbp.decompose(network)
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=share))
    for _, layer in decomposed_layers(network):
        layer.scaling.scaling_factors.data.normal_()
    return network


def dense() -> DenseNet:
    return DenseNet(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


def saved(folder, share: float = 0.5):
    network = prune(tiny_classifier(), share)
    mbp.save_pruned(network, folder / "model.pt")
    return network, folder / "model.pt"


@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_networks_of_monai_come_back_from_their_files(tmp_path, name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network = prune(make(), 0.3).eval()
    mbp.save_pruned(network, tmp_path / "model.pt")
    torch.manual_seed(1)  # the fresh network has other weights
    again = mbp.load_pruned(make, tmp_path / "model.pt").eval()
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert same_bits(snapshot(again), snapshot(network))
    assert mbp.layer_status(again) == mbp.layer_status(network)
    assert [layer.kept_bases for _, layer in decomposed_layers(again)] == [
        layer.kept_bases for _, layer in decomposed_layers(network)
    ]
    with torch.no_grad():
        torch.testing.assert_close(mbp.recompose(again)(x), network(x), rtol=1e-4, atol=1e-5)


def test_two_files_are_written_an_ordinary_state_dict_and_its_plan(tmp_path):
    network, path = saved(tmp_path / "new" / "folder")
    assert sorted(os.listdir(path.parent)) == ["model.plan.json", "model.pt"]
    state = torch.load(path, weights_only=True)
    assert same_bits(state, snapshot(network))
    plan = mbp.PruningPlan.load(plan_path(path))
    assert plan.weights_sha256 == sha256_of(path)
    assert plan.layers == mbp.PruningPlan.from_network(network).layers


def test_the_plan_lies_beside_the_weights():
    assert plan_path("a/model.pt").as_posix() == "a/model.plan.json"
    assert plan_path("a/densenet_0.75.pt").as_posix() == "a/densenet_0.75.plan.json"


def test_two_networks_whose_names_have_a_number_and_no_ending_do_not_share_a_plan(tmp_path):
    for share in (0.25, 0.5):
        mbp.save_pruned(prune(tiny_classifier(), share), tmp_path / f"pruned_{share}")
    for share in (0.25, 0.5):
        again = mbp.load_pruned(tiny_classifier, tmp_path / f"pruned_{share}")
        assert sum(layer.rank() for _, layer in decomposed_layers(again)) <= 14 * (1 - share)


@pytest.mark.parametrize("kind", ["module", "class", "function", "config"])
@pytest.mark.parametrize("plan_kind", ["object", "dictionary", "path", "text path"])
def test_a_pruned_architecture_is_built_from_any_definition_and_any_plan(tmp_path, kind, plan_kind):
    network = prune(dense())
    plan = mbp.PruningPlan.from_network(network)
    plan.save(tmp_path / "plan.json")
    original = dense()
    before = snapshot(original)
    definition = {"module": original, "class": dense, "function": lambda: original, "config": DENSE}[kind]
    plan = {
        "object": plan,
        "dictionary": plan.to_dict(),
        "path": tmp_path / "plan.json",
        "text path": str(tmp_path / "plan.json"),
    }[plan_kind]
    built = mbp.build_pruned(definition, plan)
    built.load_state_dict(network.state_dict(), strict=True)
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(built.eval()(x), network.eval()(x))
    assert same_bits(snapshot(original), before)
    assert all(type(module) is not mbp.DecomposedConv for module in original.modules())
    assert [p.requires_grad for p in built.parameters()] == [p.requires_grad for p in network.parameters()]


def test_a_class_is_a_definition():
    plan = mbp.PruningPlan.from_network(prune(tiny_classifier()))
    assert isinstance(mbp.build_pruned(TinyClassifier, plan), TinyClassifier)


def test_build_pruned_is_a_target_of_a_bundle(tmp_path):
    network = prune(dense())
    mbp.save_pruned(network, tmp_path / "model.pt")
    config = {
        "ckpt": str(tmp_path / "model.pt"),
        "network_def": {
            "_target_": "monai_basisprune.build_pruned",
            "network_def": DENSE,
            "plan": str(tmp_path / "model.plan.json"),
        },
        "weights": "$torch.load(@ckpt, weights_only=True)",
    }
    (tmp_path / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    parser = ConfigParser()
    parser.read_config(tmp_path / "inference.json")
    built = parser.get_parsed_content("network_def")
    built.load_state_dict(parser.get_parsed_content("weights"), strict=True)
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(built.eval()(x), network.eval()(x))
    x = torch.rand(1, 1, 32, 32)
    script = torch.jit.script(built)
    torch.testing.assert_close(script(x), network(x))


def test_the_values_of_a_network_that_was_built_are_those_of_a_new_one():
    original = tiny_classifier()
    built = mbp.build_pruned(original, mbp.PruningPlan.from_network(prune(tiny_classifier())))
    assert built.stem.basis.weight.std() > 0
    assert built.stem.scaling.scaling_factors.tolist() == [1.0] * built.stem.rank()
    assert torch.equal(built.head.weight, original.head.weight)
    assert torch.isfinite(built(torch.rand(2, 1, 8, 8))).all()


def test_mode_type_and_gradients_come_from_the_definition():
    network = tiny_classifier().double().eval()
    network.stem.weight.requires_grad_(False)
    network.stem.bias.requires_grad_(False)
    built = mbp.build_pruned(network, mbp.PruningPlan.from_network(prune(tiny_classifier())))
    assert not built.training
    assert not built.stem.basis.training
    assert built.stem.basis.weight.dtype == built.stem.scaling.scaling_factors.dtype == torch.float64
    assert not built.stem.scaling.bias.requires_grad
    assert not mbp.recompose(built).stem[0].weight.requires_grad


@pytest.mark.parametrize("definition", ["text", 7, dict, lambda: "network", {"_target_": "builtins.dict"}])
def test_what_makes_no_network_is_an_error_that_says_what_is_needed(definition):
    plan = mbp.PruningPlan.from_network(prune(tiny_classifier()))
    words = "network_def must be a torch.nn.Module, or a function or a dictionary with _target_ that makes one; got "
    with pytest.raises(TypeError, match=re.escape(words)):
        mbp.build_pruned(definition, plan)


# --- networks that do not belong to the plan -----------------------------------------------------------------------


class Wider(TinyClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 3)
        self.extra = nn.Linear(2, 2, bias=False)


def test_every_difference_to_the_network_is_listed(tmp_path):
    _, path = saved(tmp_path)
    for build in (lambda: mbp.load_pruned(Wider, path), lambda: mbp.build_pruned(Wider(), plan_path(path))):
        with pytest.raises(mbp.PlanMismatchError) as caught:
            build()
        lines = str(caught.value).splitlines()
        assert "The plan does not belong to this Wider; build the network with the arguments that it had" in lines[0]
        for line in (
            "  - stem.bias: missing, expected with shape [6]",
            "  - extra.weight: unexpected, shape [2, 2]",
            "  - stem.weight: shape [6, 3, 3, 3], expected [6, 1, 3, 3]",
            "  - head.weight: shape [3, 8], expected [2, 8]",
            "  - head.bias: shape [3], expected [2]",
        ):
            assert line in lines


def chain(stride: int, mode: str = "zeros") -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, padding_mode=mode)
    )


def test_differences_that_no_shape_shows_are_listed_for_every_layer():
    plan = mbp.PruningPlan.from_network(prune(chain(1)))
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.build_pruned(chain(2, "circular"), plan)
    assert "  - 0: differs in {'stride': 2}, the plan has {'stride': 1}" in str(caught.value)
    assert "  - 2: differs in {'padding_mode': 'circular'}, the plan has {'padding_mode': 'zeros'}" in str(caught.value)


def test_layers_that_are_none_or_cannot_be_decomposed_are_listed():
    content = mbp.PruningPlan.from_network(prune(tiny_classifier())).to_dict()
    content["layers"]["norm"] = content["layers"]["stem"]
    content["layers"]["nowhere"] = content["layers"]["stem"]
    network = tiny_classifier()
    network.grouped.register_forward_hook(lambda *args: None)
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.build_pruned(network, content)
    for line in (
        "  - norm: the network has no such layer",
        "  - nowhere: the network has no such layer",
        "  - grouped: cannot be decomposed, hooks are registered on it",
    ):
        assert line in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("layer", "kept", "words"),
    [
        ("stem", [0, 6], "stem: keeps basis 6, there are 6"),
        ("stem", list(range(7)), "stem: rank must be a multiple of groups=1 from 1 to 6, got 7."),
        ("grouped", [0, 1, 4], "grouped: rank must be a multiple of groups=2 from 2 to 8, got 3."),
        ("grouped", [0, 1], "grouped: "),  # both in the first group
        ("stem", [3, 1], "stem: "),  # not in the order in which bases are stored
    ],
)
def test_bases_that_cannot_be_left_are_refused(layer, kept, words):
    content = mbp.PruningPlan.from_network(prune(tiny_classifier())).to_dict()
    content["layers"][layer]["kept_bases"] = kept
    with pytest.raises(mbp.PlanMismatchError, match=re.escape(words)):
        mbp.build_pruned(tiny_classifier(), content)


def test_a_pruned_network_is_no_definition():
    network = prune(tiny_classifier())
    with pytest.raises(mbp.PlanMismatchError, match="stem: the network has no such layer"):
        mbp.build_pruned(network, mbp.PruningPlan.from_network(network))


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.conv
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.other_block = self.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other_block(self.block(self.again(torch.relu(self.conv(x)))))


def test_a_network_that_names_a_layer_twice_comes_back_from_its_files(tmp_path):
    network = prune(TwoNames())
    assert mbp.PruningPlan.from_network(network).architecture == {
        name: list(value.shape) for name, value in TwoNames().state_dict().items()
    }
    mbp.save_pruned(network, tmp_path / "model.pt")
    again = mbp.load_pruned(TwoNames, tmp_path / "model.pt")
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(again(x), network(x))
    assert again.again is again.conv


def test_a_transformer_with_linear_layers_comes_back_from_its_files(tmp_path):
    def make(heads: int = 2) -> nn.Module:
        return ViT(1, (16, 16), (8, 8), 16, 24, 2, heads, classification=True, num_classes=2, spatial_dims=2)

    network = mbp.decompose(make(), target_modules=["linear1", "linear2", "qkv", "out_proj"]).eval()
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
    mbp.save_pruned(network, tmp_path / "model.pt")
    layers = mbp.PruningPlan.load(tmp_path / "model.plan.json").layers
    assert {name.rpartition(".")[2] for name in layers} == {"linear1", "linear2", "qkv", "out_proj"}
    torch.manual_seed(5)
    again = mbp.load_pruned(make, tmp_path / "model.pt").eval()
    assert same_bits(snapshot(again), snapshot(network))
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(again(x)[0], network(x)[0])
    with pytest.raises(mbp.PlanMismatchError, match=r"differs in \{'num_heads': 4\}, the plan has \{'num_heads': 2\}"):
        mbp.load_pruned(lambda: make(4), tmp_path / "model.pt")


# --- files that are damaged, foreign or hostile ---------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 100, -200, -1])
def test_one_bit_that_flipped_in_the_weights_is_found(tmp_path, position):
    _, path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(mbp.PlanMismatchError, match=r"are not those that model\.plan\.json was written for: SHA-256"):
        mbp.load_pruned(tiny_classifier, path)


def test_every_single_bit_of_a_value_is_covered(tmp_path):
    network, path = saved(tmp_path)
    content = path.read_bytes()
    needle = network.head.weight.detach().numpy().tobytes()
    start = content.index(needle)
    for bit in (0, 7, 8 * len(needle) - 1):
        changed = bytearray(content)
        changed[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(mbp.PlanMismatchError, match="was changed or damaged"):
            mbp.load_pruned(tiny_classifier, path)
    path.write_bytes(content)
    assert same_bits(snapshot(mbp.load_pruned(tiny_classifier, path)), snapshot(network))


def test_no_bit_can_flip_anywhere_and_change_what_is_loaded(tmp_path):
    network, path = saved(tmp_path)
    content, wanted = path.read_bytes(), snapshot(network)
    rng = random.Random(0)
    # the ends hold the directory of the archive, the rest are spread over all of it
    positions = [*range(20), *range(len(content) - 40, len(content)), *rng.sample(range(len(content)), 200)]
    refused = 0
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        set_in_plan(path, hashlib.sha256(content).hexdigest())
        with pytest.raises(mbp.PlanMismatchError, match="was changed or damaged"):
            mbp.load_pruned(tiny_classifier, path)
        set_in_plan(path, None)
        try:
            again = mbp.load_pruned(tiny_classifier, path)
        except mbp.PlanMismatchError:
            refused += 1
        else:  # a bit of the archive that holds nothing, such as the bytes between two parts
            assert same_bits(snapshot(again), wanted)
    assert refused > len(positions) / 3


@pytest.mark.parametrize("length", [0, 10, 0.5, -1])
def test_weights_that_were_cut_off_are_refused_with_or_without_a_fingerprint(tmp_path, length):
    _, path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * length) if isinstance(length, float) else length])
    with pytest.raises(mbp.PlanMismatchError, match="was changed or damaged"):
        mbp.load_pruned(tiny_classifier, path)
    set_in_plan(path, None)
    with pytest.raises(mbp.PlanMismatchError, match="is no state dict that can be read"):
        mbp.load_pruned(tiny_classifier, path)


def set_in_plan(path, fingerprint) -> None:
    content = json.loads(plan_path(path).read_text(encoding="utf-8"))
    content["weights_sha256"] = fingerprint
    plan_path(path).write_text(json.dumps(content), encoding="utf-8")


def replace_weights(path, state) -> None:
    torch.save(state, path)
    set_in_plan(path, sha256_of(path))


def test_a_state_dict_that_does_not_fit_is_refused_with_every_difference(tmp_path):
    network, path = saved(tmp_path)
    state = snapshot(network)
    state["head.weight"] = torch.zeros(3, 8)
    state["stem.scaling.scaling_factors"] = torch.zeros(6)
    del state["norm.running_mean"]
    state["foreign"] = torch.zeros(1)
    replace_weights(path, state)
    with pytest.raises(mbp.PlanMismatchError, match="does not fit the pruned TinyClassifier") as caught:
        mbp.load_pruned(tiny_classifier, path)
    rank = network.stem.rank()
    for line in (
        "  - norm.running_mean: unexpected",
        "  - foreign: unexpected, shape [1]",
        "  - head.weight: shape [3, 8], expected [2, 8]",
        f"  - stem.scaling.scaling_factors: shape [6], expected [{rank}]",
    ):
        if "running_mean" not in line:
            assert line in str(caught.value).splitlines()
    assert "  - norm.running_mean: missing, expected with shape [6]" in str(caught.value).splitlines()


def test_the_network_of_the_definition_is_untouched_where_loading_fails(tmp_path):
    network, path = saved(tmp_path)
    state = snapshot(network)
    state["head.weight"] = torch.zeros(3, 8)
    replace_weights(path, state)
    definition = tiny_classifier(5)
    before = snapshot(definition)
    with pytest.raises(mbp.PlanMismatchError):
        mbp.load_pruned(definition, path)
    assert same_bits(snapshot(definition), before)


@pytest.mark.parametrize("state", [[1, 2], torch.zeros(3), {"stem": {"weight": torch.zeros(1)}}, {"epoch": 3}])
def test_what_is_no_state_dict_is_refused(tmp_path, state):
    _, path = saved(tmp_path)
    replace_weights(path, state)
    with pytest.raises(mbp.PlanMismatchError, match="not the tensors of a state dict"):
        mbp.load_pruned(tiny_classifier, path)


class Executes:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_weights_file_is_not_executed(tmp_path, writer):
    _, path = saved(tmp_path)
    marker = tmp_path / "executed"
    if writer == "torch":
        torch.save({"head.weight": Executes(str(marker))}, path)
    else:
        path.write_bytes(pickle.dumps(Executes(str(marker))))
    set_in_plan(path, sha256_of(path))
    with pytest.raises(mbp.PlanMismatchError, match="is no state dict that can be read"):
        mbp.load_pruned(tiny_classifier, path)
    assert not marker.exists()


def test_what_could_run_code_is_refused_with_words_that_do_not_tell_how_to_run_it(tmp_path):
    _, path = saved(tmp_path)
    replace_weights(path, {"head.weight": Executes(str(tmp_path / "executed"))})
    with pytest.raises(mbp.PlanMismatchError, match="holds other things than tensors, which could run code") as caught:
        mbp.load_pruned(tiny_classifier, path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_script_in_the_place_of_the_weights_is_refused(tmp_path):
    _, path = saved(tmp_path)
    torch.jit.save(torch.jit.script(tiny_classifier()), path)
    set_in_plan(path, None)
    with pytest.raises(mbp.PlanMismatchError, match=r"model\.pt is no state dict that can be read"):
        mbp.load_pruned(tiny_classifier, path)


def test_an_archive_that_unpacks_to_far_more_than_it_is_or_names_a_part_twice_is_refused(tmp_path):
    _, path = saved(tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(1 << 27))
    set_in_plan(path, None)
    with pytest.raises(mbp.PlanMismatchError, match=r"it would unpack from \d+ to 134217728 bytes"):
        mbp.load_pruned(tiny_classifier, path)
    _, path = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"other")
    set_in_plan(path, None)
    with pytest.raises(mbp.PlanMismatchError, match="it holds two parts of one name"):
        mbp.load_pruned(tiny_classifier, path)


UNUSUAL = {
    "sparse": lambda value: value.to_sparse(),
    "without values": lambda value: value.to("meta"),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "nested": lambda value: torch.nested.nested_tensor([value, value]),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("ignore")  # PyTorch's own remarks on tensors of these kinds
def test_tensors_that_are_not_ordinary_are_refused(tmp_path, kind):
    network, path = saved(tmp_path)
    replace_weights(path, {**snapshot(network), "head.weight": UNUSUAL[kind](snapshot(network)["head.weight"])})
    with pytest.raises(mbp.PlanMismatchError, match=r"head\.weight: no ordinary tensor, but sparse"):
        mbp.load_pruned(tiny_classifier, path)


def test_a_tensor_of_a_huge_shape_takes_no_memory_and_is_refused(tmp_path):
    network, path = saved(tmp_path)
    replace_weights(path, {**snapshot(network), "head.weight": torch.zeros(1).expand(10**9, 10**6)})
    with pytest.raises(mbp.PlanMismatchError, match=r"head\.weight: no ordinary tensor, but .* with too few"):
        mbp.load_pruned(tiny_classifier, path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("head.weight", float("nan"), "holds NaN"),
        ("norm.running_var", float("nan"), "holds NaN"),
        ("head.bias", float("-inf"), "holds infinite values"),
    ],
)
def test_weights_that_are_no_numbers_are_neither_loaded_nor_saved(tmp_path, name, value, words):
    network, path = saved(tmp_path)
    good = path.read_bytes()
    state = snapshot(network)
    state[name].view(-1)[-1] = value
    network.load_state_dict(state)
    with pytest.raises(mbp.BasisPruneError, match=f"is not saved, its weights are no numbers:\n  - {name}: {words}"):
        mbp.save_pruned(network, path)
    assert path.read_bytes() == good
    replace_weights(path, state)
    with pytest.raises(mbp.PlanMismatchError, match=f"does not fit the pruned TinyClassifier:\n  - {name}: {words}"):
        mbp.load_pruned(tiny_classifier, path)


class Masked(TinyClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))


def test_a_buffer_may_be_infinite(tmp_path):
    mbp.save_pruned(prune(Masked()), tmp_path / "model.pt")
    assert mbp.load_pruned(Masked, tmp_path / "model.pt").mask.tolist() == [0.0, float("-inf")]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links are those of POSIX")
def test_a_symbolic_link_is_followed_for_loading_and_replaced_by_saving(tmp_path):
    network, path = saved(tmp_path / "store")
    (tmp_path / "model.pt").symlink_to(path)
    (tmp_path / "model.plan.json").symlink_to(plan_path(path))
    assert same_bits(snapshot(mbp.load_pruned(tiny_classifier, tmp_path / "model.pt")), snapshot(network))
    before = path.read_bytes()
    other, _ = saved(tmp_path, 0.25)
    assert path.read_bytes() == before
    assert not (tmp_path / "model.pt").is_symlink()
    assert same_bits(snapshot(mbp.load_pruned(tiny_classifier, tmp_path / "model.pt")), snapshot(other))


def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it(tmp_path):
    network, path = saved(tmp_path)
    (tmp_path / "other.pt").mkdir()
    with pytest.raises(FileNotFoundError, match=r"There is no weights file other\.pt"):
        mbp.load_pruned(tiny_classifier, tmp_path / "other.pt")
    with pytest.raises(OSError):
        mbp.save_pruned(network, tmp_path / "other.pt")
    assert sorted(os.listdir(tmp_path)) == ["model.plan.json", "model.pt", "other.pt"]
    plan_path(path).unlink()
    plan_path(path).mkdir()
    with pytest.raises(FileNotFoundError, match=r"There is no plan model\.plan\.json"):
        mbp.load_pruned(tiny_classifier, path)


def test_no_message_names_the_folder(tmp_path):
    _, path = saved(tmp_path)
    for damage in (lambda: path.write_bytes(b""), lambda: plan_path(path).write_text("{"), path.unlink):
        damage()
        with pytest.raises((mbp.PlanMismatchError, FileNotFoundError)) as caught:
            mbp.load_pruned(tiny_classifier, path)
        assert str(tmp_path) not in str(caught.value)


def test_a_layer_that_was_renamed_is_listed_on_both_sides(tmp_path):
    _, path = saved(tmp_path)

    class Renamed(TinyClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.entry = self.stem
            del self.stem

    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.load_pruned(Renamed, path)
    for line in (
        "  - stem.weight: missing, expected with shape [6, 1, 3, 3]",
        "  - entry.weight: unexpected, shape [6, 1, 3, 3]",
        "  - stem: missing, the plan has a Conv2d",
        "  - entry: unexpected, a Conv2d",
        "  - stem: the network has no such layer",
    ):
        assert line in str(caught.value).splitlines()


def test_weights_of_another_type_are_refused(tmp_path):
    mbp.save_pruned(prune(tiny_classifier().double()), tmp_path / "model.pt")
    with pytest.raises(mbp.PlanMismatchError, match=re.escape("torch.float64")):
        mbp.load_pruned(tiny_classifier, tmp_path / "model.pt")
    again = mbp.load_pruned(lambda: tiny_classifier().double(), tmp_path / "model.pt")
    assert again.stem.basis.weight.dtype == torch.float64


def test_a_plan_of_another_network_is_refused(tmp_path):
    saved(tmp_path / "a", 0.5)
    _, path = saved(tmp_path / "b", 0.25)
    os.replace(plan_path(tmp_path / "a" / "model.pt"), plan_path(path))
    with pytest.raises(mbp.PlanMismatchError, match="or the plan belongs to another one"):
        mbp.load_pruned(tiny_classifier, path)


def test_a_missing_file_is_named(tmp_path):
    _, path = saved(tmp_path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=re.escape("There is no weights file model.pt to go with the plan model.plan.json")
    ):
        mbp.load_pruned(tiny_classifier, path)
    with pytest.raises(FileNotFoundError, match=re.escape("other.plan.json")):
        mbp.load_pruned(tiny_classifier, tmp_path / "other.pt")


def test_saving_again_replaces_both_files(tmp_path):
    saved(tmp_path, 0.25)
    network, path = saved(tmp_path, 0.5)
    assert same_bits(snapshot(mbp.load_pruned(tiny_classifier, path)), snapshot(network))
    assert sorted(os.listdir(tmp_path)) == ["model.plan.json", "model.pt"]


def test_saving_a_network_that_is_not_decomposed_leaves_the_earlier_files(tmp_path):
    network, path = saved(tmp_path)
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        mbp.save_pruned(tiny_classifier(), path)
    assert same_bits(snapshot(mbp.load_pruned(tiny_classifier, path)), snapshot(network))


def test_earlier_weights_survive_where_the_new_ones_cannot_be_written(tmp_path):
    network, path = saved(tmp_path)
    other = prune(tiny_classifier(1), 0.25)
    other.register_buffer("waiting", nn.UninitializedBuffer())  # its state dict cannot be written
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        mbp.save_pruned(other, path)
    assert same_bits(snapshot(mbp.load_pruned(tiny_classifier, path)), snapshot(network))
    assert sorted(os.listdir(tmp_path)) == ["model.plan.json", "model.pt"]


@pytest.mark.skipif(os.name != "posix", reason="the longest name of a file is that of POSIX")
def test_earlier_weights_survive_where_the_new_plan_cannot_be_written(tmp_path):
    def fits(length: int) -> bool:
        try:
            write_atomically(tmp_path / f"{'x' * length}.pt", "earlier")
        except OSError:
            return False
        return True

    # a name as long as the weights can have: the name of the plan is longer, and the file system refuses it
    length = max(length for length in range(150, 256) if fits(length))
    path = tmp_path / f"{'x' * length}.pt"
    with pytest.raises(OSError):
        mbp.save_pruned(prune(tiny_classifier()), path)
    assert path.read_bytes() == b"earlier"
