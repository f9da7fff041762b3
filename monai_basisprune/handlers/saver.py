"""Keeps the network of every round."""

from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from ..distributed import process_rank
from ..persistence import save_pruned
from ..structure import structure_of

__all__ = ["PrunedNetworkSaver"]


class PrunedNetworkSaver:
    """Saves a decomposed network, with its plan, after each epoch: one file for each round.

    An epoch replaces the file of the last one with the same bases and channels, so that in the end each file holds the
    network before the next cut, which is the one that :meth:`PruningCurve.rounds` lists. Attach it after the validation
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
        """Save the network as it is now; of several processes, the first one does."""
        if process_rank() > 0:
            return
        save_pruned(self.network, self.path(structure_of(self.network)))

    def path(self, structure: str | None) -> Path:
        """Return the file of the network with a structure, as a point of the curve names it."""
        return self.folder / f"{structure}.pt"
