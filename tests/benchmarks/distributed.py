"""Compares a run of the chest X-ray bundle in two processes with the same run in one; kills one of two, and goes on.

python tests/benchmarks/distributed.py --work /path/to/scratch --output docs/results/distributed.json

The network has batch norms, bases and channels are pruned jointly, and the processes talk by gloo. A run in --work that
has ended already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
BUNDLE = "bundles/chest_xray_classification"
OVERLAY: dict[str, Any] = {
    "image_size": 32,
    "transfer_epochs": 2,
    "synthetic_patients": 60,
    "epochs_per_round": 1,
    "targets": [0.5, 0.8],
    "network_def": {
        "_target_": "monai.networks.nets.DenseNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "init_features": 8,
        "growth_rate": 8,
        "block_config": [2, 2],
    },
}
SAME_BITS = ("model.pt", "model.plan.json", "evaluations.json", "curve.csv")


def start(output: Path, overlay: Path, processes: int, **settings: Any) -> subprocess.Popen[bytes]:
    """Start a run as the documentation does, in one process or in several; its log lies beside its folder."""
    names = ["train", "prune", *(["multi_gpu"] if processes > 1 else [])]
    files = ",".join(f"'{path}'" for path in (*(f"{BUNDLE}/configs/{name}.json" for name in names), overlay))
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command += ["monai.bundle", "run", "prune", "--bundle_root", BUNDLE, "--config_file", f"[{files}]"]
    for name, value in {"output_dir": output, **settings}.items():
        command += [f"--{name}", str(value)]
    # PYTHONHASHSEED as TorchScript orders constants by hashes
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    with log_of(output).open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def log_of(output: Path) -> Path:
    """Return the log of a run."""
    return output.parent / f"{output.name}.log"


def ranks(launcher: int) -> dict[int, int]:
    """Return the process id of each rank that torchrun has started and that is alive."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            status = (path.parent / "stat").read_text().rpartition(")")[2].split()
            environment = dict(part.split("=", 1) for part in path.read_text().split("\0") if "=" in part)
        except (OSError, UnicodeDecodeError):  # another user's, or gone meanwhile
            continue
        if int(status[1]) == launcher and status[0] != "Z" and "RANK" in environment:
            found[int(environment["RANK"])] = int(path.parent.name)
    return found


def killed(process: subprocess.Popen[bytes], output: Path, rank: int = 1) -> dict[str, Any]:
    """Kill one of the processes when the first checkpoint is there, and return how the others ended."""
    while process.poll() is None and not list((output / "work" / "checkpoints").glob("checkpoint_*.pt")):
        time.sleep(0.2)
    alive = ranks(process.pid)
    os.kill(alive[rank], signal.SIGKILL)
    begin = time.perf_counter()
    process.wait()
    left = [one for one, number in alive.items() if Path(f"/proc/{number}").exists()]
    epoch = max(int(path.stem[-6:]) for path in (output / "work" / "checkpoints").glob("checkpoint_*.pt"))
    return {
        "killed_rank": rank,
        "after_epoch": epoch,
        "seconds_until_all_ended": round(time.perf_counter() - begin, 1),
        "exit_status": process.returncode,
        "ranks_left": left,
    }


def compared(one: Path, two: Path) -> dict[str, Any]:
    """Compare the curves and the plans of two runs."""
    curves = [json.loads((folder / "evaluations.json").read_text(encoding="utf-8")) for folder in (one, two)]
    plans = [json.loads((folder / "model.plan.json").read_text(encoding="utf-8")) for folder in (one, two)]
    for plan in plans:
        plan.pop("weights_sha256")
    assert len(curves[0]) == len(curves[1])
    return {
        "evaluations": len(curves[0]),
        "largest_difference_of_auc": max(abs(a["auc"]["auc"] - b["auc"]["auc"]) for a, b in zip(*curves, strict=True)),
        "same_structures": all(a["structure"] == b["structure"] for a, b in zip(*curves, strict=True)),
        "same_plan_but_for_the_weights": plans[0] == plans[1],
        "same_bits": [name for name in SAME_BITS if (one / name).read_bytes() == (two / name).read_bytes()],
    }


def ended(output: Path, overlay: Path, processes: int) -> Path:
    """Run to the end what has not ended yet."""
    if not (output / "study.json").is_file():
        assert start(output, overlay, processes).wait() == 0, log_of(output).read_text(encoding="utf-8")
    return output


def main() -> None:
    """Run, kill, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    overlay = arguments.work / "overlay.json"
    overlay.write_text(json.dumps(OVERLAY))
    record: dict[str, Any] = {
        "command": f"python tests/benchmarks/distributed.py --work … --output {arguments.output.as_posix()}",
        "torch": torch.__version__,
        "backend": "gloo",
    }
    one, two = (ended(arguments.work / name, overlay, count) for name, count in (("one", 1), ("two", 2)))
    record["two_processes_against_one"] = compared(one, two)
    arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    folder = arguments.work / "killed"
    record["kill_of_one"] = killed(start(folder, overlay, 2), folder)
    record["resumed_against_never_stopped"] = compared(two, ended(folder, overlay, 2))
    arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
