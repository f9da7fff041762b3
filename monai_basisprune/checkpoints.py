"""Checkpoints of a run: the newest two are kept, each is whole or not there, and each says which run it is of."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import PlanMismatchError, shortened_list
from .files import write_atomically
from .reading import read_weights

__all__ = ["RunCheckpoint", "RunCheckpoints", "setting_digests"]

_NAME = re.compile(r"checkpoint_(\d{6})\.pt")
_VERSION = 4
_KEPT = 2


@dataclass(frozen=True)
class RunCheckpoint:
    """What a run was after an epoch.

    Attributes:
        epoch: number of epochs that were done.
        state: tensors and plain types.
        threads: with how many threads PyTorch computed it.
        warnings: what was wrong with newer checkpoints that were passed over.
    """

    epoch: int
    state: dict[str, Any]
    threads: int
    warnings: tuple[str, ...] = ()


class RunCheckpoints:
    """The checkpoints of one run in a folder.

    A checkpoint is written beside the others, flushed to the disk and renamed, and only then the one before the last is
    removed: killed at any moment, the run finds the last or the last but one.

    Args:
        folder: where the files are; it is made by the first :meth:`save`.
        settings: what the run depends on, of JSON types; only salted digests of the values are written.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = dict(settings)
        self.salt = secrets.token_hex(32)

    def save(self, epoch: int, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of an epoch.

        Args:
            epoch: number of epochs that are done.
            state: tensors and plain types.

        Raises:
            OSError: if it cannot be written; the earlier ones stay.
        """
        content = {
            "format_version": _VERSION,
            "epoch": epoch,
            "threads": torch.get_num_threads(),
            "salt": self.salt,
            "settings": setting_digests(self.settings, self.salt.encode()),
            "state": dict(state),
        }
        stream = io.BytesIO()
        torch.save(content, stream)
        path = write_atomically(self.folder / f"checkpoint_{epoch:06d}.pt", stream.getvalue())
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> RunCheckpoint | None:
        """Read the newest checkpoint that is whole; None where there is no file.

        Raises:
            PlanMismatchError: if it is of a run with other settings, which are listed, or no file is whole.
        """
        problems: list[str] = []
        for path in self._files():
            content = _read(path, problems)
            if content is not None:
                self._check(content)
                return RunCheckpoint(content["epoch"], content["state"], content["threads"], tuple(problems))
        if problems:
            raise PlanMismatchError(
                f"The run was to go on from its checkpoints, and none of them can be read:\n"
                f"{shortened_list(problems)}\nPass --resume false to start anew."
            )
        return None

    def remove(self) -> None:
        """Remove all checkpoints, and their folder if it holds nothing else: the run has ended."""
        for path in self._files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        """Return the files, the newest first."""
        try:
            names = sorted((name for name in os.listdir(self.folder) if _NAME.fullmatch(name)), reverse=True)
        except FileNotFoundError:
            return []
        return [self.folder / name for name in names]

    def _check(self, content: Mapping[str, Any]) -> None:
        found, own = content["settings"], setting_digests(self.settings, content["salt"].encode())
        differing = sorted(key for key in {*found, *own} if found.get(key) != own.get(key))
        if differing:
            raise PlanMismatchError(
                f"The folder of the results holds the checkpoint of a run that was stopped, and its settings are not "
                f"those of this one:\n{shortened_list(differing)}\nGo on with the settings that it was started with, "
                f"name another folder for the results, or pass --resume false to start anew."
            )


def setting_digests(settings: Mapping[str, Any], salt: bytes) -> dict[str, str]:
    """Return for each setting a salted digest, which tells whether its value changed and not what it is.

    Args:
        settings: values of JSON types, tuples, and what else has a stable text.
        salt: secret of the digests.
    """
    texts = {key: json.dumps([key, value], sort_keys=True, default=str) for key, value in sorted(settings.items())}
    return {key: hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:16] for key, text in texts.items()}


def _read(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        content = read_weights(path)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    except ValueError as error:
        problem = str(error)
    else:
        if _is_checkpoint(content):
            return dict(content)
        problem = f"it is no checkpoint of format version {_VERSION}"
    problems.append(f"{path.name}: {problem}")
    return None


def _is_checkpoint(content: object) -> bool:
    kinds: Mapping[str, type] = {"epoch": int, "threads": int, "salt": str, "settings": dict, "state": dict}
    return (
        isinstance(content, dict)
        and content.get("format_version") == _VERSION
        and all(isinstance(content.get(key), kind) for key, kind in kinds.items())
        and content["salt"].isascii()
    )
