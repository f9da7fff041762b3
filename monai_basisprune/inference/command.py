"""The command ``monai-basisprune predict``: a folder of images in, a table of probabilities out."""

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
        help="give the probabilities of every image in a folder, with a pruned network",
        description="Reads every image in a folder and writes a table with one row for each: its id, the probability "
        "of each class, and why it could not be used, if so. The network says itself what its images are, radiographs, "
        "volumes or pictures, and how they are prepared. Your images are only read. The numbers are for research, not "
        "for diagnosis.",
        epilog="The exit code is 0 if every image was predicted and 3 if some were skipped (--on_problem skip).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="folder, read with its subfolders: DICOM radiographs; or volumes, NIfTI files and folders with one DICOM "
        "series each; or PNG and JPEG pictures. Of pictures, a MedMNIST file (.npz) will do as well",
    )
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
        help="of DICOM images, a new folder for one Structured Report per study, which names the patient as the "
        "images do; needs the extra sr",
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="images at a time; default: 16, of volumes 4")
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
