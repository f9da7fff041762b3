"""Kills real runs at random moments, starts them again, and compares all that they leave.

python -m tests.benchmarks.kills --kills 24 --output docs/results/kills.json
python -m tests.benchmarks.kills --kinds bundle --kills 20 --output docs/results/kills.json

Runs of the chest X-ray bundle search for a margin of AUC, or go through fixed targets; those of the kind "bundle" are
the command that prunes an existing bundle, of which loader, transforms, dropout and schedule are not ours. All prune
bases and channels. A run is killed by SIGKILL some times at random, each time started again with the same command, and
then left to end. What it leaves has to be equal byte by byte to what a run left that was never stopped, except for
times, memory and the clock. Runs of other kinds that are in the file already stay there.
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

from tests.bundle_runs import TINY
from tests.workflow.source_bundles import write_data, write_source

ROOT = Path(__file__).parents[2]
BUNDLE = "bundles/chest_xray_classification"
OVERLAY = {
    "image_size": 32,
    "transfer_epochs": 8,
    "synthetic_patients": 80,
    "epochs_per_round": 4,
    "targets": [0.2, 0.4, 0.6, 0.8],
    "distilled_from": 0.5,
    "recombined_from": 0.5,
    "network_def": TINY["network_def"],
}
KINDS: dict[str, dict[str, Any]] = {"targets": {}, "search": {"auc_margin": 0.05, "selection": "point"}, "bundle": {}}
SALT = "5a" * 32
"""Without it, each folder has pseudonyms of its own."""
PER_RUN = 4
TIMES = ("created", "wall_seconds", "peak_memory_bytes", "latency", "command")


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(ROOT),
    }  # TorchScript orders by hashes
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=file, stderr=file)


class StudyRuns:
    """Runs of the chest X-ray bundle.

    Args:
        work: where they are.
        settings: what sets them apart.
    """

    def __init__(self, work: Path, kind: str, settings: dict[str, Any]) -> None:
        self.overlay = work / f"{kind}.json"
        self.overlay.write_text(json.dumps(OVERLAY | settings))

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start one, or let it go on."""
        if not folder.exists():
            (folder / "work").mkdir(parents=True)
            (folder / "work" / "salt").write_text(SALT)
        configs = [f"{BUNDLE}/configs/{name}.json" for name in ("train", "prune")]
        files = ",".join(f"'{path}'" for path in (*configs, self.overlay))
        command = ["monai.bundle", "run", "prune", "--bundle_root", BUNDLE, "--config_file", f"[{files}]"]
        return start([*command, "--output_dir", str(folder)], folder.parent / f"{folder.name}.log")

    def working(self, folder: Path) -> Path:
        """Return where a run keeps its state."""
        return folder / "work"

    def epochs(self, folder: Path) -> int:
        """Return how many epochs a run that has ended had."""
        return len(json.loads((folder / "evaluations.json").read_text(encoding="utf-8")))

    def left(self, folder: Path) -> dict[str, Any]:
        """Return what a run left: digests of its files, and its study without times."""
        names = ["model.pt", "model.plan.json", "model.ts", "evaluations.json", "curve.csv", "roc.csv", "datalist.json"]
        paths = [folder / name for name in names] + sorted((folder / "work" / "networks").glob("*"))
        study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        return {**digests(paths, folder), "study.json": without_times(study)}


class BundleRuns:
    """Runs of the command that prunes an existing bundle.

    Args:
        work: where they are.
    """

    def __init__(self, work: Path) -> None:
        self.data = write_data(work / "data", (64, 32, 16))
        self.source = write_source(work / "source", self.data, change=unsteady)
        for name in ("inference", "evaluate"):
            (self.source / "configs" / f"{name}.json").unlink()

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start one, or let it go on."""
        command = ["monai_basisprune.cli", "prune", str(self.source), str(folder), "--dataset_dir", str(self.data)]
        command += ["--channels", "--margin", "0.2", "--transfer_epochs", "6", "--epochs_per_round", "3"]
        command += ["--targets", "0.2", "0.4", "0.6", "0.8"]
        return start(command, folder.parent / f"{folder.name}.log")

    def working(self, folder: Path) -> Path:
        """Return where a run keeps its state."""
        return folder.with_name(f"{folder.name}.unfinished")

    def epochs(self, folder: Path) -> int:
        """Return how many epochs a run that has ended had."""
        return 6 + 4 * 3

    def left(self, folder: Path) -> dict[str, Any]:
        """Return what a run left: digests of the files of the new bundle, and nothing beside it."""
        beside = [path.name for path in folder.parent.glob(f"*{folder.name}*") if path.suffix != ".log"]
        return {**digests([path for path in folder.rglob("*") if path.is_file()], folder), "beside": len(beside)}


def unsteady(config: dict[str, Any]) -> None:
    """Let all that can be random be random, and the schedule move."""
    config["lr_scheduler"] |= {"step_size": 1, "gamma": 0.9}
    noise = {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5, "std": 0.3}
    transforms = [*config["train"]["preprocessing"]["transforms"], noise]
    config["train"]["preprocessing"] = {"_target_": "Compose", "transforms": transforms}
    config["train"]["dataloader"]["generator"] = "$torch.Generator()"
    config["network_def"]["dropout_prob"] = 0.1


def digests(paths: list[Path], folder: Path) -> dict[str, str]:
    """Return a hash of each file by its name."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def without_times(value: Any) -> Any:
    """Return a record without what depends on the clock."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def reached(working: Path) -> int:
    """Return the last epoch whose checkpoint is there, and 0 where none is."""
    saved = sorted(path.name for path in (working / "checkpoints").glob("checkpoint_*.pt"))
    return int(saved[-1][11:17]) if saved else 0


def killed_at(epoch: int, wait: float, runs: StudyRuns | BundleRuns, folder: Path) -> str | None:
    """Start a run, and kill it some moments after an epoch; returns what it had reached, or None where it had ended."""
    working = runs.working(folder)
    before = {path.name for path in working.rglob(".*.tmp")}
    process = runs.start(folder)
    while process.poll() is None and reached(working) < epoch:
        time.sleep(0.01)
    time.sleep(wait)
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial = {path.name for path in working.rglob(".*.tmp")} - before
    return f"after epoch {reached(working)}" + (", while it saved" if partial else "")


def main() -> None:
    """Run, kill, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["targets", "search"])
    parser.add_argument("--kills", type=int, default=24, help="of these kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    earlier = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else {}
    runs = [run for run in earlier.get("runs", []) if run["kind"] not in arguments.kinds]
    command = f"python -m tests.benchmarks.kills --kinds {' '.join(arguments.kinds)} --kills {arguments.kills} --seed "
    command += f"{arguments.seed} --output {arguments.output.as_posix()}"
    first = len(runs)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        made: dict[str, StudyRuns | BundleRuns] = {
            kind: BundleRuns(work) if kind == "bundle" else StudyRuns(work, kind, KINDS[kind])
            for kind in arguments.kinds
        }
        for kind, of_kind in made.items():
            assert of_kind.start(work / f"whole {kind}").wait() == 0
        while sum(len(run["killed"]) for run in runs[first:]) < arguments.kills:
            kind = arguments.kinds[(len(runs) - first) % len(made)]
            of_kind, whole, folder = made[kind], work / f"whole {kind}", work / f"run {len(runs)}"
            chosen = sorted(generator.sample(range(of_kind.epochs(whole)), PER_RUN))
            tries = [killed_at(epoch, generator.uniform(0, 0.5), of_kind, folder) for epoch in chosen]
            assert of_kind.start(folder).wait() == 0
            found, wanted = of_kind.left(folder), of_kind.left(whole)
            differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            runs.append({"kind": kind, "killed": [one for one in tries if one is not None], "differing": differing})
            print(runs[-1], flush=True)
            record = {
                "commands": {**earlier.get("commands", {}), " and ".join(arguments.kinds): command},
                "torch": torch.__version__,
                "runs": runs,
                "kills": sum(len(run["killed"]) for run in runs),
                "equal": all(not run["differing"] for run in runs),
            }
            arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
