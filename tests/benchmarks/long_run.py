"""Measures the memory of one process over 200 rounds of joint pruning, each with all that a bundle's round does.

python tests/benchmarks/long_run.py --rounds 200 --output docs/results/long_run.json

A round cuts bases and channels, trains an epoch, evaluates, saves the network and a checkpoint. Every ten rounds,
after the garbage was collected and glibc gave back what it keeps for later, it notes the resident memory of the
process, and how many objects of Python, modules and hooks are alive. The network gets smaller all the time and is far
too small to be seen in the memory: what grows is a leak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import RandScaleIntensityd
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.handlers import (
    DistributedHandler,
    EpochSeedHandler,
    FailureHandler,
    PrunedNetworkSaver,
    PruningCurveHandler,
    PruningHandler,
    RunCheckpointHandler,
    TaylorImportanceHandler,
)
from monai_basisprune.loading import EpochBatches, EveryNth, SeededCacheDataset

SHAPE = (1, 16, 16)
LAST = 0.9
"""The share of the parameters that is gone in the end."""
KERNELS = 64
"""How many kernels oneDNN may keep."""
WARM_UP = 40
"""Rounds before the slope is taken: libraries load and caches fill."""


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not tell the resident memory.")


def state() -> dict[str, int]:
    """Return what is alive after the garbage was collected, and what the allocator had kept was given back."""
    gc.collect()
    before = resident_bytes()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    objects = gc.get_objects()
    modules = [one for one in objects if isinstance(one, nn.Module)]
    hooks = sum(len(one._forward_pre_hooks) + len(one._forward_hooks) for one in modules)
    tensors = sum(one.numel() * one.element_size() for one in objects if isinstance(one, torch.Tensor))
    return {
        "resident_bytes": resident_bytes(),
        "resident_bytes_before_trim": before,
        "tensor_bytes": tensors,
        "objects": len(objects),
        "modules": len(modules),
        "hooks": hooks,
    }


def cases(count: int, seed: int) -> list[dict[str, Any]]:
    """Return images of two classes that differ in brightness, each of a patient of its own."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *SHAPE, generator=generator)
    return [
        {"image": image + 0.3 * (index % 2), "label": index % 2, "patient_id": f"{seed}-{index}", "case_id": str(index)}
        for index, image in enumerate(images)
    ]


def classifier() -> nn.Sequential:
    """Return a network with enough bases and channels for a cut in each round."""
    widths = (1, 32, 48, 48)
    blocks = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.AvgPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2))


def run(rounds: int, every: int, folder: Path) -> list[dict[str, int]]:
    """Train and prune; returns what was alive after some of the rounds."""
    torch.manual_seed(0)
    network = mbp.decompose(classifier())
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network), lr=0.003)
    training = SeededCacheDataset(cases(16, 0), RandScaleIntensityd("image", 0.2, prob=0.5), seed=0, progress=False)
    validation = cases(20, 1)
    bases, channels = mbp.TaylorImportance(network), mbp.ChannelTaylorImportance(network, SHAPE)
    curve = PruningCurveHandler(network, SHAPE, margin=0.05)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(validation, batch_size=10, sampler=EveryNth(validation)),
        network=network,
        val_handlers=[curve],
        decollate=False,
    )
    budgets = [mbp.Budget(parameters=LAST * (number + 1) / rounds) for number in range(rounds)]
    pruning = PruningHandler(network, bases, budgets, optimizer, 1, 1, channel_importance=channels)
    schedule, taylor = mbp.round_schedule(optimizer, 2, 2), TaylorImportanceHandler(bases, channels)
    parts = {
        "pruning": pruning,
        "network": network,
        "optimizer": optimizer,
        "schedule": schedule,
        "curve": curve,
        "taylor": taylor,
    }
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=pruning.max_epochs,
        train_data_loader=DataLoader(training, batch_sampler=EpochBatches(training, 8, seed=0)),
        network=network,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        train_handlers=[
            FailureHandler(folder, network),
            EpochSeedHandler(0),
            DistributedHandler(network),
            taylor,
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(1, evaluator),
            PrunedNetworkSaver(network, folder / "networks"),
            pruning,
            RunCheckpointHandler(folder / "checkpoints", parts, {"rounds": rounds}),
        ],
    )
    noted: list[dict[str, int]] = []

    def note(engine: Engine) -> None:
        if pruning.rounds and pruning.rounds % every == 0 and engine.state.epoch <= rounds:
            noted.append({"round": pruning.rounds, "parameters": curve.curve.points[-1].parameters, **state()})
            print(noted[-1], flush=True)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    trainer.run()
    assert pruning.rounds == rounds
    return noted


def main() -> None:
    """Run, fit a line, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # else it keeps those of the last 1024 shapes, and every cut makes new ones: a growth that ends by itself
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(KERNELS)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        noted = run(arguments.rounds, arguments.every, Path(name))
    late = [one for one in noted if one["round"] >= WARM_UP]
    at = [one["round"] for one in late]
    slopes = {
        key: float(np.polyfit(at, [one[key] for one in late], 1)[0])
        for key in ("resident_bytes", "resident_bytes_before_trim", "tensor_bytes", "objects", "modules", "hooks")
    }
    record = {
        "command": f"python tests/benchmarks/long_run.py --rounds {arguments.rounds} --output "
        f"{arguments.output.as_posix()}",
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "kernels_that_onednn_keeps": KERNELS,
        "slope_from_round": WARM_UP,
        "slope_for_each_round": {key: round(value, 3) for key, value in slopes.items()},
        "growth_bytes": late[-1]["resident_bytes"] - late[0]["resident_bytes"],
        "growth_share": round(late[-1]["resident_bytes"] / late[0]["resident_bytes"] - 1, 5),
        "seconds": round(time.perf_counter() - begin, 1),
        "noted": noted,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in record.items() if key != "noted"}, indent=1))


if __name__ == "__main__":
    main()
