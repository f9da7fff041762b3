"""The commands ``monai-basisprune inspect`` and ``export``: look at a network, hand it on."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .cli_parser import OVERRIDES_HELP
from .errors import ConfigurationError
from .workflow.inspected import format_inspection, inspect_source
from .workflow.shipped_bundles import shipped_bundle
from .workflow.study_network import export_study_network

__all__ = ["add_export_command", "add_inspect_command"]


def add_inspect_command(subparsers: Any) -> None:
    """Add the subcommand ``inspect``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "inspect",
        help="show the layers of a network, and how much could be saved in each",
        description="Shows a table with one row for each layer: how many parameters it has, how many operations it "
        "takes, with how many bases splitting it begins to pay (even), how many bases hold 90 % and 99 % of its "
        "energy, and how fast its singular values fall. Where they fall fast, few bases are enough.",
        epilog="The configuration of a bundle and a named network are code, which is run. " + OVERRIDES_HELP,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a checkpoint (.pt, .ts), the folder of a bundle or of a study, or the name of a network, such as "
        "monai.networks.nets.DenseNet121",
    )
    parser.add_argument(
        "--arguments",
        metavar="JSON",
        default="{}",
        help='arguments of a network that is named, such as \'{"spatial_dims": 2, "in_channels": 1, '
        '"out_channels": 2}\'',
    )
    parser.add_argument(
        "--input_shape",
        type=int,
        nargs="+",
        metavar="N",
        help="shape of one image, channels first, such as 1 224 224; needed to count operations",
    )
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table, for other programs")
    parser.set_defaults(run=_inspect, overrides={})


def _inspect(options: argparse.Namespace) -> None:
    try:
        arguments = json.loads(options.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ConfigurationError(
            "--arguments must be JSON with a name for each value, such as '{\"spatial_dims\": 2}'."
        )
    found = inspect_source(options.source, arguments, options.input_shape, options.overrides)
    if options.json:
        print(json.dumps(asdict(found), indent=1, allow_nan=False))
        return
    print(format_inspection(found))


def add_export_command(subparsers: Any) -> None:
    """Add the subcommand ``export``; its default ``run`` is the function that takes the parsed arguments.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = subparsers.add_parser(
        "export",
        help="write the network of a pruning study as TorchScript, ONNX or a PyTorch exported program",
        description="Writes the pruned network of a study as one file that needs nothing of this package to run, and "
        "compares its outputs with those of the network before it is kept.",
        epilog=OVERRIDES_HELP,
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="STUDY", help="folder of the study's results (its output_dir)")
    parser.add_argument(
        "file", metavar="FILE", help="the file to write; .ts (TorchScript), .onnx (needs the extra export) or .pt2"
    )
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        help="folder of the bundle that the study was made with; default: chest_xray_classification of this package",
    )
    parser.set_defaults(run=_export, overrides={})


def _export(options: argparse.Namespace) -> None:
    bundle = options.bundle or shipped_bundle("chest_xray_classification")
    result = export_study_network(options.study, options.file, bundle, options.overrides)
    print(
        f"Written as {result.format}, {result.size:,} bytes; largest relative difference {result.relative_error:.1e}."
    )
    for remark in result.remarks:
        print(remark)
