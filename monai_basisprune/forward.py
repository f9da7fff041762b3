"""One forward pass to measure something with: its input, and the mode of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluation_mode", "example_input", "forward_pass", "memory_format"]


def example_input(network: nn.Module, input_shape: Sequence[int], batch_size: int = 1) -> torch.Tensor:
    """Return zeros of the type, on the device and in the memory format of a network.

    Args:
        network: the network.
        input_shape: shape of one input without the batch dimension, such as ``(1, 224, 224)``.
        batch_size: images in the batch.

    Raises:
        ValueError: unless the shape holds positive whole numbers.
    """
    if not input_shape or any(not isinstance(size, int) or size < 1 for size in input_shape):
        raise ValueError(
            f"input_shape must hold positive whole numbers, channels first and without the batch, such as "
            f"(1, 224, 224); got {input_shape!r}."
        )
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros((batch_size, *input_shape), dtype=like.dtype, device=like.device)
    formats = (memory_format(p) for p in network.parameters() if p.ndim == x.ndim)
    return x.contiguous(
        memory_format=next((one for one in formats if one is not torch.contiguous_format), torch.contiguous_format)
    )


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Return the channels-last format of a tensor that is stored in it and in no other, else the default format."""
    if not tensor.is_contiguous():
        for dims, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if tensor.ndim == dims and tensor.is_contiguous(memory_format=last):
                return last
    return torch.contiguous_format


def forward_pass(network: nn.Module, x: torch.Tensor) -> object:
    """Pass one batch through a network in evaluation mode, without gradients.

    Raises:
        ValueError: if the network cannot process it.
    """
    with evaluation_mode(network), torch.no_grad():
        try:
            return network(x)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"{type(network).__name__} cannot process an input of shape {tuple(x.shape)} (batch first): {error}"
            ) from error


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
