"""``python -m monai_basisprune.inference predict ...``: prediction where nothing for training is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli_parser import run_command_line
from .command import add_predict_command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see :func:`~monai_basisprune.cli_parser.run_command_line`."""
    return run_command_line((add_predict_command,), arguments)


if __name__ == "__main__":
    sys.exit(main())
