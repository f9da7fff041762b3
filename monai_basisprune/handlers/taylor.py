"""Collects Taylor importance during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from ..importance import TaylorImportance

__all__ = ["TaylorImportanceHandler"]


class TaylorImportanceHandler:
    """Adds the gradients of each optimizer step to a :class:`~monai_basisprune.TaylorImportance`, at no extra pass.

    It acts between the backward pass and the optimizer's step of any ``SupervisedTrainer``. With gradient
    accumulation it waits for the last backward pass before the step; with AMP it divides by the scale of the
    gradient scaler and leaves out the batches that the scaler leaves out.

    Args:
        importance: the importance that collects.
    """

    def __init__(self, importance: TaylorImportance) -> None:
        self.importance = importance

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
        if scaler is None or not scaler.is_enabled():
            self.importance.accumulate()
        else:
            self.importance.accumulate(gradient_scale=scaler.get_scale(), skip_nonfinite=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        return self.importance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.importance.load_state_dict(state)
