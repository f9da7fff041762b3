"""What ends a long run from outside, in words: a full disk, a lost drive, memory that ran out, a dead worker."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch

__all__ = ["INTERRUPTED", "explain_failure"]

INTERRUPTED = (
    "interrupted. What was saved before is left as it is. Where a training was stopped, started again with the same "
    "command, the run goes on."
)
"""What is said when the user stops a run."""

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_LOST = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT", "ENODEV", "ENXIO", "EREMOTEIO")
    if hasattr(errno, name)
}
_GONE = {errno.ENOENT, errno.ENOTDIR}
_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)")
_PEER = re.compile(r"(closed|reset) by peer|remote process exited", re.IGNORECASE)
_WRITER = re.compile(r"PytorchStreamWriter failed|iostream error|unexpected pos \d+ vs \d+")
_KEPT = "What was saved before is left as it is."


def explain_failure(error: BaseException, running: bool = True) -> str | None:
    """Say what ended a run, and what to change, if it was nothing of the run itself.

    Args:
        error: what was raised; the errors behind it count, too.
        running: whether the run was at work, so that a file that is not there was there before.

    Returns:
        one or two sentences without any folder or file; None for any other error.
    """
    for link in _chain(error):
        text = _of_system(link.errno, running) if isinstance(link, OSError) else _of_text(link)
        if text is not None:
            return f"{text} {_KEPT}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _of_system(number: int | None, running: bool) -> str | None:
    if number in _FULL:
        return (
            "The disk is full, or a quota or a limit on the size of files is reached: make room, or let "
            "the results go to another disk (in a bundle --output_dir)."
        )
    if number in _READ_ONLY and running:
        return (
            "A file cannot be written, its folder or its disk is read-only: change its permissions, or let "
            "the results go to another folder (in a bundle --output_dir)."
        )
    if number in _LOST or (running and number in _GONE):
        return (
            "A folder or a file is gone that was there when the run started, as after a network drive was "
            "disconnected: connect it again, or let images and results be on a local disk."
        )
    if number == errno.EMFILE:
        return "Too many files are open: raise the limit of the system (ulimit -n), or pass a smaller --num_workers."
    return None


def _of_text(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and _MEMORY.search(text)
    ):
        return (
            "The memory of the device or of the computer is used up: pass a smaller --batch_size or --image_size, "
            "close other programs that use the device, or pass --device cpu."
        )
    if isinstance(error, RuntimeError) and _WORKER.search(text):
        return (
            "A process that loads images has died: it was stopped from outside, or ran out of memory or shared memory. "
            "Pass a smaller --num_workers (0 loads in the main process, and shows the reason if it is in the images)."
        )
    if isinstance(error, RuntimeError) and _PEER.search(text):
        return "Another one of the processes has ended, and this one cannot go on alone: its own message says why."
    if isinstance(error, RuntimeError) and _WRITER.search(text):
        return (
            "A network cannot be written, most likely because the disk is full or gone: make room, or let "
            "the results go to another disk (in a bundle --output_dir)."
        )
    return None
