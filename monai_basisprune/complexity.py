"""What a network costs: its parameters and its multiply-accumulate operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Complexity", "evaluation_mode", "example_input", "measure_complexity"]


@dataclass(frozen=True)
class Complexity:
    """The cost of one network for one image.

    Attributes:
        parameters: number of parameters, those shared by several modules counted once.
        macs: multiply-accumulate operations of convolutions, matrix products and attention in one forward pass.
    """

    parameters: int
    macs: int


def measure_complexity(network: nn.Module, input_shape: Sequence[int]) -> Complexity:
    """Count the parameters and operations of a network as it stands.

    Operations are counted by PyTorch's own ``FlopCounterMode`` in one forward pass in evaluation mode, so layers of
    any type count. A decomposed network is counted with both halves of every layer: count ``recompose(network)`` to
    learn what is left after pruning.

    Args:
        network: the network; modes, parameters and buffers stay as they are.
        input_shape: shape of one input without the batch dimension, such as ``(1, 224, 224)``.

    Raises:
        ValueError: if the network cannot process an input of that shape.

    Example:
        >>> measure_complexity(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32))
        Complexity(parameters=224, macs=221184)
    """
    counter = FlopCounterMode(display=False)
    x = example_input(network, input_shape)
    with evaluation_mode(network), torch.no_grad(), counter:
        try:
            network(x)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"{type(network).__name__} cannot process an input of shape {tuple(x.shape)} (batch first): {error}"
            ) from error
    return Complexity(parameters=sum(p.numel() for p in network.parameters()), macs=int(counter.get_total_flops()) // 2)


def example_input(network: nn.Module, input_shape: Sequence[int]) -> torch.Tensor:
    """Return zeros of a shape, with a batch dimension of 1, of the type and on the device of the network."""
    if not input_shape or any(not isinstance(size, int) or size < 1 for size in input_shape):
        raise ValueError(
            f"input_shape must hold positive whole numbers, channels first and without the batch, such as "
            f"(1, 224, 224); got {input_shape!r}."
        )
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros((1, *input_shape), dtype=like.dtype, device=like.device)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while, and every module back into the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
