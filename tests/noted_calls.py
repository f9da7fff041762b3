"""Notes what the command line calls the library with, in place of doing it."""

from __future__ import annotations

from typing import Any

import pytest

from monai_basisprune import cli_bundles

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
"""Positional and named arguments of each call."""


def note_calls(monkeypatch: pytest.MonkeyPatch, *names: str) -> Calls:
    """Replace functions that the commands of bundles call; each returns something with a summary."""
    found: Calls = []

    class Shown:
        def summary(self) -> str:
            return "made"

    def note(*args: Any, **kwargs: Any) -> Shown:
        found.append((args, kwargs))
        return Shown()

    for name in names:
        monkeypatch.setattr(cli_bundles, name, note)
    return found
