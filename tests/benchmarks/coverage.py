"""Runs the coverage table: each network in a process of its own, with what Torch-Pruning does on the same network.

python tests/benchmarks/coverage.py --output docs/results/coverage.json --jobs 2 --page docs/coverage.md

A run that was stopped goes on where it stopped: rows that the output holds are not run again. Remove the output to
start anew. Needs the packages onnx, onnxruntime, onnxscript, einops and torch-pruning. With ``--rows`` only the rows
whose name matches are run; with ``--page`` alone the page is written again from the output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import monai_basisprune as mbp
from monai_basisprune.files import write_atomically

sys.path[0] = str(Path(__file__).resolve().parents[2])  # tests is no installed package, and coverage is one

from tests.benchmarks.coverage_page import write_page  # noqa: E402
from tests.coverage.checks import CLAIMS, Finding, check  # noqa: E402
from tests.coverage.peer import torch_pruning  # noqa: E402
from tests.coverage.row import Row  # noqa: E402
from tests.coverage.rows import ROWS  # noqa: E402

PACKAGES = ("monai", "torch", "onnx", "onnxruntime", "onnxscript", "einops", "torch-pruning")


def run_row(row: Row, into: Path) -> None:
    """Check one row in this process and write what is known after every claim, should the process be ended."""
    findings: list[dict[str, Any]] = []
    for finding in _findings(row):
        findings.append(asdict(finding))
        into.write_text(json.dumps(findings), encoding="utf-8")


def _findings(row: Row) -> Iterator[Finding]:
    yield from check(row)
    yield torch_pruning(row)


def run_in_process(row: Row, timeout: float, memory: float) -> dict[str, Any]:
    """Check one row in a new process with a limit of time and of memory, and return its record."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "findings.json"
        limit = int(memory * 2**30)
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--row", row.name, "--output", str(into)],
                capture_output=True,
                timeout=timeout,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
                check=False,
            )
            ended = f"the process ended with code {done.returncode}; the limit of memory is {memory:g} GiB"
        except subprocess.TimeoutExpired:
            ended = f"no answer within {timeout:g} s"
        findings = json.loads(into.read_text(encoding="utf-8")) if into.exists() else []
    known = {finding["claim"] for finding in findings}
    for claim in (*CLAIMS, "Torch-Pruning"):
        if claim not in known:
            findings.append(asdict(Finding(claim, "fails" if claim == "Torch-Pruning" else "fail", reason=ended)))
    return {
        "name": row.name,
        "family": row.family,
        "network": row.network,
        "input_shape": list(row.input_shape),
        "target_modules": row.target_modules,
        "seconds": round(time.perf_counter() - start, 1),
        "findings": findings,
    }


def cheap_first(rows: list[Row]) -> list[Row]:
    """Sort rows by their number of parameters."""

    def size(row: Row) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in row.make().parameters())

    return sorted(rows, key=size)


def main() -> None:
    """Run the rows that are missing, and write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--rows", default="", help="regular expression; only rows whose name it finds")
    parser.add_argument("--jobs", type=int, default=1, help="rows that run at the same time")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one row")
    parser.add_argument("--memory", type=float, default=16, help="GiB of address space for one row")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is written from the results")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        torch.set_num_threads(1)
        run_row(next(row for row in ROWS if row.name == arguments.row), arguments.output)
        return
    record: dict[str, Any] = {"command": "python " + " ".join(sys.argv)}
    if arguments.output.exists():
        record = json.loads(arguments.output.read_text(encoding="utf-8"))
    versions = {package: metadata.version(package) for package in PACKAGES}
    versions = {"python": platform.python_version(), "monai_basisprune": mbp.__version__, **versions}
    if record.setdefault("versions", versions) != versions:
        parser.error(f"{arguments.output} holds results of {record['versions']}, here is {versions}; remove it first.")
    results = {result["name"]: result for result in record.get("rows", [])}
    missing = [row for row in ROWS if row.name not in results and re.search(arguments.rows, row.name)]
    absent = sorted({row.needs for row in missing if row.needs and find_spec(row.needs) is None})
    if absent:
        parser.error(f"MONAI needs {', '.join(absent)} for some of the rows; install it, or choose others with --rows.")
    place = {row.name: index for index, row in enumerate(ROWS)}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [pool.submit(run_in_process, row, arguments.timeout, arguments.memory) for row in cheap_first(missing)]
        for number, run in enumerate(as_completed(runs), start=1):
            result = run.result()
            results[result["name"]] = result
            record["rows"] = sorted(results.values(), key=lambda one: place.get(one["name"], len(place)))
            write_atomically(arguments.output, json.dumps(record, indent=1) + "\n")
            bad = [f"{f['claim']}: {f['reason']}" for f in result["findings"] if f["state"] == "fail"]
            print(f"{number}/{len(runs)} {result['name']} {result['seconds']} s {'; '.join(bad) or 'pass'}", flush=True)
    if arguments.page:
        write_page(record, arguments.page, [row.name for row in ROWS if row.name not in results])


if __name__ == "__main__":
    main()
