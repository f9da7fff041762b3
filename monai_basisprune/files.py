"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickletools
import re
import secrets
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

__all__ = ["archive_problem", "move_into_place", "sha256_of", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file so that a reader finds the earlier file or the new one, never a part of one.

    The content goes to a temporary file in the same folder, is flushed to the disk and then takes the place of the
    earlier file. A process that is killed in between leaves the earlier file untouched, and its temporary file, which
    the next call for the same path removes (not on Windows, which has no lock that tells that its writer is dead).

    Args:
        path: the file to write; its folder is made if it is missing. A symbolic link is replaced, and what it points
            to stays as it is.
        content: text, written as UTF-8, or bytes, or a function that writes the file of the path that it is given.

    Returns:
        The path of the file.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full; the earlier file is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    temporary, descriptor = _temporary_file(target)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if isinstance(content, (str, bytes)):
                stream.write(content.encode("utf-8") if isinstance(content, str) else content)
                stream.flush()
            else:
                content(temporary)
            os.fsync(stream.fileno())
            if sys.platform != "win32":  # as long as the file is open, no other writer takes it for a left-over one
                move_into_place(temporary, target)
        if sys.platform == "win32":  # where an open file cannot be renamed
            move_into_place(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def move_into_place(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file in its folder, where the earlier file of that name was, and flush the folder to the disk."""
    os.replace(source, target)
    # Makes the new name survive a power cut. Windows and some network file systems cannot open a folder; the
    # file itself is safe there all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(Path(target).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary_file(target: Path) -> tuple[Path, int]:
    """Open a new file, locked as long as it is open: the system unlocks it when its writer dies."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        # Not tempfile.mkstemp: its files are readable by their owner only, which would hide a report from colleagues.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a file system without locks: left-over files stay there
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another writer removed it before it was locked


def _remove_left_over(target: Path) -> None:
    if sys.platform != "win32":
        name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp")
        for path in [target.with_name(found) for found in os.listdir(target.parent) if name.fullmatch(found)]:
            with contextlib.suppress(OSError):  # its writer is at work, or has just finished
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)


def sha256_of(file: str | os.PathLike[str] | BinaryIO) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Args:
        file: its path, or the file itself, which is read from where it stands to its end.
    """
    digest = hashlib.sha256()
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def archive_problem(file: str | os.PathLike[str] | BinaryIO) -> str | None:
    """Return what is wrong with a file of PyTorch, which is a zip archive, or None.

    PyTorch does not look at the check sums that the archive holds of each of its parts.

    Args:
        file: its path, or the file itself.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names, size = archive.namelist(), sum(entry.file_size for entry in archive.infolist())
            packed = sum(entry.compress_size for entry in archive.infolist())
            if size > max(10 * packed, 1 << 26):
                return f"it would unpack from {packed} to {size} bytes"
            if len(set(names)) < len(names):
                return "it holds two parts of one name"
            broken = archive.testzip()
            for name in () if broken else names:
                if name.endswith(".pkl") and not _is_whole_pickle(archive.read(name)):
                    return f"it is damaged: {name!a} says that it holds more than it does"
    except Exception as error:  # the reader raises many types for a damaged file
        reason = error.strerror if isinstance(error, OSError) else error  # without the folder that the file lies in
        return f"it is damaged, or no archive: {type(error).__name__}, {reason}"
    return None if broken is None else f"it is damaged: the check sum of {broken!a} is wrong"


def _is_whole_pickle(content: bytes) -> bool:
    """Tell whether each part of a pickle is there; nothing of it is run.

    The reader of TorchScript makes room for a text of any length before it looks for its letters, and for as many parts
    as the highest number that one is kept under.
    """
    try:
        return all(
            "PUT" not in operation.name or argument is None or int(argument) <= len(content)
            for operation, argument, _ in pickletools.genops(content)
        )
    except Exception:  # of many types
        return False
