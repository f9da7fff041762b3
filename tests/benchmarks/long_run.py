"""Measures the memory of a process over hundreds of rounds of joint pruning, each with all that a bundle's round does.

python tests/benchmarks/long_run.py --name "as installed" --output docs/results/long_run.json

A round cuts bases and channels, trains an epoch, evaluates, saves the network and a checkpoint. Every ten rounds,
after the garbage was collected and glibc gave back what it keeps for later, it notes the resident memory of the
process, what of C's heap is in use, the machine code that was made, and how many objects of Python, modules and hooks
are alive. The network gets smaller all the time and is far too small to be seen in the memory: what grows is a leak,
or a cache. PyTorch has two, one of descriptions of convolutions and one of their kernels, for 1024 of each, and every
cut makes new ones; a run drops the first after each cut, and bounds the second unless the environment variable
ONEDNN_PRIMITIVE_CACHE_CAPACITY says how many it may keep. In a process of its own, convolutions of 2000 shapes one
after another show what both take where nothing of this package is at work.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import tempfile
import time
from itertools import pairwise, product
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
from monai_basisprune.kernel_caches import bound_kernel_cache
from monai_basisprune.loading import EpochBatches, EveryNth, SeededCacheDataset

SHAPE = (1, 16, 16)
LAST = 0.9
"""The share of the parameters that is gone in the end."""
CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""What a user can bound the caches of PyTorch with: that of its own layer around oneDNN, and that of oneDNN."""
NOTED = ("resident_bytes", "heap_bytes", "compiled_bytes", "tensor_bytes", "objects", "modules", "hooks")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not tell the resident memory.")


class _HeapState(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def heap_bytes() -> int:
    """Return how many bytes of C's heap are in use, of all threads: what a leak of a library would let grow."""
    ask = ctypes.CDLL("libc.so.6").mallinfo2
    ask.restype = _HeapState
    found = ask()
    return int(found.uordblks + found.hblkhd)


def compiled_bytes() -> int:
    """Return the resident memory of machine code that was made while the program ran: oneDNN's kernels."""
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if "-" in words[0] and len(words) >= 5:
            counted = "x" in words[1] and not (len(words) > 5 and words[5].startswith(("/usr", "/lib", "/tmp", "[")))
        elif counted and words[0] == "Rss:":
            total += int(words[1]) * 1024
    return total


def state() -> dict[str, int]:
    """Return what is alive after the garbage was collected, and what the allocator had kept was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    objects = gc.get_objects()
    modules = [one for one in objects if isinstance(one, nn.Module)]
    hooks = sum(len(one._forward_pre_hooks) + len(one._forward_hooks) for one in modules)
    tensors = sum(one.numel() * one.element_size() for one in objects if isinstance(one, torch.Tensor))
    return {
        "resident_bytes": resident_bytes(),
        "heap_bytes": heap_bytes(),
        "compiled_bytes": compiled_bytes(),
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
    widths = (1, 128, 192, 192)
    blocks = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.AvgPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2))


def run(rounds: int, every: int, folder: Path) -> list[dict[str, int]]:
    """Train and prune; returns what was alive after some of the rounds."""
    torch.manual_seed(0)
    original = classifier()
    bound_kernel_cache(original)
    network = mbp.decompose(original)
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


def growth(noted: list[dict[str, int]], key: str) -> dict[str, float]:
    """Return how fast something grows in the last half of the rounds: a line by least squares, with its error."""
    late = noted[len(noted) // 2 :]
    at, values = (np.array([one[name] for one in late], dtype=float) for name in ("round", key))
    slope, start = np.polyfit(at, values, 1)
    spread = float(np.sum((values - slope * at - start) ** 2)) / max(len(late) - 2, 1)
    error = (spread / float(np.sum((at - at.mean()) ** 2))) ** 0.5
    return {"for_each_round": round(float(slope), 2), "standard_error": round(error, 2)}


def convolutions() -> list[list[int]]:
    """Return the heap in use after so many convolutions of PyTorch, each of its own shape; nothing of ours runs."""
    noted = []
    torch.set_num_threads(1)
    with torch.no_grad():
        for number, (before, after) in enumerate(product(range(8, 58), range(8, 48)), start=1):
            nn.functional.conv2d(torch.zeros(4, before, 8, 8), torch.zeros(after, before, 3, 3), padding=1)
            if number % 200 == 0:
                noted.append([number, heap_bytes()])
    return noted


def main() -> None:
    """Run, fit a line, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="what to call this run in the file, which holds several")
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        alone = pool.apply(convolutions)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        noted = run(arguments.rounds, arguments.every, Path(name))
    half = noted[len(noted) // 2]
    record = {
        "command": f"python tests/benchmarks/long_run.py --name {arguments.name!r} --rounds {arguments.rounds} "
        f"--output {arguments.output.as_posix()}",
        "environment": {key: os.environ.get(key) for key in CACHES},
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "last_half_from_round": half["round"],
        "growth_in_the_last_half": {key: growth(noted, key) for key in NOTED},
        "growth_share_in_the_last_half": round(noted[-1]["resident_bytes"] / half["resident_bytes"] - 1, 5),
        "seconds": round(time.perf_counter() - begin, 1),
        "noted": noted,
        "heap_bytes_after_convolutions_alone": alone,
    }
    runs = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else {}
    arguments.output.write_text(json.dumps({**runs, arguments.name: record}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in record.items() if key != "noted"}, indent=1))


if __name__ == "__main__":
    main()
