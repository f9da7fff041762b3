"""The command ``monai-basisprune cohort``: are these images and this table fit to train on?"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .data import prepare_datalist
from .errors import ConfigurationError
from .workflow.cohort import PreparedCohort

__all__ = ["add_cohort_command"]


def add_cohort_command(subparsers: Any) -> None:
    """Add the subcommand ``cohort``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "cohort",
        help="check a folder of radiographs and its table of labels, and divide the patients",
        description="Reads every DICOM radiograph in a folder, joins it with a table of labels, lists everything that "
        "is wrong, and divides the patients into training, validation and test, so that no patient is in two of them. "
        "Writes the result as a MONAI datalist, with hashes instead of names. Your images are only read.",
        epilog="A run of pruning does the same by itself; this command tells beforehand.",
        allow_abbrev=False,
    )
    parser.add_argument("images", metavar="IMAGES", help="folder of DICOM files; its subfolders are read as well")
    parser.add_argument(
        "datalist",
        metavar="DATALIST",
        help="the file to write, such as datalist.json; the secret behind the hashes (salt) is kept beside it",
    )
    parser.add_argument("--labels_file", metavar="TABLE", help="table of labels; default: labels.csv in IMAGES")
    parser.add_argument(
        "--class_names",
        nargs="+",
        default=["negative", "positive"],
        metavar="NAME",
        help="names of the classes, of two the one to find last; default: %(default)s",
    )
    parser.add_argument("--image_column", metavar="NAME", help="column with the file or the SOPInstanceUID")
    parser.add_argument("--label_column", metavar="NAME", help="column with the class")
    parser.add_argument("--patient_column", metavar="NAME", help="column with the patient; default: PatientID of DICOM")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=[0.6, 0.2, 0.2],
        metavar="SHARE",
        help="shares of training, validation and test; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the division; default: %(default)s")
    parser.add_argument(
        "--on_problem",
        choices=("raise", "skip"),
        default="raise",
        help="stop where files cannot be used, or leave them out; default: %(default)s",
    )
    parser.add_argument(
        "--image_paths",
        action="store_true",
        help="write the names of the files as well, which other programs need; they can hold names of patients",
    )
    parser.set_defaults(run=_cohort)


def _cohort(options: argparse.Namespace) -> None:
    if os.path.lexists(options.datalist):
        raise ConfigurationError("The file to write exists: name another one.")
    datalist = prepare_datalist(
        options.images,
        options.datalist,
        labels_file=options.labels_file,
        class_names=options.class_names,
        image_column=options.image_column,
        label_column=options.label_column,
        patient_column=options.patient_column,
        fractions=options.fractions,
        seed=options.seed,
        on_problem=options.on_problem,
        image_paths=options.image_paths,
    )
    summary = PreparedCohort(Path(options.images), Path(options.datalist), datalist, False).summary()
    print(f"{'':<12}{'images':>8}{'patients':>10}  images of each class")
    for section, counts in summary["splits"].items():
        named = zip(summary["class_names"], counts["cases_by_class"], strict=True)
        classes = ", ".join(f"{name} {count}" for name, count in named)
        print(f"{section:<12}{counts['cases']:>8}{counts['patients']:>10}  {classes}")
    print(f"Left out: {datalist['skipped_problems']} problems. The datalist was written.")
