"""The command ``monai-basisprune predict``: a folder of radiographs in, a table of probabilities out."""

from __future__ import annotations

import argparse
from typing import Any

from .prediction import predict_folder

__all__ = ["add_predict_command"]


def add_predict_command(subparsers: Any) -> None:
    """Add the subcommand ``predict``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "predict",
        help="give the probabilities of every radiograph in a folder, with a pruned network",
        description="Reads every DICOM radiograph in a folder and writes a table with one row for each: its "
        "SOPInstanceUID, the probability of each class, and why it could not be used, if so. Your images are only "
        "read. The numbers are for research, not for diagnosis.",
        epilog="The exit code is 0 if every image was predicted and 3 if some were skipped (--on_problem skip).",
        allow_abbrev=False,
    )
    parser.add_argument("images", metavar="IMAGES", help="folder of DICOM files; its subfolders are read as well")
    parser.add_argument("table", metavar="TABLE", help="the table to write, such as predictions.csv")
    parser.add_argument(
        "--output_dir", required=True, metavar="STUDY", help="folder of the pruning study; its model.ts is used"
    )
    parser.add_argument(
        "--on_problem",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with an image that cannot be used: stop and name all of them, or go on and say so in the "
        "table; default: %(default)s",
    )
    parser.add_argument(
        "--sr_dir",
        metavar="FOLDER",
        help="new folder for one DICOM Structured Report per study, which names the patient as the images do; needs "
        "the extra sr",
    )
    parser.add_argument(
        "--batch_size", type=int, default=16, metavar="N", help="images at a time; default: %(default)s"
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that read images while the network computes; default: %(default)s",
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a graphics card; default: %(default)s")
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    run = predict_folder(
        options.output_dir,
        options.images,
        options.table,
        on_problem=options.on_problem,
        sr_dir=options.sr_dir,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=options.device,
    )
    return run.exit_code
