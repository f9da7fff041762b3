"""The command ``monai-basisprune report``: one study rendered again, or several on one page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report.comparison import compare_studies
from monai_basisprune.report.page import write_report
from monai_basisprune.report.study import load_study

__all__ = ["add_report_command", "render_again"]


def add_report_command(subparsers: Any) -> None:
    """Add the subcommand ``report``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "report",
        help="render one study again, or compare several on one page",
        description=(
            "With one study.json: write report.html and the tables beside it anew, without images of patients, which "
            "are no part of the record. With several: write one page that compares them."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("studies", nargs="+", metavar="study.json", help="records that pruning runs wrote")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="one study: the folder to write to, by default that of the study; several: the page to write, by "
        "default comparison.html in the current folder",
    )
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    paths = [Path(name) for name in arguments.studies]
    _check_files(paths)
    if len(paths) > 1:
        page = compare_studies(paths, arguments.output or "comparison.html")
        print(f"{page.name} compares {len(paths)} studies.")
        return
    render_again(paths[0], paths[0].parent if arguments.output is None else Path(arguments.output))


def render_again(study_file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Write the report and the tables of one study anew, without images of patients, and say what was written.

    Args:
        study_file: the record that a pruning run wrote.
        folder: where to write to.

    Raises:
        ConfigurationError: if the record cannot be used.
    """
    study = load_study(study_file)
    written = write_report(study, folder)
    print(f"Written: {', '.join(path.name for path in written.values())}.")
    if study["audit"] is not None and study["audit"]["changed_cases"]:
        print("The page holds no class activation maps: images of patients are no part of the study record.")


def _check_files(paths: list[Path]) -> None:
    # numbers stand for the files: folders can be named after people, and messages end up in logs
    missing = [str(number) for number, path in enumerate(paths, start=1) if not path.is_file()]
    if missing:
        raise ConfigurationError(
            f"{len(paths)} study records were asked for, but no file was found for number {', '.join(missing)}: give "
            "the study.json that each pruning run wrote to its output_dir."
        )
