"""The command ``monai-basisprune``: each subcommand calls one function of the library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from .cli_bundles import add_bundle_command, add_export_bundle_command, add_prune_command
from .cli_cohort import add_cohort_command
from .cli_networks import add_export_command, add_inspect_command
from .cli_parser import run_command_line
from .inference.command import add_predict_command
from .report.command import add_report_command

__all__ = ["COMMANDS", "main"]

COMMANDS: tuple[Callable[[Any], None], ...] = (
    add_cohort_command,
    add_inspect_command,
    add_prune_command,
    add_report_command,
    add_predict_command,
    add_export_command,
    add_export_bundle_command,
    add_bundle_command,
)
"""The functions that add a subcommand each, in the order of a project."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: the words behind the command's name; by default those of the command line.

    Returns:
        the exit code, see :func:`~monai_basisprune.cli_parser.run_command_line`.
    """
    return run_command_line(COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
