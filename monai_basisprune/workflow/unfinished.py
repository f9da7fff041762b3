"""The folder beside a new bundle that holds what its run needs to go on after a stop."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

__all__ = ["UnfinishedRun", "check_not_ended", "unfinished_run"]

_LOCK = "lock"
"""Marks the folder as one of ours, and keeps a second run out of it."""


class UnfinishedRun:
    """Where a run keeps what it needs until its end.

    Args:
        output: folder of the new bundle.

    Attributes:
        path: the folder itself, ``output`` with ``.unfinished`` behind its name.
        bundle: the copy of the source that is run.
        networks: the network of each round.
        checkpoints: the last states of the training.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.name}.unfinished")
        self.bundle = self.path / "bundle"
        self.networks = self.path / "networks"
        self.checkpoints = self.path / "checkpoints"

    def can_go_on(self) -> bool:
        """Tell whether there is a checkpoint."""
        return any(self.checkpoints.glob("checkpoint_*.pt"))

    def remove(self) -> None:
        """Remove what a run keeps, and the folder if it holds nothing else."""
        for folder in (self.checkpoints, self.networks, self.bundle):
            shutil.rmtree(folder, ignore_errors=True)
        (self.path / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()


def check_not_ended(output: str | os.PathLike[str]) -> None:
    """Check that the new bundle is not there already, from a run that was killed between its end and its cleaning up.

    Raises:
        ConfigurationError: if it is.
    """
    target = Path(output).resolve()
    if UnfinishedRun(target).path.is_dir() and (target / "docs" / "pruning.json").is_file():
        raise ConfigurationError(
            "The new bundle is there and whole: its run was stopped after it had ended. Delete the folder of the same "
            "name with '.unfinished' behind it; to prune anew, name another folder for the new bundle."
        )


@contextmanager
def unfinished_run(output: Path) -> Iterator[UnfinishedRun]:
    """Hold the folder of a run: it goes with the run's end, but stays where a stopped run can go on from it.

    A process that is killed leaves it; what else it may have left beside the bundle is removed at the next start.

    Args:
        output: folder of the new bundle.

    Raises:
        ConfigurationError: if a folder of that name is none of ours, or another run is at work in it.
    """
    run = UnfinishedRun(output)
    if run.path.exists() and not (run.path / _LOCK).is_file() and not _is_empty(run.path):
        raise ConfigurationError(
            "Beside the new bundle lies something of the same name with '.unfinished' behind it, where this run would "
            "keep its state, and no such run has made it: move it, or name another folder for the new bundle."
        )
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / _LOCK).touch()
    with _locked(run.path / _LOCK):
        staging = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{16}}\.tmp")
        for left in [path for path in output.parent.iterdir() if staging.fullmatch(path.name) and path.is_dir()]:
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(run.bundle, ignore_errors=True)
        try:
            yield run
        except BaseException:
            if not run.can_go_on():
                run.remove()
            raise
        run.remove()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that ends with this process; one that was forked of it has none. On Windows there is none at all."""
    if sys.platform == "win32":
        yield
        return
    with file.open("r+b") as lock:
        taken = True
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # of other kinds on a file system without locks
            taken = error.errno not in (errno.EACCES, errno.EAGAIN)
        if not taken or not file.exists():  # its run may have ended this very moment
            raise ConfigurationError(
                "Another run is at work on this new bundle: wait for its end, or name another folder."
            )
        yield
