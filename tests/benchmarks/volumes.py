"""Measures what pruning gains in 3D: ResNet-18 on volumes of 96 x 96 x 96, memory and time before and after.

python tests/benchmarks/volumes.py --output docs/results/volumes.json

Each network runs in a process of its own, so that the peak of its resident memory is its own; it is loaded there from
a TorchScript file, as it is deployed. The weights are random: what is measured does not depend on them. One thread,
Linux; run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import resnet18
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.latency import device_name

SHAPE = (1, 96, 96, 96)
BUDGETS = (0.9, 0.98)
REPEATS = 5

PROBE = """
import json, sys, time, torch
torch.set_num_threads(1)

def resident(key):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))

torch.jit.load(sys.argv[2])  # another network, small: what loading itself takes
shape = json.loads(sys.argv[3])
with torch.inference_mode():
    torch.nn.functional.conv3d(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 3, 3, 3))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew; it would be that of the process that started this one
    before = resident("VmRSS:")
    network = torch.jit.load(sys.argv[1]).eval()
    x = torch.randn(1, *shape)
    network(x)
    seconds = []
    for _ in range(int(sys.argv[4])):
        start = time.perf_counter()
        network(x)
        seconds.append(time.perf_counter() - start)
peak = resident("VmHWM:")
print(json.dumps({"seconds": seconds, "peak": peak, "above": peak - before}))
"""


def original() -> nn.Module:
    """Return the network that MedicalNet has weights for, with statistics of its norms."""
    torch.manual_seed(0)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2, shortcut_type="A").train()
    with torch.no_grad():
        network(torch.randn(2, 1, 32, 32, 32))
    return network.eval()


def pruned(network: nn.Module, parameters: float) -> nn.Module:
    """Return the recomposed network without a share of its parameters, the smallest singular values first."""
    decomposed = mbp.decompose(network)
    mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(parameters=parameters))
    return mbp.recompose(decomposed).eval()


def measure(network: nn.Module, folder: Path) -> dict[str, Any]:
    """Measure one network, without gradients."""
    cost = mbp.measure_complexity(network, SHAPE)
    file, small = folder / "network.ts", folder / "small.ts"
    with torch.no_grad():
        torch.jit.trace(network, torch.zeros(1, *SHAPE), check_trace=False).save(str(file))
    torch.jit.script(nn.ReLU()).save(str(small))
    command = [sys.executable, "-c", PROBE, str(file), str(small), json.dumps(SHAPE), str(REPEATS)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "bytes_on_disk": cost.bytes_on_disk,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "resident_peak_bytes": found["peak"],
        "resident_above_libraries_bytes": found["above"],
        "median_seconds": statistics.median(found["seconds"]),
        "fastest_seconds": min(found["seconds"]),
        "slowest_seconds": max(found["seconds"]),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write; without it, the result is only printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = original()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows["unpruned"] = measure(network, Path(folder))
        for share in BUDGETS:
            name = f"{share:.0%} of the parameters removed"
            rows[name] = measure(pruned(network, share), Path(folder))
            for key in ("parameters", "macs", "peak_activation_bytes", "resident_above_libraries_bytes"):
                rows[name][f"{key}_ratio"] = round(rows[name][key] / rows["unpruned"][key], 4)
            rows[name]["speed_up"] = round(rows["unpruned"]["median_seconds"] / rows[name]["median_seconds"], 2)
    result = {
        "command": "python tests/benchmarks/volumes.py --output docs/results/volumes.json",
        "network": "ResNet-18 3D as MedicalNet has it (shortcut A, conv1_t_stride 2, 1 channel), random weights",
        "input_shape": list(SHAPE),
        "batch": 1,
        "threads": 1,
        "repeats": REPEATS,
        "device": device_name("cpu"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "monai")}},
        "results": rows,
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
