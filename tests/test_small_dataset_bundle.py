"""The bundle of small picture sets, end to end, on folders that take seconds."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import jsonschema
import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score

import monai_basisprune as mbp
from monai_basisprune.data.image_files import place_pictures
from monai_basisprune.inference import read_deployment
from monai_basisprune.report import load_study, validate_study
from monai_basisprune.workflow.study_bundle import export_study_bundle

from .bundle_runs import ROOT, TINY, own_error, tiny_densenet, unchanged_process
from .bundle_verification import verify_bundle

BUNDLE = ROOT / "bundles" / "small_dataset_classification"
CONFIGS = BUNDLE / "configs"
COMBINATIONS = (("train",), ("train", "prune"), ("train", "prune", "repeat"), ("inference",), ("inference", "evaluate"))
METADATA = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
SCHEMA = ROOT.parent / "shared" / "data" / "meta_schema_20240725.json"
NAMES = ("dark", "gray", "light")

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files"),
    pytest.mark.filterwarnings("ignore:No column and no pattern names the patients"),
]


def merged(names: Sequence[str]) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in names])
    return parser.get()


def run(run_id: str, names: Sequence[str], **overrides: Any) -> None:
    with unchanged_process():
        monai.bundle.run(
            run_id=run_id,
            config_file=[str(CONFIGS / f"{name}.json") for name in names],
            bundle_root=str(BUNDLE),
            logging_file=False,
            **overrides,
        )


def write_pictures(root: Path, count: int = 20, step: int = 30) -> Path:
    """Write pictures of three brightnesses, which are further apart the larger the step, of several patients each."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(count):
            values = rng.integers(0, 120, (16, 16)) + rng.integers(0, 60) + step * index
            Image.fromarray(values.astype(np.uint8)).save(root / name / f"pat{number % 10}{name}_{number}.png")
    return root


def write_findings(root: Path, count: int = 60) -> Path:
    rng = np.random.default_rng(0)
    truth = (rng.random((count, 2)) < 0.4).astype(int)
    root.mkdir(parents=True)
    rows = ["image,left,right"]
    for number, (left, right) in enumerate(truth):
        values = rng.integers(0, 120, (16, 16))
        values[:, :8] += 100 * left
        values[:, 8:] += 100 * right
        Image.fromarray(values.astype(np.uint8)).save(root / f"{number}.png")
        rows.append(f"{number}.png,{left},{right}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module", params=["single", "multi"])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    several = request.param == "multi"
    images = write_findings(folder / "images") if several else write_pictures(folder / "images")
    outputs = 2 if several else 3
    torch.save(tiny_densenet(1).state_dict(), folder / "net.pt")
    run(
        "prune",
        ("train", "prune"),
        dataset_dir=str(images),
        output_dir=str(folder / "output"),
        pretrained=str(folder / "net.pt"),
        network_def={**TINY["network_def"], "out_channels": outputs},
        image_size=32,
        batch_size=8,
        transfer_epochs=2,
        epochs_per_round=1,
        targets=[0.4, 0.6],
        fractions=[0.4, 0.3, 0.3],
        label_kind=request.param,
        audit_cases=2,
        **({} if several else {"patient_pattern": r"(pat\d\w+)_"}),
    )
    return request.param, images, folder / "output"


def test_the_run_leaves_a_study_of_classes(result: tuple[str, Path, Path]) -> None:
    kind, _, output = result
    study = load_study(output / "study.json")
    names = ["left", "right"] if kind == "multi" else list(NAMES)
    assert study["data"]["class_names"] == names
    assert study["data"]["label_kind"] == kind
    assert [one["name"] for one in study["test"]["classes"]] == names
    assert "roc" not in study["test"]
    assert ("accuracy" in study["test"]) == (kind == "single")
    known = kind == "single"
    assert (study["data"]["splits"]["test"]["patients"] is not None) == known
    assert (study["test"]["pruned"]["patients"] is not None) == known
    assert [point["target"] for point in study["curve"]] == [0.0, 0.4, 0.6]
    assert study["curve"][0]["auc"]["positive_cases"] is None
    assert {"report.html", "classes.csv", "model.ts"} <= set(study["files"].values())
    assert all((output / name).is_file() for name in study["files"].values())
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"Each {'finding' if kind == 'multi' else 'class'} on the test set" in page
    assert "Mean AUC while the network shrinks" in page
    assert str(output) not in page


def test_its_figures_are_those_of_the_network_that_is_shipped(result: tuple[str, Path, Path]) -> None:
    kind, images, output = result
    study = load_study(output / "study.json")
    run("run", ("inference", "evaluate"), dataset_dir=str(images), output_dir=str(output))
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["auc"]["auc"] == pytest.approx(study["test"]["pruned"]["auc"], abs=1e-6)
    assert evaluation["auc"]["patients"] == study["test"]["pruned"]["patients"]
    for one, shown in zip(evaluation["classes"], study["test"]["classes"], strict=True):
        assert one["interval"]["auc"] == pytest.approx(shown["pruned"]["auc"], abs=1e-6)

    run("run", ("inference",), dataset_dir=str(images), output_dir=str(output))
    with open(output / "predictions.csv", newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in images.rglob("*.png")}
    assert set(rows) == set(files)
    chances = {
        sha256: [float(row[f"probability_{name}"]) for name in study["data"]["class_names"]]
        for sha256, row in rows.items()
    }
    sums = np.array([sum(values) for values in chances.values()])
    assert np.allclose(sums, 1, atol=1e-5) == (kind == "single")

    datalist = json.loads((output / "datalist.json").read_text())
    test = place_pictures(datalist["test"], images)
    labels = np.array([item["label"] for item in test])
    scores = np.array([chances[hashlib.sha256((images / item["image"]).read_bytes()).hexdigest()] for item in test])
    own = roc_auc_score(
        labels, scores / scores.sum(1, keepdims=True) if kind == "single" else scores, multi_class="ovr"
    )
    assert own == pytest.approx(study["test"]["pruned"]["auc"], abs=2e-3)
    if kind == "single":
        assert accuracy_score(labels, scores.argmax(1)) == study["test"]["accuracy"]["pruned"]["value"]


def test_a_bundle_is_made_of_the_study(result: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, images, output = result
    new = tmp_path / "pictures_pruned"
    network = {**TINY["network_def"], "out_channels": 2 if kind == "multi" else 3}
    export_study_bundle(BUNDLE, output, new, {"network_def": network})
    assert "metadata" in verify_bundle(new, "min")
    deployment = read_deployment(output, "pictures")
    assert read_deployment(new / "models", "pictures") == deployment
    assert json.loads((new / "configs" / "train.json").read_text())["label_kind"] == kind
    tables = []
    for root, folder in ((BUNDLE, output), (new, tmp_path / "nothing")):
        file = tmp_path / f"{len(tables)}.csv"
        with unchanged_process():
            monai.bundle.run(
                config_file=str(root / "configs" / "inference.json"),
                bundle_root=str(root),
                logging_file=False,
                dataset_dir=str(images),
                output_dir=str(folder),
                predictions_file=str(file),
            )
        tables.append([line.split(",") for line in file.read_text().splitlines()])
    assert (
        tables[0][0] == tables[1][0] == ["case_id", *(f"probability_{n}" for n in deployment["class_names"]), "problem"]
    )
    assert len(tables[0]) == len(tables[1]) > 20
    for one, other in zip(tables[0][1:], tables[1][1:], strict=True):
        assert one[0] == other[0]
        assert [float(x) for x in one[1:-1]] == pytest.approx([float(x) for x in other[1:-1]], abs=1e-4)


def test_nothing_names_a_file_of_the_user(result: tuple[str, Path, Path]) -> None:
    _, images, output = result
    for path in output.iterdir():
        if path.suffix in (".json", ".csv", ".html", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert str(images) not in text
            assert not re.search(r"pat\d(dark|gray|light)", text), path.name


def test_contradictions_about_classes_are_found(result: tuple[str, Path, Path]) -> None:
    study = load_study(result[2] / "study.json")
    first = study["test"]["classes"][0]
    for change, words in (
        ({"name": "other"}, "the names must be those of $.data.class_names"),
        ({"cases": first["cases"] + 1}, "cases, the test set has"),
        ({"reason": "none"}, "must say why nothing was computed"),
        ({"original": None}, "must say why nothing was computed"),
        ({"adjusted_p_value": 0.0}, "is smaller than the p-value before correction"),
    ):
        broken = {**study, "test": {**study["test"], "classes": [first | change, *study["test"]["classes"][1:]]}}
        with pytest.raises(mbp.errors.ConfigurationError) as error:
            validate_study(broken)
        assert words in str(error.value)
    without = {**study, "test": {key: value for key, value in study["test"].items() if key != "classes"}}
    with pytest.raises(mbp.errors.ConfigurationError, match="the AUC of each must be given"):
        validate_study(without)


def test_a_class_with_one_case_ends_before_training(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 5)
    (images / "rare").mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(images / "rare" / "0.png")
    with pytest.raises(Exception) as error:
        run("prune", ("train", "prune"), dataset_dir=str(images), output_dir=str(tmp_path / "output"))
    assert "1 of 'rare'" in str(own_error(error.value))
    assert not (tmp_path / "output" / "study.json").exists()


# --- the files of the bundle


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_target_exists(names: tuple[str, ...]) -> None:
    def targets(value: Any) -> list[str]:
        found = [value["_target_"]] if isinstance(value, dict) and "_target_" in value else []
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return found + [target for item in items for target in targets(item)]

    config = merged(names)
    for target in targets(config):
        assert locate(target) is not None, target
    text = json.dumps(config)
    for name in re.findall(r"monai_basisprune[\w.]*", text):
        assert locate(name) is not None, name


@pytest.mark.real_data
@pytest.mark.skipif(not SCHEMA.is_file(), reason="no shared data beside the checkout")
def test_metadata_satisfies_monais_schema() -> None:
    jsonschema.validate(METADATA, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_metadata_agrees_with_what_is_tested() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for key, name in (("monai_version", "monai"), ("pytorch_version", "torch"), ("numpy_version", "numpy")):
        assert METADATA[key] == pinned[name]
    for name, wanted in METADATA["required_packages_version"].items():
        assert wanted == (mbp.__version__ if name == "monai_basisprune" else pinned[name]), name
    assert next(iter(METADATA["changelog"])) == METADATA["version"]
    formats = METADATA["network_data_format"]
    assert formats["inputs"]["image"]["num_channels"] == merged(("train",))["image_channels"]
    assert formats["outputs"]["pred"]["num_channels"] == len(formats["outputs"]["pred"]["channel_def"]) == 10


def test_documented_settings_exist() -> None:
    page = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|(.*?)\| ", section, re.MULTILINE)
    names = {name for cells, _ in rows for name in re.findall(r"`(\w+)`", cells)}
    config = merged(("train", "prune"))
    assert len(names) > 15
    assert names <= set(config)
    new = set(config) - set(json.loads((ROOT / "bundles/chest_xray_classification/configs/train.json").read_text()))
    new -= set(json.loads((ROOT / "bundles/chest_xray_classification/configs/prune.json").read_text()))
    assert new - {"images", "_meta_"} <= names
    assert f"`{config['batch_size']}`" in section or str(config["batch_size"]) in section
    assert str(config["transfer_epochs"]) in section


@pytest.mark.parametrize("name", ["LICENSE", "configs/logging.conf", "docs/data_license.txt"])
def test_the_bundle_is_complete(name: str) -> None:
    assert (BUNDLE / name).stat().st_size > 200
