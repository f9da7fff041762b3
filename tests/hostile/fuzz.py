"""Feeds hostile files to everything that reads a file: ``python -m tests.hostile.fuzz --inputs 100000 --seed 0``.

A reader may give a result that holds what must hold, or one of our errors. All else is a finding: another error, a
hang, memory without bounds, a file outside of its folder, a process or connection, code that ran. The readers work in
a child process with limits; one that dies is a finding, too, and is started anew. An input follows from its number and
the seed alone, so each can be made again: ``--only NUMBER``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import linecache
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import monai_basisprune
from monai_basisprune.errors import BasisPruneError

from .targets import Target, make_targets

PACKAGE = str(Path(monai_basisprune.__file__).parent) + os.sep
SECONDS, KILL_SECONDS = 20, 600
MEMORY = 1 << 30
"""More than this above what the process had before makes an input a finding."""

_ADDRESS_SPACE = 8 << 30
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Hang(BaseException):
    """An input that takes longer than any may."""


class Watch:
    """Sees through Python's audit hook what an input makes the process do; a hook cannot be taken away again."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = os.path.realpath(allowed)
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event.startswith(_FORBIDDEN):
            self.seen.append(event)
        elif event == "open" and (arguments[2] or 0) & _WRITES:
            self._place(event, arguments[0])
        elif event in _CHANGES:
            for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
                self._place(event, path)

    def _place(self, event: str, path: Any) -> None:
        if isinstance(path, (str, bytes)):
            place = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
            if not (place + os.sep).startswith(self.allowed + os.sep) and os.fsdecode(path) != os.devnull:
                self.seen.append(f"{event} outside of the folder")


def is_ours(error: BaseException) -> bool:
    """Tell whether an error was raised by a ``raise`` of this package, or is of its own tree."""
    if isinstance(error, BasisPruneError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, (OSError, ValueError)) or not frames or not frames[-1].filename.startswith(PACKAGE):
        return False
    return linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip().startswith("raise ")


def message_problem(error: BaseException, folder: Path) -> str | None:
    """Return what a message of ours must not hold, or None."""
    text = str(error)
    if len(text) < 15:
        return "a message that says nothing"
    if str(folder) in text:
        return "the folder in a message"
    if any(word in text for word in ("MemoryError", "allocate memory")):
        return "memory ran out"
    if any(not letter.isprintable() and letter != "\n" for letter in text):
        return "control characters in a message"
    return "an endless message" if len(text) > 200_000 else None


def judge(target: Target, data: bytes, folder: Path, watch: Watch | None = None) -> tuple[str, str]:
    """Let a reader read, and say how it went.

    Returns:
        "result" or "error" (one of ours) with its type; or the kind of a finding, and where it happened.
    """
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = place / f"input{target.suffix}"
    path.write_bytes(data)
    sys.hostile = 0  # type: ignore[attr-defined]  # what our payloads set
    base = _peak()
    outcome = ("result", "")
    if watch is not None:
        watch.seen, watch.active = [], True
    try:
        target.read(path)
    except _Hang as error:
        outcome = ("hang", _where(error))
    except AssertionError as error:
        outcome = ("wrong result", _where(error))
    except BaseException as error:
        problem = None if is_ours(error) and str(error) else "foreign error"
        problem = problem or (message_problem(error, place) if is_ours(error) else None)
        outcome = ("error", type(error).__name__) if problem is None else (problem, _where(error))
    finally:
        if watch is not None:
            watch.active = False
    if watch is not None and watch.seen:
        outcome = ("forbidden act", watch.seen[0])
    if sys.hostile:  # type: ignore[attr-defined]
        outcome = ("code was run", target.name)
    if _peak() - base > MEMORY:
        outcome = ("memory", target.name)
    return outcome


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    place = f"{own[-1].filename.removeprefix(PACKAGE)}:{own[-1].name}" if own else frames[-1].name if frames else "?"
    return f"{type(error).__name__} in {place}: {str(error)[:100]!a}"


def _peak() -> int:
    """Return the peak memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def make_input(targets: Sequence[Target], seed: int, number: int) -> tuple[Target, bytes]:
    """Return the reader and the bytes of one input."""
    rng = random.Random(f"{seed}/{number}")
    target = rng.choices(targets, weights=[target.weight for target in targets])[0]
    if rng.random() < 0.01:
        return target, rng.choice(target.seeds)
    return target, rng.choice(target.mutators)(rng, rng.choice(target.seeds), target.seeds)


def smaller(
    judged: Callable[[bytes], tuple[str, str]], data: bytes, wanted: tuple[str, str], tries: int = 150
) -> bytes:
    """Return a smaller input with the same finding, by taking away halves, quarters and so on."""
    size = max(len(data) // 2, 1)
    while size and tries > 0:
        place, shrunk = 0, False
        while place < len(data) and tries > 0:
            tries -= 1
            candidate = data[:place] + data[place + size :]
            kind, where = judged(candidate)
            if (kind, where.partition(":")[0]) == (wanted[0], wanted[1].partition(":")[0]):
                data, shrunk = candidate, True
            else:
                place += size
        size = size if shrunk and size > 1 else size // 2
    return data


def _work(connection: Connection, folder: Path, seed: int) -> None:
    """Judge the inputs whose numbers come in, until there are no more: what the child process does."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGPROF, _alarm)  # of the processor's time: a busy machine is no hang
    null = open(os.devnull, "w")  # noqa: SIM115  # of the whole process; the readers print
    sys.stdout = null
    targets = make_targets(folder / "good")
    watch = Watch(folder)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    connection.send(len(targets))
    while (number := connection.recv()) is not None:
        target, data = make_input(targets, seed, number)
        start = time.perf_counter()

        def judged(data: bytes, target: Target = target) -> tuple[str, str]:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                return judge(target, data, folder, watch)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)

        outcome = judged(data)
        seconds = time.perf_counter() - start
        if outcome[0] not in ("result", "error", "hang"):
            data = smaller(judged, data, outcome)
        connection.send(
            (target.name, target.suffix, *outcome, seconds, None if outcome[0] in ("result", "error") else data)
        )


def _alarm(*_: object) -> None:
    raise _Hang


class Child:
    """The process that judges; it is started anew when it dies."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._start()

    def _start(self) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of small files
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=(theirs, self.folder, self.seed), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()

    def judge(self, number: int) -> tuple[Any, ...] | None:
        """Return the outcome of an input, or None if it ended the process."""
        self.connection.send(number)
        with contextlib.suppress(EOFError, ConnectionError):
            if self.connection.poll(KILL_SECONDS):
                return self.connection.recv()
        self.close()
        self._start()
        return None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if there is any finding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to write the figures, as JSON")
    parser.add_argument("--save", type=Path, default=Path("fuzz_findings"), help="folder of the inputs of findings")
    parser.add_argument("--only", type=int, help="one input, by its number")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    findings: dict[tuple[str, ...], dict[str, Any]] = {}
    slowest: dict[str, float] = collections.defaultdict(float)
    child = Child(options.seed)
    numbers = range(options.inputs) if options.only is None else [options.only]
    try:
        for done, number in enumerate(numbers, start=1):
            answer = child.judge(number)
            if answer is None:
                name, suffix, kind, where, seconds, data = "a reader", "", "the process died", "", 0.0, b""
            else:
                name, suffix, kind, where, seconds, data = answer
            counts[name][kind if kind in ("result", "error") else "finding"] += 1
            slowest[name] = max(slowest[name], seconds)
            if kind not in ("result", "error"):
                key = (name, kind, where.partition(":")[0])
                if key not in findings:
                    findings[key] = {"reader": name, "kind": kind, "where": where, "input": number, "times": 0}
                    if data:
                        options.save.mkdir(parents=True, exist_ok=True)
                        file = options.save / f"{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
                        file.write_bytes(data)
                        findings[key]["file"] = file.name
                    print(f"FINDING {json.dumps(findings[key])}", flush=True)
                findings[key]["times"] += 1
            if done % 1000 == 0:
                print(
                    f"{done} inputs, {len(findings)} kinds of findings, {time.perf_counter() - start:.0f} s", flush=True
                )
    finally:
        child.close()
    totals = collections.Counter(kind for counter in counts.values() for kind in counter.elements())
    record = {
        "command": f"python -m tests.hostile.fuzz --inputs {options.inputs} --seed {options.seed}",
        "inputs": len(numbers),
        "seed": options.seed,
        "findings": totals["finding"],
        "results": totals["result"],
        "errors_of_ours": totals["error"],
        "readers": {
            name: {kind: counter[kind] for kind in ("result", "error", "finding")}
            | {"slowest_seconds": round(slowest[name], 2)}
            for name, counter in sorted(counts.items())
        },
        "kinds_of_findings": list(findings.values()),
        "limits": {"seconds": SECONDS, "memory_bytes": MEMORY},
        "versions": {
            "monai_basisprune": monai_basisprune.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "wall_seconds": round(time.perf_counter() - start),
    }
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: record[key] for key in ("inputs", "results", "errors_of_ours", "findings", "wall_seconds")}))
    return 1 if totals["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
