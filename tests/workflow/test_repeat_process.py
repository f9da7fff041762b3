from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_basisprune.workflow.cohort import PreparedCohort
from monai_basisprune.workflow.repeat_process import LOG_FILE, RepeatTask, available_cores, failure_reason, run_tasks

from ..bundle_runs import ROOT


def test_a_process_gets_its_cohort_as_data_and_its_error_is_known(tmp_path: Path) -> None:
    # a name of a file that would be an expression in a configuration
    datalist = {"test": [{"image": "$__import__('os')._exit(3)"}]}
    cohort = PreparedCohort(tmp_path / "Doe_John", tmp_path / "datalist.json", datalist, False)
    config = {
        "imports": ["$import monai_basisprune", "$import monai_basisprune.workflow"],
        "folder": str(tmp_path / "repeat"),
        "cohort": {},
        "batsch_size": 8,
        "initialize": ["$open(@folder + '/found.txt', 'w').write(@cohort['prepared'].datalist['test'][0]['image'])"],
        "prune": ["$print(@cohort['prepared'].dataset_dir)", "$monai_basisprune.workflow.start_run(0)"],
    }
    task = RepeatTask(tmp_path / "repeat", config, cohort)
    assert list(run_tasks([task], 2)) == [
        (task, "The configuration has keys that would be ignored; correct or remove them:")
    ]
    assert (tmp_path / "repeat" / "found.txt").read_text() == "$__import__('os')._exit(3)"
    assert "  - batsch_size: nothing in this configuration uses it" in (tmp_path / "repeat" / LOG_FILE).read_text()


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("x\n\nmonai_basisprune: All is bad:\n  - this\n", 1, "All is bad:"),
        ("monai_basisprune: early\nmonai_basisprune: late\n", -9, "late"),
        (
            "ValueError: caught\nTraceback\nmodule.OSError: /data/Doe_John\n  at Doe\n", 1,
            "OSError; log.txt in the folder of the repeat says more",
        ),
        ("", 3, "exit code 3; log.txt in the folder of the repeat says more"),
        ("", -9, "it was ended by signal 9: stopped from outside, or out of memory; try a smaller --parallel"),
    ],
)  # fmt: skip
def test_reason_of_a_failure_names_no_file(tmp_path: Path, log: str, code: int, reason: str) -> None:
    (tmp_path / LOG_FILE).write_text(log)
    assert failure_reason(tmp_path / LOG_FILE, code) == reason


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are not given to processes there")
def test_the_cores_are_those_that_this_process_may_use() -> None:
    own = os.sched_getaffinity(0)
    assert available_cores() == len(own)
    os.sched_setaffinity(0, {min(own)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, own)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow  # several processes, of which each imports MONAI
def test_whoever_stops_listening_ends_all_of_them(tmp_path: Path) -> None:
    pid, cohort = tmp_path / "pid", PreparedCohort(tmp_path, tmp_path / "datalist.json", {}, False)
    write = f"$open({str(pid)!r} + '.part', 'w').write(str(os.getpid()))"
    steps: dict[str, list[str]] = {
        "long": [write, f"$os.rename({str(pid)!r} + '.part', {str(pid)!r})", "$time.sleep(600)"],
        "short": [f"$list(iter(lambda: os.path.exists({str(pid)!r}) or time.sleep(0.1), True))"],
        "later": ["$1 / 0"],
    }
    config: dict[str, Any] = {"imports": ["$import os", "$import time"], "cohort": {}}
    tasks = [RepeatTask(tmp_path / name, {**config, "prune": own}, cohort) for name, own in steps.items()]
    ended = run_tasks(tasks, 2)
    assert next(ended) == (tasks[1], None)
    process = int(pid.read_text())
    ended.close()
    assert not is_there(process)
    assert "ZeroDivisionError" not in "".join(log.read_text() for log in (tmp_path / "later").glob("**/log.txt"))


@pytest.mark.slow
def test_a_repeat_ends_with_its_input() -> None:
    config = {"imports": ["$import time"], "cohort": {}, "prune": ["$print('there', flush=True)", "$time.sleep(600)"]}
    request = {"config": config, "folder": "x", "dataset_dir": "y", "datalist_file": "z", "datalist": {}}
    with subprocess.Popen(
        [sys.executable, "-c", "from monai_basisprune.workflow.repeat_process import run_repeat; run_repeat()"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({**request, "synthetic": False}).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == [b"there"]
        process.stdin.close()
        assert process.wait(60) == 1
