"""Ends a run that cannot go on, early and with a reason that says what to change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn

from ..distributed import process_rank
from ..errors import BasisPruneError, ConfigurationError
from ..failures import explain_failure
from ..files import write_atomically
from .exceptions import on_exception

__all__ = ["FailureHandler"]


class FailureHandler:
    """Checks the folder of the results before and while an engine trains, and the loss of each batch.

    A folder that cannot be written to, or has no room for the networks of a run, is an error before any training. A
    loss that is no number, or a folder that is gone or another one than at the start, as after a network drive was
    disconnected, ends the training. What else ends it from outside (see
    :func:`~monai_basisprune.failures.explain_failure`) is raised as an error that says what to change. Attach it
    before all other handlers, so that nothing is saved of a network that is no longer sound.

    Args:
        folder: where the results go.
        network: the network; its size is that of one file.
        files: how many networks the run may write there.
    """

    def __init__(self, folder: str | os.PathLike[str], network: nn.Module, files: int = 12) -> None:
        self.folder = Path(folder)
        self.network = network
        self.files = files
        self._place: tuple[int, int] | None = None

    def attach(self, engine: Engine) -> None:
        """Register on a ``SupervisedTrainer``; of several processes, the first one checks the folder."""
        if process_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._check_folder)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._check_place)
        # before the gradients of such a loss reach anything else
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        on_exception(engine, self._explain, last=True)

    def _check_folder(self, engine: Engine) -> None:
        probe = self.folder / ".writable"
        try:
            write_atomically(probe, b"")
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"The folder of the results cannot be written to ({error.strerror or type(error).__name__}): "
                f"change its permissions, make room, or name another one (in a bundle --output_dir)."
            ) from None
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.network.state_dict().values())
        needed = self.files * size
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ConfigurationError(
                f"The folder of the results has {free >> 20} MiB left, and the networks of this run may need "
                f"{-(-needed >> 20)} MiB: make room, or name a folder on another disk (in a bundle --output_dir)."
            )
        self._place = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.folder)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _check_place(self, engine: Engine) -> None:
        # what writes a file makes its folder, which would hide that the one with the earlier networks is gone
        if self._place is not None and self._identity() != self._place:
            raise BasisPruneError(
                "The folder of the results is gone, or another one than when the run started, as after a network drive "
                "was disconnected; nothing more was written. Connect it again, or let the results go to a local folder."
            )

    def _check_loss(self, engine: Engine) -> None:
        output: Any = engine.state.output
        output = output[0] if isinstance(output, list) and output else output
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if isinstance(loss, (torch.Tensor, float)) and not bool(torch.as_tensor(loss).isfinite().all()):
            raise BasisPruneError(
                f"The loss is NaN or infinite in epoch {engine.state.epoch}, batch {engine.state.iteration}: the "
                f"training has diverged. Pass a smaller --learning_rate, switch off --amp, and check that no image "
                f"holds extreme values. The networks that were saved before are left as they are."
            )

    def _explain(self, engine: Engine, error: BaseException) -> None:
        reason = None if isinstance(error, BasisPruneError) else explain_failure(error)
        if reason is not None:
            raise BasisPruneError(f"The training ended in epoch {engine.state.epoch}. {reason}") from error
