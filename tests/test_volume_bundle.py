"""The bundle of volumes: what it must hold, and its main job end to end on a cohort that takes seconds."""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc import locate
from typing import Any

import jsonschema
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata
from monai.networks.nets import ResNet
from monai.transforms import Compose

import monai_basisprune as mbp
from monai_basisprune.data import read_volume, volume_transforms, write_synthetic_volumes
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.files import sha256_of
from monai_basisprune.inference import read_deployment
from monai_basisprune.report import load_study
from monai_basisprune.workflow.study_bundle import export_study_bundle
from monai_basisprune.workflow.study_network import export_study_network

from .bundle_runs import ROOT, own_error, unchanged_process, write_overlay
from .bundle_verification import verify_bundle
from .test_metadata import MOST_BYTES, SCHEMA, targets, texts

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")

BUNDLE = ROOT / "bundles" / "volume_classification"
CONFIGS = BUNDLE / "configs"
COMBINATIONS = (("train",), ("train", "prune"), ("train", "prune", "repeat"), ("inference",), ("inference", "evaluate"))
TINY: dict[str, Any] = {
    "volume_size": [16, 16, 16],
    "transfer_epochs": 1,
    "epochs_per_round": 1,
    "targets": [0.5, 0.8],
    "audit_cases": 1,
    "network_def": {
        "_target_": "monai.networks.nets.ResNet",
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [8, 16, 16, 24],
        "spatial_dims": 3,
        "n_input_channels": 1,
        "conv1_t_size": 3,
        "no_max_pool": True,
        "num_classes": 2,
        "shortcut_type": "A",
    },
}
METADATA = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))


def merged(names: tuple[str, ...]) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in names])
    return parser.get()


def run(run_id: str, names: tuple[str, ...], overlay: Path | None = None, **overrides: Any) -> None:
    """Run the bundle by MONAI's function for it."""
    files = [str(CONFIGS / f"{name}.json") for name in names]
    with unchanged_process():
        monai.bundle.run(
            run_id=run_id,
            config_file=files if overlay is None else [*files, str(overlay)],
            bundle_root=str(BUNDLE),
            logging_file=False,
            **overrides,
        )


# --- what the bundle holds


@pytest.mark.real_data
@pytest.mark.skipif(not SCHEMA.is_file(), reason="no shared data beside the checkout")
def test_metadata_satisfies_monais_schema() -> None:
    jsonschema.validate(METADATA, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_metadata_agrees_with_the_configuration_and_the_tested_versions() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert METADATA["version"] == next(iter(METADATA["changelog"]))
    for name, wanted in METADATA["required_packages_version"].items():
        assert wanted == (mbp.__version__ if name == "monai_basisprune" else pinned[name]), name
    for name, key in (("monai", "monai_version"), ("torch", "pytorch_version"), ("numpy", "numpy_version")):
        assert METADATA[key] == pinned[name]
    ((name, image),) = METADATA["network_data_format"]["inputs"].items()
    ((answer, pred),) = METADATA["network_data_format"]["outputs"].items()
    assert (name, answer, image["num_channels"]) == ("image", "pred", 1)
    assert len(image["spatial_shape"]) == 3
    assert str(image["spatial_shape"]) in merged(("train",))["volume_size"]
    assert pred["num_channels"] == len(pred["channel_def"]) == 2


@pytest.mark.parametrize(
    "name", ["LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"]
)
def test_files_of_a_bundle_are_there(name: str) -> None:
    assert 0 < (BUNDLE / name).stat().st_size <= MOST_BYTES
    if name in ("LICENSE", "configs/logging.conf"):
        assert (BUNDLE / name).read_bytes() == (ROOT / "bundles/chest_xray_classification" / name).read_bytes()


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_targets_are_written_in_full_and_exist(names: tuple[str, ...]) -> None:
    found = targets(merged(names))
    assert len(found) > 6
    for target in found:
        assert "." in target, target
        assert callable(locate(target)), target


def test_expressions_are_single_calls_and_overlays_hold_only_what_differs() -> None:
    for path in CONFIGS.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path.name == "metadata.json" or len(content["_about"]) > 20, path
        for text in texts(content):
            if text.startswith("$") and not text.startswith("$import"):
                nodes = list(ast.walk(ast.parse(re.sub(r"[@%]([\w#:]+)", "reference", text[1:]), mode="eval")))
                assert not [node for node in nodes if isinstance(node, (ast.Lambda, ast.ListComp, ast.NamedExpr))], text
                assert sum(isinstance(node, ast.Call) for node in nodes) <= 2, text
    train, overlay = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "prune"))
    assert not [key for key in overlay if key in train and overlay[key] == train[key]]


def test_what_is_pruned_is_pruned_as_the_radiographs_are() -> None:
    """The two overlays differ in what an image is, and in nothing else."""
    own = json.loads((CONFIGS / "prune.json").read_text())
    chest = json.loads((ROOT / "bundles/chest_xray_classification/configs/prune.json").read_text())
    assert {key for key in {*own, *chest} if own.get(key) != chest.get(key)} == {"title", "input_shape", "study"}
    differ = {key for key in {*own["study"], *chest["study"]} if own["study"].get(key) != chest["study"].get(key)}
    assert differ == {"settings"}


def test_settings_are_documented() -> None:
    page = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split("## Settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|(.*?)\| ", page, re.MULTILINE)
    documented = {name: shown for names, shown in rows for name in re.findall(r"`(\w+)`", names)}
    config = merged(("train", "prune"))
    assert set(documented) <= set(config)
    plain = {
        key
        for key, value in config.items()
        if isinstance(value, (int, float, str, type(None))) and not key.startswith("_")
        if not str(value).startswith("@")
    }
    made = {"pretrained_network", "network", "decomposed_network", "basis_data", "preprocessing", "input_shape"}
    assert plain - set(documented) <= made | {"bundle_root", "num_workers", "synthetic_patients"}
    for name, shown in documented.items():
        value = config[name]
        if value is not None and not isinstance(value, dict) and not str(value).startswith("$"):
            written = value if isinstance(value, str) else json.dumps(value).replace(" ", "").replace('"', "'")
            assert re.search(rf"(?<![\w.]){re.escape(written)}(?![\w.])", shown), f"{name} is {written}, not {shown}"


# --- the main job


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "images"
    write_synthetic_volumes(folder, patients=20, volume_size=16)
    return folder


@pytest.fixture(scope="module")
def pruned(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder, two files of which are broken; the cohort's own ids mark a patient."""
    folder = tmp_path_factory.mktemp("run")
    arguments = {key: value for key, value in TINY["network_def"].items() if key != "_target_"}
    torch.manual_seed(0)
    torch.save(ResNet(**arguments).state_dict(), folder / "net.pt")
    with pytest.warns(UserWarning, match="left out of the datalist, 2 problems"):
        run(
            "prune",
            ("train", "prune"),
            write_overlay(folder, TINY),
            dataset_dir=str(images),
            output_dir=str(folder / "output"),
            pretrained=str(folder / "net.pt"),
            on_problem="skip",
        )
    return folder / "output"


def test_the_study_shows_activation_memory_beside_parameters(pruned: Path) -> None:
    study = load_study(pruned / "study.json")
    assert study["network"]["input_shape"] == [1, 16, 16, 16]
    assert study["network"]["peak_activation_bytes"] > 4 * 16**3
    assert study["chosen"]["peak_activation_bytes"] > 4 * 16**3
    assert len(study["curve"]) == 3
    assert study["curve"][2]["parameter_reduction"] >= 0.8
    assert study["pruning"]["preprocessing"]["window"] == [-1000, 400]
    assert study["pruning"]["pretrained"] == "a checkpoint"
    page = (pruned / "report.html").read_text(encoding="utf-8")
    assert "Peak memory of activations" in page
    documented = re.findall(
        r"^\| (`.*?) \|", (BUNDLE / "docs" / "README.md").read_text().split("| File in `output_dir` |")[1], re.M
    )
    listed = {name for row in documented[:8] for name in re.findall(r"`([\w./]+)`", row)}
    assert {path.name for path in pruned.iterdir() if path.is_file()} <= listed | {"evaluation.json", "predictions.csv"}
    assert set(study["files"].values()) <= {path.name for path in pruned.iterdir()}


def test_no_name_of_a_file_or_patient_is_in_any_result(pruned: Path) -> None:
    checked = 0
    for path in pruned.rglob("*"):
        if path.is_file():
            content = path.read_bytes().lower()
            assert b"synth0" not in content, path
            checked += 1
    assert checked > 13


def test_the_network_file_carries_how_volumes_are_prepared(pruned: Path, images: Path, tmp_path: Path) -> None:
    deployment = read_deployment(pruned)
    assert deployment == {
        "volume_size": [16, 16, 16],
        "spacing": None,
        "intensity": "window",
        "window": [-1000, 400],
        "crop_to_body": True,
        "class_names": ["negative", "positive"],
    }
    with pytest.raises(SystemExit) as ended:
        run(
            "run",
            ("inference",),
            dataset_dir=str(images),
            output_dir=str(pruned),
            on_problem="skip",
            **_table(tmp_path),
        )
    assert ended.value.code == 3  # cases were skipped
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    names = sorted((images / "images").iterdir())
    assert len(rows) == len(names)
    assert [bool(row["problem"]) for row in rows] == [False] * (len(rows) - 2) + [True, True]
    network, _, _ = load_net_with_metadata(str(pruned / "model.ts"))
    transform = Compose(volume_transforms(deployment))
    for row, path in list(zip(rows, names, strict=True))[:3]:
        assert row["case_id"] == sha256_of(path)
        with torch.no_grad():
            expected = network(transform({"image": str(path)})["image"][None]).softmax(1)[0]
        found = [float(row[f"probability_{name}"]) for name in deployment["class_names"]]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def _table(folder: Path) -> dict[str, str]:
    return {"predictions_file": str(folder / "predictions.csv")}


def test_a_bundle_and_a_file_are_made_of_the_study(pruned: Path, images: Path, tmp_path: Path) -> None:
    network = {"network_def": TINY["network_def"]}
    new = tmp_path / "volumes_pruned"
    export_study_bundle(BUNDLE, pruned, new, network)
    assert "metadata" in verify_bundle(new, "regular")
    assert read_deployment(new / "models") == read_deployment(pruned)
    train = json.loads((new / "configs" / "train.json").read_text())
    assert train["volume_size"] == [16, 16, 16]  # as the network was trained, not as the source bundle has it
    for name, root, output in (("study", BUNDLE, pruned), ("bundle", new, tmp_path / "nothing")):
        with pytest.raises(SystemExit) as ended, unchanged_process():
            monai.bundle.run(
                config_file=str(root / "configs" / "inference.json"),
                bundle_root=str(root),
                logging_file=False,
                dataset_dir=str(images),
                output_dir=str(output),
                on_problem="skip",
                predictions_file=str(tmp_path / f"{name}.csv"),
            )
        assert ended.value.code == 3
    tables = [list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("study", "bundle")]
    assert len(tables[0]) == len(list((images / "images").iterdir()))
    for one, other in zip(*tables, strict=True):
        assert (one["case_id"], one["problem"]) == (other["case_id"], other["problem"])
        if not one["problem"]:
            assert float(one["probability_positive"]) == pytest.approx(float(other["probability_positive"]), abs=1e-4)
    result = export_study_network(pruned, tmp_path / "network.ts", BUNDLE, network)
    assert result.format == "torchscript"
    shutil.copy(tmp_path / "network.ts", tmp_path / "model.ts")
    assert read_deployment(tmp_path) == read_deployment(pruned)


def test_the_evaluation_repeats_the_figures_of_the_run(pruned: Path, images: Path) -> None:
    run("run", ("inference", "evaluate"), dataset_dir=str(images), output_dir=str(pruned))
    written = json.loads((pruned / "evaluation.json").read_text())["auc"]
    study = load_study(pruned / "study.json")
    assert written["auc"] == pytest.approx(study["test"]["pruned"]["auc"])
    assert written["cases"] == study["data"]["splits"]["test"]["cases"]


def test_a_damaged_volume_stops_the_inference_before_anything_is_written(
    pruned: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception) as caught:
        run("run", ("inference",), dataset_dir=str(images), output_dir=str(pruned), **_table(tmp_path))
    message = str(own_error(caught.value))
    assert "2 of" in message
    assert "is 4D" in message
    assert "is cut short or damaged" in message
    assert not (tmp_path / "predictions.csv").exists()


def test_by_default_a_folder_with_broken_files_stops_the_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        run("prune", ("train", "prune"), dataset_dir=str(images), output_dir=str(tmp_path), pretrained="synthetic")
    message = str(own_error(caught.value))
    assert "2 problems were found" in message
    assert "synth0" not in message.lower()
    assert not (tmp_path / "study.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"intensity": "CT"}, "intensity must be one of window, percentiles, zscore"),
        ({"crop_to_body": "perhaps"}, "crop_to_body must be true or false"),
        ({"volume_size": 96}, "volume_size must be three whole numbers"),
        ({"volumes_size": [16, 16, 16]}, "did you mean --volume_size"),
    ],
)
def test_settings_that_cannot_be_used_end_before_anything_is_read(
    images: Path, tmp_path: Path, overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception) as caught:
        run("prune", ("train", "prune"), dataset_dir=str(images), output_dir=str(tmp_path), **overrides)
    error = own_error(caught.value)
    assert isinstance(error, ConfigurationError)
    assert words in str(error)


def test_series_and_files_are_read_alike(images: Path) -> None:
    """What the network sees of a volume does not depend on how it was turned when it was written."""
    transform = Compose(volume_transforms({**merged(("train",)), "volume_size": [16, 16, 16], "crop_to_body": True}))
    path = sorted((images / "images").iterdir())[0]
    turned = nib.as_closest_canonical(nib.Nifti1Image(read_volume(path).values, read_volume(path).affine))
    turned.to_filename(images.parent / "canonical.nii")
    first, second = (transform({"image": str(one)})["image"] for one in (path, images.parent / "canonical.nii"))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left out of the datalist")
@pytest.mark.parametrize(
    ("method", "settings"),
    [("label_free", {"epochs_per_round": 0}), ("fast", {"channel_multiple": 4, "targets": [0.3]})],
)
def test_volumes_are_pruned_without_labels_and_for_speed(
    images: Path, method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    arguments = {key: value for key, value in TINY["network_def"].items() if key != "_target_"}
    torch.manual_seed(0)
    torch.save(ResNet(**arguments).state_dict(), tmp_path / "net.pt")
    run(
        "prune",
        ("train", "prune", method),
        write_overlay(tmp_path, {**TINY, **settings}),
        dataset_dir=str(images),
        output_dir=str(tmp_path / "output"),
        pretrained=str(tmp_path / "net.pt"),
        on_problem="skip",
        margin=0.9,
    )
    study = load_study(tmp_path / "output" / "study.json")
    assert [point["target"] for point in study["curve"]] == [0.0, *{**TINY, **settings}["targets"]]
    kind = {"label_free": "ActivationImportance", "fast": "ChannelTaylorImportance"}
    assert study["pruning"]["importance"] == kind[method]
    cut = [layer for layer in study["layers"] if layer["channels"] < layer["max_channels"]]
    assert bool(cut) is (method == "fast")
    assert all(layer["channels"] % 4 == 0 for layer in cut)


@pytest.mark.slow
def test_the_whole_default_run(tmp_path: Path) -> None:
    """The command of the bundle's page, as it stands: it must find the nodules, and end well."""
    names = "','".join(str((CONFIGS / f"{name}.json").relative_to(ROOT)) for name in ("train", "prune"))
    command = (
        f"-m monai.bundle run prune --bundle_root {BUNDLE.relative_to(ROOT)} --output_dir {tmp_path} --config_file"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command.split(), f"['{names}']"], cwd=ROOT, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is 4D (40 x 40 x 40 x 2)" in done.stderr
    assert "is cut short or damaged" in done.stderr
    study = load_study(tmp_path / "study.json")
    assert study["wall_seconds"] <= time.perf_counter() - start
    assert study["peak_memory_bytes"] < 6 * 2**30
    assert study["curve"][0]["auc"]["auc"] > 0.75
    assert study["chosen"]["parameter_reduction"] >= 0.5
    assert "Peak memory of activations" in (tmp_path / "report.html").read_text(encoding="utf-8")
