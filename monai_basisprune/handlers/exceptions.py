"""Lets several handlers act on the error that ends an engine."""

from __future__ import annotations

from collections.abc import Callable

from ignite.engine import Engine, Events

__all__ = ["on_exception"]

_Act = Callable[[Engine, BaseException], None]
_NAME = "_monai_basisprune_on_exception"


def on_exception(engine: Engine, act: _Act, last: bool = False) -> None:
    """Call something when an error ends an engine; the error goes on, or another one that the last of all raises.

    An engine calls its handlers of an error only up to the first that raises, and silences the error if none does.

    Args:
        engine: any engine.
        act: called with the engine and the error; twice for an error in a step, which ends an epoch and then the run.
        last: whether it comes after what tidies up, since it may raise.
    """
    acts: list[_Act] = vars(engine).setdefault(_NAME, [])
    if not acts:
        engine.add_event_handler(Events.EXCEPTION_RAISED, _call_all)
    acts.insert(len(acts) if last else 0, act)


def _call_all(engine: Engine, error: BaseException) -> None:
    for act in vars(engine)[_NAME]:
        act(engine, error)
    raise error
