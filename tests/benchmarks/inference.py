"""Measures how much of what pruning saves is saved on the clock when a folder of radiographs is predicted.

python tests/benchmarks/inference.py --output docs/results/inference.json

Everything counts: listing the files, decoding, resizing, the network. Every network sees the same files, in parts, in
turns within one run. Run it on a machine that does nothing else: what else runs takes time from both sides alike, so
shares stay meaningful, images per second do not; on a busy one, go by the seconds of the processors, which leave out
the waiting. Networks that were measured before stay in the file. What is removed is chosen by weights or by noise,
since only the shape of what is left counts here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydicom
import torch
from monai.networks.nets import DenseNet121, resnet18
from pydicom.uid import generate_uid
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.data import write_synthetic_cohort
from monai_basisprune.inference import (
    list_radiographs,
    load_deployed,
    predict_cases,
    prepare_cases,
    read_deployment,
)
from monai_basisprune.latency import device_name

SIZE, SHAPE = 224, (1, 224, 224)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2),
    "DenseNet121": lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2),
}
BUDGET = mbp.Budget(macs=0.75, input_shape=SHAPE)
CARRIED = {
    "image_size": SIZE,
    "image_channels": 1,
    "intensity_mean": 0.449,
    "intensity_std": 0.226,
    "class_names": ["negative", "positive"],
}


def write_images(folder: Path, count: int, parts: int, matrix: int) -> list[Path]:
    """Write radiographs into one folder for each part; a few are drawn, the others are these under new UIDs."""
    with tempfile.TemporaryDirectory() as drawn:
        write_synthetic_cohort(Path(drawn) / "cohort", patients=12, seed=0, image_size=matrix)
        images = [pydicom.dcmread(path) for path in sorted((Path(drawn) / "cohort" / "images").iterdir())]
    folders = [folder / f"part{part}" for part in range(parts)]
    for part in folders:
        part.mkdir(parents=True)
    for number in range(count):
        image = images[number % len(images)]
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        image.save_as(folders[number % parts] / f"{number:05d}.dcm", enforce_file_format=True)
    return folders


def prune_bases(network: nn.Module) -> None:
    """Remove bases, and leave all channels."""
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), BUDGET)


def prune_channels(network: nn.Module) -> None:
    """Remove channels, and leave blocks of 16 in which processors compute."""
    mbp.freeze_weights_(network)
    torch.manual_seed(0)
    with mbp.ChannelTaylorImportance(network, SHAPE) as importance:
        network.zero_grad()
        nn.functional.cross_entropy(network(torch.randn(2, *SHAPE)), torch.tensor([0, 1])).backward()
        importance.accumulate()
        scores = importance.scores()
    mbp.prune_channels_(network, scores, BUDGET, SHAPE, multiple=16)


PRUNED: dict[str, Callable[[nn.Module], None]] = {
    "bases, macs 0.75": prune_bases,
    "channels in blocks of 16, macs 0.75": prune_channels,
}


def deploy(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the network as it is and pruned, in the same way; returns what was saved by each."""
    torch.manual_seed(0)
    original = NETWORKS[name]().eval()
    mbp.export_network(original, folder / "unpruned" / "model.ts", SHAPE, metadata=CARRIED)
    before = mbp.measure_complexity(original, SHAPE)
    found: dict[str, dict[str, Any]] = {"unpruned": {"mac_reduction": 0.0, "parameter_reduction": 0.0}}
    for variant, prune in PRUNED.items():
        network = mbp.decompose(original)
        prune(network)
        mbp.export_network(network.eval(), folder / variant / "model.ts", SHAPE, metadata=CARRIED)
        after = mbp.measure_complexity(mbp.recompose(network), SHAPE)
        found[variant] = {
            "mac_reduction": 1 - after.macs / before.macs,
            "parameter_reduction": 1 - after.parameters / before.parameters,
        }
    return found


def seconds_for(network: nn.Module, folder: Path, batch_size: int, num_workers: int) -> tuple[float, float, int]:
    """Predict a folder as `predict_folder` does, with a network that is loaded already.

    Returns:
        seconds on the clock, seconds of all processors, and how many images there are.
    """
    start, before = time.perf_counter(), os.times()
    cases = list_radiographs(folder, progress=False)
    predicted = predict_cases(network, prepare_cases(cases, CARRIED), batch_size, num_workers, progress=False)
    seconds, after = time.perf_counter() - start, os.times()
    assert not any(predicted.problems)
    return seconds, sum(after[:4]) - sum(before[:4]), len(cases)  # those of processes that read images as well


def measure(name: str, folder: Path, parts: list[Path], batch_size: int, num_workers: int) -> dict[str, Any]:
    """Let all variants of one network take turns over the parts."""
    variants = deploy(name, folder / name)
    networks = {variant: load_deployed(folder / name / variant, optimize=True) for variant in variants}
    assert all(read_deployment(folder / name / variant) == CARRIED for variant in variants)
    with torch.inference_mode():
        for network in networks.values():  # what TorchScript compiles at its first passes is no part of the work
            for _ in range(4):
                network(torch.zeros(batch_size, *SHAPE))
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    computed: dict[str, list[float]] = {variant: [] for variant in variants}
    images = 0
    print("measuring", name, flush=True)
    for number, part in enumerate(parts):
        order = list(variants) if number % 2 == 0 else list(reversed(variants))
        for variant in order:
            seconds, processor, count = seconds_for(networks[variant], part, batch_size, num_workers)
            taken[variant].append(seconds)
            computed[variant].append(processor)
        images += count
    print("measured", name, flush=True)
    for variant, result in variants.items():
        ratios = [ours / whole for ours, whole in zip(taken[variant], taken["unpruned"], strict=True)]
        result["seconds_by_part"] = taken[variant]
        result["images_per_second"] = images / sum(taken[variant])
        result["cpu_seconds_by_part"] = computed[variant]
        if variant != "unpruned":
            result["time_reduction"] = 1 - sum(taken[variant]) / sum(taken["unpruned"])
            result["median_time_reduction_of_parts"] = 1 - statistics.median(ratios)
            result["realized"] = result["time_reduction"] / result["mac_reduction"]
            result["realized_by_part"] = [(1 - ratio) / result["mac_reduction"] for ratio in ratios]
            cpu_reduction = 1 - sum(computed[variant]) / sum(computed["unpruned"])
            result["realized_in_cpu_seconds"] = cpu_reduction / result["mac_reduction"]
    return {"images": images, "variants": variants}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--matrix", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=1)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        parts = write_images(root / "images", options.images, options.parts, options.matrix)
        result: dict[str, Any] = {
            "versions": {
                "python": platform.python_version(),
                "package": mbp.__version__,
                **{package: version(package) for package in ("torch", "monai", "pydicom")},
            },
            "device": device_name("cpu"),
            "batch_size": options.batch_size,
            "num_workers": options.num_workers,
            "images": f"uncompressed DICOM radiographs of about {options.matrix} x {options.matrix} pixels, 12 and 16 "
            f"bits: synthetic ones, repeated under new UIDs; network input {SIZE} x {SIZE}",
            "realized": "share of the MAC reduction that is saved on the clock, end to end",
            "networks": {},
        }
        if options.output.is_file():
            result["networks"] = json.loads(options.output.read_text(encoding="utf-8"))["networks"]
        for name in options.networks:
            conditions = {
                "command": shlex.join(["python", "tests/benchmarks/inference.py", *sys.argv[1:]]),
                "cores": len(os.sched_getaffinity(0)),
                "threads": torch.get_num_threads(),
                "load_average_at_start": os.getloadavg()[0],
            }
            measured = measure(name, root, parts, options.batch_size, options.num_workers)
            result["networks"][name] = {**conditions, **measured}
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
