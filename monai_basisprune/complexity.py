"""What a network costs: parameters, operations, memory and time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .forward import example_input, forward_pass
from .latency import Latency, measure_latency

__all__ = ["Complexity", "measure_complexity"]


@dataclass(frozen=True)
class Complexity:
    """The cost of one network for one image.

    Attributes:
        parameters: number of parameters, those shared by several modules counted once.
        macs: multiply-accumulate operations of convolutions, matrix products and attention in one forward pass.
        bytes_on_disk: bytes of parameters and buffers, which a weights file holds beside its table of contents.
        peak_activation_bytes: most bytes of feature maps, the input among them, that exist at once in a forward pass
            without gradients; what a library uses inside one operation is not seen.
        latency: the measured time of a forward pass; None unless it was asked for.
    """

    parameters: int
    macs: int
    bytes_on_disk: int
    peak_activation_bytes: int
    latency: Latency | None = None


def measure_complexity(network: nn.Module, input_shape: Sequence[int], latency: bool = False) -> Complexity:
    """Count the parameters, operations and bytes of a network as it stands, and measure its time.

    Operations are counted by PyTorch's own ``FlopCounterMode`` in one forward pass in evaluation mode, so layers of
    any type count. A decomposed network is counted with both halves of every layer: count ``recompose(network)`` to
    learn what is left after pruning.

    Args:
        network: the network; modes, parameters and buffers stay as they are.
        input_shape: shape of one input without the batch dimension, such as ``(1, 224, 224)``.
        latency: whether to measure the time of a forward pass as well, see :func:`measure_latency`.

    Raises:
        ValueError: if the network cannot process an input of that shape.

    Example:
        >>> cost = measure_complexity(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32))
        >>> cost.parameters, cost.macs, cost.bytes_on_disk, cost.peak_activation_bytes
        (224, 221184, 896, 45056)
    """
    counter, memory = FlopCounterMode(display=False), _LiveTensors()
    with memory:
        x = example_input(network, input_shape)
        with counter:
            forward_pass(network, x)
    stored = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return Complexity(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=int(counter.get_total_flops()) // 2,
        bytes_on_disk=sum(t.numel() * t.element_size() for t in stored.values()),
        peak_activation_bytes=memory.peak,
        latency=measure_latency(network, input_shape) if latency else None,
    )


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make and that still exist, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)} - self._known
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # what shares the memory of a weight is no new memory
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in before | self._known:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
