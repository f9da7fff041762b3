from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune import cli, cli_bundles
from monai_basisprune.data import write_synthetic_cohort
from monai_basisprune.errors import BasisPruneError
from monai_basisprune.workflow.shipped_bundles import shipped_bundle, shipped_bundles

from .bundle_runs import TINY_PRUNE, contents, unchanged_process, write_cohort
from .networks import tiny_classifier

ROOT = Path(__file__).parents[1]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["monai-basisprune", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the functions of the library are called with; they are tested by themselves."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Shown:
        def summary(self) -> str:
            return "made"

    def note(*args: Any, **kwargs: Any) -> Shown:
        found.append((args, kwargs))
        return Shown()

    for name in ("prune_bundle", "export_study_bundle", "run_shipped_bundle"):
        monkeypatch.setattr(cli_bundles, name, note)
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "a" / "configs").mkdir(parents=True)
    return str(tmp_path / "a")


def test_the_command_is_installed_under_its_name() -> None:
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]\n")[1].split("\n[")[0]
    assert 'monai-basisprune = "monai_basisprune.cli:main"' in scripts.splitlines()
    assert callable(cli.main)


COMMANDS = ("cohort", "inspect", "prune", "report", "predict", "export", "export-bundle", "bundle")


def test_help_speaks_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Makes a trained MONAI classifier smaller", "not a medical device", "3 done, but cases were skipped"):
        assert words in text
    for command in COMMANDS:
        assert command in text
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        own = " ".join(capsys.readouterr().out.split())
        assert len(own) > 300
        takes_keys = command in ("inspect", "prune", "export", "export-bundle")
        assert ("--dataset_dir FOLDER" in own) == takes_keys


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == mbp.__version__


def test_prune_hands_its_options_on(calls, bundle: str, capsys) -> None:
    assert cli.main(["prune", bundle, "b"]) == 0
    assert calls == [((bundle, "b"), {"overrides": {}})]
    assert capsys.readouterr().out == "made\n"
    words = ["prune", bundle, "b", "--targets", "0.4", "0.6", "--margin", "0.02", "--patient_key", "patient"]
    words += ["--dataset_dir", "/data/x", "--train#dataloader#batch_size=4", "--amp", "true", "--seed", "0"]
    words += ["--network_def", '{"a": 1}', "--budget", "macs", "--selection", "interval", "--channels"]
    assert cli.main(words) == 0
    assert calls[-1][1] == {
        "overrides": {
            "dataset_dir": "/data/x",
            "train#dataloader#batch_size": 4,
            "amp": True,
            "network_def": {"a": 1},
        },
        "targets": [0.4, 0.6],
        "budget": "macs",
        "margin": 0.02,
        "selection": "interval",
        "patient_key": "patient",
        "channels": True,
        "seed": 0,
    }


def test_prune_of_images_runs_a_bundle_of_the_package(calls, tmp_path: Path, capsys) -> None:
    images = str(tmp_path)
    assert cli.main(["prune", images, "out", "--targets", "0.5", "--label_column", "pneumonia", "--seed", "3"]) == 0
    overrides = {"label_column": "pneumonia", "targets": [0.5], "seed": 3, "dataset_dir": images}
    assert calls == [(("chest_xray_classification", "prune", ("train", "prune"), "out", overrides), {})]
    assert cli.main(["prune", images, "out", "--bundle", "volume_classification"]) == 0
    assert calls[-1][0][0] == "volume_classification"
    assert cli.main(["prune", images, "out", "--patient_key", "p"]) == 2
    assert "the patients of images are set by --patient_column" in capsys.readouterr().err
    assert cli.main(["prune", images, "out", "--channels"]) == 2
    assert "of images, channels are removed with the bases anyway" in capsys.readouterr().err


def test_bundle_and_images_are_not_mixed_up(calls, bundle: str, tmp_path: Path, capsys) -> None:
    assert cli.main(["prune", bundle, "b", "--bundle", "chest_xray_classification"]) == 2
    assert "SOURCE is the folder of a bundle; --bundle is for a folder of images" in capsys.readouterr().err
    assert cli.main(["prune", str(tmp_path / "none"), "b"]) == 2
    assert "SOURCE is not a folder" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset_dir", "/data/x", "a", "b"],
        ["a", "--dataset_dir", "/data/x", "b"],
        ["a", "b", "--dataset_dir", "/data/x"],
        ["a", "--seed", "3", "b", "--dataset_dir=/data/x"],
    ],
)
def test_the_value_of_a_key_is_never_taken_for_a_folder(calls, words: list[str], bundle: str) -> None:
    assert cli.main(["prune", *(bundle if word == "a" else word for word in words)]) == 0
    assert calls[-1][0] == (bundle, "b")
    assert calls[-1][1]["overrides"] == {"dataset_dir": "/data/x"}


def test_export_bundle_hands_its_options_on(calls) -> None:
    assert cli.main(["export-bundle", "a", "b", "c", "--network_def", '{"_target_": "X"}']) == 0
    assert calls == [(("a", "b", "c"), {"overrides": {"network_def": {"_target_": "X"}}})]


def test_wrong_usage_ends_with_2_and_names_no_folder(calls, bundle: str, capsys, monkeypatch) -> None:
    assert "required: COMMAND" in refused([], capsys, monkeypatch)
    assert "invalid choice: 'shrink'" in refused(["shrink"], capsys, monkeypatch)
    assert "OUTPUT" in refused(["prune", "/data/Doe^Jane"], capsys, monkeypatch)
    for words in (["/data/Doe^Jane"], ["Doe"], ["--amp", "1", "Doe"], ["--", "/data/Doe^Jane"], ["--seed", "/x/Doe"]):
        text = refused(["prune", "a", "b", *words], capsys, monkeypatch)
        assert "Doe" not in text, text
    assert "look at --dataset_dir" in refused(["prune", "a", "b", "--dataset_dir"], capsys, monkeypatch)
    text = refused(["prune", "a", "b", "--amp", "--train", "2"], capsys, monkeypatch)
    assert "look at --amp" in text  # its value is missing
    assert "--amp is given twice" in refused(["prune", "a", "b", "--amp=1", "--amp", "2"], capsys, monkeypatch)
    # no abbreviations: --target would be a key of the bundle, not --targets
    assert cli.main(["prune", bundle, "b", "--target", "1"]) == 0
    assert calls[-1][1]["overrides"] == {"target": 1}


def test_our_errors_end_with_their_message_and_2(bundle: str, capsys, monkeypatch, tmp_path: Path) -> None:
    secret = tmp_path / "Doe^Jane"
    assert cli.main(["export-bundle", str(secret), str(secret), str(tmp_path / "new")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("monai-basisprune: The folder of the study lacks study.json")
    assert len(shown.splitlines()) == 1

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(secret))

    monkeypatch.setattr(cli_bundles, "prune_bundle", fail)
    assert cli.main(["prune", bundle, "b"]) == 2
    assert capsys.readouterr().err == "monai-basisprune: a file cannot be read or written (Permission denied).\n"

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_bundles, "prune_bundle", stop)
    assert cli.main(["prune", bundle, "b"]) == 130
    assert capsys.readouterr().err == "monai-basisprune: interrupted.\n"

    def wrap(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"evaluating {secret}") from BasisPruneError("the cohort is too small")

    monkeypatch.setattr(cli_bundles, "prune_bundle", wrap)  # as MONAI does
    assert cli.main(["prune", bundle, "b"]) == 2
    assert capsys.readouterr().err == "monai-basisprune: the cohort is too small\n"

    def break_down(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"no idea what {secret}/a.dcm is")

    monkeypatch.setattr(cli_bundles, "prune_bundle", break_down)
    assert cli.main(["prune", bundle, str(secret)]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text  # nobody foresaw it, so all but the names is shown
    assert "RuntimeError: no idea what [removed] is" in text
    assert "Doe" not in text


def test_cohort_checks_and_divides(tmp_path: Path, capsys) -> None:
    images = write_cohort(tmp_path / "Doe^Jane", patients=30)
    before = contents(images)
    assert cli.main(["cohort", str(images), str(tmp_path / "lists" / "datalist.json")]) == 0
    assert contents(images) == before
    shown = capsys.readouterr().out
    datalist = json.loads((tmp_path / "lists" / "datalist.json").read_text())
    for section in ("training", "validation", "test"):
        (line,) = [line for line in shown.splitlines() if line.startswith(section)]
        assert line.split()[1] == str(len(datalist[section]))
        assert line.split()[2] == str(len({item["patient_id"] for item in datalist[section]}))
    assert "image" not in datalist["test"][0]
    assert "Doe" not in shown + (tmp_path / "lists" / "datalist.json").read_text()
    assert cli.main(["cohort", str(images), str(tmp_path / "lists" / "datalist.json")]) == 2
    assert "The file to write exists" in capsys.readouterr().err
    first = sorted((images / "images").iterdir())[0]
    first.write_bytes(b"x")
    assert cli.main(["cohort", str(images), str(tmp_path / "other.json")]) == 2
    text = capsys.readouterr().err
    assert "is not a DICOM file" in text
    assert "The cohort cannot be used" in text
    assert "Doe" not in text
    assert not (tmp_path / "other.json").exists()


def test_inspect_shows_each_layer(tmp_path: Path, capsys) -> None:
    network = tiny_classifier()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert cli.main(["inspect", str(tmp_path / "model.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "checkpoint"
    weights = [name.removesuffix(".weight") for name, p in network.named_parameters() if p.ndim > 1]
    assert [layer["name"] for layer in found["layers"]] == weights
    words = ["inspect", "monai.networks.nets.DenseNet", "--arguments"]
    words += ['{"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [2, 2]}']
    assert cli.main([*words, "--input_shape", "1", "32", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DenseNet: 11 layers, ")
    assert lines[1].split()[:4] == ["layer", "type", "weight", "parameters"]
    (conv0,) = [line for line in lines if line.startswith("features.conv0 ")]
    assert conv0.split()[1:7] == ["Conv2d", "64x1x7x7", "3,136", "802,816", "49", "27"]
    assert any("linear layer" in line for line in lines)
    for wrong, message in (
        (["inspect", "monai.networks.nets.Nothing"], "The network cannot be built from its name and arguments"),
        (["inspect", str(tmp_path / "none.pt")], "What to inspect was not found"),
        (["inspect", str(tmp_path)], "The folder is neither a bundle"),
        ([*words, "--input_shape", "3", "32", "32"], "cannot process an input of shape (1, 3, 32, 32)"),
        (["inspect", "a.b", "--arguments", "[1]"], "--arguments must be JSON"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "model.pt").write_bytes(b"x")
    assert cli.main(["inspect", str(tmp_path / "model.pt")]) == 2
    assert "The checkpoint cannot be read" in capsys.readouterr().err


def test_bundles_are_listed_and_copied(tmp_path: Path, capsys) -> None:
    assert cli.main(["bundle"]) == 0
    listed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(shipped_bundles())
    assert "chest_xray_classification" in listed
    assert cli.main(["bundle", "chest_xray_classification", str(tmp_path / "copy")]) == 0
    assert "its configurations: " in capsys.readouterr().out
    source = shipped_bundle("chest_xray_classification")
    wanted = {name: (source / name).read_bytes() for name in contents(tmp_path / "copy")}
    assert contents(tmp_path / "copy") == wanted
    assert {"LICENSE", "configs/train.json", "docs/README.md"} <= set(wanted)
    assert not any(name.startswith(("output/", "models/", ".")) for name in wanted)
    for words, message in (
        (["chest_xray_classification", str(tmp_path / "copy")], "is not empty"),
        (["chest_xray_classification"], "Name the folder of the copy as well"),
        (["nothing", str(tmp_path / "b")], "There is no bundle of that name"),
    ):
        assert cli.main(["bundle", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow  # a run of pruning
def test_images_in_a_network_out_and_all_that_follows(tmp_path: Path, capsys) -> None:
    images, study = tmp_path / "images", tmp_path / "study"
    write_synthetic_cohort(images, patients=60, image_size=32)
    tiny = {key: value for key, value in TINY_PRUNE.items() if key != "synthetic_patients"}
    words = ["prune", str(images), str(study), "--pretrained", "synthetic"]
    for key, value in tiny.items():
        words += [f"--{key}", *map(str, value)] if key == "targets" else [f"--{key}", json.dumps(value)]
    with unchanged_process():
        assert cli.main(words) == 0, capsys.readouterr().err
    assert (study / "report.html").is_file()
    capsys.readouterr()
    assert cli.main(["inspect", str(study)]) == 0
    assert "pruned network of a study" in capsys.readouterr().out
    table = tmp_path / "predictions.csv"
    assert cli.main(["predict", str(images), str(table), "--output_dir", str(study), "--num_workers", "0"]) == 0
    assert len(table.read_text().splitlines()) == 1 + len(list((images / "images").iterdir()))
    network = ["--network_def", json.dumps(tiny["network_def"])]
    for suffix in ("ts", "pt2", "onnx"):
        file = tmp_path / f"network.{suffix}"
        assert cli.main(["export", str(study), str(file), *network]) == 0, capsys.readouterr().err
        assert file.is_file()
    assert cli.main(["export", str(study), str(file), *network]) == 2
    assert "The file to write exists" in capsys.readouterr().err
    assert cli.main(["export", str(study), str(tmp_path / "x.ts")]) == 2  # another network
    assert "pass the network_def of the study" in capsys.readouterr().err


def test_a_subcommand_is_added_by_one_function(capsys, monkeypatch) -> None:
    def add_twice(subparsers: Any) -> None:
        parser = subparsers.add_parser("twice")
        parser.add_argument("number", type=int)
        parser.set_defaults(run=run)

    def run(options: argparse.Namespace) -> None:
        if options.number < 0:
            raise BasisPruneError("too small")
        print(2 * options.number)

    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, add_twice))
    assert cli.main(["twice", "4"]) == 0
    assert capsys.readouterr().out == "8\n"
    assert "twice does not know --more; see" in refused(["twice", "4", "--more", "Doe"], capsys, monkeypatch)


@pytest.mark.slow  # a process of its own
def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "monai_basisprune.cli", "prune", str(tmp_path / "none"), str(tmp_path / "new")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path) not in done.stderr
