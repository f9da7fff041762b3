"""How long a network takes on the device that it is on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .forward import evaluation_mode, example_input, forward_pass

__all__ = ["Latency", "device_name", "measure_latency", "median_seconds"]

# A kernel that takes a microsecond cannot be timed once
_SHORTEST = 2e-4


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass in evaluation mode, as measured.

    Attributes:
        median_ms: median, in milliseconds.
        low_ms: first quartile.
        high_ms: third quartile.
        batch_size: images in the batch.
        repeats: passes that were measured.
        warm_up: passes before them that were not.
        threads: threads of the host that PyTorch could use.
        device: the device, by name.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    batch_size: int
    repeats: int
    warm_up: int
    threads: int
    device: str


def measure_latency(
    network: nn.Module, input_shape: Sequence[int], batch_size: int = 1, repeats: int = 30, warm_up: int = 5
) -> Latency:
    """Measure the time of one forward pass of a network as it stands, on the device that it is on.

    Whatever else the machine does at the time is measured as well: compare two networks in one run.

    Args:
        network: the network; modes, parameters and buffers stay as they are.
        input_shape: shape of one input without the batch dimension, such as ``(1, 224, 224)``.
        batch_size: images in the batch.
        repeats: passes to measure, at least 3.
        warm_up: passes before them.

    Raises:
        ValueError: if the network cannot process the input, or there is nothing to measure.

    Example:
        >>> measure_latency(nn.Conv2d(3, 8, 3), (3, 32, 32), repeats=5).repeats
        5
    """
    if repeats < 3 or warm_up < 0 or batch_size < 1:
        raise ValueError(
            f"measure_latency needs repeats of at least 3, warm_up of at least 0 and batch_size of at least 1, got "
            f"{repeats}, {warm_up} and {batch_size}."
        )
    x = example_input(network, input_shape, batch_size)
    forward_pass(network, x)
    with evaluation_mode(network), torch.inference_mode():
        (seconds,) = _seconds([lambda: network(x)], x.device, repeats, warm_up)
    low, median, high = statistics.quantiles(seconds, n=4)
    return Latency(
        median_ms=median * 1e3,
        low_ms=low * 1e3,
        high_ms=high * 1e3,
        batch_size=batch_size,
        repeats=repeats,
        warm_up=warm_up,
        threads=torch.get_num_threads(),
        device=device_name(x.device),
    )


def device_name(device: torch.device | str) -> str:
    """Return the name of a device, such as ``"cpu (x86_64)"``."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def median_seconds(
    functions: Sequence[Callable[[], object]], device: torch.device, repeats: int, warm_up: int
) -> list[float]:
    """Return the median time of each function; they take turns, so that a disturbance meets all of them."""
    return [statistics.median(seconds) for seconds in _seconds(functions, device, repeats, warm_up)]


def _seconds(
    functions: Sequence[Callable[[], object]], device: torch.device, repeats: int, warm_up: int
) -> list[list[float]]:
    def run(function: Callable[[], object], times: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / times

    first = [min(run(function, 1) for _ in range(warm_up + 1)) for function in functions]
    times = [max(1, int(_SHORTEST / max(seconds, 1e-7))) for seconds in first]
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for position, function in enumerate(functions):
            taken[position].append(run(function, times[position]))
    return taken
