from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.handlers import StatsHandler
from monai.transforms import Transform
from monai.utils import set_determinism

from monai_basisprune.data.identifiers import REMOVED, known
from monai_basisprune.redaction import (
    RedactingWorkerStart,
    format_error,
    install_redaction,
    remove_redaction,
    shown_text,
)
from monai_basisprune.workflow.start import start_run

from .bundle_runs import ROOT, unchanged_process

FOLDER, PATIENT = "/patients/Doe_John/study", "ZQXPHI-77"
TEXT = f"cannot read {FOLDER}/img 1.dcm of {PATIENT}"
MARKS = ("Doe", "ZQXPHI", "patients")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with unchanged_process():
        yield


@pytest.fixture
def installed() -> None:
    install_redaction([FOLDER, None])
    known.remember([PATIENT])


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of another library, with a handler that is added after the run has started."""
    one, stream = logging.getLogger("another.library"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    level, propagate = one.level, one.propagate
    one.setLevel(logging.DEBUG)
    one.propagate = False
    one.addHandler(handler)
    yield one, stream
    one.removeHandler(handler)
    one.setLevel(level)
    one.propagate = propagate


def clean(text: str) -> bool:
    return REMOVED in text and not any(mark in text for mark in MARKS)


def raise_error() -> None:
    raise FileNotFoundError(2, "No such file", f"{FOLDER}/{MARKS[0]}, a (1).dcm")


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
def test_messages_of_any_logger_are_redacted(
    installed: None, logger: tuple[logging.Logger, io.StringIO], level: int
) -> None:
    one, stream = logger
    one.log(level, TEXT)
    one.log(level, "cannot read %s of %s", Path(FOLDER) / "x.dcm", PATIENT)
    one.log(level, "%(file)s", {"file": FOLDER})
    assert clean(stream.getvalue())
    assert len(stream.getvalue().splitlines()) == 3


def test_a_record_that_needs_nothing_is_left_as_it_is(
    installed: None, logger: tuple[logging.Logger, io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    one, stream = logger
    one.addHandler(caplog.handler)
    try:
        one.info("epoch %d of %d", 3, 10, extra={"round": 2})
    finally:
        one.removeHandler(caplog.handler)
    assert stream.getvalue() == "INFO epoch 3 of 10\n"
    (record,) = caplog.records
    assert (record.msg, record.args, record.round) == ("epoch %d of %d", (3, 10), 2)  # type: ignore[attr-defined]


def test_tracebacks_and_stacks_in_records_are_redacted(
    installed: None, logger: tuple[logging.Logger, io.StringIO]
) -> None:
    one, stream = logger
    try:
        raise_error()
    except OSError:
        one.exception("it failed", stack_info=True)
    shown = stream.getvalue()
    assert clean(shown)
    assert "Traceback (most recent call last)" in shown
    assert f'File "{__file__}"' in shown  # where it happened is not private
    assert "FileNotFoundError: [Errno 2] No such file: '[removed]'" in shown


def test_a_traceback_that_needs_nothing_keeps_its_error(
    installed: None, logger: tuple[logging.Logger, io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = logger
    one.addHandler(caplog.handler)
    try:
        raise ValueError("what was asked")
    except ValueError:
        one.exception("it failed")
    finally:
        one.removeHandler(caplog.handler)
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is ValueError


def test_a_message_whose_arguments_do_not_fit_is_redacted(
    installed: None, logger: tuple[logging.Logger, io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    one, stream = logger
    one.warning("two of %s and %s", FOLDER)
    assert clean(stream.getvalue() + capsys.readouterr().err)


def test_handlers_of_monai_and_of_a_later_configuration_are_covered(
    installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    handler = StatsHandler(name="monai.of.a.test")  # makes its own handler, to stdout
    try:
        logging.basicConfig(stream=stream, level=logging.DEBUG, force=True)
        logging.getLogger("yet.another.library").debug(TEXT)
        logging.getLogger("ignite.engine.engine.Engine").error(TEXT)
        logging.captureWarnings(True)
        warnings.warn(TEXT, UserWarning, stacklevel=1)
        handler.logger.info(TEXT)
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
    assert clean(stream.getvalue())
    assert len([line for line in stream.getvalue().splitlines() if REMOVED in line]) >= 3
    assert not any(mark in capsys.readouterr().out for mark in MARKS)


def test_warnings_are_redacted_where_they_are_shown_and_nowhere_else(
    installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = warnings.formatwarning(UserWarning(TEXT), UserWarning, __file__, 3)
    assert clean(shown)
    assert f"{__file__}:3: UserWarning" in shown
    with pytest.warns(UserWarning, match="Doe_John"):  # the object in memory is as it was
        warnings.warn(TEXT, UserWarning, stacklevel=1)


def test_errors_that_nobody_catches_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    start_run(None, private_paths=[FOLDER])
    known.remember([PATIENT])
    try:
        try:
            raise_error()
        except OSError as error:
            raise RuntimeError(TEXT) from error
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert clean(shown)
    assert shown.startswith("Traceback (most recent call last)")
    assert "The above exception was the direct cause of the following exception" in shown
    assert "RuntimeError: cannot read [removed]" in shown


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_errors_in_threads_are_redacted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    install_redaction([FOLDER])
    thread = threading.Thread(target=raise_error, name="reader")
    thread.start()
    thread.join()
    shown = capsys.readouterr().err
    assert shown.startswith("Exception in thread reader:\nTraceback")
    assert clean(shown)


def test_it_is_put_on_once_and_comes_off_again(logger: tuple[logging.Logger, io.StringIO]) -> None:
    one, stream = logger
    before = (logging.getLogRecordFactory(), warnings.formatwarning, threading.excepthook)
    for _ in range(3):
        install_redaction([FOLDER])
    one.info(FOLDER)
    remove_redaction()
    after = (logging.getLogRecordFactory(), warnings.formatwarning, threading.excepthook)
    assert after == before
    one.info(FOLDER)
    assert stream.getvalue() == f"INFO {REMOVED}\nINFO {FOLDER}\n"
    assert shown_text(FOLDER) == FOLDER
    remove_redaction()  # once more does nothing


def test_what_was_put_over_it_stays(logger: tuple[logging.Logger, io.StringIO]) -> None:
    one, stream = logger
    original = logging.getLogRecordFactory()
    install_redaction([FOLDER])
    inner = logging.getLogRecordFactory()

    def outer(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return inner(*args, **kwargs)

    logging.setLogRecordFactory(outer)
    try:
        remove_redaction()
        assert logging.getLogRecordFactory() is outer
        one.info(FOLDER)
        assert stream.getvalue() == f"INFO {FOLDER}\n"
    finally:
        logging.setLogRecordFactory(original)


def test_a_user_can_switch_it_off(logger: tuple[logging.Logger, io.StringIO]) -> None:
    one, stream = logger
    start_run(None, private_paths=[FOLDER])
    start_run(None, redact_logs=False, private_paths=[FOLDER])
    one.info(FOLDER)
    assert stream.getvalue() == f"INFO {FOLDER}\n"
    with pytest.raises(OSError, match="No such file") as caught:
        raise_error()
    assert FOLDER in format_error(caught.type, caught.value, caught.tb)


# --- processes of loaders


class Chatty(Transform):
    """Logs, warns and fails with private texts, as a foreign library may."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    def __call__(self, data: Any) -> torch.Tensor:
        logging.getLogger("another.library").error("log %s", TEXT)
        warnings.warn("warning " + TEXT, UserWarning, stacklevel=1)
        if self.fail and data == 1:
            raise_error()
        return torch.rand(1)


def loader(method: str) -> DataLoader:
    return DataLoader(
        Dataset([0, 1], Chatty(fail=True)),
        batch_size=1,
        num_workers=1,
        multiprocessing_context=method,
        worker_init_fn=RedactingWorkerStart(),
    )


SCRIPT = f"""
import sys
from monai_basisprune.data.identifiers import known
from monai_basisprune.workflow.start import start_run
from tests.test_redaction import loader

if __name__ == "__main__":
    start_run(None, private_paths=[{FOLDER!r}])
    known.remember([{PATIENT!r}])
    for number, _ in enumerate(loader(sys.argv[1])):
        print("batch", number, flush=True)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_loader_redact_what_they_write(method: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}
    done = subprocess.run(
        [sys.executable, str(script), method], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert done.stdout == "batch 0\n"
    assert done.stderr.count(f"log cannot read {REMOVED}") == 2
    assert f"UserWarning: warning cannot read {REMOVED}" in done.stderr
    assert "Caught RuntimeError in DataLoader worker process 0" in done.stderr
    assert clean(done.stderr), done.stderr


def test_images_are_drawn_as_with_monai_alone() -> None:
    drawn = []
    for start in ({}, {"worker_init_fn": RedactingWorkerStart()}):
        set_determinism(5)
        data = Dataset([0, 1, 2], Chatty())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn.append(torch.cat(list(DataLoader(data, batch_size=1, num_workers=1, **start))))
    assert torch.equal(drawn[0], drawn[1])
