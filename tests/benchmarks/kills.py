"""Kills real runs of the chest X-ray bundle at random moments, starts them again, and compares all that they leave.

python tests/benchmarks/kills.py --kills 24 --output docs/results/kills.json

Half of the runs search for a margin of AUC, half go through fixed targets; all prune bases and channels. A run is
killed by SIGKILL some times at random, each time started again with the same command, and then left to end. What it
leaves has to be equal byte by byte to what a run left that was never stopped, except for times, memory and the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
BUNDLE = "bundles/chest_xray_classification"
NETWORK = {
    "_target_": "monai.networks.nets.DenseNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "init_features": 8,
    "growth_rate": 8,
    "block_config": [2, 2],
}
OVERLAY = {
    "image_size": 32,
    "transfer_epochs": 8,
    "synthetic_patients": 80,
    "epochs_per_round": 4,
    "targets": [0.2, 0.4, 0.6, 0.8],
    "network_def": NETWORK,
}
KINDS: dict[str, dict[str, Any]] = {"targets": {}, "search": {"auc_margin": 0.05, "selection": "point"}}
PER_RUN = 4
TIMES = ("created", "wall_seconds", "peak_memory_bytes", "latency", "command")


def start(folder: Path, overlay: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own."""
    configs = ",".join(f"'{path}'" for path in (*(f"{BUNDLE}/configs/{n}.json" for n in ("train", "prune")), overlay))
    command = [sys.executable, "-m", "monai.bundle", "run", "prune", "--bundle_root", BUNDLE]
    command += ["--config_file", f"[{configs}]", "--output_dir", str(folder)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(ROOT),
    }  # TorchScript orders by hashes
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def left(folder: Path) -> dict[str, Any]:
    """Return what a run left: digests of its files, and its study without times."""
    names = ["model.pt", "model.plan.json", "model.ts", "evaluations.json", "curve.csv", "roc.csv", "datalist.json"]
    paths = [folder / name for name in names] + sorted((folder / "work" / "networks").glob("*"))
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return {**digests, "study.json": without_times(json.loads((folder / "study.json").read_text(encoding="utf-8")))}


def without_times(value: Any) -> Any:
    """Return a record without what depends on the clock."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def reached(folder: Path) -> int:
    """Return the last epoch whose checkpoint is there, and 0 where none is."""
    saved = sorted(path.name for path in (folder / "work" / "checkpoints").glob("checkpoint_*.pt"))
    return int(saved[-1][11:17]) if saved else 0


def killed_at(epoch: int, wait: float, folder: Path, overlay: Path) -> str | None:
    """Start a run, and kill it some moments after an epoch; returns what it had reached, or None where it had ended."""
    before = {path.name for path in (folder / "work").rglob(".*.tmp")}
    process = start(folder, overlay)
    while process.poll() is None and reached(folder) < epoch:
        time.sleep(0.01)
    time.sleep(wait)
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial = {path.name for path in (folder / "work").rglob(".*.tmp")} - before
    return f"after epoch {reached(folder)}" + (", while it saved" if partial else "")


def main() -> None:
    """Run, kill, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    record: dict[str, Any] = {
        "command": f"python tests/benchmarks/kills.py --kills {arguments.kills} --output {arguments.output.as_posix()}",
        "torch": torch.__version__,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        salt = "5a" * 32  # without it, each folder has pseudonyms of its own
        wanted, epochs = {}, {}
        overlays = {kind: work / f"{kind}.json" for kind in KINDS}
        for kind, extra in KINDS.items():
            overlays[kind].write_text(json.dumps(OVERLAY | extra))
            prepare(work / f"whole {kind}", salt)
            assert start(work / f"whole {kind}", overlays[kind]).wait() == 0
            wanted[kind] = left(work / f"whole {kind}")
            epochs[kind] = len(json.loads((work / f"whole {kind}" / "evaluations.json").read_text()))
        kills = 0
        while kills < arguments.kills:
            kind = list(KINDS)[len(record["runs"]) % len(KINDS)]
            folder = work / f"run {len(record['runs'])}"
            prepare(folder, salt)
            chosen = sorted(generator.sample(range(epochs[kind]), PER_RUN))
            tries = [killed_at(epoch, generator.uniform(0, 0.5), folder, overlays[kind]) for epoch in chosen]
            moments = [one for one in tries if one is not None]
            assert start(folder, overlays[kind]).wait() == 0
            found = left(folder)
            differing = sorted(key for key in {*found, *wanted[kind]} if found.get(key) != wanted[kind].get(key))
            kills += len(moments)
            record["runs"].append({"kind": kind, "killed": moments, "differing": differing})
            record |= {"kills": kills, "equal": all(not run["differing"] for run in record["runs"])}
            print(record["runs"][-1], flush=True)
            arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def prepare(folder: Path, salt: str) -> None:
    """Make the folder of a run, with the secret that its pseudonyms are made with."""
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "salt").write_text(salt)


if __name__ == "__main__":
    main()
