"""What PyTorch keeps of the convolutions that a processor has run, of which every cut of a network makes new ones."""

from __future__ import annotations

import os

import torch
from torch import nn

from .plain_layers import SUPPORTED_CONVOLUTIONS

__all__ = ["bound_kernel_cache", "forget_convolutions"]

_CAPACITY = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
"""What sets the bound of the cache of kernels, read once by oneDNN; the second name is the older one."""

_KERNELS_OF_A_LAYER = 32
"""More than one round takes of a layer: 28 at most were measured, docs/long_runs.md says how."""


def bound_kernel_cache(network: nn.Module) -> int:
    """Bound the kernels that oneDNN keeps to what training and evaluating a network takes.

    For a small network that is less than the 1024 of oneDNN, and memory grows less. For one of a hundred layers it is
    more: once channels were cut and no two layers are alike, one batch of a DenseNet121 takes more than 1024 kernels.
    Each of them would be made anew in every batch, which takes longer than all that they compute.

    Where a user has set the environment variable of oneDNN, that holds. The bound is for the whole process and can be
    set once: where a convolution has run before, in a notebook or after another network, this has no effect. It
    changes no result, and the environment is left as it was.

    Args:
        network: the network that is to be pruned.

    Returns:
        the bound that follows from the network.
    """
    layers = sum(isinstance(module, SUPPORTED_CONVOLUTIONS) for module in network.modules())
    bound = _KERNELS_OF_A_LAYER * max(1, layers)
    if not any(name in os.environ for name in _CAPACITY):
        os.environ[_CAPACITY[0]] = str(bound)
        try:
            _convolve_once()
        finally:
            del os.environ[_CAPACITY[0]]
    return bound


def _convolve_once() -> None:
    """Run a convolution of the kind that oneDNN takes: it reads its settings at the first one."""
    with torch.no_grad():
        nn.functional.conv2d(torch.zeros(2, 1, 3, 3, dtype=torch.float32), torch.zeros(1, 1, 3, 3, dtype=torch.float32))


def forget_convolutions() -> None:
    """Let PyTorch drop what it keeps beside oneDNN of the convolutions of this thread, for a network that was cut.

    It keeps a description of each of the last 1024 convolutions, and those from before a cut are never used again.
    PyTorch has no call to drop them, but does so whenever the number of threads is set, be it to what it is. The
    kernels stay, and what is needed again is described anew: for all of a DenseNet121 in about 0.1 s.
    """
    torch.set_num_threads(torch.get_num_threads())
