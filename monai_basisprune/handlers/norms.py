"""Decides what happens to the running statistics of batch norms during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..distributed import synchronized_norms
from ..training import freeze_norm_statistics_, recalibrate_norm_statistics_
from .exceptions import on_exception

__all__ = ["NORM_STATISTICS", "NormStatisticsHandler"]

NORM_STATISTICS = ("update", "frozen", "recalibrate")
"""What can happen to running statistics."""


class NormStatisticsHandler:
    """Lets batch norms update their running statistics, freezes these, or estimates them anew after each epoch.

    Attach it before the validation handler.

    Args:
        network: the network that the engine trains.
        mode: ``"update"`` (as any training does), ``"frozen"`` (the pretrained statistics stay and are used), or
            ``"recalibrate"`` (plain averages over ``data`` after each epoch).
        data: batches as dictionaries; needed to recalibrate.
        image_key: the key of the images in a batch.
    """

    def __init__(
        self,
        network: nn.Module,
        mode: str = "update",
        data: Iterable[dict[str, Any]] | None = None,
        image_key: str = CommonKeys.IMAGE,
    ) -> None:
        if mode not in NORM_STATISTICS:
            raise ValueError(f"mode must be one of {NORM_STATISTICS}, got {mode!r}.")
        if mode == "recalibrate" and data is None:
            raise ValueError("mode='recalibrate' needs data, the batches to average over, such as the training loader.")
        self.network = network
        self.mode = mode
        self.data = data
        self.image_key = image_key
        self._handles: list[RemovableHandle] = []

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        if self.mode == "frozen":
            engine.add_event_handler(Events.STARTED, self._freeze)
            engine.add_event_handler(Events.COMPLETED, self._release)
            on_exception(engine, lambda engine, error: self._release(engine))
        elif self.mode == "recalibrate":
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Estimate the running statistics anew, over the batches of all processes together."""
        assert self.data is not None
        with synchronized_norms(self.network):
            recalibrate_norm_statistics_(self.network, (batch[self.image_key] for batch in self.data))

    def _freeze(self, engine: Engine) -> None:
        self._handles = freeze_norm_statistics_(self.network)

    def _release(self, engine: Engine) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
