"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["sha256_of", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file so that a reader finds the earlier file or the new one, never a part of one.

    The content goes to a temporary file in the same folder, is flushed to the disk and then takes the place of the
    earlier file. A process that is killed in between leaves the earlier file untouched.

    Args:
        path: the file to write; its folder is made if it is missing.
        content: text, written as UTF-8, or bytes, or a function that writes the file of the path that it is given.

    Returns:
        The path of the file.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full; the earlier file is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    # Not tempfile.mkstemp: its files are readable by their owner only, which would hide a report from colleagues.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if isinstance(content, (str, bytes)):
                stream.write(content.encode("utf-8") if isinstance(content, str) else content)
                stream.flush()
            else:
                content(temporary)
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)
    return target


def _flush_folder(folder: Path) -> None:
    # Makes the new name survive a power cut. Windows and some network file systems cannot open a folder; the
    # file itself is safe there all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
