"""Shows how far a run is."""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm import tqdm

from ..distributed import process_rank
from .curve import PruningCurveHandler
from .exceptions import on_exception

__all__ = ["ProgressHandler"]


class ProgressHandler:
    """One progress bar over all epochs of an engine, with the last point of the pruning curve beside it.

    Args:
        curve: the handler that records the curve; without it, only the epoch is shown.
        description: what to call the run; by default the name of the engine.
    """

    def __init__(self, curve: PruningCurveHandler | None = None, description: str | None = None) -> None:
        self.curve = curve
        self.description = description
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register on any engine, after the validation handler."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._describe)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.INTERRUPT, self._close)
        on_exception(engine, lambda engine, error: self._close(engine))

    def __call__(self, engine: Engine) -> None:
        """Go one step on."""
        if self._bar is not None:
            self._bar.update(engine.state.iteration - self._bar.n)  # a checkpoint may be loaded after this was opened

    def _open(self, engine: Engine) -> None:
        length, epochs = engine.state.epoch_length, engine.state.max_epochs
        total = length * epochs if length and epochs else None
        name = self.description or type(engine).__name__
        done = engine.state.iteration
        self._bar = tqdm(total=total, initial=done, desc=name, unit="batch", disable=process_rank() > 0)

    def _describe(self, engine: Engine) -> None:
        if self._bar is None:
            return
        postfix = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}"}
        if self.curve is not None and self.curve.curve.points:
            point = self.curve.curve.points[-1]
            postfix["removed"] = f"{100 * point.parameter_reduction:.1f} %"
            postfix["AUC"] = f"{point.auc['auc']:.3f}"
        self._bar.set_postfix(postfix)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
