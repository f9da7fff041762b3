"""Lets a run that was stopped go on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..checkpoints import RunCheckpoints
from ..distributed import gathered, process_rank
from ..errors import PlanMismatchError

__all__ = ["RunCheckpointHandler"]


class RunCheckpointHandler:
    """Saves all that a run is after each epoch, and goes on from there when it is started again.

    With an :class:`EpochSeedHandler`, a run that was killed at any moment ends, on a CPU, with the same bits as one
    that was never stopped: the epoch that it was in is run again. Attach it last, so that a checkpoint holds what all
    other handlers did in its epoch.

    Args:
        folder: where the checkpoints are.
        objects: what makes up the run, each with ``state_dict`` and ``load_state_dict``, in the order in which the
            states are loaded: what prunes before the network, the network before its optimizer, the importance last.
        settings: what the run depends on, such as its configuration and its cases; a checkpoint of a run with other
            settings is refused. Only digests are written.
        resume: False to start anew, whatever the folder holds.

    Attributes:
        resumed_epoch: the epoch that the run went on after, or None where it started at the beginning.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        objects: Mapping[str, Any],
        settings: Mapping[str, Any],
        resume: bool = True,
    ) -> None:
        self.objects = dict(objects)
        self.checkpoints = RunCheckpoints(folder, settings)
        self.resume = resume
        self.resumed_epoch: int | None = None
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save what the run is now; of several processes, the first one does."""
        if process_rank() > 0:
            return
        state = {name: part.state_dict() for name, part in self._parts(engine).items()}
        self.checkpoints.save(engine.state.epoch, state)

    def load(self, engine: Engine) -> None:
        """Bring all parts of the run to the last checkpoint, if there is one.

        Raises:
            PlanMismatchError: if it is of a run with other settings or other parts, or cannot be read, or one of
                several processes has found another one.
        """
        if not self.resume:
            self.remove()
            return
        found = self.checkpoints.load()
        epochs = gathered(None if found is None else found.epoch)
        if any(epoch != epochs[0] for epoch in epochs):
            raise PlanMismatchError(
                f"The processes found checkpoints of different epochs, {epochs}: pass an --output_dir that all of them "
                f"see, such as a folder on a shared drive."
            )
        if found is None:
            return
        for warning in found.warnings:
            self.logger.warning("A checkpoint cannot be used, and the one before is taken: %s.", warning)
        if found.threads != (threads := torch.get_num_threads()):
            self.logger.warning(
                "The number of threads is not that of the run that was stopped, %d instead of %d: it goes on, but may "
                "end with other bits than a run that was never stopped. Set OMP_NUM_THREADS=%d for the same ones.",
                *(threads, found.threads, found.threads),
            )
        parts = self._parts(engine)
        if parts.keys() != found.state.keys():
            raise PlanMismatchError(
                f"The checkpoint is of a run with the parts {sorted(found.state)}, this one has {sorted(parts)}: go on "
                f"with what it was started with, or start anew with resume=False."
            )
        for name, part in parts.items():
            part.load_state_dict(found.state[name])
        engine.state.epoch = self.resumed_epoch = found.epoch
        engine.state.iteration = found.epoch * (engine.state.epoch_length or 0)
        self.logger.info("The run was stopped; it goes on after epoch %d.", found.epoch)

    def remove(self) -> None:
        """Remove the checkpoints: the results are written."""
        if process_rank() == 0:
            self.checkpoints.remove()

    def _parts(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        return self.objects if scaler is None else {**self.objects, "scaler": scaler}
