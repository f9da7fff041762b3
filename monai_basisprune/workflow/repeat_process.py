"""One repeat of a study as a process of its own: how it is started and ended, and what it does.

A repeat gets its configuration and its cohort through a pipe. So neither the user's folders nor the names of files
come to stand in a file or in the list of processes, and a repeat ends with the process that started it, however that
one ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..redaction import install_redaction
from .cohort import PreparedCohort, working_folder

__all__ = ["RepeatTask", "available_cores", "failure_reason", "run_repeat", "run_tasks"]

LOG_FILE = "log.txt"
_COMMAND = f"from {__name__} import run_repeat; run_repeat()"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_OWN_ERROR = "monai_basisprune: "
_ERROR = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Exit))\b")
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class RepeatTask:
    """A repeat that is to be run.

    Attributes:
        folder: where it writes its results and its log.
        config: the configuration to run, as JSON types.
        cohort: the cohort, read and divided.
    """

    folder: Path
    config: Mapping[str, Any]
    cohort: PreparedCohort


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(tasks: Sequence[RepeatTask], parallel: int) -> Generator[tuple[RepeatTask, str | None], None, None]:
    """Run each task in a process of its own, several at once; if this is interrupted, all of them are ended.

    Args:
        tasks: what to run.
        parallel: how many processes at once.

    Yields:
        each task when it has ended, with the reason if it failed.
    """
    threads = str(max(1, available_cores() // parallel))
    limits = {name: os.environ.get(name, threads) for name in _THREADS}
    search_path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **limits, "PYTHONPATH": search_path, "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"}
    running: set[subprocess.Popen[bytes]] = set()
    lock, ended = threading.Lock(), threading.Event()
    pool = ThreadPoolExecutor(parallel)

    def run(task: RepeatTask) -> str | None:
        log = working_folder(task.folder).parent / LOG_FILE
        with open(log, "wb") as output:
            with lock:
                if ended.is_set():
                    return "it was not started"
                process = subprocess.Popen(
                    [sys.executable, "-c", _COMMAND],
                    stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment,
                )  # fmt: skip
                running.add(process)
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended already; its log says why
                process.stdin.write(_request(task))
                process.stdin.flush()
            code = process.wait()  # the pipe stays open so long: its end is the end of the repeat
            with contextlib.suppress(OSError):
                process.stdin.close()
            with lock:
                running.discard(process)
        return None if code == 0 else failure_reason(log, code)

    futures = {pool.submit(run, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
        with lock:
            left = list(running)
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def run_repeat() -> None:
    """Run the repeat that comes through standard input, and end when that input ends: what a repeat's process does."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    cohort = PreparedCohort(
        Path(request["dataset_dir"]), Path(request["datalist_file"]), request["datalist"], request["synthetic"]
    )
    install_redaction([cohort.dataset_dir, request["folder"]])
    config = request["config"]
    config["cohort"]["prepared"] = cohort  # as an object: a datalist holds names of files, which are no expressions
    parser = ConfigParser(config)
    parser.parse(True)
    for steps in ("initialize", "prune", "finalize"):
        for index in range(len(parser.get(steps, []))):
            parser.get_parsed_content(f"{steps}::{index}")


def _request(task: RepeatTask) -> bytes:
    cohort = task.cohort
    request = {
        "config": task.config,
        "folder": str(task.folder),
        "dataset_dir": str(cohort.dataset_dir),
        "datalist_file": str(cohort.datalist_file),
        "datalist": cohort.datalist,
        "synthetic": cohort.synthetic,
    }
    return json.dumps(request).encode() + b"\n"


def _end_with_input() -> None:
    # not through sys.stdin: its lock would be held when Python ends
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def failure_reason(log: Path, code: int) -> str:
    """Say why a process failed: the last error of ours in its log, or the kind of another, whose text may name a file.

    Args:
        log: what the process printed.
        code: its exit status.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line.removeprefix(_OWN_ERROR) for line in lines if line.startswith(_OWN_ERROR)]
    if own:
        return own[-1]
    if code < 0:
        return f"it was ended by signal {-code}: stopped from outside, or out of memory; try a smaller --parallel"
    kinds = [match.group(1) for line in lines if (match := _ERROR.match(line))]
    return f"{kinds[-1] if kinds else f'exit code {code}'}; {LOG_FILE} in the folder of the repeat says more"
