"""One reader of files from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .mutations import Mutator

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: what it reads.
        seeds: good files, or nearly good ones.
        read: reads the file of a path, and asserts what must hold of the result.
        mutators: how hostile files are made.
        weight: its share of all inputs.
        suffix: ending of the file's name.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    mutators: tuple[Mutator, ...]
    weight: int
    suffix: str = ""
    folder: Path = field(default=Path())
