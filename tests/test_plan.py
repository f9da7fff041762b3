from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.plan import architecture_of, convolution_geometry

from .networks import MONAI_NETWORKS, tiny_classifier

EXAMPLES = settings(deadline=None, max_examples=150, derandomize=True)


def pruned_network() -> nn.Module:
    network = mbp.decompose(tiny_classifier())
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
    return network


def content() -> dict:
    return mbp.PruningPlan.from_network(pruned_network()).to_dict()


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def test_a_plan_holds_the_bases_that_are_left_and_the_original_architecture():
    network = pruned_network()
    plan = mbp.PruningPlan.from_network(network)
    assert list(plan.layers) == ["stem", "grouped"]
    assert plan.layers["stem"].kept_bases == network.stem.kept_bases
    assert plan.architecture == shapes_of(tiny_classifier())
    assert plan.weights_sha256 is None
    assert plan.package_version == mbp.__version__
    assert plan.layers["grouped"].geometry == {
        "type": "Conv2d",
        "in_channels": 6,
        "out_channels": 8,
        "kernel_size": [3, 3],
        "stride": [2, 2],
        "padding": [1, 1],
        "padding_mode": "zeros",
        "dilation": [1, 1],
        "groups": 2,
        "bias": False,
    }


@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_the_architecture_of_a_decomposed_network_is_that_of_the_original(name):
    network = MONAI_NETWORKS[name][0]()
    decomposed = mbp.decompose(network)
    assert architecture_of(decomposed) == architecture_of(network) == shapes_of(network)
    plan = mbp.PruningPlan.from_network(decomposed)
    for layer, one in plan.layers.items():
        assert one.geometry == convolution_geometry(network.get_submodule(layer))


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.Conv3d(2, 4, (1, 2, 3), (3, 2, 1), padding="valid", dilation=2),
        nn.Conv2d(4, 4, 3, padding=(0, 1), groups=2, bias=False, padding_mode="reflect"),
    ],
)
def test_the_geometry_tells_one_convolution_from_another(convolution):
    geometry = convolution_geometry(convolution)
    assert convolution_geometry(mbp.decompose(convolution)) == geometry
    assert json.loads(json.dumps(geometry)) == geometry
    twin = type(convolution)(**{k: tuple(v) if isinstance(v, list) else v for k, v in geometry.items() if k != "type"})
    assert repr(twin) == repr(convolution)


def test_a_plan_goes_through_a_file(tmp_path):
    plan = mbp.PruningPlan.from_network(pruned_network())
    plan.save(tmp_path / "a" / "plan.json")
    assert mbp.PruningPlan.load(tmp_path / "a" / "plan.json") == plan
    assert mbp.PruningPlan.load(str(tmp_path / "a" / "plan.json")) == plan
    assert mbp.PruningPlan.from_dict(plan.to_dict()) == plan
    text = json.loads((tmp_path / "a" / "plan.json").read_text(encoding="utf-8"))
    assert text == plan.to_dict()
    assert (text["format"], text["format_version"]) == ("monai_basisprune.plan", 1)
    assert os.listdir(tmp_path / "a") == ["plan.json"]


def test_a_plan_is_a_copy_and_not_a_view_of_the_network():
    network = pruned_network()
    plan = mbp.PruningPlan.from_network(network)
    before = copy.deepcopy(plan)
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.7))
    assert plan == before


def test_a_network_that_is_not_decomposed_has_no_plan():
    for network in (tiny_classifier(), mbp.recompose(pruned_network())):
        with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
            mbp.PruningPlan.from_network(network)


def test_a_missing_file_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        mbp.PruningPlan.load(tmp_path / "nowhere.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], (*path, i))


@EXAMPLES
@given(JSON)
def test_json_that_is_no_plan_is_refused(value):
    with pytest.raises(mbp.PlanMismatchError, match="This is no pruning plan that can be used"):
        mbp.PruningPlan.from_dict(value)


@EXAMPLES
@given(st.data(), JSON)
def test_a_plan_with_any_value_replaced_is_refused_or_cannot_do_harm(data, value):
    changed = content()
    path = data.draw(st.sampled_from(list(places(changed))[1:]))
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    try:
        plan = mbp.PruningPlan.from_dict(changed)
        network = mbp.build_pruned(tiny_classifier(), plan)
    except mbp.PlanMismatchError:
        return
    assert plan.to_dict() == changed
    original, kept = tiny_classifier(), {name: layer.kept_bases for name, layer in plan.layers.items()}
    for name in kept:
        layer = network.get_submodule(name)
        assert layer.rank() == len(kept[name])
        assert all(0 <= basis < layer.max_rank for basis in kept[name])
        assert layer.original_parameters == sum(p.numel() for p in original.get_submodule(name).parameters())


@EXAMPLES
@given(st.data())
def test_a_plan_with_any_key_left_out_is_refused(data):
    changed = content()
    path = data.draw(st.sampled_from([p for p in places(changed) if p and isinstance(p[-1], str)]))
    target = changed
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    if path in {("layers", "stem"), ("layers", "grouped")}:  # a layer that was not decomposed
        assert len(mbp.PruningPlan.from_dict(changed).layers) == 1
    elif path[:1] == ("architecture",) and len(path) == 2:
        with pytest.raises(mbp.PlanMismatchError, match="unexpected, shape"):
            mbp.build_pruned(tiny_classifier(), changed)
    else:
        with pytest.raises(mbp.PlanMismatchError, match="is a required property"):
            mbp.PruningPlan.from_dict(changed)


@EXAMPLES
@given(st.binary(max_size=40))
def test_a_file_that_is_no_plan_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_bytes(content)
    with pytest.raises(mbp.PlanMismatchError, match="no pruning plan"):
        mbp.PruningPlan.load(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", "1e999", '{"format": "x"} trailing', "9" * 6000])
def test_text_that_no_reader_can_use_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(mbp.PlanMismatchError, match="no pruning plan"):
        mbp.PruningPlan.load(tmp_path / "plan.json")


def changed_by(path: tuple, value) -> dict:
    changed = content()
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "something else", "$.format: 'monai_basisprune.plan' was expected"),
        (("format_version",), 2, "$.format_version: 1 was expected"),
        (("layers",), {}, "$.layers: {} should be non-empty"),
        (("layers", "stem", "kept_bases"), [], "$.layers.stem.kept_bases: [] should be non-empty"),
        (("layers", "stem", "kept_bases"), [0, 0], "has non-unique elements"),
        (("layers", "stem", "kept_bases"), [-1], "-1 is less than the minimum of 0"),
        (("layers", "stem", "kept_bases"), [10**30], "is greater than the maximum of 2147483648"),
        (("layers", "stem", "kept_bases"), [0.5], "0.5 is not of type 'integer'"),
        (("layers", "stem", "kept_bases"), [True], "True is not of type 'integer'"),
        (("layers", "stem", "kept_bases"), "../../weights", "is not of type 'array'"),
        (("layers", "stem", "geometry", "in_channels"), 1e308, "is greater than the maximum"),
        (("layers", "stem", "geometry", "kernel_size"), [1] * 1000, "is too long"),
        (("layers", "stem", "geometry", "padding"), "$__import__('os')", "is not valid under any of the given schemas"),
        (("layers", "stem", "geometry", "padding_mode"), "mirror", "'mirror' is not one of"),
        (("layers", "stem", "geometry", "_target_"), "os.system", "'_target_' was unexpected"),
        (("layers", "stem", "weights"), "/etc/passwd", "'weights' was unexpected"),
        (("weights_sha256",), "/etc/passwd", "is not valid under any of the given schemas"),
        (("weights_sha256",), "A" * 64, "is not valid under any of the given schemas"),
        (("architecture", "stem.weight"), [10**400], "is greater than the maximum"),
        (("_disabled_",), False, "'_disabled_' was unexpected"),
    ],
)
def test_paths_expressions_and_huge_numbers_are_refused_by_name(path, value, words):
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.PruningPlan.from_dict(changed_by(path, value))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_all_problems_of_a_plan_are_listed():
    changed = content()
    changed["format_version"] = 7
    changed["layers"]["stem"]["kept_bases"] = [-1]
    changed["layers"]["grouped"]["geometry"]["bias"] = "no"
    del changed["architecture"]
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.PruningPlan.from_dict(changed)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for part in ("$.format_version", "$.layers.stem.kept_bases", "$.layers.grouped.geometry.bias", "'architecture'"):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize("where", ["layer", "type", "architecture", "version", "sha"])
def test_an_expression_in_a_plan_is_never_executed(tmp_path, where):
    marker = tmp_path / "executed"
    code = f"$open({str(marker)!r}, 'w')"
    changed = content()
    if where == "layer":
        changed["layers"][code] = changed["layers"].pop("stem")
    elif where == "type":
        changed["layers"]["stem"]["geometry"]["type"] = code[:100]
    elif where == "architecture":
        changed["architecture"][code] = [1]
    elif where == "version":
        changed["package_version"] = code[:100]
    else:
        changed["weights_sha256"] = code
    (tmp_path / "plan.json").write_text(json.dumps(changed), encoding="utf-8")
    if where == "version":
        mbp.build_pruned(tiny_classifier, tmp_path / "plan.json")
    else:
        with pytest.raises(mbp.PlanMismatchError):
            mbp.build_pruned(tiny_classifier, tmp_path / "plan.json")
    assert not marker.exists()


def test_a_network_with_layers_that_wait_for_their_shapes_has_no_plan_yet():
    network = mbp.decompose(nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 4, 1)))
    with pytest.raises((RuntimeError, ValueError), match="uninitialized parameter"):
        mbp.PruningPlan.from_network(network)
    network(torch.rand(1, 2, 4, 4))
    assert mbp.PruningPlan.from_network(network).architecture["0.weight"] == [4, 2, 1, 1]
