"""``prune_bundle`` killed for real, by SIGKILL, and started again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.errors import ConfigurationError, PlanMismatchError
from monai_basisprune.workflow.existing_bundle import prune_bundle

from .source_bundles import write_data, write_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL"),
]
OPTIONS: dict[str, Any] = {
    "targets": [0.3, 0.5],
    "transfer_epochs": 2,
    "epochs_per_round": 1,
    "margin": 0.3,
    "patient_key": "patient",
}
KILLED = """
import os, signal, sys
def watch(event, arguments):
    if event == sys.argv[1] and os.fspath(arguments[-3 if event == "os.rename" else 0]).endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from monai_basisprune.cli import main
sys.exit(main(sys.argv[3:]))
"""


def unsteady_everywhere(config: dict[str, Any]) -> None:
    """Let all that can be random be random, and the schedule move."""
    config["lr_scheduler"] |= {"step_size": 1, "gamma": 0.8}
    train = config["train"]
    noise = {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5, "std": 0.3}
    train["preprocessing"] = {"_target_": "Compose", "transforms": [*train["preprocessing"]["transforms"], noise]}
    train["dataloader"]["generator"] = "$torch.Generator()"
    config["network_def"]["dropout_prob"] = 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), (32, 24, 16))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    source = write_source(tmp_path_factory.mktemp("source") / "blobs", data, change=unsteady_everywhere)
    for name in ("inference.json", "evaluate.json"):
        (source / "configs" / name).unlink()
    return source


def prune(source: Path, output: Path, data: Path, **changes: Any) -> None:
    overrides = {"dataset_dir": str(data), **changes.pop("overrides", {})}
    prune_bundle(source, output, overrides, **{**OPTIONS, "channels": True, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, source: Path, data: Path) -> dict[str, bytes]:
    """What a run leaves that was never stopped."""
    output = tmp_path_factory.mktemp("whole") / "new"
    prune(source, output, data)
    assert not output.with_name("new.unfinished").exists()
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill(source: Path, output: Path, data: Path, event: str, name: str) -> None:
    """Run the command, and kill it as it is about to do something to a file."""
    options = [f"--{key}={value}" for key, value in OPTIONS.items() if key != "targets"]
    options += ["--targets", *map(str, OPTIONS["targets"]), "--channels", f"--dataset_dir={data}"]
    # with another number of threads sums are taken in another order
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": str(Path(mbp.__file__).parents[1])}
    words = [sys.executable, "-c", KILLED, event, name, "prune", str(source), str(output), *options]
    done = subprocess.run(words, cwd=output.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_while_it_saves_it_goes_on_to_the_same_bits(
    source: Path, data: Path, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "new"
    kill(source, output, data, "os.rename", "checkpoint_000003.pt")
    assert not output.exists()
    saved = sorted(path.name for path in (tmp_path / "new.unfinished" / "checkpoints").glob("checkpoint_*.pt"))
    assert saved == ["checkpoint_000001.pt", "checkpoint_000002.pt"]
    for content in contents(tmp_path / "new.unfinished").values():
        assert not any(word in content for word in (b"patient_0", b"case_0", bytes(data)))
    with pytest.raises(PlanMismatchError, match=r"not those of this one:\n  - --learning_rate\n  - margin\n"):
        prune(source, output, data, overrides={"learning_rate": 0.01}, margin=0.2)
    with caplog.at_level(logging.INFO, "monai_basisprune"):
        prune(source, output, data)
    assert "The run was stopped; it goes on after epoch 2." in caplog.text
    assert "does not follow from the seed alone" not in caplog.text
    found = contents(output)
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if found[name] != whole[name]] == []
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("os.rename", "checkpoint_000001.pt"),
        ("os.rename", "checkpoint_000002.pt"),
        ("os.remove", "checkpoint_000001.pt"),
        ("os.rename", "checkpoint_000004.pt"),
        ("os.rename", ".plan.json"),
        ("os.rename", "model.plan.json"),
        ("os.rename", "model.ts"),
        ("os.rename", "/new"),
    ],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(
    source: Path, data: Path, whole: dict[str, bytes], tmp_path: Path, event: str, name: str
) -> None:
    kill(source, tmp_path / "new", data, event, name)
    prune(source, tmp_path / "new", data)
    assert contents(tmp_path / "new") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
def test_killed_after_its_end_the_bundle_is_there(
    source: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    kill(source, tmp_path / "new", data, "shutil.rmtree", "checkpoints")
    with pytest.raises(ConfigurationError, match="is there and whole"):
        prune(source, tmp_path / "new", data)
    assert {name for name, content in contents(tmp_path / "new").items() if content != whole[name]} <= {
        "models/model.ts"  # ordered by the hashes of that process
    }


@pytest.mark.slow
def test_a_changed_bundle_or_changed_cases_are_refused_and_a_new_start_is_not(
    source: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    kill(source, tmp_path / "new", data, "os.rename", "checkpoint_000002.pt")
    config = source / "configs" / "train.json"
    before = config.read_text()
    other = write_data(tmp_path / "other", (32, 24, 16), seed=1)
    (other / "case_000.npy").write_bytes((other / "case_000.npy").read_bytes() + b"\0")
    try:
        config.write_text(before.replace('"batch_size": 16', '"batch_size": 8'))
        words = r"those of this one:\n  - the bundle's configs/train.json\n  - the training cases\n"
        with pytest.raises(PlanMismatchError, match=words):
            prune(source, tmp_path / "new", other)
    finally:
        config.write_text(before)
    prune(source, tmp_path / "new", data, resume="false")
    assert contents(tmp_path / "new") == whole


def test_data_that_do_not_follow_from_the_seed_are_told(
    source: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sampler = {"_target_": "tests.workflow.test_bundle_state.Counting", "length": 32}
    overrides = {"dataset_dir": str(data), "train#dataloader#shuffle": False, "train#dataloader#sampler": sampler}
    words = "does not follow from the seed alone: the first batch is another one each time"
    with pytest.raises(ConfigurationError, match=r"train#dataloader#sampler: not in configs/train.json"):
        prune_bundle(source, tmp_path / "new", overrides, **OPTIONS)
    overrides["train#dataloader"] = {
        "_target_": "DataLoader",
        "dataset": "@train#dataset",
        "batch_size": 16,
        "sampler": overrides.pop("train#dataloader#sampler"),
    }
    del overrides["train#dataloader#shuffle"]
    result = prune_bundle(source, tmp_path / "new", overrides, **{**OPTIONS, "targets": [0.3], "transfer_epochs": 1})
    assert words in caplog.text
    assert words in result.summary()
    assert words in (tmp_path / "new" / "docs" / "README.md").read_text()
