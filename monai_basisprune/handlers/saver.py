"""Keeps the network of every pruning ratio."""

from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from ..decomposition import decomposed_layers
from ..persistence import save_pruned

__all__ = ["PrunedNetworkSaver"]


class PrunedNetworkSaver:
    """Saves a decomposed network, with its plan, after each epoch: one file for each pruning ratio.

    An epoch replaces the file of the last one at the same ratio, so that in the end each file holds the network
    before the next cut, which is the one that :meth:`PruningCurve.rounds` lists. Attach it after the validation
    handler and before the :class:`PruningHandler`.

    Args:
        network: the decomposed network that the engine trains.
        folder: where the files go.
    """

    def __init__(self, network: nn.Module, folder: str | os.PathLike[str]) -> None:
        self.network = network
        self.folder = Path(folder)

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the network as it is now."""
        save_pruned(self.network, self.path(sum(layer.rank() for _, layer in decomposed_layers(self.network))))

    def path(self, bases: int) -> Path:
        """Return the file of the network that has a number of bases."""
        return self.folder / f"bases_{bases:06d}.pt"
