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
    convolution = {"type": "Conv2d", "kernel_size": 3, "padding": 1, "padding_mode": "zeros", "dilation": 1}
    assert plan.modules == {
        "stem": {**convolution, "stride": 1, "groups": 1},
        "norm": {"type": "BatchNorm2d", "eps": 1e-5},
        "grouped": {**convolution, "stride": 2, "groups": 2},
        "pool": {"type": "AdaptiveAvgPool2d", "output_size": 1},
        "head": {"type": "Linear"},
    }


@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_the_plan_of_every_network_passes_its_own_checks_and_is_small(name):
    plan = mbp.PruningPlan.from_network(mbp.decompose(MONAI_NETWORKS[name][0]()))
    text = json.dumps(plan.to_dict(), allow_nan=False)
    assert mbp.PruningPlan.from_dict(json.loads(text)) == plan
    assert len(text) < 300 * len(plan.modules) + 100 * len(plan.architecture)


def test_a_plan_goes_through_a_file(tmp_path):
    plan = mbp.PruningPlan.from_network(pruned_network())
    plan.save(tmp_path / "a" / "plan.json")
    assert mbp.PruningPlan.load(tmp_path / "a" / "plan.json") == plan
    assert mbp.PruningPlan.load(str(tmp_path / "a" / "plan.json")) == plan
    assert mbp.PruningPlan.from_dict(plan.to_dict()) == plan
    text = json.loads((tmp_path / "a" / "plan.json").read_text(encoding="utf-8"))
    assert text == plan.to_dict()
    assert (text["format"], text["format_version"]) == ("monai_basisprune.plan", 2)
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


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("0" * 64)
SETTINGS = st.dictionaries(st.sampled_from(["type", "stride", "eps", "other"]), LEAF | st.lists(LEAF, max_size=3))
LAYER = st.fixed_dictionaries({"kept_bases": st.lists(st.integers(-1, 9) | LEAF, max_size=4)}, optional={"x": LEAF})
CHANNELS = st.dictionaries(
    st.sampled_from(["kept_inputs", "kept_outputs", "x"]), st.lists(st.integers(-1, 9) | LEAF, max_size=4)
)
NEARLY_A_PLAN = st.fixed_dictionaries(
    {
        "format": st.just("monai_basisprune.plan") | LEAF,
        "format_version": st.just(2) | LEAF,
        "package_version": st.text(max_size=4) | LEAF,
        "weights_sha256": st.none() | LEAF,
        "architecture": st.dictionaries(st.text(max_size=4), st.lists(st.integers(0) | LEAF, max_size=3), max_size=2),
        "modules": st.dictionaries(
            st.text(max_size=4), st.fixed_dictionaries({"type": st.text()}) | SETTINGS, max_size=2
        ),
        "layers": st.dictionaries(st.text(max_size=4), LAYER | JSON, max_size=2),
        "channels": st.just({}) | st.dictionaries(st.text(max_size=4), CHANNELS | JSON, max_size=2),
    },
    optional={"other": JSON},
)
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cf", "Co", "Cs", "Zl", "Zp"]), max_size=100)
PLANS = st.fixed_dictionaries(
    {
        "format": st.just("monai_basisprune.plan"),
        "format_version": st.just(2),
        "package_version": st.text(max_size=100),
        "weights_sha256": st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
        "architecture": st.dictionaries(NAMES, st.lists(st.integers(0, 2**31), max_size=5), max_size=3),
        "modules": st.dictionaries(
            NAMES,
            st.fixed_dictionaries(
                {"type": NAMES},
                optional={
                    "eps": st.floats(-1, 1),
                    "stride": st.lists(st.none() | st.integers(0, 9)),
                    "mode": st.text(),
                },
            ),
            max_size=3,
        ),
        "layers": st.dictionaries(
            NAMES,
            st.fixed_dictionaries({"kept_bases": st.sets(st.integers(0, 99), min_size=1).map(sorted)}),
            min_size=1,
            max_size=3,
        ),
        "channels": st.dictionaries(
            NAMES,
            st.dictionaries(
                st.sampled_from(["kept_inputs", "kept_outputs"]),
                st.sets(st.integers(0, 99), min_size=1).map(sorted),
                min_size=1,
            ),
            max_size=3,
        ),
    }
)


@EXAMPLES
@given(JSON | NEARLY_A_PLAN | PLANS)
def test_any_json_gives_a_plan_that_goes_round_or_is_refused(tmp_path_factory, value):
    try:
        plan = mbp.PruningPlan.from_dict(value)
    except mbp.PlanMismatchError as error:
        str(error).encode("utf-8")  # can be written to a terminal
        return
    assert plan.to_dict() == value
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    assert mbp.PruningPlan.load(path) == plan


@EXAMPLES
@given(PLANS)
def test_what_the_test_above_calls_a_plan_is_mostly_one(value):
    if all(len(v) <= 100 for m in value["modules"].values() for k, v in m.items() if k == "mode") and all(
        len(v) <= 16 for m in value["modules"].values() for k, v in m.items() if k == "stride"
    ):
        mbp.PruningPlan.from_dict(value)


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
    elif path[:1] == ("modules",) and len(path) == 2:
        with pytest.raises(mbp.PlanMismatchError, match=f"{path[1]}: unexpected, a "):
            mbp.build_pruned(tiny_classifier(), changed)
    elif path[:1] == ("modules",) and len(path) == 3 and path[2] != "type":
        with pytest.raises(mbp.PlanMismatchError, match=f"{path[1]}: differs in .*, the plan has .*None"):
            mbp.build_pruned(tiny_classifier(), changed)
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


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "NaN", "[-Infinity]", "1e999", '{"a": 1} trailing', "9" * 6000]
)
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
        (("format_version",), "2", "$.format_version: 2 was expected"),
        (("layers",), {}, "$.layers: {} should be non-empty"),
        (("layers", "stem", "kept_bases"), [], "$.layers.stem.kept_bases: [] should be non-empty"),
        (("layers", "stem", "kept_bases"), [0, 0], "stem: its kept_bases are not in rising order"),
        (("layers", "stem", "kept_bases"), [2, 1], "stem: its kept_bases are not in rising order"),
        (("layers", "stem", "kept_bases"), list(range(70_000)), "is too long"),
        (("layers", "stem", "kept_bases"), [-1], "-1 is less than the minimum of 0"),
        (("layers", "stem", "kept_bases"), [10**30], "is greater than the maximum of 2147483648"),
        (("layers", "stem", "kept_bases"), [0.5], "0.5 is not of type 'integer'"),
        (("layers", "stem", "kept_bases"), [1.0], "1.0 is not of type 'integer'"),
        (("layers", "stem", "kept_bases"), [True], "True is not of type 'integer'"),
        (("layers", "stem", "kept_bases"), [float("nan")], "nan is not of type 'integer'"),
        (("layers", "stem", "kept_bases"), "../../weights", "is not of type 'array'"),
        (("modules", "stem", "kernel_size"), 1e308, "is not valid under any of the given schemas"),
        (("modules", "stem", "kernel_size"), [1] * 1000, "is not valid under any of the given schemas"),
        (("modules", "stem", "stride"), float("inf"), "is not valid under any of the given schemas"),
        (("modules", "stem", "type"), "x" * 101, "is too long"),
        (("modules", "stem", "_target_"), "os.system", "'_target_' was unexpected"),
        (("modules", "x" * 1001), {"type": "Linear"}, "is too long"),
        (("layers", "stem", "geometry"), {}, "'geometry' was unexpected"),
        (("layers", "\x1b[2J"), 7, "\\x1b[2J"),
        (("modules", "\x1b[2J"), {"type": "Linear"}, "'\\x1b[2J' does not match"),
        (("modules", "stem", "type"), "Conv2d\x1b[2J", "does not match"),
        (("architecture", "a\nb"), [1], "does not match"),
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
    changed["format_version"] = True
    changed["layers"]["stem"]["kept_bases"] = [-1]
    changed["modules"]["grouped"]["groups"] = {}
    del changed["architecture"]
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.PruningPlan.from_dict(changed)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for part in ("$.format_version", "$.layers.stem.kept_bases", "$.modules.grouped.groups", "'architecture'"):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize("where", ["layer", "type", "setting", "module", "architecture", "version", "sha"])
@pytest.mark.parametrize(
    "code", ["$open('executed', 'w')", "$__import__('os').mknod('executed')", "@network_def", "%plan"]
)
@pytest.mark.parametrize("definition", [tiny_classifier, {"_target_": "tests.networks.tiny_classifier"}])
def test_an_expression_in_a_plan_is_never_executed(tmp_path, monkeypatch, where, code, definition):
    monkeypatch.chdir(tmp_path)
    changed = content()
    if where == "layer":
        changed["layers"][code] = changed["layers"].pop("stem")
    elif where == "type":
        changed["modules"]["stem"]["type"] = code
    elif where == "setting":
        changed["modules"]["stem"]["padding_mode"] = code
    elif where == "module":
        changed["modules"][code] = {"type": code}
    elif where == "architecture":
        changed["architecture"][code] = [1]
    elif where == "version":
        changed["package_version"] = code
    else:
        changed["weights_sha256"] = code
    (tmp_path / "plan.json").write_text(json.dumps(changed), encoding="utf-8")
    if where == "version":
        mbp.build_pruned(definition, tmp_path / "plan.json")
    else:
        with pytest.raises(mbp.PlanMismatchError) as caught:
            mbp.build_pruned(definition, tmp_path / "plan.json")
        assert code in str(caught.value)  # it is shown as what it is, text
    assert os.listdir(tmp_path) == ["plan.json"]


def test_the_marker_of_the_test_above_appears_where_an_expression_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="network_def must be"):  # a definition is code by design, and not the plan
        mbp.build_pruned({"_target_": "builtins.dict", "x": "$open('executed', 'w').close()"}, content())
    assert os.listdir(tmp_path) == ["executed"]


@pytest.mark.parametrize("version", [1, 0, -1, 3, 10**18])
def test_a_plan_of_another_version_names_both_versions_and_what_to_do(tmp_path, version):
    changed = {**content(), "format_version": version, "package_version": "0.0.9", "new": 1}
    (tmp_path / "plan.json").write_text(json.dumps(changed), encoding="utf-8")
    for read in (lambda: mbp.PruningPlan.from_dict(changed), lambda: mbp.PruningPlan.load(tmp_path / "plan.json")):
        with pytest.raises(mbp.PlanMismatchError) as caught:
            read()
        for words in (
            f"The plan is of format version {version}, written by monai_basisprune 0.0.9;",
            f"monai_basisprune {mbp.__version__} reads format version 2.",
            "Read it with the release that wrote it, or make it anew: prune the original network again and call",
        ):
            assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1, "format": 2}', "the key 'format' stands twice in one object"),
        ('{"layers": {"stem": {"kept_bases": [0], "kept_bases": [1]}}}', "the key 'kept_bases' stands twice"),
        ('{"layers": NaN}', "NaN is no number"),
        ('{"layers": 1e400}', "This is no pruning plan that can be used"),
        ("[" * 9 + "]" * 9, "it is nested deeper than 8 levels"),
        ("[" + "0," * 10**6 + "0]", "it holds more than 1000000 values"),
        ("9" * 4000, "it holds a number of more than 2700 digits"),
        ("\ufeff{}", "is not JSON"),
        (" " * (16 * 2**20 + 1), "it is larger than 16 MiB, and was not read"),
    ],
)
def test_text_that_could_mean_two_things_or_is_too_large_is_refused_by_name(tmp_path, text, words):
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(mbp.PlanMismatchError, match=words) as caught:
        mbp.PruningPlan.load(tmp_path / "plan.json")
    assert len(str(caught.value)) < 2000
    assert str(tmp_path) not in str(caught.value)


def test_a_huge_plan_is_not_read(tmp_path):
    with open(tmp_path / "plan.json", "wb") as file:
        file.truncate(100 * 2**30)  # a file with a hole, of 100 GiB
    with pytest.raises(mbp.PlanMismatchError, match="it is larger than 16 MiB"):
        mbp.PruningPlan.load(tmp_path / "plan.json")


def test_of_very_many_problems_fifty_are_listed():
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.PruningPlan.from_dict(changed_by(("layers", "stem", "kept_bases"), ["x"] * 100_000))
    assert 40 < len(str(caught.value).splitlines()) <= 51


def endless() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(endless(), "it is nested deeper than 8 levels", id="endless"),
        ({1: 2}, "it holds a key that is no text"),
        ({"format": (1, 2)}, "it holds a tuple, which is no type of JSON"),
        ({"format": object()}, "it holds a object, which is no type of JSON"),
        pytest.param(10**6000, "it holds a number of more than 2700 digits", id="digits"),
    ],
)
def test_objects_that_are_no_json_are_refused(value, words):
    with pytest.raises(mbp.PlanMismatchError, match=words):
        mbp.PruningPlan.from_dict(value)


def test_a_network_with_layers_that_wait_for_their_shapes_has_no_plan_yet():
    network = mbp.decompose(nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 4, 1)))
    with pytest.raises((RuntimeError, ValueError), match="uninitialized parameter"):
        mbp.PruningPlan.from_network(network)
    network(torch.rand(1, 2, 4, 4))
    assert mbp.PruningPlan.from_network(network).architecture["0.weight"] == [4, 2, 1, 1]
