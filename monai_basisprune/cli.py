"""The command ``monai-basisprune``: each subcommand calls one function of the library."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ._version import __version__
from .curve import SELECTION_RULES
from .errors import BasisPruneError
from .report.command import add_report_command
from .workflow.bundle import PrunedBundle
from .workflow.existing_bundle import DEFAULT_TARGETS, prune_bundle
from .workflow.redaction import format_error, install_redaction, remove_redaction, shown_text
from .workflow.study_bundle import export_study_bundle

__all__ = ["COMMANDS", "main"]

_OVERRIDES = (
    "Any other --KEY VALUE sets that key of the bundle's own training configuration, such as --dataset_dir FOLDER or "
    "--train#dataloader#batch_size 4."
)


class _Parser(argparse.ArgumentParser):
    """An argument parser that repeats no folder or file in its messages: their names can hold names of patients."""

    def error(self, message: str) -> NoReturn:
        for value in sorted(sys.argv[1:], key=len, reverse=True):
            if "/" in value or "\\" in value:
                message = message.replace(value, "<path>")
        super().error(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: the words behind the command's name; by default those of the command line.

    Returns:
        0; 1 after an error, of which only the message is shown if it is one of ours; 130 after Ctrl-C. Wrong usage
        ends the process with 2.
    """
    parser = _Parser(
        prog="monai-basisprune",
        description="Makes a trained MONAI classifier smaller and shows whether it still diagnoses as well. "
        "Research software, not a medical device.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="what it can do", dest="command", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    words = list(sys.argv[1:] if arguments is None else arguments)
    overrides: dict[str, Any] = {}
    chosen = subparsers.choices.get(words[0]) if words else None
    if chosen is not None and chosen.get_default("overrides") is not None:
        words, overrides = _split(chosen, words)
    options, rest = parser.parse_known_args(words)
    if rest:
        parser.error(
            f"{options.command} does not know {_options_in(rest)}; see monai-basisprune {options.command} --help"
        )
    if overrides:
        options.overrides = overrides
    install_redaction(_paths(vars(options)))
    try:
        options.run(options)
    except BasisPruneError as error:
        print(f"monai-basisprune: {shown_text(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("monai-basisprune: interrupted.", file=sys.stderr)
        return 130
    except OSError as error:  # its own text would name the file
        print(f"monai-basisprune: a file cannot be read or written ({error.strerror or 'no reason'}).", file=sys.stderr)
        return 1
    except Exception as error:
        print(format_error(type(error), error, error.__traceback__), file=sys.stderr)
        return 1
    finally:
        remove_redaction()
    return 0


def _paths(value: Any) -> list[str]:
    """Return all texts that could name a folder or a file of the user."""
    if isinstance(value, str):
        return [value] if "/" in value or "\\" in value or os.path.exists(value) else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [path for item in items for path in _paths(item)]


def _options_in(words: Sequence[str]) -> str:
    """Return the options among words; the others are the user's own texts."""
    return ", ".join(word.partition("=")[0] for word in words if word.startswith("-")) or "the words behind the options"


def _split(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take each ``--KEY VALUE`` and ``--KEY=VALUE`` out that is no option of a command, wherever it stands.

    argparse would take the value of an option that it does not know for the next folder. A value is JSON where it can
    be read so, and else a text.
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
        except ValueError:
            overrides[key[2:]] = text
    return own, overrides


def _add_prune_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "prune",
        help="make the network of an existing MONAI bundle smaller, with its own data and training",
        description="Prunes the network of a classification bundle, in rounds, while it is trained as the bundle's "
        "configuration says, and writes a new bundle with the smallest network that is good enough. The bundle that "
        "you give is left as it is.",
        epilog=_OVERRIDES,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("output", metavar="OUTPUT", help="folder of the new bundle; it must not exist, or be empty")
    parser.add_argument(
        "--targets",
        type=float,
        nargs="+",
        default=list(DEFAULT_TARGETS),
        metavar="SHARE",
        help="share to remove in each round, rising; default: %(default)s",
    )
    parser.add_argument(
        "--budget",
        choices=("parameters", "macs", "bases"),
        default="parameters",
        help="what the shares are shares of; default: %(default)s",
    )
    parser.add_argument(
        "--transfer_epochs",
        type=int,
        default=5,
        metavar="N",
        help="epochs of training before the first round; default: %(default)s",
    )
    parser.add_argument(
        "--epochs_per_round",
        type=int,
        default=2,
        metavar="N",
        help="epochs of training in each round; default: %(default)s",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.01,
        help="largest loss of AUC on validation cases, against the network that you give, that is accepted; default: "
        "%(default)s",
    )
    parser.add_argument(
        "--selection",
        choices=SELECTION_RULES,
        default="point",
        help="whether the AUC itself or the interval of its difference must keep within the margin; default: "
        "%(default)s",
    )
    parser.add_argument(
        "--patient_key",
        metavar="KEY",
        help="key of the patient's id in the bundle's data; without it, every image counts as a patient of its own",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the run; default: %(default)s")
    parser.set_defaults(run=_prune, overrides={})


def _prune(options: argparse.Namespace) -> None:
    _show(
        prune_bundle(
            options.bundle,
            options.output,
            overrides=options.overrides,
            targets=options.targets,
            budget=options.budget,
            transfer_epochs=options.transfer_epochs,
            epochs_per_round=options.epochs_per_round,
            margin=options.margin,
            selection=options.selection,
            patient_key=options.patient_key,
            seed=options.seed,
        )
    )


def _add_export_bundle_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export-bundle",
        help="make a bundle of the network that a pruning study left",
        description="Writes a new bundle with the pruned network of a study, which `python -m monai.bundle run prune` "
        "made, and with the figures of its test cases.",
        epilog=_OVERRIDES,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle that the study was made with")
    parser.add_argument("study", metavar="STUDY", help="folder of the study's results (its output_dir)")
    parser.add_argument("output", metavar="OUTPUT", help="folder of the new bundle; it must not exist, or be empty")
    parser.set_defaults(run=_export_bundle, overrides={})


def _export_bundle(options: argparse.Namespace) -> None:
    _show(export_study_bundle(options.bundle, options.study, options.output, overrides=options.overrides))


def _show(bundle: PrunedBundle) -> None:
    print(bundle.summary())


COMMANDS: tuple[Callable[[Any], None], ...] = (_add_prune_command, _add_export_bundle_command, add_report_command)
"""The functions that add a subcommand each; what they add sets ``run``, and ``overrides`` if it takes any key."""


if __name__ == "__main__":
    sys.exit(main())
