"""Makes the random numbers of an epoch depend on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Sized

from ignite.engine import Engine, Events

from ..loading import seed_epoch

__all__ = ["EpochSeedHandler"]


class EpochSeedHandler:
    """Sets every random generator anew at the start of each epoch; see :func:`~monai_basisprune.loading.seed_epoch`.

    The order of the cases, what augments them and what else draws at random then depend on the seed and the number of
    the epoch, not on what ran before: an epoch that is run again after a stop draws the same numbers. One that takes
    whole passes over the data starts with a new one, since what the last epoch left of its own would draw once more.

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
        loader, length = engine.state.dataloader, engine.state.epoch_length
        ended = engine.last_event_name == Events.COMPLETED
        seed_epoch(loader, self.seed, 0 if ended else engine.state.epoch)
        if not ended and isinstance(loader, Sized) and length and length % len(loader) == 0:
            engine.set_data(loader)
