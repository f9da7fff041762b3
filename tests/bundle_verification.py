"""Checks a bundle in three modes, in the spirit of what the model zoo asks of its bundles.

``min`` looks at files and metadata, ``regular`` builds what the configurations describe, ``full`` exports it. Nothing
is downloaded: the schema of the metadata is used where it lies beside the checkout.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.utils import BundleProperty, BundlePropertyConfig

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT.parent / "shared" / "data" / "meta_schema_20240725.json"
MOST_BYTES = 25 * 2**20
MODES = ("min", "regular", "full")
REQUIRED = ("LICENSE", "configs/metadata.json", "docs/README.md", "docs/data_license.txt")
_ALWAYS = ("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version")
_ALWAYS += ("required_packages_version", "task", "description", "authors", "copyright", "network_data_format")
_WORKFLOWS = {"train": ("train",), "infer": ("inference",)}


class BundleVerificationError(AssertionError):
    """What is wrong with a bundle."""


def verify_bundle(bundle: Path, mode: str, data: Path | None = None) -> list[str]:
    """Check a bundle; each mode includes those before it.

    Args:
        bundle: its folder.
        mode: one of ``MODES``.
        data: its ``dataset_dir``; without it, properties are looked for but not built.

    Returns:
        the names of the checks that were made.

    Raises:
        BundleVerificationError: at the first check that fails.
    """
    checks: list[Callable[[Path], None]] = [_files, _sizes, _versions, _metadata]
    if mode in MODES[1:]:
        checks += [_weights, partial(_properties, data=data), _shapes]
    if mode == "full":
        checks += [_export, _script]
    done = []
    quiet = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        for check in checks:
            check(bundle)
            done.append(getattr(check, "func", check).__name__.lstrip("_"))
    finally:
        logging.disable(quiet)
    return done


def config_of(bundle: Path, name: str) -> Path | None:
    """Return a configuration, whatever its format."""
    return next((p for p in sorted((bundle / "configs").glob(f"{name}.*")) if p.suffix != ".conf"), None)


def _meta(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise BundleVerificationError(problem)


def _files(bundle: Path) -> None:
    missing = [name for name in REQUIRED if not (bundle / name).is_file()]
    _require(not missing, f"missing: {missing}")
    _require(config_of(bundle, "inference") is not None, "missing: configs/inference")


def _sizes(bundle: Path) -> None:
    large = [path.name for path in bundle.rglob("*") if path.is_file() and path.stat().st_size > MOST_BYTES]
    _require(not large, f"above 25 MB: {large}")


def _versions(bundle: Path) -> None:
    metadata = _meta(bundle)
    missing = [key for key in _ALWAYS if key not in metadata]
    _require(not missing, f"the metadata lack {missing}")
    _require(metadata["version"] == next(iter(metadata["changelog"])), "the version is not the changelog's newest")
    numbers = [tuple(int(part) for part in version.split(".")) for version in metadata["changelog"]]
    _require(numbers == sorted(numbers, reverse=True), "the changelog is not in order")


def _metadata(bundle: Path) -> None:
    if not SCHEMA.is_file():
        return  # it is not part of the checkout
    _require(_meta(bundle)["schema"].endswith(f"/{SCHEMA.name}"), "the metadata name another schema")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(SCHEMA, folder)
        try:
            verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=copy)
        except ValueError as error:
            raise BundleVerificationError(f"the metadata do not satisfy the schema: {error}") from error


def parsed(bundle: Path, name: str) -> ConfigParser:
    """Read a configuration and the metadata."""
    parser = ConfigParser()
    parser.read_config(str(config_of(bundle, name)))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser["bundle_root"] = str(bundle)
    return parser


def network_of(bundle: Path, name: str = "inference") -> torch.nn.Module:
    """Build the network of a configuration and load the weights, all of them."""
    network = parsed(bundle, name).get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=True)
    return network.eval()


def _weights(bundle: Path) -> None:
    path = bundle / "models" / "model.pt"
    _require(path.is_file(), "missing: models/model.pt")
    for name in ("train", "inference"):
        if config_of(bundle, name) is not None:
            try:
                network_of(bundle, name)
            except (RuntimeError, KeyError) as error:
                raise BundleVerificationError(
                    f"models/model.pt does not fit network_def of configs/{name}: {error}"
                ) from error


def _properties(bundle: Path, data: Path | None) -> None:
    for kind, names in _WORKFLOWS.items():
        files = [str(config_of(bundle, name)) for name in names if config_of(bundle, name) is not None]
        if not files:
            continue
        workflow = ConfigWorkflow(
            config_file=files,
            workflow_type=kind,
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            bundle_root=str(bundle),
            **({} if data is None else {"dataset_dir": str(data)}),
        )
        if data is None:
            required = {n: p for n, p in workflow.properties.items() if p[BundleProperty.REQUIRED]}
            wrong = [n for n, p in required.items() if p[BundlePropertyConfig.ID] not in workflow.parser]
        else:
            workflow.initialize()
            wrong = workflow.check_properties() or []
        _require(not wrong, f"configs/{names[0]} lacks the properties {wrong}")


def _shapes(bundle: Path) -> None:
    for name in ("train", "inference"):
        if (path := config_of(bundle, name)) is not None:
            try:
                verify_net_in_out(
                    net_id="network_def",
                    meta_file=str(bundle / "configs" / "metadata.json"),
                    config_file=str(path),
                    device="cpu",
                    bundle_root=str(bundle),
                )
            except (ValueError, RuntimeError) as error:
                raise BundleVerificationError(
                    f"network_def of configs/{name} and the metadata disagree: {error}"
                ) from error


def _example(bundle: Path) -> torch.Tensor:
    image = _meta(bundle)["network_data_format"]["inputs"]["image"]
    shape = [size if isinstance(size, int) else 32 for size in image["spatial_shape"]]
    return torch.rand(2, image["num_channels"], *shape, generator=torch.Generator().manual_seed(0))


def _equal(network: torch.nn.Module, bundle: Path, what: str) -> None:
    example = _example(bundle)
    with torch.no_grad():
        wanted, found = network_of(bundle)(example), network.eval()(example)
    _require(torch.allclose(wanted, found, atol=1e-4, rtol=1e-3), f"{what} gives other outputs than the network")


def _export(bundle: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.ts"
        ckpt_export(
            net_id="network_def",
            filepath=str(path),
            ckpt_file=str(bundle / "models" / "model.pt"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(config_of(bundle, "inference")),
            bundle_root=str(bundle),
        )
        _equal(torch.jit.load(path), bundle, "the exported network")


def _script(bundle: Path) -> None:
    if (bundle / "models" / "model.ts").is_file():
        _equal(torch.jit.load(bundle / "models" / "model.ts"), bundle, "models/model.ts")
