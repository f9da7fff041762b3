"""Several handlers act on the error that ends an engine, and the error goes on."""

from __future__ import annotations

import pytest
from ignite.engine import Engine, Events

from monai_basisprune.handlers.exceptions import on_exception


def failing_engine(error: BaseException, event: Events = Events.STARTED) -> Engine:
    def fail() -> None:
        raise error

    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(event, fail)
    return engine


def test_each_acts_with_the_engine_and_the_error_which_goes_on() -> None:
    error, seen = KeyError("of a step"), []
    engine = failing_engine(error)
    for name in ("first", "second"):
        on_exception(engine, lambda engine, error, name=name: seen.append((name, engine, error)))
    with pytest.raises(KeyError) as caught:
        engine.run([0])
    assert caught.value is error
    assert seen == [("second", engine, error), ("first", engine, error)]


def test_the_last_comes_after_all_others_whenever_it_was_registered() -> None:
    seen: list[str] = []

    def explain(engine: Engine, error: BaseException) -> None:
        seen.append("explained")
        raise ValueError("in words") from error

    engine = failing_engine(KeyError())
    on_exception(engine, lambda *_: seen.append("before"))
    on_exception(engine, explain, last=True)
    on_exception(engine, lambda *_: seen.append("after"))
    with pytest.raises(ValueError, match="in words") as caught:
        engine.run([0])
    assert sorted(seen[:2]) == ["after", "before"]
    assert seen[2:] == ["explained"]
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interruption_is_acted_on_and_goes_on() -> None:
    seen: list[type] = []
    engine = failing_engine(KeyboardInterrupt())
    on_exception(engine, lambda engine, error: seen.append(type(error)))
    with pytest.raises(KeyboardInterrupt):
        engine.run([0])
    assert seen == [KeyboardInterrupt]


def test_an_error_in_a_step_ends_its_epoch_and_then_the_run() -> None:
    seen: list[str] = []
    engine = failing_engine(KeyError("of a step"), Events.ITERATION_STARTED)
    on_exception(engine, lambda engine, error: seen.append(str(error)))
    with pytest.raises(KeyError, match="of a step"):
        engine.run([0, 0], max_epochs=2)
    assert engine.state.iteration == 1
    assert seen == ["'of a step'"] * 2


def test_a_run_without_an_error_is_none_of_its_business() -> None:
    engine = Engine(lambda engine, batch: None)
    on_exception(engine, lambda *_: pytest.fail("there was no error"))
    assert engine.run([0, 0], max_epochs=2).iteration == 4


def test_engines_have_acts_of_their_own() -> None:
    seen: list[str] = []
    engines = [failing_engine(KeyError(name)) for name in ("one", "two")]
    for engine, name in zip(engines, ("one", "two"), strict=True):
        on_exception(engine, lambda *_, name=name: seen.append(name))
    with pytest.raises(KeyError, match="two"):
        engines[1].run([0])
    assert seen == ["two"]
