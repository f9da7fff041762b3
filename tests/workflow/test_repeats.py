from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import load_study
from monai_basisprune.report.stability import validate_stability
from monai_basisprune.workflow.cohort import prepare_cohort
from monai_basisprune.workflow.repeat_process import LOG_FILE
from monai_basisprune.workflow.start import check_keys

from ..bundle_runs import (
    BUNDLE,
    ROOT,
    TINY_PRUNE,
    config_files,
    merged_config,
    run_command,
    tiny_densenet,
    write_cohort,
    write_overlay,
)

NAMES = ("train", "prune", "repeat")
SALT = b"a secret of 32 bytes or so, fixed"


# --- settings


def test_keys_of_repeats_are_known_with_their_configuration_and_nowhere_else() -> None:
    config = merged_config(NAMES)
    check_keys(config)
    for key in ("repeats", "folds", "fold", "parallel", "split_seed"):
        check_keys({**config, key: 3})
        with pytest.raises(ConfigurationError, match=f"- {key}: nothing in this configuration uses it"):
            check_keys({**merged_config(NAMES[:2]), key: 3})


# --- the cohort of a repeat


def test_a_run_of_one_fold_has_the_cohort_of_the_repeat(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "images", patients=24)
    given: dict[str, Any] = {"dataset_dir": folder, "progress": False}
    one = prepare_cohort(output_dir=tmp_path / "a", seed=4, split_seed=1, folds=3, fold=2, **given)
    other = prepare_cohort(output_dir=tmp_path / "b", seed=9, split_seed=1, folds=3, fold=2, **given)
    assert one.datalist["split_sha256"] == other.datalist["split_sha256"]
    assert one.datalist["split_source"] == "fold 2 of 3"
    written = one.datalist_file.read_text()
    assert json.loads(written)["split_sha256"] == one.datalist["split_sha256"]
    assert "synth" not in written  # names of files
    again = prepare_cohort(tmp_path / "nowhere", tmp_path / "c", folds=3, fold=2, prepared=one)
    assert again.datalist == one.datalist
    assert again.datalist_file == tmp_path / "c" / "work" / "datalist.json"
    assert again.datalist_file.read_text() == written
    assert again.split("test") == one.split("test")
    seeds = [prepare_cohort(output_dir=tmp_path / "a", seed=seed, split_seed=1, **given) for seed in (1, 2)]
    plain = prepare_cohort(output_dir=tmp_path / "a", seed=1, **given)
    assert seeds[0].datalist["test"] == seeds[1].datalist["test"] == plain.datalist["test"]
    assert seeds[0].datalist["split_sha256"] != seeds[1].datalist["split_sha256"]


def test_folds_without_a_fold_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for folds, fold in ((5, None), (None, 1)):
        with pytest.raises(ConfigurationError, match="folds and fold belong together"):
            prepare_cohort(tmp_path / "nowhere", tmp_path, folds=folds, fold=fold)
    with pytest.raises(ConfigurationError, match="folds must be a whole number from 3"):
        prepare_cohort(tmp_path / "nowhere", tmp_path, folds=2, fold=0)


# --- the whole, with real runs


def settings(folder: Path, **more: Any) -> Path:
    """Write an overlay that starts from a checkpoint, so that no repeat pretrains."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tiny_densenet(1).state_dict(), folder / "net.pt")
    return write_overlay(folder, {**TINY_PRUNE, "pretrained": str(folder / "net.pt"), "targets": [0.5], **more})


def arguments(overlay: Path, output: Path, *more: str) -> list[str]:
    files = str(config_files(NAMES, overlay))
    return ["repeat", "--config_file", files, "--output_dir", str(output), "--parallel", "2", *more]


def child_processes(process: int) -> list[int]:
    # each thread has those that it started
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(text) for path in lists for text in path.read_text().split()]


def wait_for(condition: Any, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_repeats_end_with_their_parent_and_go_on_where_they_were(tmp_path: Path, how: signal.Signals) -> None:
    overlay, output = settings(tmp_path / "overlay"), tmp_path / "output"
    more = ["--repeats", "3", "--folds", "3", "--parallel", "1"]
    command = [sys.executable, "-m", "monai.bundle", "run", *arguments(overlay, output, *more)]
    command += ["--bundle_root", str(BUNDLE.relative_to(ROOT))]
    parent = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    try:
        log = output / "repeats" / "repeat-01" / LOG_FILE
        wait_for(lambda: log.is_file() and child_processes(parent.pid))
        children = child_processes(parent.pid)
        assert len(children) == 1
        parent.send_signal(how)
        assert parent.wait(60) != 0
        wait_for(lambda: not any(map(is_alive, children)), 60)
    finally:
        parent.kill()
    assert not (output / "stability.json").exists()
    first = output / "repeats" / "repeat-00" / "study.json"
    written = first.stat().st_mtime_ns
    done = run_command(arguments(overlay, output, *more))
    assert done.returncode == 0, done.stderr
    assert "1 of 3 repeats are complete already and are not run again." in done.stdout
    assert first.stat().st_mtime_ns == written
    stability = json.loads((output / "stability.json").read_text())
    validate_stability(stability)
    assert [(repeat["seed"], repeat["fold"], repeat["folds"]) for repeat in stability["repeats"]] == [
        (0, 0, 3), (1, 1, 3), (2, 2, 3),
    ]  # fmt: skip
    studies = [load_study(output / "repeats" / f"repeat-{r:02d}" / "study.json") for r in range(3)]
    cases = sum(study["data"]["splits"]["test"]["cases"] for study in studies)
    assert stability["pooled"]["pruned"]["cases"] == cases
    assert stability["pooled"]["difference"]["patients"] == TINY_PRUNE["synthetic_patients"]
    layers = [layer for layer in stability["overlap"] if layer["jaccard"] is not None]
    assert len(layers) == len(stability["overlap"]) > 3  # one checkpoint, so all bases can be compared
    assert (output / "stability.html").stat().st_size > 1000
    refused = run_command(arguments(overlay, output, *more, "--batch_size", "8"))
    assert refused.returncode != 0
    assert "output_dir holds repeats that were made with other settings: batch_size. Set them as" in refused.stderr
    assert first.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_failed_repeat_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    mark = "Mustermann"
    images = write_cohort(tmp_path / mark / "images", patients=30)
    overlay = settings(tmp_path / "overlay", image_size=32, margin="$0.01 if @seed == 1 else -1")
    output = tmp_path / "output"
    done = run_command(arguments(overlay, output, "--repeats", "2", "--dataset_dir", str(images)))
    assert done.returncode != 0
    assert "1 of 2 repeats failed; the others are in stability.html." in done.stderr
    assert "repeat-00 (seed 0): " in done.stderr
    stability = json.loads((output / "stability.json").read_text())
    validate_stability(stability)
    (failed,) = stability["failed"]
    assert (failed["seed"], failed["fold"]) == (0, None)
    assert "margin" in failed["reason"]
    (repeat,) = stability["repeats"]
    assert repeat["seed"] == 1
    assert stability["band"] == []
    assert "not computable, because" in stability["band_method"]
    assert "not computable, because" in stability["overlap"][0]["reason"]
    for path in output.rglob("*"):
        assert not path.is_file() or mark.encode() not in path.read_bytes(), path.name
    assert mark not in done.stdout
    assert mark not in done.stderr
