"""Lets several processes train one network."""

from __future__ import annotations

import gc
from contextlib import ExitStack

from ignite.engine import Engine, Events
from torch import nn

from ..distributed import process_count, synchronized_norms, wrapped
from .exceptions import on_exception

__all__ = ["DistributedHandler"]


class DistributedHandler:
    """Trains a network in several processes as one: gradients are averaged, batch norms see the whole batch.

    The engine trains the network in ``DistributedDataParallel``, which is made anew whenever parameters were replaced
    since the last epoch, as by a cut, or others are trained: it averages the gradients of those that were trained when
    it was made, and of no others. Everything else goes on with the network itself. Attach it first. In a process
    that is alone it does nothing.

    Args:
        network: the network that the engine trains.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._wrapped: list[tuple[nn.Parameter, bool]] = []
        self._norms = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Register on a ``SupervisedTrainer``."""
        if process_count() > 1:
            engine.add_event_handler(Events.EPOCH_STARTED, self)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._release)
            engine.add_event_handler(Events.COMPLETED, self._release)  # of an epoch that ended before its first batch
            on_exception(engine, lambda engine, error: self._release())

    def __call__(self, engine: Engine) -> None:
        """Get ready for an epoch."""
        parameters = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
        if [(id(p), trained) for p, trained in parameters] != [(id(p), trained) for p, trained in self._wrapped]:
            engine.network = None
            gc.collect()  # what was wrapped before holds hooks on the parameters that are still there
            engine.network = wrapped(self.network)
            self._wrapped = parameters
        self._norms.enter_context(synchronized_norms(self.network))

    def _release(self) -> None:
        self._norms.close()
