from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet

import monai_basisprune as mbp
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.bundle_configs import (
    CONFIG_SUFFIXES,
    config_files,
    find_config,
    next_metadata,
    pruned_config,
    read_config_file,
    write_config,
)

from .source_bundles import NETWORK, metadata, train_config


@pytest.fixture(scope="module")
def plan() -> mbp.PruningPlan:
    """The plan of a network that lost half of its bases."""
    network = mbp.decompose(DenseNet(**{k: v for k, v in NETWORK.items() if k != "_target_"}))
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
    return mbp.PruningPlan.from_network(network)


def bundle_of(folder: Path, **files: str) -> Path:
    """Write texts as configurations of a bundle; ``__`` stands for the point before a suffix."""
    (folder / "configs").mkdir(parents=True)
    for name, text in files.items():
        (folder / "configs" / name.replace("__", ".")).write_text(text)
    return folder


# --- reading


def test_all_configurations_are_read_as_they_stand_but_not_the_metadata(tmp_path: Path) -> None:
    inference = '{"a": "@b#c", "b": "$1 + 1", "d": "%other.json::e"}'
    bundle = bundle_of(
        tmp_path,
        train__yaml="a: [1, 2]\nb: {c: '@a'}\n",
        inference__json=inference,
        evaluate__yml="x: 1\n",
        metadata__json='{"version": "0.1.0"}',
        metadata__yaml="version: 0.1.0\n",
        logging__conf="[loggers]\n",
    )
    found = config_files(bundle)
    assert list(found) == ["evaluate.yml", "inference.json", "train.yaml"]
    assert found["inference.json"] == json.loads(inference)  # neither references nor expressions are followed
    assert found["train.yaml"] == {"a": [1, 2], "b": {"c": "@a"}}
    (bundle / "configs" / "train.yaml").write_text("- a\n")
    with pytest.raises(ConfigurationError, match=r"^configs/train\.yaml of the bundle holds no dictionary of compon"):
        config_files(bundle)


def test_a_configuration_is_found_by_its_name_in_any_format(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, train__yml="a: 1\n", inference__json="{}", inference__yaml="a: 1\n")
    (bundle / "configs" / "evaluate.json").mkdir()
    assert find_config(bundle, "train") == bundle / "configs" / "train.yml"
    assert find_config(bundle, "inference") == bundle / "configs" / "inference.json"
    assert find_config(bundle, "evaluate") is None  # a folder is none
    assert find_config(bundle, "evaluate", "inference", "train") == bundle / "configs" / "inference.json"
    assert find_config(tmp_path / "none", "train") is None
    assert CONFIG_SUFFIXES == (".json", ".yaml", ".yml")


def test_a_configuration_that_cannot_be_read_is_named_and_its_folder_is_not(tmp_path: Path) -> None:
    aliases = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    aliases += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 7))
    for name, text, words in (
        ("broken.json", '{"a": ', "cannot be read: "),
        ("broken.yaml", "a: [1\n", "cannot be read: "),
        ("code.yaml", f"!!python/object/apply:os.mkdir ['{tmp_path}/made']\n", "cannot be read: "),
        ("list.json", "[1, 2]", "holds no dictionary of components"),
        ("text.yaml", "only a text\n", "holds no dictionary of components"),
        ("deep.json", '{"a": ' * 80 + "1" + "}" * 80, "cannot be used: it is nested deeper than 64 levels"),
        ("bomb.yaml", aliases, "cannot be used: it holds more than 1000000 values"),
    ):
        path = tmp_path / "Doe^Jane" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=f"^configs/{name} of the bundle {words}") as caught:
            read_config_file(path)
        assert "Doe" not in str(caught.value)
    assert not (tmp_path / "made").exists()
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ConfigurationError, match=r"larger than 16 MiB, which is the most that is read"):
        read_config_file(large)
    with pytest.raises(
        ConfigurationError, match=r"configs/none\.json of the bundle cannot be read: .*No such f"
    ) as caught:
        read_config_file(tmp_path / "Doe^Jane" / "none.json")
    assert "Doe" not in str(caught.value)


# --- writing


@pytest.mark.parametrize("suffix", CONFIG_SUFFIXES)
def test_what_is_written_is_read_again_with_the_plan_of_each_network(
    tmp_path: Path, plan: mbp.PruningPlan, suffix: str
) -> None:
    config = {"two": [{"plan": plan.to_dict()}, plan.to_dict()], **train_config(), "text": 'a "quoted" \\ text, ü'}
    before = copy.deepcopy(config)
    path = tmp_path / f"train{suffix}"
    write_config(config, path)
    assert config == before
    assert read_config_file(path) == config
    assert list(read_config_file(path)) == list(config)  # their order is kept, and imports come first
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        assert json.loads(text) == config
        lines = [line for line in text.splitlines() if "monai_basisprune.plan" in line]
        assert len(lines) == 2
        for line in lines:  # a plan has a number for each basis, which nobody reads one below the other
            assert json.loads(line[line.index("{") :].rstrip(",")) == plan.to_dict()
    else:
        assert yaml.safe_load(text) == config


# --- the pruned network in a configuration


def test_a_network_that_is_an_expression_or_a_reference_is_kept_under_another_id() -> None:
    network = mbp.decompose(DenseNet(**{k: v for k, v in NETWORK.items() if k != "_target_"}))
    plan = mbp.PruningPlan.from_network(network)
    for own in ("@networks#small", "$@networks#small if @small else None", dict(NETWORK)):
        config = {
            "imports": "$import os",
            "small": True,
            "networks": {"small": dict(NETWORK)},
            "network_def": own,
            "network": "$@network_def.to('cpu')",
        }
        new = pruned_config(config, plan)
        assert new is not None
        assert new["imports"] == ["$import os", "$import monai_basisprune"]
        assert new["unpruned_network_def"] == own
        parser = ConfigParser(new)
        built = parser.get_parsed_content("network")
        assert built.state_dict().keys() == network.state_dict().keys()
        assert config["network_def"] == own  # the source is left as it is
    assert pruned_config({"run": ["$1"]}, plan) is None
    with pytest.raises(ConfigurationError, match="imports must be a line of Python or a list of them, found float"):
        pruned_config({"imports": 1.5, "network_def": dict(NETWORK)}, plan)  # of the fuzzing


def test_references_to_parts_of_the_network_go_on_meaning_the_original() -> None:
    network = mbp.decompose(DenseNet(**{k: v for k, v in NETWORK.items() if k != "_target_"}))
    plan = mbp.PruningPlan.from_network(network)
    config = {"network_def": dict(NETWORK), "classes": "$@network_def#out_channels + @network_def::in_channels"}
    new = pruned_config(config, plan)
    assert new is not None
    assert ConfigParser(new).get_parsed_content("classes") == 3
    overlay = pruned_config({"network_def#out_channels": 3}, plan)
    assert overlay == {"unpruned_network_def#out_channels": 3}


def test_a_configuration_builds_the_pruned_network_and_the_source_stays(plan: mbp.PruningPlan) -> None:
    config = train_config()
    before = copy.deepcopy(config)
    new = pruned_config(config, plan)
    assert config == before
    assert new is not None
    assert new["unpruned_network_def"] == NETWORK
    assert {
        key: value for key, value in new.items() if key not in ("network_def", "unpruned_network_def", "imports")
    } == {key: value for key, value in config.items() if key not in ("network_def", "imports")}
    network = ConfigParser(new).get_parsed_content("network_def")
    assert mbp.PruningPlan.from_network(network).to_dict() == plan.to_dict()
    assert {status.rank for status in mbp.layer_status(network)} != {
        status.max_rank for status in mbp.layer_status(network)
    }
    json.dumps(new)


def test_another_component_can_take_the_place_of_the_original(plan: mbp.PruningPlan) -> None:
    own = {**NETWORK, "block_config": "@blocks"}
    given = dict(NETWORK)
    new = pruned_config({"blocks": [1], "network_def": own}, plan, given)
    assert new is not None
    assert new["unpruned_network_def"] == NETWORK
    assert next(iter(new)) == "imports"
    assert new["imports"] == ["$import monai_basisprune"]
    given["out_channels"] = 9  # a copy was taken
    assert new["unpruned_network_def"] == NETWORK
    ConfigParser(new).get_parsed_content("network_def")


def test_an_import_that_is_there_is_not_written_twice(plan: mbp.PruningPlan) -> None:
    for imports in ("$import monai_basisprune", ["$import os", "$import monai_basisprune"]):
        new = pruned_config({"imports": imports, "network_def": dict(NETWORK)}, plan)
        assert new is not None
        assert new["imports"] == imports


def test_an_overlay_of_parts_keeps_its_other_entries_and_refers_to_the_original(plan: mbp.PruningPlan) -> None:
    overlay = {
        "network_def::out_channels": 3,
        "run": ["$print(@network_def::out_channels)"],
        "x": {"y": "@network_def"},
    }
    assert pruned_config(overlay, plan) == {
        "unpruned_network_def::out_channels": 3,
        "run": ["$print(@unpruned_network_def::out_channels)"],
        "x": {"y": "@network_def"},  # the network itself is the pruned one
    }


def test_a_configuration_of_a_pruned_network_is_refused(plan: mbp.PruningPlan) -> None:
    new = pruned_config({"network_def": dict(NETWORK)}, plan)
    assert new is not None
    with pytest.raises(ConfigurationError, match=r"holds a pruned network already .* start from the bundle of the un"):
        pruned_config(new, plan)


# --- metadata


def test_metadata_count_the_version_up_and_keep_what_was_said_before() -> None:
    source = metadata()
    before = copy.deepcopy(source)
    new = next_metadata(source, "Pruned.", {"AUC": 0.9})
    assert source == before
    changed = {"version", "changelog", "monai_version", "pytorch_version", "numpy_version"}
    changed |= {"required_packages_version", "eval_metrics"}
    assert {key: new[key] for key in new if key not in changed} == {k: source[k] for k in source if k not in changed}
    assert new["version"] == "0.4.0"
    assert list(new["changelog"].items()) == [("0.4.0", "Pruned."), *source["changelog"].items()]
    assert new["required_packages_version"] == {"pytorch-ignite": "0.5.5", "monai_basisprune": mbp.__version__}
    assert new["eval_metrics"] == {"AUC": 0.9, "before_pruning": {"accuracy": 0.9}}
    for key, module in (("monai_version", monai), ("pytorch_version", torch), ("numpy_version", np)):
        assert new[key] == module.__version__.split("+")[0]  # a build of one's own is no version that others have


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({"version": "1.2"}, "1.3.0"),
        ({"version": "1.2", "changelog": {"1.3.0": "", "1.4.0": ""}}, "1.5.0"),
        ({"version": "0.10.7rc1", "changelog": None}, "0.11.0"),
        ({"version": 2.9}, "2.10.0"),
    ],
)
def test_the_next_version_is_one_that_is_not_taken(changes: dict[str, Any], version: str) -> None:
    new = next_metadata(changes, "x", {})
    assert new["version"] == version
    assert list(new["changelog"]) == [version, *(changes.get("changelog") or {})]
    assert new["eval_metrics"] == {}  # nothing was measured before


@pytest.mark.parametrize("version", ["first", None, "1", "v1.2", "1234567890.1"])
def test_a_version_that_cannot_be_counted_up_is_refused(version: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"must start with two numbers, such as 0\.1\.0, got ") as caught:
        next_metadata({"version": version}, "", {})
    assert repr(str(version)) in str(caught.value)


@pytest.mark.parametrize("key", ["changelog", "required_packages_version"])
def test_metadata_of_another_type_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{key} in configs/metadata\.json must be a dictionary, got str"):
        next_metadata({"version": "1.2", key: "new"}, "", {})
