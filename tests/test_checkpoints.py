from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_basisprune.checkpoints import RunCheckpoints, setting_digests
from monai_basisprune.errors import PlanMismatchError

SETTINGS = {"learning_rate": 0.01, "targets": [0.5, 0.9], "pretrained": "/home/somebody/secret.pt"}


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path):
    checkpoints = RunCheckpoints(tmp_path / "new", SETTINGS)
    assert checkpoints.load() is None
    for epoch in range(1, 5):
        checkpoints.save(epoch, {"value": torch.tensor([epoch])})
    assert sorted(os.listdir(tmp_path / "new")) == ["checkpoint_000003.pt", "checkpoint_000004.pt"]
    found = RunCheckpoints(tmp_path / "new", SETTINGS).load()
    assert found is not None
    assert (found.epoch, found.state["value"].item(), found.warnings) == (4, 4, ())
    (tmp_path / "new" / "other").touch()
    checkpoints.remove()
    assert os.listdir(tmp_path / "new") == ["other"]
    (tmp_path / "new" / "other").unlink()
    checkpoints.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "code"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str):
    checkpoints = RunCheckpoints(tmp_path, SETTINGS)
    for epoch in (1, 2):
        path = checkpoints.save(epoch, {"value": torch.arange(1000)})
    content = bytearray(path.read_bytes())
    if damage == "code":
        wrong = {"state": {"x": Path("y")}}
        torch.save({"format_version": 4, "epoch": 2, "threads": 1, "salt": "", "settings": {}, **wrong}, path)
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    found = checkpoints.load()
    assert found is not None
    assert found.epoch == 1
    assert len(found.warnings) == 1
    assert "checkpoint_000002.pt" in found.warnings[0]
    (tmp_path / "checkpoint_000001.pt").write_bytes(b"no archive")
    with pytest.raises(PlanMismatchError, match=r"none of them can be read(.|\n)*000002(.|\n)*000001(.|\n)*--resume"):
        checkpoints.load()


def test_a_checkpoint_of_other_settings_is_refused_with_their_names_and_not_their_values(tmp_path: Path):
    RunCheckpoints(tmp_path, SETTINGS).save(3, {})
    other = {**SETTINGS, "learning_rate": 0.02, "fold": 1, "pretrained": "/home/other.pt"}
    with pytest.raises(PlanMismatchError) as caught:
        RunCheckpoints(tmp_path, other).load()
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == ["- fold", "- learning_rate", "- pretrained"]
    assert "name another folder for the results, or pass --resume false" in str(caught.value)
    assert b"somebody" not in next(tmp_path.iterdir()).read_bytes()


def test_digests_do_not_depend_on_the_order_of_keys_and_tell_values_apart():
    salt = b"one"
    assert setting_digests({"a": {"x": 1, "y": 2}}, salt) == setting_digests({"a": {"y": 2, "x": 1}}, salt)
    assert setting_digests({"a": 1}, salt) != setting_digests({"a": 1.5}, salt)
    assert setting_digests({"a": None}, salt) != setting_digests({}, salt)
    assert setting_digests({"a": 1}, salt) != setting_digests({"a": 1}, b"other")
    assert len(set(setting_digests({"a": 1, "b": 1}, salt).values())) == 2  # equal values do not show


KILLED = """
import os, signal, sys
import torch
from monai_basisprune.checkpoints import RunCheckpoints
checkpoints = RunCheckpoints(sys.argv[1], {})
events = 0
def count(frame, event, argument):
    global events
    if event == "line" and "monai_basisprune" in frame.f_code.co_filename:
        events += 1
        if events == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    return count
checkpoints.save(1, {"value": torch.tensor([1])})
checkpoints.save(2, {"value": torch.tensor([2])})
sys.settrace(count)
checkpoints.save(3, {"value": torch.tensor([3])})
sys.settrace(None)
print(events)
"""


def kill_at(folder: Path, line: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", KILLED, str(folder), str(line)], capture_output=True, text=True)


def test_killed_while_it_saves_the_last_or_the_one_before_can_be_read(tmp_path: Path):
    lines = int(kill_at(tmp_path / "whole", 0).stdout)
    assert lines > 20
    for number, line in enumerate((lines // 3, 2 * lines // 3, lines - 1)):
        folder = tmp_path / str(number)
        assert kill_at(folder, line).returncode == -signal.SIGKILL
        found = RunCheckpoints(folder, {}).load()
        assert found is not None
        assert found.warnings == ()
        assert found.epoch in (2, 3)
        assert found.state["value"].item() == found.epoch
