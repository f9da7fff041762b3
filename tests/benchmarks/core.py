"""Measures the core: exactness, time and memory of decompose, what Taylor importance costs, how a budget is hit.

python tests/benchmarks/core.py --output docs/results/core.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DenseNet121, SEResNet50, UNet, resnet10, resnet18, resnet50
from torch import nn

import monai_basisprune as mbp

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "DenseNet121 2D": (lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), (1, 64, 64)),
    "ResNet-50 2D": (lambda: resnet50(spatial_dims=2, n_input_channels=3, num_classes=2), (3, 64, 64)),
    "SEResNet-50 2D": (lambda: SEResNet50(spatial_dims=2, in_channels=3, num_classes=2), (3, 64, 64)),
    "ResNet-18 3D, shortcut A": (
        lambda: resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, shortcut_type="A", feed_forward=True),
        (1, 32, 32, 32),
    ),
    "ResNet-10 3D, shortcut B": (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=2), (1, 32, 32, 32)),
    "DenseNet121 2D, PReLU": (
        lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2, act="prelu"),
        (1, 64, 64),
    ),
    "UNet 3D": (
        lambda: UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1),
        (1, 32, 32, 32),
    ),
}

MEMORY_PROBE = """
import resource, sys, time, torch
from torch import nn
import monai_basisprune as mbp
layer = nn.Conv3d(1024, 512, 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
mbp.decompose(layer)
print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def settled(factory: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """Return a network whose norms have seen some images, so that signals neither vanish nor explode."""
    torch.manual_seed(0)
    network = factory().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, *shape))
    return network.eval()


def exactness_and_time(repeats: int) -> list[dict[str, Any]]:
    """Compare each network with its decomposition and recomposition, and time decompose."""
    rows = []
    for name, (factory, shape) in NETWORKS.items():
        network = settled(factory, shape)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            decomposed = mbp.decompose(network)
            seconds.append(time.perf_counter() - start)
        plain = mbp.recompose(decomposed)
        x = torch.randn(2, *shape)
        with torch.no_grad():
            expected = network(x)
            row = {
                "network": name,
                "parameters": sum(p.numel() for p in network.parameters()),
                "decompose_seconds_median": statistics.median(seconds),
                "relative_error_decomposed": relative_error(decomposed(x), expected),
                "relative_error_recomposed": relative_error(plain(x), expected),
            }
        print(row)
        rows.append(row)
    return rows


def budgets() -> list[dict[str, Any]]:
    """Prune by singular value to shares of the parameters and count what recompose leaves."""
    rows = []
    for name in ("DenseNet121 2D", "ResNet-50 2D", "ResNet-18 3D, shortcut A"):
        factory, _ = NETWORKS[name]
        torch.manual_seed(0)
        network = factory()
        original = sum(p.numel() for p in network.parameters())
        for share in (0.5, 0.9):
            decomposed = mbp.decompose(network)
            mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(parameters=share))
            left = sum(p.numel() for p in mbp.recompose(decomposed).parameters()) / original
            rows.append({"network": name, "budget": share, "share_left_after_recompose": left})
            print(rows[-1])
    return rows


def taylor_cost(rounds: int) -> dict[str, Any]:
    """Time training steps with and without accumulate(), interleaved, and report the median of the paired ratios."""
    torch.manual_seed(0)
    network = mbp.decompose(DenseNet121(spatial_dims=2, in_channels=1, out_channels=2))
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network), lr=1e-4)
    taylor = mbp.TaylorImportance(network)
    x, y = torch.randn(16, 1, 64, 64), torch.randint(0, 2, (16,))

    def step(collect: bool) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        if collect:
            taylor.accumulate()
        optimizer.step()
        return time.perf_counter() - start

    step(False), step(True)
    ratios, with_, without = [], [], []
    for index in range(rounds):
        order = (True, False) if index % 2 else (False, True)
        seconds = {collect: step(collect) for collect in order}
        with_.append(seconds[True])
        without.append(seconds[False])
        ratios.append(seconds[True] / seconds[False])
    alone = []
    for _ in range(50):
        start = time.perf_counter()
        taylor.accumulate()
        alone.append(time.perf_counter() - start)
    return {
        "network": "DenseNet121 2D, batches of 16 images of 64x64",
        "paired_rounds": rounds,
        "median_of_paired_ratios": statistics.median(ratios),
        "ratio_of_medians": statistics.median(with_) / statistics.median(without),
        "accumulate_over_step": statistics.median(alone) / statistics.median(without),
    }


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    seconds, added = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE], check=True, capture_output=True, text=True
    ).stdout.split()
    result = {
        "command": f"python tests/benchmarks/core.py --output {arguments.output.as_posix()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "package": mbp.__version__},
        "cores": os.cpu_count(),
        "conv3d_1024_512_3": {"decompose_seconds": float(seconds), "memory_added_bytes": int(added)},
        "decompose": exactness_and_time(arguments.repeats),
        "budgets": budgets(),
        "taylor": taylor_cost(arguments.rounds),
    }
    print(result["conv3d_1024_512_3"], result["taylor"])
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
