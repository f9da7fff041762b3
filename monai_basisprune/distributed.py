"""Several processes that train one network: who writes, what is averaged, and what is told to all."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .errors import ConfigurationError

__all__ = [
    "agreed",
    "average_over_processes",
    "by_first_process",
    "end_processes",
    "from_first_process",
    "gathered",
    "leave_processes",
    "process_count",
    "process_rank",
    "start_processes",
    "synchronized_norms",
    "wrapped",
]

_PATIENCE = timedelta(hours=24)
"""How long the others wait while the first process reads a cohort or tests; where one has ended, torchrun ends all."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def start_processes(device: torch.device | str = "cpu") -> torch.device:
    """Join the processes that ``torchrun`` has started, and return the device of this one.

    Args:
        device: what the run would take alone; with ``"cuda"`` each process takes the device of its local rank, and they
            talk by NCCL, otherwise by gloo.

    Raises:
        ConfigurationError: if ``torchrun`` did not start this process, or there are fewer devices than processes.
    """
    if "RANK" not in os.environ:
        raise ConfigurationError(
            "This configuration is for several processes, and this is one that torchrun did not start: use "
            "`torchrun --nproc_per_node=2 -m monai.bundle run …`, or leave out multi_gpu.json."
        )
    local, device = int(os.environ.get("LOCAL_RANK", "0")), torch.device(device)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigurationError(
                f"torchrun started more processes on this machine than it has devices: there are "
                f"{torch.cuda.device_count()}. Pass --nproc_per_node={torch.cuda.device_count()}."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return device


def end_processes() -> None:
    """Leave the group of processes, where this is one of several."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave_processes() -> None:
    """Leave the group after an error; that of NCCL, which would wait for the others, ends with the process."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def process_count() -> int:
    """Return how many processes train together; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return which of them this one is, from 0; number 0 decides and writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def average_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes, the same bits in each; it is the tensor itself in one alone.

    Args:
        tensor: of the same shape and type in every process.
    """
    if process_count() == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / process_count()


def agreed(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the scores that process 0 has, so that all processes cut alike, whatever rounding did.

    Args:
        scores: floating point tensors by name, of the same shapes in every process.
    """
    if process_count() > 1:
        scores = {name: values.detach().clone().contiguous() for name, values in scores.items()}
        for name in sorted(scores):
            dist.broadcast(scores[name], src=0)
    return dict(scores)


def gathered(value: Any) -> list[Any]:
    """Return what every process gives, in the order of their ranks.

    Args:
        value: of JSON types; it travels as text, so that no process runs what another one sends.
    """
    if process_count() == 1:
        return [value]
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())
    sizes = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(process_count())]
    dist.all_gather(sizes, torch.tensor([content.numel()], device=_device()))
    longest = max(int(size) for size in sizes)
    parts = [torch.zeros(longest, dtype=torch.uint8, device=_device()) for _ in range(process_count())]
    dist.all_gather(parts, nn.functional.pad(content, (0, longest - content.numel())))
    return [json.loads(part[: int(size)].cpu().numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


def from_first_process(make: Callable[[], _Result]) -> _Result:
    """Let process 0 make something of JSON types, and return it in all; the others wait for it.

    An error of process 0 ends the others as well.
    """
    if process_count() == 1:
        return make()
    value, error = None, None
    if process_rank() == 0:
        try:
            value = make()
        except Exception as raised:  # it is raised again below, when the others know of it
            error = raised
    failed, value = gathered([error is not None, value])[0]
    if error is not None:
        raise error
    if failed:
        raise ConfigurationError("The first of the processes ended with an error; its message says which.")
    return value


def by_first_process(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function that returns JSON types run in process 0 only, and return its result in all."""

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        return from_first_process(lambda: function(*args, **kwargs))

    return run


def wrapped(network: nn.Module) -> nn.Module:
    """Return a network as several processes train it, in ``DistributedDataParallel``; alone, it is the network.

    All processes take the values that the first one has, since theirs may differ in the last digits, as after a
    pretraining on a GPU. Wrap it again whenever parameters were replaced, as :func:`~monai_basisprune.prune_` does:
    what was wrapped before goes on averaging the gradients of the old ones. Between two wraps, statistics of norms are
    not sent around, since :func:`synchronized_norms` keeps them equal.
    """
    if process_count() == 1:
        return network
    for buffer in network.buffers():  # DistributedDataParallel sends the parameters
        value = buffer.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, src=0)
        buffer.copy_(value)
    device = next(network.parameters()).device
    return DistributedDataParallel(
        network, device_ids=None if device.type == "cpu" else [device], broadcast_buffers=False
    )


@contextmanager
def synchronized_norms(network: nn.Module) -> Iterator[None]:
    """Let batch norms in training take their statistics over the batches of all processes together.

    So that several processes with a part of a batch each compute what one computes with the whole. It works on every
    device (PyTorch's ``SyncBatchNorm`` not on a CPU) and leaves the modules as they are.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)] if process_count() > 1 else []
    for norm in norms:
        norm.forward = functools.partial(_synchronized, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _synchronized(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    dims = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    positions = torch.tensor([float(x.numel() // x.shape[1])], dtype=torch.float64, device=x.device)
    dist.all_reduce(positions)
    count = float(positions)
    mean = _Sum.apply(x.sum(dims)) / count
    centered = x - mean.view(shape)
    variance = _Sum.apply(centered.square().sum(dims)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        factor = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        with torch.no_grad():
            norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), factor)
            unbiased = variance.detach() * (count / max(count - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), factor)
    out = centered * torch.rsqrt(variance + norm.eps).view(shape)
    return out if norm.weight is None else out * norm.weight.view(shape) + norm.bias.view(shape)


def _device() -> torch.device:
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
