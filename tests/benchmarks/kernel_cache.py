"""What a training batch of a large network takes with the kernels that oneDNN keeps by itself, and with the bound.

python tests/benchmarks/kernel_cache.py --output docs/results/kernel_cache.json

Each process prunes a network jointly, by scores of one batch of noise, and trains the rest on further batches; the two
settings take turns, three processes each, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DenseNet121, resnet18
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.kernel_caches import bound_kernel_cache

SHAPE, BATCH, BATCHES, REPEATS = (3, 64, 64), 16, 12, 3
NETWORKS = {
    "ResNet-18": lambda: resnet18(spatial_dims=2, n_input_channels=3, num_classes=2, conv1_t_stride=2),
    "DenseNet121": lambda: DenseNet121(spatial_dims=2, in_channels=3, out_channels=2),
}
SETTINGS = {"1024, oneDNN's own": "1024", "the bound": ""}


def batches(name: str) -> dict[str, Any]:
    """Return the time of each batch in this process, before the cut and after it, and the memory that it took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    original = NETWORKS[name]().to(memory_format=torch.channels_last)
    bound = bound_kernel_cache(original)
    network = mbp.decompose(original)
    x = torch.randn(BATCH, *SHAPE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 2

    def trained(count: int) -> list[float]:
        optimizer = torch.optim.Adam(mbp.freeze_weights_(network), lr=1e-3)
        network.train()
        taken = []
        for _ in range(count):
            start = time.process_time()
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.step()
            taken.append(time.process_time() - start)
        return taken

    before = trained(BATCHES)
    mbp.freeze_weights_(network)
    with mbp.ChannelTaylorImportance(network, SHAPE) as channels:
        bases = mbp.TaylorImportance(network)
        nn.functional.cross_entropy(network(x), labels).backward()
        channels.accumulate()
        bases.accumulate()
        budget = mbp.Budget(parameters=0.75)
        mbp.prune_jointly_(network, bases.scores(), channels.scores(), budget, SHAPE, groups=channels.groups)
    after = trained(BATCHES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"bound": bound, "before": statistics.median(before), "after": statistics.median(after), "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--network", choices=NETWORKS, help="measure one network in this process, and print it")
    arguments = parser.parse_args()
    if arguments.network:
        print(json.dumps(batches(arguments.network)))
        return
    if arguments.output is None:
        parser.error("--output is needed, unless --network is given")
    rows = []
    for name in NETWORKS:
        found: dict[str, list[dict[str, Any]]] = {setting: [] for setting in SETTINGS}
        for _ in range(REPEATS):
            for setting, capacity in SETTINGS.items():
                environment = {k: v for k, v in os.environ.items() if not k.endswith("_CACHE_CAPACITY")}
                if capacity:
                    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = capacity
                command = [sys.executable, __file__, "--network", name]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                found[setting].append(json.loads(done.stdout.splitlines()[-1]))
        for setting, runs in found.items():
            median = {key: round(statistics.median(run[key] for run in runs), 4) for key in ("before", "after")}
            peak = round(statistics.median(run["peak_mb"] for run in runs))
            kernels = int(SETTINGS[setting] or runs[0]["bound"])
            rows.append({"network": name, "kernels": kernels, "seconds": median, "peak_mb": peak, "runs": runs})
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "runs"}), flush=True)
    command_line = f"python tests/benchmarks/kernel_cache.py --output {arguments.output.as_posix()}"
    result = {"command": command_line, "torch": torch.__version__, "batch": [BATCH, *SHAPE], "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
