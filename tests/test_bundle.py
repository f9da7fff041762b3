"""The main job, end to end, on cohorts that take seconds."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import load_net_with_metadata
from monai.transforms import Compose, NormalizeIntensityd, RepeatChanneld, Resized
from pydicom.uid import UID
from sklearn.metrics import roc_auc_score

import monai_basisprune as mbp
from monai_basisprune.data import LoadRadiographd, load_split
from monai_basisprune.errors import BasisPruneError
from monai_basisprune.report import load_study

from .bundle_runs import (
    BUNDLE,
    FAILED_WORDS,
    TINY,
    TINY_PRUNE,
    config_files,
    contents,
    own_error,
    run_command,
    run_in_python,
    tiny_densenet,
    write_cohort,
    write_overlay,
)
from .networks import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SECTIONS = ("training", "validation", "test")
NAMED_BY_THE_ISSUE = {"model.pt", "model.plan.json", "model.ts", "curve.csv", "study.json", "report.html"}


@dataclass(frozen=True)
class Run:
    output: Path
    overlay: Path
    printed: str
    shown: str

    @property
    def study(self) -> dict[str, Any]:
        return load_study(self.output / "study.json")


@pytest.fixture(scope="module")
def prune(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The embedded default: no folder of images, a network pretrained on the synthetic source task."""
    folder = tmp_path_factory.mktemp("bundle")
    overlay = write_overlay(folder, TINY_PRUNE)
    output = folder / "output"
    files = str(config_files(("train", "prune"), overlay))
    done = run_command(["prune", "--config_file", files, "--output_dir", str(output)])
    assert done.returncode == 0, done.stderr
    return Run(output, overlay, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "net.pt"
    torch.save(tiny_densenet(1).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def own_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("own") / "images", patients=30)


# --- what the main job leaves


def test_every_file_is_there(prune: Run) -> None:
    page = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split("| File in `output_dir` |")[1]
    documented = set(re.findall(r"`([\w./]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", page.split("\n\n")[0], re.M))))
    assert documented >= NAMED_BY_THE_ISSUE
    there = {path.name + ("/" if path.is_dir() else "") for path in prune.output.iterdir()}
    assert there == documented
    assert {path.name for path in (prune.output / "work").iterdir()} == {
        "datalist.json",
        "networks",
        "salt",
        "synthetic_cohort",
        "test_predictions.json",
    }
    assert set(prune.study["files"].values()) <= there
    for path in prune.output.iterdir():
        assert path.is_dir() or path.stat().st_size > 100
    assert (prune.output / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in (prune.output / "curve.svg").read_text()[:1000]


def test_the_study_and_its_tables_agree(prune: Run) -> None:
    study = prune.study
    with open(prune.output / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study["curve"]) == 3
    evaluations = json.loads((prune.output / "evaluations.json").read_text())
    last = {point["bases"]: point for point in evaluations}
    for row, point in zip(rows, study["curve"], strict=True):
        for key in ("round", "epoch", "parameters", "macs", "bases"):
            assert int(row[key]) == point[key]
        assert float(row["auc"]) == point["auc"]["auc"]
        assert (float(row["auc_low"]), float(row["auc_high"])) == (point["auc"]["low"], point["auc"]["high"])
        assert {key: point[key] for key in last[point["bases"]]} == last[point["bases"]]
    assert [row["chosen"] for row in rows].index("true") == study["chosen"]["round"]
    assert (
        len(evaluations) == TINY_PRUNE["transfer_epochs"] + len(TINY_PRUNE["targets"]) * TINY_PRUNE["epochs_per_round"]
    )


def test_the_budgets_were_met(prune: Run) -> None:
    study, original = prune.study, tiny_densenet()
    total = sum(p.numel() for p in original.parameters())
    cost = mbp.measure_complexity(original, (1, 32, 32))
    assert study["network"]["parameters"] == study["curve"][0]["parameters"] == total == cost.parameters
    assert study["network"]["macs"] == study["curve"][0]["macs"] == cost.macs
    assert study["network"]["input_shape"] == [1, 32, 32]
    assert [point["target"] for point in study["curve"]] == [0.0, *TINY_PRUNE["targets"]]
    for point in study["curve"]:
        assert point["parameter_reduction"] == pytest.approx(1 - point["parameters"] / total)
        assert point["target"] <= point["parameter_reduction"] < point["target"] + 0.1


def test_model_plan_and_script_are_one_network(prune: Run) -> None:
    study = prune.study
    network = mbp.load_pruned(tiny_densenet(), prune.output / "model.pt").eval()
    plan = mbp.PruningPlan.load(prune.output / "model.plan.json")
    ranks = {layer["name"]: layer["rank"] for layer in study["layers"] if layer["rank"] is not None}
    assert {name: len(layer.kept_bases) for name, layer in plan.layers.items()} == ranks
    assert {layer.name: layer.rank for layer in mbp.layer_status(network) if layer.rank is not None} == ranks
    assert sum(ranks.values()) == study["curve"][study["chosen"]["round"]]["bases"]
    script, metadata, _ = load_net_with_metadata(str(prune.output / "model.ts"))
    plain = mbp.recompose(network)
    assert sum(p.numel() for p in script.parameters()) == study["chosen"]["parameters"]
    assert mbp.measure_complexity(plain, (1, 32, 32)).macs == study["chosen"]["macs"]
    assert metadata == {
        "image_size": 32,
        "image_channels": 1,
        "intensity_mean": 0.449,
        "intensity_std": 0.226,
        "class_names": ["negative", "positive"],
    }
    x = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(script(x), network(x)) < 1e-4
        assert relative_error(plain(x), network(x)) < 1e-5
    built = mbp.build_pruned(TINY["network_def"], prune.output / "model.plan.json")
    built.load_state_dict(torch.load(prune.output / "model.pt", weights_only=True), strict=True)


def deployed_scores(output: Path, items: list[dict[str, Any]], folder: Path) -> torch.Tensor:
    """Return the probabilities of each image, prepared by what model.ts carries, one image at a time."""
    script, carried, _ = load_net_with_metadata(str(output / "model.ts"))
    prepare = Compose(
        [
            LoadRadiographd("image"),
            Resized("image", [carried["image_size"]] * 2, mode="area"),
            RepeatChanneld("image", carried["image_channels"]),
            NormalizeIntensityd("image", subtrahend=carried["intensity_mean"], divisor=carried["intensity_std"]),
        ]
    )
    with torch.no_grad():
        outputs = [script(prepare({"image": str(folder / i["image"])})["image"].as_tensor()[None]) for i in items]
    return torch.softmax(torch.cat(outputs).double(), dim=1)


def test_the_test_auc_is_that_of_the_file_that_is_shipped(prune: Run) -> None:
    study, cohort = prune.study, prune.output / "work" / "synthetic_cohort"
    datalist = json.loads((prune.output / "datalist.json").read_text())
    scores = deployed_scores(prune.output, datalist["test"], cohort)[:, 1].numpy()
    with open(cohort / "labels.csv", newline="") as file:
        table = {row["image"]: row["label"] for row in csv.DictReader(file)}
    labels = [int(table[item["image"]] == "positive") for item in datalist["test"]]
    assert study["test"]["pruned"]["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert study["test"]["pruned"]["cases"] == len(labels)
    assert study["data"]["split_sha256"] == datalist["split_sha256"]
    assert study["data"]["synthetic"] is True


def test_no_patient_is_in_two_sections_and_sizes_are_mixed(prune: Run) -> None:
    datalist = json.loads((prune.output / "datalist.json").read_text())
    places, shapes = {}, set()
    for section in SECTIONS:
        for item in datalist[section]:
            dataset = pydicom.dcmread(
                prune.output / "work" / "synthetic_cohort" / item["image"], stop_before_pixels=True
            )
            assert places.setdefault(dataset.PatientID, section) == section
            assert str(dataset.PatientID) not in json.dumps(item)
            shapes.add((dataset.Rows, dataset.Columns))
    assert len(places) == 60
    assert len(shapes) > 10


def test_the_study_says_how_it_was_made(prune: Run) -> None:
    study = prune.study
    assert study["seed"] == 0
    assert study["command"].startswith("python -m monai.bundle run prune --")
    assert "--output_dir '<output_dir>'" in study["command"]
    assert study["pruning"]["transfer_epochs"] == 1
    assert study["pruning"]["pretrained"] == "synthetic"
    assert study["pruning"]["importance"] == "TaylorImportance"
    assert {"monai_basisprune", "monai", "torch", "numpy", "python"} <= set(study["versions"])
    assert study["wall_seconds"] > 0


def test_progress_and_a_table_are_shown(prune: Run) -> None:
    assert "Pretraining on the synthetic source task: 100%" in prune.shown
    assert re.search(r"Training and pruning: 100%.*epoch=3/3, removed=\d\d\.\d %, AUC=0\.\d{3}", prune.shown)
    assert "preflight: 100%" in prune.shown
    assert FAILED_WORDS not in prune.shown
    study = prune.study
    for words in (
        "SYNTHETIC DATA: these numbers say nothing about patients.",
        f"parameters            {study['network']['parameters'] / 1000:.1f} k",
        "MACs for one input",
        f"{study['test']['original']['auc']:.3f} ({study['test']['original']['low']:.3f} to",
        f"{study['test']['pruned']['auc']:.3f} ({study['test']['pruned']['low']:.3f} to",
        "(in brackets: 95 % intervals)",
        "torchscript  model.ts",
        "report       report.html",
    ):
        assert words in prune.printed, words


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
def test_the_report_opens_in_a_browser(prune: Run, tmp_path: Path) -> None:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [str(CHROMIUM), *flags.split(), "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (prune.output / "report.html").as_uri()]
    page = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    test = prune.study["test"]["difference"]
    assert ("Non-inferiority is shown" if test["non_inferior"] else "Non-inferiority is not shown") in page or (
        "is worse" in page
    )
    assert "Synthetic data." in page
    assert f"{prune.study['test']['pruned']['auc']:.3f}" in page
    assert "<svg" in page


# --- what comes after: evaluate, predict, and a transfer without pruning


def test_evaluate_finds_the_auc_of_the_study(prune: Run, tmp_path: Path) -> None:
    output = Path(shutil.copytree(prune.output, tmp_path / "output"))
    before = contents(output)
    done = run_command(["--config_file", str(config_files(("inference", "evaluate"))), "--output_dir", str(output)])
    assert done.returncode == 0, done.stderr
    result = json.loads((output / "evaluation.json").read_text())
    assert result["section"] == "test"
    for key in ("auc", "low", "high", "cases", "patients"):
        assert result["auc"][key] == pytest.approx(prune.study["test"]["pruned"][key], abs=1e-9)
    assert f"AUC on {result['auc']['cases']} test cases: {result['auc']['auc']:.3f} (95 % interval" in done.stdout
    after = contents(output)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"evaluation.json"}


def test_evaluate_ranks_sure_networks_as_the_study_does(prune: Run, tmp_path: Path) -> None:
    output = Path(shutil.copytree(prune.output, tmp_path / "output"))
    network = mbp.load_pruned(tiny_densenet(), output / "model.pt")
    with torch.no_grad():  # as sure as networks get that were trained for long; the order of the cases is the same
        network.class_layers.out.weight *= 1000
        network.class_layers.out.bias *= 1000
    metadata = load_net_with_metadata(str(output / "model.ts"))[1]
    mbp.export_network(network, output / "model.ts", (1, 32, 32), metadata=metadata)
    run_in_python("run", ("inference", "evaluate"), output_dir=str(output))
    result = json.loads((output / "evaluation.json").read_text())
    assert result["auc"]["auc"] == pytest.approx(prune.study["test"]["pruned"]["auc"], abs=1e-9)


def test_evaluate_another_section(prune: Run, tmp_path: Path) -> None:
    target = tmp_path / "validation.json"
    run_in_python(
        "run",
        ("inference", "evaluate"),
        output_dir=str(prune.output),
        section="validation",
        evaluation_file=str(target),
    )
    result = json.loads(target.read_text())
    chosen = prune.study["curve"][prune.study["chosen"]["round"]]
    assert result["section"] == "validation"
    assert result["auc"]["auc"] == pytest.approx(chosen["auc"]["auc"], abs=1e-9)
    with pytest.raises(Exception) as caught:
        run_in_python("run", ("inference", "evaluate"), output_dir=str(prune.output), section="tests")
    assert "The section 'tests' was asked for" in str(own_error(caught.value))


def predict_folder(run: Run, images: Path, table: Path) -> None:
    """Write the predictions of a run's network for a folder of images."""
    run_in_python(
        "run", ("inference",), output_dir=str(run.output), dataset_dir=str(images), predictions_file=str(table)
    )


def test_new_images_are_predicted(prune: Run, own_cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    predict_folder(prune, own_cohort, table)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    files = sorted((own_cohort / "images").iterdir())
    assert [row["SOPInstanceUID"] for row in rows] == [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    items = [{"image": str(path.relative_to(own_cohort))} for path in files]
    wanted = deployed_scores(prune.output, items, own_cohort).numpy()
    found = np.array([[float(row["probability_negative"]), float(row["probability_positive"])] for row in rows])
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_damaged_images_are_skipped_only_if_asked(prune: Run, own_cohort: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own_cohort, tmp_path / "images"))
    first, *others = sorted((folder / "images").iterdir())
    first.write_bytes(first.read_bytes()[:700])
    table = tmp_path / "predictions.csv"
    arguments = {"output_dir": str(prune.output), "dataset_dir": str(folder), "predictions_file": str(table)}
    with pytest.raises(Exception) as caught:
        run_in_python("run", ("inference",), **arguments)
    assert "1 of" in str(own_error(caught.value))
    assert "--on_problem skip" in str(own_error(caught.value))
    assert not table.exists()
    with pytest.raises(SystemExit) as ended:
        run_in_python("run", ("inference",), on_problem="skip", **arguments)
    assert ended.value.code == 3
    with open(table, newline="") as file:
        problems = [row["problem"] for row in csv.DictReader(file)]
    assert [bool(problem) for problem in problems] == [True] + [False] * len(others)


def test_a_network_is_transferred_without_pruning(own_cohort: Path, checkpoint: Path, tmp_path: Path) -> None:
    run_in_python(
        "run",
        ("train",),
        write_overlay(tmp_path / "overlay", TINY),
        output_dir=str(tmp_path / "out"),
        dataset_dir=str(own_cohort),
        pretrained=str(checkpoint),
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"transferred.pt", "transferred.json", "work"}
    network, before = tiny_densenet(), torch.load(checkpoint, weights_only=True)
    after = torch.load(tmp_path / "out" / "transferred.pt", weights_only=True)
    network.load_state_dict(after, strict=True)
    moved = [name for name in before if before[name].ndim == 4 and not torch.equal(before[name], after[name])]
    assert len(moved) == sum(tensor.ndim == 4 for tensor in before.values())  # all weights are trained
    result = json.loads((tmp_path / "out" / "transferred.json").read_text())
    datalist = json.loads((tmp_path / "out" / "work" / "datalist.json").read_text())
    prepare = Compose(
        [
            LoadRadiographd("image"),
            Resized("image", [32, 32], mode="area"),
            NormalizeIntensityd("image", subtrahend=0.449, divisor=0.226),
        ]
    )
    items = datalist["validation"]
    assert not any("image" in item for item in items)  # names of files can hold names of patients
    loaded = load_split(datalist, "validation", own_cohort)
    images = [prepare({"image": item["image"]})["image"].as_tensor() for item in loaded]
    with torch.no_grad():
        outputs = network.eval()(torch.stack(images)).double()
    scores = (outputs[:, 1] - outputs[:, 0]).numpy()
    assert result["auc"]["auc"] == pytest.approx(roc_auc_score([item["label"] for item in items], scores), abs=1e-9)


# --- bad input: a message that names the thing and the remedy, and an earlier result as it was


@pytest.fixture
def earlier(prune: Run, tmp_path: Path) -> Iterator[Path]:
    output = Path(shutil.copytree(prune.output, tmp_path / "earlier"))
    before = contents(output)
    yield output
    assert contents(output) == before


def run_badly(cohort: Path | None, output: Path, overlay: Path, **overrides: Any) -> BasisPruneError:
    with pytest.raises(Exception) as caught:
        run_in_python(
            "prune",
            ("train", "prune"),
            overlay,
            output_dir=str(output),
            dataset_dir=None if cohort is None else str(cohort),
            **overrides,
        )
    return own_error(caught.value)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def without_labels(folder: Path) -> None:
    (folder / "labels.csv").unlink()


def rows_of(folder: Path) -> list[str]:
    return (folder / "labels.csv").read_text().splitlines()


def one_class(folder: Path) -> None:
    (folder / "labels.csv").write_text("\n".join(rows_of(folder)).replace("positive", "negative"))


def unknown_files(folder: Path) -> None:
    (folder / "labels.csv").write_text("\n".join([*rows_of(folder), "images/absent.dcm,positive"]))


def unknown_label(folder: Path) -> None:
    (folder / "labels.csv").write_text("\n".join(rows_of(folder)).replace(",positive", ",maybe", 1))


def missing_row(folder: Path) -> None:
    (folder / "labels.csv").write_text("\n".join(rows_of(folder)[:-1]))


def corrupted(folder: Path) -> None:
    path = min((folder / "images").iterdir())
    path.write_bytes(path.read_bytes()[:-300])


def few(folder: Path) -> None:
    header, *rows = rows_of(folder)
    positive = [row for row in rows if row.endswith("positive")][:2]
    negative = [row for row in rows if row.endswith("negative")][:4]
    (folder / "labels.csv").write_text("\n".join([header, *positive, *negative]))
    kept = {row.split(",")[0] for row in positive + negative}
    for path in (folder / "images").iterdir():
        if f"images/{path.name}" not in kept:
            path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            empty,
            ["no labels table: labels.csv was looked for", "dataset_dir: is empty: no DICOM files", "check the path"],
        ),
        (without_labels, ["no labels table: labels.csv was looked for in dataset_dir", "add it or pass labels_file"]),
        (one_class, ["missing: positive", "one class alone cannot be learned"]),
        (unknown_files, ["names an image for which there is no file", "write its path relative to dataset_dir"]),
        (unknown_label, ["the unknown label 'maybe'", "known are 'negative' (or 0), 'positive' (or 1)"]),
        (missing_row, ["has no row in the labels table; add one"]),
        (corrupted, ["has pixels that cannot be decoded", "copy or export it again"]),
        (few, ["cannot be split by patient into 3 sections", "at least 3 of each class", "Add patients"]),
    ],
)
def test_a_cohort_that_cannot_be_used_is_refused(
    spoil: Callable[[Path], None], words: list[str], own_cohort: Path, earlier: Path, prune: Run, tmp_path: Path
) -> None:
    cohort = Path(shutil.copytree(own_cohort, tmp_path / "images"))
    spoil(cohort)
    message = str(run_badly(cohort, earlier, prune.overlay, pretrained="synthetic"))
    for text in words:
        assert text in message
    assert "synth0" not in message  # the name of a file can be that of a patient
    assert str(tmp_path) not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"dataset_dir": "/nowhere/doe"}, "dataset_dir is not a folder; pass the folder that holds the DICOM files"),
        ({"synthetic_patients": 4}, "cannot be split by patient into 3 sections"),
        ({"fractions": [0.9, 0.2, 0.1]}, "fractions must be three numbers above 0 that add up to 1"),
        ({"class_names": ["negative"]}, "class_names must name two classes"),
        ({"pretrained": "imagnet"}, "--pretrained must be 'imagenet', 'synthetic' or the path of a checkpoint"),
        ({"pretrained": "__checkpoint__", "targets": [0.9, 0.5]}, "targets must be a list of rising numbers"),
        ({"pretrained": "__checkpoint__", "targets": [50]}, "is the share to remove, at least 0 and below 1, got 50"),
        (
            {"pretrained": "__checkpoint__", "budget": "flops"},
            "budget must be parameters, macs, parameters and macs, bases or threshold",
        ),
        ({"pretrained": "__checkpoint__", "target_modules": ["features.conv9"]}, "features.conv9"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(
    overrides: dict[str, Any], words: str, earlier: Path, prune: Run, checkpoint: Path
) -> None:
    overrides = {key: str(checkpoint) if value == "__checkpoint__" else value for key, value in overrides.items()}
    cohort = overrides.pop("dataset_dir", None)
    overrides = {"synthetic_patients": 20, **overrides}
    message = str(run_badly(None if cohort is None else Path(cohort), earlier, prune.overlay, **overrides))
    assert words in message
    assert "doe" not in message


@pytest.mark.parametrize(
    ("overrides", "words"), [({"selection": "points"}, "selection must be one of"), ({"margin": -0.1}, "margin")]
)
def test_a_wrong_choice_is_refused_before_the_training(
    overrides: dict[str, Any], words: str, earlier: Path, prune: Run, checkpoint: Path
) -> None:
    shutil.rmtree(earlier / "work")
    with pytest.raises(Exception) as caught:
        run_in_python(
            "prune",
            ("train", "prune"),
            prune.overlay,
            output_dir=str(earlier),
            synthetic_patients=20,
            pretrained=str(checkpoint),
            **overrides,
        )
    assert words in str(caught.value) or words in str(own_error(caught.value))
    assert not (earlier / "work" / "networks").exists()


def assert_message(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that a command failed with our message at its end, and no traceback."""
    assert done.returncode != 0
    assert FAILED_WORDS not in done.stderr
    message = done.stderr[done.stderr.index("\nmonai_basisprune: ") :]
    assert not re.search(r"\d+%\|", message)  # nothing after the message
    for text in words:
        assert text in message, message


def test_a_budget_that_cannot_be_met_ends_before_any_training(earlier: Path, prune: Run, checkpoint: Path) -> None:
    shutil.rmtree(earlier / "work")
    arguments = ["prune", "--config_file", str(config_files(("train", "prune"), prune.overlay))]
    arguments += ["--output_dir", str(earlier), "--synthetic_patients", "20", "--pretrained", str(checkpoint)]
    done = run_command([*arguments, "--targets", "[0.5,0.999]"])
    assert_message(done, "Budget(parameters=0.999", "cannot be met", "The largest that can be met is parameters=0.")
    assert not (earlier / "work" / "networks").exists()
    assert "epoch=1" not in done.stderr


def test_bad_files_end_the_command_with_all_problems(
    own_cohort: Path, earlier: Path, prune: Run, tmp_path: Path
) -> None:
    cohort = Path(shutil.copytree(own_cohort, tmp_path / "images"))
    corrupted(cohort)
    unknown_files(cohort)
    (cohort / "images" / "notes.dcm").write_text("not an image")
    arguments = ["prune", "--config_file", str(config_files(("train", "prune"), prune.overlay))]
    done = run_command([*arguments, "--output_dir", str(earlier), "--dataset_dir", str(cohort)])
    assert_message(
        done,
        "3 problems were found",
        "has pixels that cannot be decoded",
        "is not a DICOM file",
        "names an image for which there is no file",
        "or pass on_problem='skip'",
    )


# --- nothing of a patient leaves the folder of the images

MARK = "ZQXPHI"
TEXT_TAGS = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress",
    "PatientTelephoneNumbers", "PatientComments", "EthnicGroup", "Occupation", "MedicalRecordLocator",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "Manufacturer",
    "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy",
    "RequestingPhysician", "StudyDescription", "SeriesDescription", "ProtocolName", "AccessionNumber", "StudyID",
    "StudyComments", "ImageComments", "AdmittingDiagnosesDescription", "AdditionalPatientHistory",
    "RequestedProcedureDescription", "PerformedProcedureStepDescription", "DetectorDescription", "RescaleType",
    "WindowCenterWidthExplanation", "ContentCreatorName", "DerivationDescription", "IssuerOfPatientID",
    "BodyPartExamined", "ViewPosition",
)  # fmt: skip
BORN, EXAMINED = "19370523", "20131117"


def mark(path: Path, number: int) -> str:
    """Write the mark into every text of a file; returns its SOPInstanceUID."""
    dataset = pydicom.dcmread(path)
    dataset.PatientID = f"{MARK}-{dataset.PatientID}"
    for keyword in TEXT_TAGS:
        setattr(dataset, keyword, f"{MARK}^A" if "Name" in keyword else MARK)
    dataset.PatientBirthDate, dataset.StudyDate, dataset.SeriesDate = BORN, EXAMINED, EXAMINED
    dataset.OtherPatientIDs = f"{MARK}ID"
    block = dataset.private_block(0x0011, f"{MARK} VENDOR", create=True)
    block.add_new(0x01, "LO", f"{MARK} PRIVATE")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.3680043.99.7177.{number}")
    dataset.save_as(path)
    return str(dataset.SOPInstanceUID)


@pytest.fixture(scope="module")
def private(own_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """Prune on radiographs that carry a mark wherever a patient or an institution could be named."""
    folder = tmp_path_factory.mktemp("private")
    images = Path(shutil.copytree(own_cohort, folder / f"{MARK}_Doe_John" / "study"))
    for number, path in enumerate(sorted((images / "images").iterdir())):
        mark(path, number)
    weights = folder / f"{MARK}_Doe_John" / f"{MARK}.pt"
    torch.save(tiny_densenet(1).state_dict(), weights)
    overlay = write_overlay(folder, {**TINY_PRUNE, "targets": [0.5]})
    arguments = ["prune", "--config_file", str(config_files(("train", "prune"), overlay))]
    arguments += ["--dataset_dir", str(images), "--pretrained", str(weights), f"--output_dir={folder / 'output'}"]
    done = run_command(arguments)
    assert done.returncode == 0, done.stderr
    return images, Run(folder / "output", overlay, done.stdout, done.stderr)


def test_the_same_seed_gives_the_same_result(private: tuple[Path, Run], tmp_path: Path) -> None:
    """Once by the command, in a process of its own, and once by MONAI's function, in this one."""
    images, run = private
    weights = str(images.parent / f"{MARK}.pt")
    arguments = {"output_dir": str(tmp_path), "dataset_dir": str(images), "pretrained": weights}
    run_in_python("prune", ("train", "prune"), run.overlay, **arguments)
    assert (tmp_path / "curve.csv").read_bytes() == (run.output / "curve.csv").read_bytes()
    states = [torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, run.output)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    first, second = load_study(tmp_path / "study.json"), run.study
    assert first["test"] == second["test"]
    assert first["layers"] == second["layers"]
    # the hash of a split is made with a secret of each output folder, so that it tells nothing about the cases
    assert first["data"]["splits"] == second["data"]["splits"]
    datalists = [json.loads((folder / "datalist.json").read_text()) for folder in (tmp_path, run.output)]
    images_of = [[[item["image_sha256"] for item in one[section]] for section in SECTIONS] for one in datalists]
    assert images_of[0] == images_of[1]


def test_no_mark_is_in_any_file(private: tuple[Path, Run]) -> None:
    images, run = private
    known = [MARK, MARK.lower(), "Doe_John", str(images), BORN, "1937-05-23", EXAMINED, "1.2.826.0.1.3680043.99.7177"]
    checked = 0
    for path in run.output.rglob("*"):
        for text in known:
            assert text not in str(path.relative_to(run.output))
            if path.is_file():
                assert text.encode() not in path.read_bytes(), f"{text} in {path}"
                assert text.encode("utf-16-le") not in path.read_bytes(), f"{text} in {path}"
        checked += path.is_file()
    assert checked > 13
    datalist = json.loads((run.output / "datalist.json").read_text())
    assert {item.get("manufacturer") for item in datalist["test"]} == {"other"}
    assert {item.get("view_position") for item in datalist["test"]} == {"other"}
    assert (run.output / "work" / "salt").stat().st_mode & 0o077 == 0
    assert run.study["data"]["synthetic"] is False
    assert run.study["pruning"]["pretrained"] == "a checkpoint"


def test_no_mark_is_in_what_we_print(private: tuple[Path, Run]) -> None:
    _, run = private
    lines = [line for line in (run.printed + run.shown).splitlines() if MARK in line or "Doe" in line]
    # MONAI's own logger repeats the overrides of the command; see the next test
    assert [line for line in lines if not re.search(r"> (dataset_dir|pretrained): ", line)] == []
    assert not re.search(f"{BORN}|{EXAMINED}", run.printed + run.shown)


def test_no_mark_is_in_what_monai_prints(private: tuple[Path, Run]) -> None:
    _, run = private
    assert MARK not in run.printed + run.shown


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_no_mark_is_in_the_messages_about_bad_files(private: tuple[Path, Run], tmp_path: Path) -> None:
    images, run = private
    copy = Path(shutil.copytree(images, tmp_path / f"{MARK}_Doe" / "study"))
    first, second, third, *_ = sorted((copy / "images").iterdir())
    first.write_bytes(first.read_bytes()[:-200])
    second.rename(second.with_name(f"{MARK}.dcm"))
    dataset = pydicom.dcmread(third)
    dataset.RescaleSlope = "nan"
    dataset.WindowWidth = None
    dataset.save_as(third)
    (copy / f"{MARK}_Doe.dcm").write_text(MARK)
    error = run_badly(copy, tmp_path / "output", run.overlay)
    assert len(error.problems) >= 4
    assert MARK not in str(error)
    assert "Doe" not in str(error)
    assert not [p for p in (tmp_path / "output").rglob("*") if p.is_file() and MARK.encode() in p.read_bytes()]


def test_predictions_hold_nothing_but_the_uid(private: tuple[Path, Run], tmp_path: Path) -> None:
    images, run = private
    table = tmp_path / "predictions.csv"
    predict_folder(run, images, table)
    text = table.read_text()
    assert MARK not in text
    assert "Doe" not in text
    assert len(text.splitlines()) == 1 + len(list((images / "images").iterdir()))


def test_the_tools_do_what_the_command_line_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = write_overlay(tmp_path, {**TINY_PRUNE, "synthetic_patients": 40, "audit_cases": 0})
    output = str(tmp_path / "out")
    run_in_python("prune", ("train", "prune"), overlay, output_dir=output)
    capsys.readouterr()
    run_in_python("inspect", ("tools",), output_dir=output)
    shown = capsys.readouterr().out
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert all(layer["name"] in shown for layer in study["layers"])
    assert "99 %" in shown
    run_in_python("report", ("tools",), output_dir=output, report_dir=str(tmp_path / "again"))
    assert study["title"] in (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    network = {"network_def": TINY_PRUNE["network_def"]}
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle", ignore=shutil.ignore_patterns("output"))
    train = bundle / "configs" / "train.json"
    train.write_text(json.dumps({**json.loads(train.read_text()), **network}))
    own = {"output_dir": output, "bundle_root": str(bundle)}
    run_in_python("export", ("tools",), exported_file=str(tmp_path / "x.ts"), **own)
    exported = torch.jit.load(str(tmp_path / "x.ts"))
    assert sum(p.numel() for p in exported.parameters()) == study["chosen"]["parameters"]
    new = tmp_path / "new"
    run_in_python("export_bundle", ("tools",), new_bundle_dir=str(new), **own)
    assert (new / "models" / "model.pt").is_file()
