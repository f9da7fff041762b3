"""The bundles that are installed with the package: which there are, a copy to work with, and a run of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle

from ..errors import ConfigurationError
from .bundle_files import check_output

__all__ = ["copy_shipped_bundle", "run_shipped_bundle", "shipped_bundle", "shipped_bundles"]

_LEFT_OUT = ("output", "eval", "models", "__pycache__")
_HERE = Path(__file__).resolve().parents[1]


def shipped_bundles() -> dict[str, str]:
    """Return the names of the bundles that came with the package, each with what it says about its task."""
    found = {}
    for metadata in sorted(_folder().glob("*/configs/metadata.json")):
        content = json.loads(metadata.read_text(encoding="utf-8"))
        found[metadata.parents[1].name] = str(content.get("task") or content.get("description") or "")
    return found


def shipped_bundle(name: str) -> Path:
    """Return the folder of a bundle that came with the package; it is not to be written to.

    Raises:
        ConfigurationError: if there is none of that name.
    """
    known = shipped_bundles()
    if name not in known:
        raise ConfigurationError(f"There is no bundle of that name; those that come with the package: {list(known)}.")
    return _folder() / name


def copy_shipped_bundle(name: str, destination: str | os.PathLike[str]) -> Path:
    """Copy a bundle out of the installed package, to be run and changed.

    Args:
        name: its name.
        destination: the folder of the copy; it must not exist, or be empty.

    Raises:
        ConfigurationError: if there is none of that name, or the folder cannot be used.
    """
    source = shipped_bundle(name)
    path = check_output(destination, source)
    shutil.copytree(source, path, ignore=shutil.ignore_patterns(*_LEFT_OUT, ".*"), dirs_exist_ok=True)
    return path


def run_shipped_bundle(
    name: str,
    run_id: str,
    configs: Sequence[str],
    output_dir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Run a bundle that came with the package where it lies, as ``python -m monai.bundle run`` does.

    Args:
        name: its name.
        run_id: what to run, such as ``"prune"``.
        configs: its configurations, laid over each other, such as ``("train", "prune")``.
        output_dir: folder of the results.
        overrides: values of the configuration by id.

    Raises:
        ConfigurationError: if there is none of that name.
    """
    bundle = shipped_bundle(name)
    monai.bundle.run(
        run_id=run_id,
        config_file=[str(bundle / "configs" / f"{config}.json") for config in configs],
        bundle_root=str(bundle),
        output_dir=str(output_dir),
        **dict(overrides or {}),
    )


def _folder() -> Path:
    """Return the folder of all bundles: inside the installed package, or beside it in a checkout."""
    for folder in (_HERE / "bundles", _HERE.parent / "bundles"):
        if folder.is_dir():
            return folder
    raise ConfigurationError("The package was installed without its bundles: install it again.")
