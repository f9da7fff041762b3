"""Measures what pruning gains in 3D: ResNet-18 on volumes of 96 x 96 x 96, memory and time before and after.

python tests/benchmarks/volumes.py --output docs/results/volumes.json

It is cut to the same numbers of parameters by bases alone, and by bases and channels jointly. Each network runs in
processes of its own, so that the peak of its resident memory is its own; it is loaded there from a TorchScript file, as
it is deployed. The networks take turns, so that what else the machine does meets all of them. The weights are random:
memory and time depend on how many bases and channels are left in each layer, and a trained network leaves others. One
thread, Linux.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
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
NOISE = (1, 32, 32, 32)
BUDGETS = (0.9, 0.98)
ROUNDS, REPEATS = 3, 3
KEYS = ("parameters", "macs", "bytes_on_disk", "peak_activation_bytes")

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
    wall, cpu = [], []
    for _ in range(int(sys.argv[4])):
        start, begun = time.perf_counter(), time.process_time()
        network(x)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - begun)
peak = resident("VmHWM:")
print(json.dumps({"wall": wall, "cpu": cpu, "peak": [peak], "above": [peak - before]}))
"""


def original() -> nn.Module:
    """Return the network that MedicalNet has weights for, with statistics of its norms."""
    torch.manual_seed(0)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2, shortcut_type="A").train()
    with torch.no_grad():
        network(torch.randn(2, 1, 32, 32, 32))
    return network.eval()


def without_bases(decomposed: nn.Module, share: float) -> None:
    """Remove a share of the parameters: the bases of smallest singular values first."""
    mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(parameters=share))


def jointly(decomposed: nn.Module, share: float) -> None:
    """Remove a share of the parameters: bases and channels, by Taylor scores of noise."""
    bases = mbp.TaylorImportance(decomposed)
    generator = torch.Generator().manual_seed(1)
    with mbp.ChannelTaylorImportance(decomposed, NOISE) as channels:
        for _ in range(4):
            decomposed.zero_grad()
            answer = decomposed(torch.randn(2, *NOISE, generator=generator))
            nn.functional.cross_entropy(answer, torch.tensor([0, 1])).backward()
            bases.accumulate()
            channels.accumulate()
        scores = bases.scores(), channels.scores()
    mbp.prune_jointly_(decomposed, *scores, mbp.Budget(parameters=share), NOISE)


def deploy(network: nn.Module, file: Path) -> dict[str, int]:
    """Write a network as it is deployed; returns what it costs by count."""
    with torch.no_grad():
        torch.jit.trace(network, torch.zeros(1, *SHAPE), check_trace=False).save(str(file))
    cost = mbp.measure_complexity(network, SHAPE)
    return {key: getattr(cost, key) for key in KEYS}


def probe(file: Path, small: Path) -> dict[str, list[float]]:
    """Run a deployed network in a process of its own."""
    command = [sys.executable, "-c", PROBE, str(file), str(small), json.dumps(SHAPE), str(REPEATS)]
    found: dict[str, list[float]] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Measure all networks in turn; returns a row for each."""
    network, small = original(), folder / "small.ts"
    torch.jit.script(nn.ReLU()).save(str(small))
    rows: dict[str, dict[str, Any]] = {"unpruned": dict(deploy(network, folder / "unpruned.ts"))}
    decomposed = mbp.decompose(network)
    for share in BUDGETS:
        for how, prune in (("bases", without_bases), ("bases and channels", jointly)):
            name = f"{share:.0%} of the parameters removed, {how}"
            smaller = copy.deepcopy(decomposed)
            prune(smaller, share)
            rows[name] = dict(deploy(mbp.recompose(smaller).eval(), folder / f"{name}.ts"))
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name in rows:
            found[name].append(probe(folder / f"{name}.ts", small))
    for name, row in rows.items():
        together = {key: [one for turn in found[name] for one in turn[key]] for key in found[name][0]}
        row["resident_peak_bytes"] = int(statistics.median(together["peak"]))
        row["resident_above_libraries_bytes"] = int(statistics.median(together["above"]))
        for kind in ("wall", "cpu"):
            row[f"median_{kind}_seconds"] = round(statistics.median(together[kind]), 4)
            row[f"{kind}_seconds_range"] = [round(min(together[kind]), 4), round(max(together[kind]), 4)]
    first = rows["unpruned"]
    for row in list(rows.values())[1:]:
        for key in ("parameters", "macs", "peak_activation_bytes", "resident_above_libraries_bytes"):
            row[f"{key}_ratio"] = round(row[key] / first[key], 4)
        for kind in ("wall", "cpu"):
            row[f"{kind}_speed_up"] = round(first[f"median_{kind}_seconds"] / row[f"median_{kind}_seconds"], 2)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write; without it, the result is only printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    result = {
        "command": "python tests/benchmarks/volumes.py --output docs/results/volumes.json",
        "network": "ResNet-18 3D as MedicalNet has it (shortcut A, conv1_t_stride 2, 1 channel), random weights",
        "input_shape": list(SHAPE),
        "batch": 1,
        "threads": 1,
        "rounds": ROUNDS,
        "repeats": REPEATS,
        "load_average_before": round(load, 1),
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
