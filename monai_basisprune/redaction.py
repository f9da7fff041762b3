"""Takes names of patients and the user's folders out of logs, warnings and tracebacks of a run, whoever writes them.

Our own messages hold none. Those of other libraries can: pydicom quotes the value of a malformed element, Python
names the file that it could not open.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from monai.data.utils import worker_init_fn

from .data.identifiers import PrivateTexts, known

__all__ = ["RedactingWorkerStart", "install_redaction", "redact_record", "remove_redaction", "shown_text"]

_lock = threading.RLock()


class _Redaction:
    """What was in the places that we took, to be put back.

    Every place asks whether it is still active, since something else may have been put over it meanwhile.
    """

    def __init__(self) -> None:
        self.active = True
        self._make_record = logging.getLogRecordFactory()
        self._format_warning = warnings.formatwarning
        self._thread_hook = threading.excepthook
        # bound methods are made anew at each access; these are the ones to compare with
        self._ours: tuple[Callable[..., Any], ...] = (self._record, self._warning, self._thread)
        logging.setLogRecordFactory(self._ours[0])
        warnings.formatwarning = self._ours[1]
        threading.excepthook = self._ours[2]

    def remove(self) -> None:
        self.active = False
        if logging.getLogRecordFactory() is self._ours[0]:
            logging.setLogRecordFactory(self._make_record)
        if warnings.formatwarning is self._ours[1]:
            warnings.formatwarning = self._format_warning
        if threading.excepthook is self._ours[2]:
            threading.excepthook = self._thread_hook

    def _record(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make_record(*args, **kwargs)
        if self.active:
            redact_record(record)
        return record

    def _warning(self, *args: Any, **kwargs: Any) -> str:
        text = self._format_warning(*args, **kwargs)
        return known.redacted(text) if self.active else text

    def _thread(self, args: Any) -> None:
        if not self.active or args.exc_type is SystemExit:
            self._thread_hook(args)
            return
        name = args.thread.name if args.thread is not None else "unknown"
        text = format_error(args.exc_type, args.exc_value, args.exc_traceback)
        print(f"Exception in thread {name}:\n{text}", end="", file=sys.stderr)


_installed: _Redaction | None = None


def install_redaction(folders: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Take what names a patient out of every log record, warning and traceback that this process writes from now on.

    It acts where records are made, not on loggers or handlers, so those that are added later are covered. To call it
    again only adds folders.

    Args:
        folders: folders and files of the user; None is left out.
    """
    global _installed
    known.remember_folders(folders)
    with _lock:
        if _installed is None:
            _installed = _Redaction()


def remove_redaction() -> None:
    """Undo :func:`install_redaction` and forget what was known."""
    global _installed
    with _lock:
        if _installed is not None:
            _installed.remove()
        _installed = None
    known.forget()


def shown_text(text: str) -> str:
    """Return a text as it may be shown: redacted, unless the redaction is switched off."""
    return text if _installed is None else known.redacted(text)


def format_error(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    """Return the traceback of an error as Python prints it, as it may be shown."""
    return shown_text("".join(traceback.format_exception(kind, error, trace)))


def redact_record(record: logging.LogRecord) -> None:
    """Redact the message, the traceback and the stack of a record in place; one that needs nothing is left as it is."""
    try:
        message = record.getMessage()
    except Exception:  # the arguments do not fit the message: logging shows both, so they are joined here
        message = f"{record.msg} {record.args}"
    if (text := known.redacted(message)) != message:
        record.msg, record.args = text, ()
    if record.exc_info and record.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if (text := known.redacted(trace)) != trace:
            record.exc_text, record.exc_info = text, None
    if record.stack_info:
        record.stack_info = known.redacted(record.stack_info)


class RedactingWorkerStart:
    """What a ``DataLoader`` calls in each of its processes: redacts there what is redacted here, and seeds as MONAI.

    A forked process has it all already; one that is started anew knows nothing of this one.
    """

    def __init__(self) -> None:
        self._known: PrivateTexts | None = None

    def __call__(self, worker_id: int) -> None:
        """Start a process of the loader."""
        if self._known is not None:
            install_redaction()
            known.take(self._known)
        worker_init_fn(worker_id)

    def __getstate__(self) -> dict[str, Any]:
        """Take along what is known at the time when the process is started."""
        return {"_known": known if _installed is not None else None}
