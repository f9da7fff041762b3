"""Measures what pruning gains on the clock: latency before and after, one prune step, and memory of decompose.

python tests/benchmarks/speed.py --output docs/results/speed.json

Needs torch-pruning and the packages of the extra "export" for the comparisons. Both sides of each ratio take turns in
one run. Run it on a machine that does nothing else.
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
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torch_pruning
from monai.networks.nets import DenseNet121, resnet10, resnet18
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.latency import device_name, median_seconds

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18 2D": (
        lambda: resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2),
        (1, 224, 224),
    ),
    "DenseNet121 2D": (lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), (1, 224, 224)),
    # as MedicalNet has it
    "ResNet-10 3D": (
        lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2),
        (1, 96, 96, 96),
    ),
}
MAC_BUDGET = 0.75

MEMORY_PROBE = """
import gc, json, resource, psutil, torch
import monai_basisprune as mbp
from monai.networks.nets import resnet10, resnet200
mbp.decompose(resnet10(spatial_dims=3, n_input_channels=1, num_classes=2))  # so that all libraries are loaded
gc.collect()
before = psutil.Process().memory_info().rss
network = resnet200(spatial_dims=3, n_input_channels=1, num_classes=2)
size = sum(p.numel() * p.element_size() for p in network.parameters())
mbp.decompose(network)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
print(json.dumps({"network_bytes": size, "peak_bytes": peak, "ratio": peak / size}))
"""


def trained(factory: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """Return a network whose norms have statistics of their own."""
    torch.manual_seed(0)
    network = factory().train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(2, *shape))
    return network.eval()


def pruned(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return the decomposed network with three quarters of the operations removed."""
    decomposed = mbp.decompose(network)
    scores = mbp.SingularValueImportance(decomposed).scores()
    mbp.prune_(decomposed, scores, mbp.Budget(macs=MAC_BUDGET, input_shape=shape))
    return decomposed


def pruned_channels(network: nn.Module, shape: tuple[int, ...], normalization: str, multiple: int) -> nn.Module:
    """Return the decomposed network with as many operations removed by channels; the images are noise."""
    decomposed = mbp.decompose(network)
    mbp.freeze_weights_(decomposed)
    torch.manual_seed(0)
    with mbp.ChannelTaylorImportance(decomposed, shape, normalization=normalization) as importance:
        for _ in range(2):
            decomposed.zero_grad()
            output = decomposed(torch.randn(2, *shape))
            nn.functional.cross_entropy(output, torch.tensor([0, 1])).backward()
            importance.accumulate()
        scores = importance.scores()
    budget = mbp.Budget(macs=MAC_BUDGET, input_shape=shape)
    mbp.prune_channels_(decomposed, scores, budget, shape, multiple=multiple)
    return decomposed


def onnx_session(network: nn.Module, shape: tuple[int, ...], folder: str, name: str) -> Callable[[torch.Tensor], Any]:
    """Return the network as onnxruntime runs it."""
    path = Path(folder) / f"{name}.onnx"
    mbp.export_network(network, path, shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # the threads of one session would otherwise go on to turn while the next one is measured
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": x.numpy()})


@dataclass
class Forms:
    """One network in all forms and runtimes, ready to be timed."""

    input_shape: tuple[int, ...]
    macs: dict[str, int]
    runtimes: dict[str, tuple[dict[str, Callable[[torch.Tensor], Any]], torch.Tensor]]


def prepare(name: str, folder: str) -> Forms:
    """Prune and export one network; the part that takes long and does not mind other work on the machine."""
    factory, shape = NETWORKS[name]
    network, x = trained(factory, shape), torch.rand(1, *shape)
    last = torch.channels_last if len(shape) == 3 else torch.channels_last_3d
    cut = {
        "pruned bases": pruned(network, shape),
        "pruned channels": pruned_channels(network, shape, "none", 1),
        "pruned channels, blocks of 16": pruned_channels(network, shape, "l2", 16),
    }
    whole = mbp.decompose(network)
    eager: dict[str, Any] = {
        "original": network,
        "original, norms folded": mbp.recompose(whole, input_shape=shape, fold=True),
        "recomposed, unpruned": mbp.recompose(whole),
        **{form: mbp.recompose(one, input_shape=shape, fold=True) for form, one in cut.items()},
    }
    channels_last = {
        form: copy.deepcopy(one).to(memory_format=last)
        for form, one in eager.items()
        if form == "original" or form in cut
    }
    onnx = {
        form: onnx_session(one, shape, folder, f"{name} {form}") for form, one in {"original": network, **cut}.items()
    }
    counted = {"original": network, **{form: mbp.recompose(one) for form, one in cut.items()}}
    return Forms(
        shape,
        {form: mbp.measure_complexity(one, shape).macs for form, one in counted.items()},
        {
            "eager": (eager, x),
            "eager, channels last": (channels_last, x.contiguous(memory_format=last)),
            "onnxruntime": (onnx, x),
        },
    )


def latencies(forms: Forms, repeats: int) -> dict[str, Any]:
    """Time the forms of one network."""
    result: dict[str, Any] = {"input_shape": list(forms.input_shape), "batch_size": 1, "macs": forms.macs}
    for runtime, (functions, image) in forms.runtimes.items():
        with torch.inference_mode():
            calls = [lambda one=one, image=image: one(image) for one in functions.values()]
            seconds = dict(zip(functions, median_seconds(calls, image.device, repeats, warm_up=5), strict=True))
        result[runtime] = {}
        for form, value in seconds.items():
            of_original = value / seconds["original"]
            result[runtime][form] = {"median_ms": 1e3 * value, "of_original": of_original, "speed_up": 1 / of_original}
            if form in forms.macs and form != "original":
                mac_reduction = 1 - forms.macs[form] / forms.macs["original"]
                share = (1 - of_original) / mac_reduction
                result[runtime][form] |= {"mac_reduction": mac_reduction, "latency_reduction_over_mac_reduction": share}
        print(runtime, json.dumps(result[runtime]), flush=True)
    return result


def prune_step(repeats: int) -> dict[str, Any]:
    """Time one whole prune step, ours and that of Torch-Pruning."""
    factory, shape = NETWORKS["DenseNet121 2D"]
    network, x = trained(factory, shape), torch.rand(1, *shape)

    def ours() -> None:
        decomposed = mbp.decompose(network)
        scores = mbp.SingularValueImportance(decomposed).scores()
        mbp.prune_(decomposed, scores, mbp.Budget(parameters=0.75))
        mbp.recompose(decomposed)

    def theirs() -> None:
        victim = copy.deepcopy(network)
        head = [module for module in victim.modules() if isinstance(module, nn.Linear)][-1:]
        importance = torch_pruning.importance.GroupMagnitudeImportance()
        pruner = torch_pruning.pruner.BasePruner(
            victim, x, importance=importance, pruning_ratio=0.5, ignored_layers=head
        )
        pruner.step()

    taken: dict[str, list[float]] = {"ours": [], "torch_pruning": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("torch_pruning", theirs)):
            start = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "network": "DenseNet121 2D",
        "seconds": taken,
        "median_seconds": medians,
        "ratio": medians["torch_pruning"] / medians["ours"],
    }


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    # first: a child begins with the peak that its parent had
    probe = subprocess.run([sys.executable, "-c", MEMORY_PROBE], check=True, capture_output=True, text=True)
    folder = tempfile.TemporaryDirectory()
    prepared = {name: prepare(name, folder.name) for name in NETWORKS}
    result = {
        "command": f"python tests/benchmarks/speed.py --output {arguments.output.as_posix()}",
        "versions": {
            "python": platform.python_version(),
            "package": mbp.__version__,
            **{name: version(name) for name in ("torch", "monai", "torch-pruning", "onnxruntime")},
        },
        "device": device_name("cpu"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "decompose_resnet200_3d": json.loads(probe.stdout.splitlines()[-1]),
        "prune_step": prune_step(arguments.steps),
        "latency": {name: latencies(forms, arguments.repeats) for name, forms in prepared.items()},
    }
    folder.cleanup()
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
