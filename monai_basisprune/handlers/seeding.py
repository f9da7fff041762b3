"""Makes the random numbers of an epoch depend on the seed and the epoch alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd

__all__ = ["EpochSeedHandler"]


class EpochSeedHandler:
    """Sets every random generator anew at the start of each epoch.

    The order of the cases, what augments them and what else draws at random then depend on the seed and the number of
    the epoch, not on what ran before: an epoch that is run again after a stop draws the same numbers. The generators of
    torch, numpy and Python are set, and those of the random transforms of the training data (with workers, MONAI's
    loader derives the latter from torch's). A data set and a sampler with ``set_epoch`` are told the epoch instead.

    Args:
        seed: the seed of the run; None leaves the generators alone.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; attach it first."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the generators for the epoch that starts, or for what follows the last one."""
        ended = engine.last_event_name == Events.COMPLETED
        epoch = 0 if ended else engine.state.epoch
        loader = engine.state.dataloader
        dataset = getattr(loader, "dataset", None)
        parts: tuple[Any, ...] = (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None), dataset)
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        if self.seed is None:
            return
        number = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - transforms of others draw from it
        torch.manual_seed(number)
        if dataset is not None and not hasattr(dataset, "set_epoch"):
            set_rnd(dataset, number)
