from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from pydoc import locate
from typing import Any

import jsonschema
import pytest
import torch
from monai.bundle import BundleWorkflow, ConfigWorkflow
from monai.data import save_net_with_metadata

import monai_basisprune as mbp
from monai_basisprune.workflow import prepare_cohort

from .bundle_runs import (
    BUNDLE,
    COMBINATIONS,
    CONFIGS,
    ROOT,
    TINY,
    documented_settings,
    merged_config,
    tiny_densenet,
    unchanged_process,
    write_cohort,
)
from .networks import tiny_classifier

SCHEMA = ROOT.parent / "shared" / "data" / "meta_schema_20240725.json"
METADATA = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
MOST_BYTES = 25 * 2**20


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in texts(item)]


def targets(value: Any) -> list[str]:
    found = [value["_target_"]] if isinstance(value, dict) and "_target_" in value else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found + [target for item in items for target in targets(item)]


@pytest.mark.real_data
@pytest.mark.skipif(not SCHEMA.is_file(), reason="no shared data beside the checkout")
def test_metadata_satisfies_monais_schema() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert METADATA["schema"].endswith(f"/{SCHEMA.name}")
    jsonschema.validate(METADATA, schema)
    broken = {key: value for key, value in METADATA.items() if key != "network_data_format"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_version_is_that_of_the_newest_entry_of_the_changelog() -> None:
    versions = [[int(part) for part in text.split(".")] for text in METADATA["changelog"]]
    newest = ".".join(map(str, max(versions)))
    assert METADATA["version"] == newest
    assert next(iter(METADATA["changelog"])) == newest
    assert METADATA["changelog"][newest].strip()


def test_versions_agree_with_what_is_tested() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert METADATA["monai_version"] == pinned["monai"]
    assert METADATA["pytorch_version"] == pinned["torch"]
    assert METADATA["numpy_version"] == pinned["numpy"]
    for name, wanted in METADATA["required_packages_version"].items():
        assert wanted == (mbp.__version__ if name == "monai_basisprune" else pinned[name]), name
    assert version("monai-basisprune") == mbp.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == mbp.__version__


def test_input_and_output_have_the_names_that_monai_asks_for() -> None:
    formats = METADATA["network_data_format"]
    (image,), (pred,) = formats["inputs"].values(), formats["outputs"].values()
    assert list(formats["inputs"]) == ["image"]
    assert list(formats["outputs"]) == ["pred"]
    train = merged_config(("train",))
    assert image["num_channels"] == train["image_channels"]
    assert image["modality"] == "DX"
    assert pred["num_channels"] == len(train["class_names"]) == len(pred["channel_def"])
    low, high = ((edge - train["intensity_mean"]) / train["intensity_std"] for edge in (0, 1))
    assert image["value_range"][0] <= low
    assert high <= image["value_range"][1]


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "configs/metadata.json",
        "configs/train.json",
        "configs/prune.json",
        "configs/evaluate.json",
        "configs/inference.json",
        "configs/logging.conf",
        "docs/README.md",
        "docs/data_license.txt",
    ],
)
def test_files_of_a_bundle_are_there(name: str) -> None:
    path = BUNDLE / name
    assert 0 < path.stat().st_size <= MOST_BYTES
    path.read_text(encoding="utf-8")
    if name == "LICENSE":
        assert "Apache License" in path.read_text(encoding="utf-8")


def test_all_configurations_are_json_that_says_what_it_is() -> None:
    assert {path.suffix for path in CONFIGS.iterdir()} == {".json", ".conf"}
    for path in CONFIGS.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path.name == "metadata.json" or len(content["_about"]) > 20, path


@contextmanager
def started(kind: str, folder: Path) -> Iterator[ConfigWorkflow]:
    """Start a workflow for which all that its properties need is there."""
    if kind in ("train", "prune"):
        torch.save(tiny_densenet().state_dict(), folder / "net.pt")
        overrides = {**TINY, "synthetic_patients": 20, "pretrained": str(folder / "net.pt")}
    else:
        cohort = prepare_cohort(write_cohort(folder / "images", patients=16), folder, progress=False)
        shutil.copyfile(cohort.datalist_file, folder / "datalist.json")
        (folder / "study.json").write_text("{}")
        carried = {"image_size": 8, "image_channels": 1, "intensity_mean": 0.4, "intensity_std": 0.2}
        script, names = torch.jit.script(tiny_classifier()), {"class_names": ["a", "b"]}
        save_net_with_metadata(script, str(folder / "model.ts"), include_config_vals=False, meta_values=carried | names)
        overrides = {"dataset_dir": str(folder / "images")}
    names = {"prune": ("train", "prune"), "evaluate": ("inference", "evaluate")}.get(kind, (kind,))
    files = [str(CONFIGS / f"{name}.json") for name in names]
    workflow_type = "infer" if "inference" in names else "train"
    with unchanged_process():
        workflow = ConfigWorkflow(
            files,
            run_id="prune" if kind == "prune" else "run",
            workflow_type=workflow_type,
            logging_file=False,
            output_dir=str(folder),
            **overrides,
        )
        workflow.initialize()
        yield workflow


@pytest.mark.parametrize("kind", ["train", "prune", "inference", "evaluate"])
def test_the_properties_that_monai_requires_are_there(kind: str, tmp_path: Path) -> None:
    with started(kind, tmp_path) as workflow:
        # MONAI makes each of them: the data, the network, the trainer or evaluator
        assert BundleWorkflow.check_properties(workflow) == []
        required = {name for name, entry in workflow.properties.items() if entry["required"]}
        assert {"bundle_root", "device", "dataset_dir", "version"} < required
        assert ("trainer" in required) is (kind in ("train", "prune"))
        assert workflow.version == METADATA["version"]
        assert workflow.run_id in workflow.parser


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_targets_are_written_in_full_and_exist(names: tuple[str, ...]) -> None:
    found = targets(merged_config(names))
    assert len(found) > 8
    for target in found:
        assert "." in target, target
        assert callable(locate(target)), target


def test_expressions_are_single_calls() -> None:
    """Logic belongs into Python that is tested; choices by a setting are all that a configuration makes."""
    for path in CONFIGS.glob("*.json"):
        for text in texts(json.loads(path.read_text(encoding="utf-8"))):
            if text.startswith("$") and not text.startswith("$import"):
                tree = ast.parse(re.sub(r"[@%]([\w#:]+)", "reference", text[1:]), mode="eval")
                nodes = list(ast.walk(tree))
                assert not [node for node in nodes if isinstance(node, (ast.Lambda, ast.ListComp, ast.NamedExpr))], text
                assert sum(isinstance(node, ast.Call) for node in nodes) <= 2, text
    overlay = json.loads((CONFIGS / "prune.json").read_text(encoding="utf-8"))
    train = json.loads((CONFIGS / "train.json").read_text(encoding="utf-8"))
    same = [key for key in overlay if key in train and overlay[key] == train[key]]
    assert not same  # an overlay holds only what differs


def test_every_documented_setting_exists_and_every_setting_is_documented() -> None:
    config, documented = merged_config(("train", "prune")), documented_settings()
    assert len(documented) > 25
    assert set(documented) <= set(config)
    plain = {
        key
        for key, value in config.items()
        if isinstance(value, (int, float, str, type(None))) and not key.startswith("_")
        if not str(value).startswith("@")  # another name for a component
    }
    assert plain - set(documented) <= {
        "bundle_root",
        "num_workers",
        "synthetic_patients",
        "pretrained_network",
        "network",
        "decomposed_network",
        "basis_data",
        "preprocessing",
    }


def test_documented_defaults_are_the_defaults() -> None:
    config = merged_config(("train", "prune"))
    compared = 0
    for name, shown in documented_settings().items():
        value = config[name]
        if value is None or isinstance(value, dict) or (isinstance(value, str) and value.startswith(("$", "@"))):
            continue
        written = value if isinstance(value, str) else json.dumps(value).replace(" ", "").replace('"', "'")
        assert re.search(rf"(?<![\w.]){re.escape(written)}(?![\w.])", shown), f"{name} is {written}, not {shown}"
        compared += 1
    assert compared > 14


def test_the_readme_holds_the_command_of_the_plan() -> None:
    command = (
        "python -m monai.bundle run prune --bundle_root bundles/chest_xray_classification \\\n"
        "  --config_file \"['bundles/chest_xray_classification/configs/train.json',"
        "'bundles/chest_xray_classification/configs/prune.json']\""
    )
    assert (ROOT / "README.md").read_text(encoding="utf-8").count(command) == 2


def test_results_of_the_readmes_command_are_not_offered_to_git() -> None:
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.fail("not a checkout")
    result = Path("bundles/chest_xray_classification/output/datalist.json")
    assert subprocess.run(["git", "check-ignore", "-q", str(result)], cwd=ROOT).returncode == 0
