"""Collects Taylor importance during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from ..rounds import ChannelScores, CollectsGradients, Scores

__all__ = ["TaylorImportanceHandler"]


class TaylorImportanceHandler:
    """Adds the gradients of each optimizer step to what ranks bases and channels by them, at no extra pass.

    It acts between the backward pass and the optimizer's step of any ``SupervisedTrainer``. With gradient
    accumulation it waits for the last backward pass before the step; with AMP it divides by the scale of the
    gradient scaler and leaves out the batches that the scaler leaves out.

    Args:
        importance: ranks the bases, such as a :class:`~monai_basisprune.TaylorImportance`; one that reads no gradients
            is left alone.
        channel_importance: ranks the channels, such as a :class:`~monai_basisprune.ChannelTaylorImportance`; the same
            holds for it.
    """

    def __init__(self, importance: Scores, channel_importance: ChannelScores | None = None) -> None:
        self.importance = importance
        self.channel_importance = channel_importance
        both: dict[str, Any] = {"bases": importance, "channels": channel_importance}
        self._collecting: dict[str, CollectsGradients] = {
            name: one for name, one in both.items() if isinstance(one, CollectsGradients)
        }

    def attach(self, engine: Engine) -> None:
        """Register on a trainer.

        Args:
            engine: a ``SupervisedTrainer`` or any engine that fires ``IterationEvents.BACKWARD_COMPLETED``.
        """
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the gradients that the network holds now."""
        steps = getattr(engine, "accumulation_steps", 1)
        length = engine.state.epoch_length
        position = engine.state.iteration if length is None else (engine.state.iteration - 1) % length + 1
        if position % steps and position != length:
            return
        scaler = getattr(engine, "scaler", None)
        for one in self._collecting.values():
            if scaler is None or not scaler.is_enabled():
                one.accumulate()
            else:
                one.accumulate(gradient_scale=scaler.get_scale(), skip_nonfinite=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        return {name: one.state_dict() for name, one in self._collecting.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, one in self._collecting.items():
            one.load_state_dict(state[name])
