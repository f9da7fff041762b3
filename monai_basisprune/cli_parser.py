"""Reads a command line, calls what it asks for, and says in one line what was wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ._version import __version__
from .errors import BasisPruneError
from .failures import INTERRUPTED, explain_failure
from .redaction import format_error, install_redaction, remove_redaction, shown_text

__all__ = ["OVERRIDES_HELP", "run_command_line", "split_overrides"]

OVERRIDES_HELP = (
    "Any other --KEY VALUE sets that key of the bundle's own training configuration, such as --dataset_dir FOLDER or "
    "--train#dataloader#batch_size 4."
)
_CODES = (
    "Exit codes: 0 all went well; 1 something that nobody foresaw; 2 wrong use, or input that cannot be used, with the "
    "reason; 3 done, but cases were skipped as --on_problem skip asks; 130 interrupted."
)


class _Parser(argparse.ArgumentParser):
    """An argument parser that repeats no folder or file in its messages: their names can hold names of patients."""

    def error(self, message: str) -> NoReturn:
        for value in sorted(sys.argv[1:], key=len, reverse=True):
            if "/" in value or "\\" in value:
                message = message.replace(value, "<path>")
        super().error(message)


def run_command_line(commands: Sequence[Callable[[Any], None]], arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        commands: the functions that add a subcommand each; what they add sets ``run``, which may return an exit code,
            and ``overrides`` if it takes any key.
        arguments: the words behind the command's name; by default those of the command line.

    Returns:
        0, or what the subcommand returned; 2 after an error of ours, of which only the message is shown; 1 after any
        other error; 130 after Ctrl-C. Wrong usage ends the process with 2.
    """
    parser = _Parser(
        prog="monai-basisprune",
        description="Makes a trained MONAI classifier smaller and shows whether it still diagnoses as well. "
        "Research software, not a medical device.",
        epilog=_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="what it can do", dest="command", metavar="COMMAND", required=True)
    for add_command in commands:
        add_command(subparsers)
    words = list(sys.argv[1:] if arguments is None else arguments)
    overrides: dict[str, Any] = {}
    chosen = subparsers.choices.get(words[0]) if words else None
    if chosen is not None and chosen.get_default("overrides") is not None:
        words, overrides = split_overrides(chosen, words)
    options, rest = parser.parse_known_args(words)
    if rest:
        parser.error(
            f"{options.command} does not know {_options_in(rest)}; see monai-basisprune {options.command} --help"
        )
    if overrides:
        options.overrides = overrides
    install_redaction(_paths(vars(options)))
    hook = sys.excepthook
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print(f"monai-basisprune: {INTERRUPTED}", file=sys.stderr)
        return 130
    except Exception as error:
        return _shown(error)
    finally:
        sys.excepthook = hook  # the run of a bundle puts its own there
        remove_redaction()


def _shown(error: Exception) -> int:
    """Print an error and return the exit code: the message alone if it is ours, also behind one of MONAI's."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, BasisPruneError):
            print(f"monai-basisprune: {shown_text(str(link))}", file=sys.stderr)
            return 2
        link = link.__cause__
    reason = explain_failure(error, running=False)
    if reason is not None:
        print(f"monai-basisprune: {reason}", file=sys.stderr)
        return 2
    if isinstance(error, OSError):  # its own text would name the file
        print(f"monai-basisprune: a file cannot be read or written ({error.strerror or 'no reason'}).", file=sys.stderr)
        return 2
    print(format_error(type(error), error, error.__traceback__), file=sys.stderr)
    return 1


def _paths(value: Any) -> list[str]:
    """Return all texts that could name a folder or a file of the user."""
    if isinstance(value, str):
        return [value] if "/" in value or "\\" in value or os.path.exists(value) else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [path for item in items for path in _paths(item)]


def _options_in(words: Sequence[str]) -> str:
    """Return the options among words; the others are the user's own texts."""
    return ", ".join(word.partition("=")[0] for word in words if word.startswith("-")) or "the words behind the options"


def split_overrides(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take each ``--KEY VALUE`` and ``--KEY=VALUE`` out that is no option of a command, wherever it stands.

    argparse would take the value of an option that it does not know for the next folder. A value is JSON where it can
    be read so, and else a text.

    Args:
        parser: the parser of the command.
        words: the words behind the command's name.

    Returns:
        the other words, and the value of each key.
    """
    own: list[str] = []
    overrides: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--") or key in parser._option_string_actions:
            own.append(word)
            continue
        if len(key) == 2 or not (equals or (waiting and not waiting[0].startswith("--"))):
            parser.error(f"what is not an option of this command must be --KEY VALUE; look at {_options_in([word])}")
        text = value if equals else waiting.pop(0)
        if key[2:] in overrides:
            parser.error(f"{key} is given twice")
        try:
            overrides[key[2:]] = json.loads(text)
        except (RecursionError, ValueError):
            overrides[key[2:]] = text
    return own, overrides
