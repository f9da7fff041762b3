from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import monai_basisprune as mbp
from monai_basisprune import cli
from monai_basisprune.data import write_synthetic_cohort

from .bundle_runs import ROOT, TINY_PRUNE, unchanged_process

COMMANDS = ("cohort", "inspect", "prune", "report", "predict", "export", "export-bundle", "bundle")


def test_the_command_is_installed_under_its_name() -> None:
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]\n")[1].split("\n[")[0]
    assert 'monai-basisprune = "monai_basisprune.cli:main"' in scripts.splitlines()
    assert callable(cli.main)


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


@pytest.mark.slow  # a process of its own
def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "monai_basisprune.cli", "prune", str(tmp_path / "none"), str(tmp_path / "new")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path) not in done.stderr
