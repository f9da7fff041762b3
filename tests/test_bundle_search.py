"""The metric budget, from the command line to the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import load_study

from .bundle_runs import (
    FAILED_WORDS,
    TINY_PRUNE,
    config_files,
    own_error,
    run_command,
    run_in_python,
    tiny_densenet,
    write_overlay,
)

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")

SETTINGS = {**TINY_PRUNE, "transfer_epochs": 2, "targets": [0.3, 0.5, 0.8], "bisections": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "net.pt"
    torch.save(tiny_densenet(1).state_dict(), path)
    return path


def assert_consistent(output: Path, margin: float) -> dict[str, Any]:
    """Check that curve, steps, choice and files of a search belong together; returns the study."""
    study = load_study(output / "study.json")
    search, curve = study["search"], study["curve"]
    assert search["margin"] == study["pruning"]["auc_margin"] == margin
    assert search["rule"] == study["pruning"]["selection"]
    assert study["pruning"]["targets"] == SETTINGS["targets"]
    assert [point["target"] for point in curve] == [0.0, *[step["target"] for step in search["steps"]]]
    for point, step in zip(curve[1:], search["steps"], strict=True):
        assert step["parameter_reduction"] == point["parameter_reduction"] >= step["target"]
        assert step["auc"] == point["auc"]["auc"]
        assert (step["difference"], step["low"]) == (point["difference"]["difference"], point["difference"]["low"])
        if search["rule"] == "point":
            assert step["accepted"] == (step["difference"] >= -margin)
    accepted = [index for index, step in enumerate(search["steps"], 1) if step["accepted"]]
    assert study["chosen"]["round"] == (accepted[-1] if accepted else 0)
    assert study["chosen"]["parameters"] == min(curve[index]["parameters"] for index in [0, *accepted])
    network = mbp.load_pruned(tiny_densenet(), output / "model.pt")
    assert (
        sum(status.rank for status in mbp.layer_status(network) if status.rank)
        == curve[accepted[-1] if accepted else 0]["bases"]
    )
    epochs = {point["epoch"] for point in json.loads((output / "evaluations.json").read_text())}
    assert max(epochs) == SETTINGS["transfer_epochs"] + len(search["steps"]) * SETTINGS["epochs_per_round"]
    return study


def test_a_small_validation_set_goes_by_points_and_says_so_everywhere(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = write_overlay(tmp_path, SETTINGS)
    run_in_python(
        "prune",
        ("train", "prune"),
        overlay,
        output_dir=str(tmp_path / "out"),
        pretrained=str(checkpoint),
        auc_margin=0.05,
    )
    study = assert_consistent(tmp_path / "out", 0.05)
    assert study["search"]["rule"] == "point"
    assert study["search"]["required_positive_patients"] > study["data"]["splits"]["validation"]["patients_by_class"][1]
    words = "The validation set is too small to show that a pruned network is not worse by more than 0.05 AUC"
    assert study["search"]["remarks"][0].startswith(words)
    assert study["warnings"][0] == study["search"]["remarks"][0]
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"on_small_validation": "raise"}, "set on_small_validation to 'point' to go by the AUC alone"),
        ({"bisections": -2, "expected_auc": 0.4}, "bisections must be a whole number, at least 0, got -2."),
        ({"margin": 0.02}, "auc_margin is 0.05, but the curve compares with a margin of 0.02: give both the same."),
        ({"auc_margin": 1.5}, "margin must be a loss of AUC"),
    ],
)
def test_a_search_that_cannot_be_done_ends_before_any_training(
    overrides: dict[str, Any], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    overlay = write_overlay(tmp_path, SETTINGS)
    settings = {"auc_margin": 0.05, "pretrained": str(checkpoint), **overrides}
    with pytest.raises(Exception) as caught:
        run_in_python("prune", ("train", "prune"), overlay, output_dir=str(tmp_path / "out"), **settings)
    error = own_error(caught.value)
    assert isinstance(error, ConfigurationError)
    assert words in str(error)
    assert not (tmp_path / "out" / "work" / "networks").exists()
    assert not (tmp_path / "out" / "study.json").exists()


@pytest.mark.slow
def test_the_command_searches(tmp_path: Path) -> None:
    overlay = write_overlay(tmp_path, {**SETTINGS, "synthetic_patients": 200})
    output = tmp_path / "out"
    files = str(config_files(("train", "prune"), overlay))
    done = run_command(
        ["prune", "--config_file", files, "--output_dir", str(output), "--auc_margin", "0.3", "--bisections", "1"]
    )
    assert done.returncode == 0, done.stderr
    assert FAILED_WORDS not in done.stderr
    study = assert_consistent(output, 0.3)
    assert study["search"]["rule"] == "interval"  # enough patients for so large a margin
    assert study["search"]["required_positive_patients"] is None
    assert "--auc_margin 0.3" in study["command"]
    assert len(study["search"]["steps"]) <= len(SETTINGS["targets"]) + 1
    if study["chosen"]["round"]:
        assert study["chosen"]["supported_by_interval"] is True
