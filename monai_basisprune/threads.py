"""How many threads PyTorch computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on one thread for a while; a function with many small operations takes it as a decorator.

    For a small operation more threads gain little, and cost a hundred times its time where another program has one of
    the cores: each operation waits until all of its threads have had their turn. They also go on to turn afterwards,
    in the way of what comes next.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
