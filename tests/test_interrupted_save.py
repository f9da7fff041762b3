"""A save that is killed, at every one of its lines and at random times, leaves a network that loads."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.files import sha256_of
from monai_basisprune.persistence import plan_path

from .networks import same_bits, snapshot, tiny_classifier

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that are copied are those of POSIX")

TWO_FILES = ["model.plan.json", "model.pt"]


def pruned(number: int) -> nn.Module:
    """Return one of several networks, each with other weights and another number of bases."""
    network = mbp.decompose(tiny_classifier(number))
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.2 * number))
    return network


# Copies itself for each line of a save, the copy kills itself at that line. Every step that changes a file stands on
# a line of its own; what is not yet whole while PyTorch writes it is left to the test that kills at random times.
AT_EVERY_LINE = """
import os, shutil, signal, sys
from pathlib import Path
import monai_basisprune as mbp
from monai_basisprune import files, persistence
from tests.test_interrupted_save import pruned

start, folder, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
network = pruned(number)
save = persistence.save_pruned.__code__
traced = {save, persistence._finish_save.__code__, *(c for c in save.co_consts if getattr(c, "co_name", "") == "write")}
last = 0

def kill_at(line):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code not in traced and frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

while True:
    last += 1
    shutil.copytree(start, folder / f"{last:04d}")
    child = os.fork()
    if not child:
        sys.settrace(kill_at(last))
        mbp.save_pruned(network, folder / f"{last:04d}" / "model.pt")
        sys.settrace(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""

# For each line of its input, the seconds, a copy of the process saves for ever and is killed after that time.
AT_ANY_TIME = """
import os, signal, sys, time
import monai_basisprune as mbp
from tests.test_interrupted_save import pruned

networks = [pruned(1), pruned(2)]
for seconds in sys.stdin:
    child = os.fork()
    while not child:
        for network in networks:
            mbp.save_pruned(network, sys.argv[1])
    time.sleep(float(seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def loaded(path: Path, states: list[dict[str, torch.Tensor]]) -> int:
    """Load a network in both ways, and return which of several it is, to the bit."""
    found = snapshot(mbp.load_pruned(tiny_classifier, path))
    (which,) = [i for i, state in enumerate(states) if same_bits(found, state)]
    built = mbp.build_pruned(tiny_classifier, str(plan_path(path)))  # as the configuration of a bundle does it
    built.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert same_bits(snapshot(built), states[which])
    return which


def kill_at_every_line(start: Path, folder: Path, number: int) -> list[Path]:
    arguments = [sys.executable, "-c", AT_EVERY_LINE, str(start), str(folder), str(number)]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parents[1])
    return sorted(folder.iterdir())


def test_killed_at_any_line_one_of_two_complete_networks_loads(tmp_path: Path) -> None:
    states = [snapshot(pruned(1)), snapshot(pruned(2)), snapshot(pruned(3))]
    mbp.save_pruned(pruned(1), tmp_path / "start" / "model.pt")
    folders = kill_at_every_line(tmp_path / "start", tmp_path / "killed", 2)
    found = [loaded(folder / "model.pt", states) for folder in folders]
    assert found == sorted(found)  # the earlier network up to one line, and the new one from there on
    assert set(found) == {0, 1}
    assert len(folders) > 50
    # between the two renames the weights are new, and their plan has its second name
    windows = [
        folder for folder in folders if found[folders.index(folder)] == 1 and len(list(folder.glob("*.json"))) == 2
    ]
    assert windows
    # the next save goes on from wherever the last one was killed, and leaves nothing of it
    for folder in folders[::10] + windows:
        mbp.save_pruned(pruned(3), folder / "model.pt")
        assert loaded(folder / "model.pt", states) == 2
        assert sorted(os.listdir(folder)) == TWO_FILES


@pytest.mark.slow
def test_killed_again_after_it_was_killed_between_the_two_renames(tmp_path: Path) -> None:
    states = [snapshot(pruned(1)), snapshot(pruned(2)), snapshot(pruned(3))]
    window(tmp_path / "start", 1, 2)
    assert loaded(tmp_path / "start" / "model.pt", states) == 1
    found = [loaded(f / "model.pt", states) for f in kill_at_every_line(tmp_path / "start", tmp_path / "killed", 3)]
    assert found == sorted(found)
    assert set(found) == {1, 2}


def window(folder: Path, earlier: int, later: int) -> Path:
    """Make what a process leaves that was killed between the rename of the weights and that of the plan."""
    mbp.save_pruned(pruned(later), folder / "later" / "model.pt")
    mbp.save_pruned(pruned(earlier), folder / "model.pt")
    os.replace(folder / "later" / "model.pt", folder / "model.pt")
    os.replace(folder / "later" / "model.plan.json", folder / "model.plan.next.json")
    (folder / "later").rmdir()
    return folder / "model.pt"


def test_the_first_save_of_a_name_leaves_nothing_or_a_network(tmp_path: Path) -> None:
    states = [snapshot(pruned(1))]
    path = tmp_path / "model.pt"
    mbp.save_pruned(pruned(1), path)
    os.replace(plan_path(path), tmp_path / "model.plan.next.json")
    assert loaded(path, states) == 0
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no weights file model\.pt"):
        mbp.load_pruned(tiny_classifier, path)
    with pytest.raises(FileNotFoundError, match=r"There is no plan model\.plan\.json"):
        mbp.build_pruned(tiny_classifier, plan_path(path))


def test_weights_that_belong_to_neither_plan_are_refused_with_all_three_sums(tmp_path: Path) -> None:
    path = window(tmp_path, 1, 2)
    torch.save(pruned(3).state_dict(), path)
    with pytest.raises(mbp.PlanMismatchError, match="are not those that") as caught:
        mbp.load_pruned(tiny_classifier, path)
    sums = [json.loads((tmp_path / f"model.plan{which}.json").read_text())["weights_sha256"] for which in ("", ".next")]
    assert f"SHA-256 {sha256_of(path)}, the plan has {sums[0]}, and model.plan.next.json has {sums[1]}." in str(
        caught.value
    )


@pytest.mark.parametrize("content", ["", "{}", '{"format": "monai_basisprune.plan", "format_version": 1}'])
def test_a_second_plan_that_cannot_be_used_does_no_harm(tmp_path: Path, content: str) -> None:
    mbp.save_pruned(pruned(1), tmp_path / "model.pt")
    (tmp_path / "model.plan.next.json").write_text(content)
    assert loaded(tmp_path / "model.pt", [snapshot(pruned(1))]) == 0
    mbp.save_pruned(pruned(1), tmp_path / "model.pt")
    assert sorted(os.listdir(tmp_path)) == TWO_FILES


def test_a_plan_whose_weights_are_not_there_is_not_replaced_by_a_second_one(tmp_path: Path) -> None:
    path = window(tmp_path, 1, 2)
    path.unlink()
    built = mbp.build_pruned(tiny_classifier, plan_path(path))
    built.load_state_dict(pruned(1).state_dict(), strict=True)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_error_at_any_rename_leaves_one_of_the_networks_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = tmp_path / "model.pt"
    mbp.save_pruned(pruned(1), path)
    replace, calls = os.replace, []

    def fail(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == step:
            raise OSError("disk is full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        mbp.save_pruned(pruned(2), path)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == TWO_FILES
    assert loaded(path, [snapshot(pruned(1)), snapshot(pruned(2))]) == (step == 3)


def test_each_file_is_on_the_disk_before_the_next_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill cannot show: a power cut loses what was not flushed."""
    events: list[str] = []
    replace, fsync = os.replace, os.fsync

    def note_replace(source: Path, target: Path) -> None:
        events.append(f"rename to {Path(target).name}")
        replace(source, target)

    def note_fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2]
        events.append(f"flush {'folder' if name == tmp_path.name else name.split('.json')[0].split('.pt')[0]}")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "fsync", note_fsync)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the names of open files are those of Linux")
    mbp.save_pruned(pruned(1), tmp_path / "model.pt")
    assert events == [
        *("flush .model.plan.next", "rename to model.plan.next.json", "flush folder"),
        *("flush .model", "rename to model.pt", "flush folder"),
        *("rename to model.plan.json", "flush folder"),
    ]


def test_killed_at_random_times_a_network_loads_and_few_files_are_left_over(tmp_path: Path) -> None:
    states = [snapshot(pruned(1)), snapshot(pruned(2))]
    path, rng = tmp_path / "model.pt", random.Random(0)
    mbp.save_pruned(pruned(1), path)
    command = [sys.executable, "-c", AT_ANY_TIME, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(15):
            print(rng.uniform(0.0, 0.06), file=process.stdin, flush=True)
            assert process.stdout.readline() == "killed\n"
            loaded(path, states)
            assert len(os.listdir(tmp_path)) <= 5  # the two, a second plan, and a temporary file of each of two
        process.stdin.close()
    assert process.returncode == 0
    mbp.save_pruned(pruned(1), path)
    assert loaded(path, states) == 0
    assert sorted(os.listdir(tmp_path)) == TWO_FILES
