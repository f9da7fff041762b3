"""What ends a long run from outside ends it in words, and leaves what was saved: on real disks, with real workers."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset

from monai_basisprune.errors import BasisPruneError, ConfigurationError
from monai_basisprune.files import write_atomically
from tests.bundle_runs import BUNDLE, FAILED_WORDS, ROOT, TINY_PRUNE, config_files, tiny_densenet, write_overlay
from tests.handlers.engines import cases, networks_in, watched_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="disks and limits are those of POSIX")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this system does not let a test mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def fill(folder: Path) -> None:
    with open(folder / "other", "wb", buffering=0) as file:
        while True:
            try:
                if not file.write(bytes(4096)):
                    return
            except OSError:
                return


def test_a_full_disk_ends_the_training_and_keeps_the_last_network(disk: Path) -> None:
    before = {}

    def act() -> None:
        before.update({path.name: path.read_bytes() for path in disk.iterdir()})
        fill(disk)

    with pytest.raises(
        BasisPruneError, match=r"ended in epoch 2\..*make room, or let the results go to another disk.*left as it is"
    ):
        watched_run(disk, act)
    assert {path.name: path.read_bytes() for path in disk.iterdir() if path.name != "other"} == before
    assert len(networks_in(disk)) == 1


def test_a_disk_without_room_is_an_error_before_the_training(disk: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"The folder of the results has 0 MiB left, and .* may need \d+ MiB: make room"
    ):
        watched_run(disk, files=10_000)
    assert list(disk.iterdir()) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_on_files_ends_the_training_and_keeps_the_last_network(tmp_path: Path) -> None:
    limit = largest_file(1000)
    try:
        with pytest.raises(
            BasisPruneError, match=r"ended in epoch 2\..*make room, or let the results go to another disk"
        ):
            watched_run(tmp_path, limit.__enter__)
    finally:
        limit.__exit__(None, None, None)
    assert len(networks_in(tmp_path)) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_read_only_folder_is_an_error_before_the_training(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(
        ConfigurationError, match=r"The folder of the results cannot be written to \(Read-only file system\)"
    ):
        watched_run(disk)


def test_a_folder_that_becomes_read_only_ends_the_training(disk: Path) -> None:
    with pytest.raises(BasisPruneError, match="its folder or its disk is read-only"):
        watched_run(disk, lambda: subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True))
    assert len(networks_in(disk)) == 1


def test_a_lost_drive_ends_the_training_and_nothing_is_written_in_its_place(disk: Path) -> None:
    with pytest.raises(
        BasisPruneError, match="The folder of the results is gone, or another one than when the run started"
    ):
        watched_run(disk, lambda: subprocess.run(["umount", "-l", str(disk)], check=True))
    assert list(disk.iterdir()) == []


class Dies:
    """A transform that ends its process."""

    def __call__(self, item: Any) -> Any:
        os._exit(1)


def test_a_worker_that_dies_ends_the_training(tmp_path: Path) -> None:
    data = DataLoader(Dataset(cases(), Dies()), batch_size=4, num_workers=1)
    with pytest.raises(BasisPruneError, match=r"A process that loads images has died: .*smaller --num_workers"):
        watched_run(tmp_path, data=data)


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(disk: Path) -> None:
    write_atomically(disk / "study.json", "earlier")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(disk / "study.json", bytes(1 << 20))
    assert (disk / "study.json").read_text() == "earlier"
    assert [path.name for path in disk.iterdir()] == ["study.json"]


def start(tmp_path: Path, output: Path, **settings: Any) -> subprocess.Popen[bytes]:
    """Start the bundle as the README does; what it says is added to a log beside its folder."""
    overlay = write_overlay(tmp_path, {**TINY_PRUNE, "output_dir": str(output), **settings})
    command = [sys.executable, "-m", "monai.bundle", "run", "prune", "--bundle_root", str(BUNDLE.relative_to(ROOT))]
    command += ["--config_file", str(config_files(["train", "prune"], overlay))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with (tmp_path / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_in_words_and_it_goes_on(tmp_path: Path) -> None:
    torch.save(tiny_densenet().state_dict(), tmp_path / "net.pt")
    settings: dict[str, Any] = {"pretrained": str(tmp_path / "net.pt"), "transfer_epochs": 6}
    whole, output = tmp_path / "whole", tmp_path / "output"
    assert start(tmp_path, whole, **settings).wait(600) == 0

    process = start(tmp_path, output, **settings)
    checkpoints = output / "work" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("checkpoint_*.pt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) not in (0, None)
    words = (tmp_path / "output.log").read_text()
    assert "\nmonai_basisprune: interrupted. What was saved before is left as it is." in words
    assert words.rstrip().endswith("started again with the same command, the run goes on.")
    assert FAILED_WORDS not in words
    assert not (output / "study.json").exists()
    assert len(list(checkpoints.glob("checkpoint_*.pt"))) in (1, 2)

    assert start(tmp_path, output, **settings).wait(600) == 0
    for name in ("model.pt", "model.plan.json", "evaluations.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(checkpoints.glob("*"))


@pytest.mark.slow
def test_a_run_of_the_bundle_that_diverges_fails_in_words(tmp_path: Path) -> None:
    torch.save(tiny_densenet().state_dict(), tmp_path / "net.pt")
    process = start(tmp_path, tmp_path / "output", learning_rate=1e30, pretrained=str(tmp_path / "net.pt"))
    assert process.wait(600) not in (0, None)
    words = (tmp_path / "output.log").read_text()
    # with batch norms, gradients can overflow before the loss does
    assert re.search(
        r"\nmonai_basisprune: (The loss is NaN or infinite in epoch \d|.* infinite or NaN gradients)", words
    )
    assert FAILED_WORDS not in words


@pytest.mark.slow
def test_a_run_of_the_bundle_on_a_full_disk_fails_in_words(tmp_path: Path, disk: Path) -> None:
    assert start(tmp_path, disk).wait(600) not in (0, None)
    words = (tmp_path / "disk.log").read_text()
    assert "disk" in words
    assert FAILED_WORDS not in words
