"""The bundles in several processes, started by torchrun, that talk by gloo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_basisprune.data import write_synthetic_cohort
from monai_basisprune.errors import ConfigurationError

from .benchmarks.distributed import compared, ended, killed, log_of, start
from .bundle_runs import FAILED_WORDS, ROOT, TINY_PRUNE, own_error, run_in_python, tiny_densenet, write_overlay

BUNDLES = ("chest_xray", "small_dataset", "volume")


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """Settings of a run that starts from a checkpoint, which takes no pretraining."""
    torch.save(tiny_densenet().state_dict(), tmp_path / "net.pt")
    late = dict.fromkeys(("distilled_from", "recombined_from"), TINY_PRUNE["targets"][-1])
    return write_overlay(tmp_path / "config", {**TINY_PRUNE, **late, "pretrained": str(tmp_path / "net.pt")})


@pytest.mark.parametrize("bundle", BUNDLES)
def test_processes_join_before_anything_is_prepared(bundle: str) -> None:
    """Each of them would otherwise take itself for the only one, and all would prepare the cohort at once."""
    content: dict[str, Any] = json.loads(
        (ROOT / "bundles" / f"{bundle}_classification" / "configs" / "multi_gpu.json").read_text(encoding="utf-8")
    )
    assert content["initialize"] == [
        "$@start",
        "$@device",
        "$monai_basisprune.workflow.keep_one_tracked_config()",
    ]
    assert "start_processes" in content["device"]
    assert content["finalize"] == ["$monai_basisprune.distributed.end_processes()"]


@pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")
def test_without_torchrun_the_error_says_what_to_do(
    tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises((ConfigurationError, RuntimeError)) as error:
        run_in_python("prune", ["train", "prune", "multi_gpu"], overlay, output_dir=str(tmp_path / "output"))
    assert "use `torchrun --nproc_per_node=2 -m monai.bundle run" in str(own_error(error.value))
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of torchrun in /proc")
def test_two_processes_do_what_one_does_and_go_on_after_a_kill(tmp_path: Path, overlay: Path) -> None:
    one, two = (ended(tmp_path / name, overlay, count) for name, count in (("one", 1), ("two", 2)))
    result = compared(one, two)
    assert result["evaluations"] == 3
    assert result["largest_difference_of_auc"] <= 1e-6
    assert result["same_plan_but_for_the_weights"]
    assert result["same_structures"]
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, two)]
    assert names[0] == names[1]
    study = json.loads((two / "study.json").read_text(encoding="utf-8"))
    assert study["pruning"]["processes"] == 2
    assert study["command"].startswith("torchrun --nproc_per_node=2 -m monai.bundle run prune")
    assert not list((two / "work" / "checkpoints").glob("*"))

    folder = tmp_path / "killed"
    end = killed(start(folder, overlay, 2), folder)
    assert end["exit_status"] != 0
    assert end["ranks_left"] == []
    assert not (folder / "study.json").exists()
    assert compared(two, ended(folder, overlay, 2))["same_bits"] == [
        "model.pt",
        "model.plan.json",
        "evaluations.json",
        "curve.csv",
    ]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_in_words(tmp_path: Path, overlay: Path) -> None:
    images = tmp_path / "cohort"
    write_synthetic_cohort(images, patients=20, image_size=32)
    damaged = sorted((images / "images").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:700])
    output = tmp_path / "output"
    assert start(output, overlay, 2, dataset_dir=images).wait(600) != 0
    text = log_of(output).read_text(encoding="utf-8")
    assert "monai_basisprune: " in text
    assert (
        "The first of the processes ended with an error; its message says which." in text
        or text.count("monai_basisprune: ") == 1
    )  # torchrun may end the second one before it has said so
    assert damaged.name not in text
    assert "terminate called" not in text
    assert text.count(FAILED_WORDS) == 1  # torchrun's own
    assert not (output / "study.json").exists()
