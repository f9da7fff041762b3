"""The commands ``monai-basisprune prune``, ``export-bundle`` and ``bundle``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_parser import OVERRIDES_HELP
from .curve import SELECTION_RULES
from .errors import ConfigurationError
from .workflow.existing_bundle import DEFAULT_TARGETS, prune_bundle
from .workflow.shipped_bundles import copy_shipped_bundle, run_shipped_bundle, shipped_bundles
from .workflow.study_bundle import export_study_bundle

__all__ = ["add_bundle_command", "add_export_bundle_command", "add_prune_command"]

_DEFAULT_BUNDLE, _NPZ_BUNDLE = "chest_xray_classification", "small_dataset_classification"


def add_prune_command(subparsers: Any) -> None:
    """Add the subcommand ``prune``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "prune",
        help="make a network smaller: that of a MONAI bundle, or one for a folder of images",
        description="If SOURCE is the folder of a classification bundle (it has a folder configs), its network is "
        "pruned in rounds, while it is trained as the bundle's configuration says, and OUTPUT becomes a new bundle "
        "with the smallest network that is good enough. If SOURCE is a folder of images with a table of labels, "
        "a pretrained network is transferred to them and pruned by a bundle of this package, and OUTPUT gets the "
        "network and the report. Nothing in SOURCE is changed.",
        epilog=OVERRIDES_HELP,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="folder of a bundle, or of images with labels.csv; or a MedMNIST file (.npz)"
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="folder of the new bundle, which must not exist, or be empty; of images, the folder of the results",
    )
    parser.add_argument(
        "--bundle",
        metavar="NAME",
        help=f"of images, the bundle of this package that prunes; default: {_DEFAULT_BUNDLE}, of a MedMNIST file "
        f"{_NPZ_BUNDLE}",
    )
    parser.add_argument(
        "--targets",
        type=float,
        nargs="+",
        metavar="SHARE",
        help=f"share to remove in each round, rising; default of a bundle: {list(DEFAULT_TARGETS)}",
    )
    parser.add_argument(
        "--budget", choices=("parameters", "macs", "parameters and macs", "bases"), help="what the shares are shares of"
    )
    parser.add_argument("--transfer_epochs", type=int, metavar="N", help="epochs of training before the first round")
    parser.add_argument("--epochs_per_round", type=int, metavar="N", help="epochs of training in each round")
    parser.add_argument(
        "--margin",
        type=float,
        help="largest loss of AUC on validation cases, against the network before pruning, that is accepted",
    )
    parser.add_argument(
        "--selection",
        choices=SELECTION_RULES,
        help="whether the AUC itself or the interval of its difference must keep within the margin",
    )
    parser.add_argument(
        "--patient_key",
        metavar="KEY",
        help="of a bundle, the key of the patient's id in its data; without it, every image counts as a patient of its "
        "own",
    )
    parser.add_argument(
        "--channels",
        action="store_true",
        default=None,
        help="of a bundle, remove channels as well, where they matter less for each parameter than the bases; without "
        "it, bases alone go; of images, both go anyway",
    )
    parser.add_argument("--seed", type=int, help="seed of the run")
    parser.add_argument(
        "--resume",
        choices=("true", "false"),
        help="whether a run that was stopped goes on with the same command (the default), or starts anew",
    )
    parser.set_defaults(run=_prune, overrides={})


_OPTIONS = (
    "targets",
    "budget",
    "transfer_epochs",
    "epochs_per_round",
    "margin",
    "selection",
    "patient_key",
    "channels",
    "seed",
    "resume",
)


def _prune(options: argparse.Namespace) -> None:
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    source = Path(options.source)
    is_npz = source.is_file() and source.suffix.lower() == ".npz"
    if not source.is_dir() and not is_npz:
        raise ConfigurationError(
            "SOURCE is not a folder: name the folder of a MONAI bundle, or of images with a table of labels, or a "
            "MedMNIST file (.npz)."
        )
    if (source / "configs").is_dir():
        if options.bundle is not None:
            raise ConfigurationError("SOURCE is the folder of a bundle; --bundle is for a folder of images.")
        print(prune_bundle(options.source, options.output, overrides=options.overrides, **given).summary())
        return
    if "patient_key" in given:
        raise ConfigurationError("--patient_key is for bundles; the patients of images are set by --patient_column.")
    if "channels" in given:
        raise ConfigurationError("--channels is for bundles; of images, channels are removed with the bases anyway.")
    overrides = {**options.overrides, **given, "dataset_dir": options.source}
    run_shipped_bundle(
        options.bundle or (_NPZ_BUNDLE if is_npz else _DEFAULT_BUNDLE),
        "prune",
        ("train", "prune"),
        options.output,
        overrides,
    )


def add_export_bundle_command(subparsers: Any) -> None:
    """Add the subcommand ``export-bundle``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "export-bundle",
        help="make a bundle of the network that a pruning study left",
        description="Writes a new bundle with the pruned network of a study, which `python -m monai.bundle run prune` "
        "made, and with the figures of its test cases.",
        epilog=OVERRIDES_HELP,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle that the study was made with")
    parser.add_argument("study", metavar="STUDY", help="folder of the study's results (its output_dir)")
    parser.add_argument("output", metavar="OUTPUT", help="folder of the new bundle; it must not exist, or be empty")
    parser.set_defaults(run=_export_bundle, overrides={})


def _export_bundle(options: argparse.Namespace) -> None:
    print(export_study_bundle(options.bundle, options.study, options.output, overrides=options.overrides).summary())


def add_bundle_command(subparsers: Any) -> None:
    """Add the subcommand ``bundle``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "bundle",
        help="list the bundles that came with the package, or copy one to work with",
        description="Without a name, lists the bundles. With a name and a folder, copies the bundle there, where its "
        "configurations can be read, changed and run with `python -m monai.bundle run`.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a bundle")
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="folder of the copy; it must not exist, or be empty"
    )
    parser.set_defaults(run=_bundle)


def _bundle(options: argparse.Namespace) -> None:
    if options.name is None:
        for name, task in shipped_bundles().items():
            print(f"{name}: {task}")
        return
    if options.folder is None:
        raise ConfigurationError("Name the folder of the copy as well: monai-basisprune bundle NAME FOLDER.")
    copied = copy_shipped_bundle(options.name, options.folder)
    configs = ", ".join(sorted(path.stem for path in (copied / "configs").glob("*.json") if path.stem != "metadata"))
    print(f"{options.name} was copied; its configurations: {configs}.")
