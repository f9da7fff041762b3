"""The folder of a bundle: what is read from it, what is copied of it, and where a new one may be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..reading import read_json

__all__ = ["check_output", "copy_bundle", "not_carried", "read_metadata", "shown_names"]

_NOT_CARRIED = ("models", "eval", "output", "large_files.yml", "large_files.yaml", "large_files.json")
"""What belongs to the unpruned network, or to runs of it: its weights, where to fetch them, and results."""

_CARRIED_FOLDERS = ("configs", "docs", "scripts")
_CARRIED_SUFFIXES = (".py", ".md", ".toml", ".cff")
_CARRIED_STEMS = ("LICENSE", "NOTICE", "README", "AUTHORS", "REQUIREMENTS")


def check_output(output: str | os.PathLike[str], source: str | os.PathLike[str]) -> Path:
    """Check that a new bundle can be written.

    Raises:
        ConfigurationError: if its folder holds anything, is no folder, lies inside the source, or cannot be made.
    """
    path = Path(output).resolve()  # a link to an empty folder stays what it is
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigurationError("The folder of the new bundle is not empty: name one that does not exist yet.")
    if path.is_relative_to(Path(source).resolve()):
        raise ConfigurationError("The new bundle must not lie inside the source bundle, which stays as it is.")
    if os.path.ismount(path):
        raise ConfigurationError(
            "The folder of the new bundle is a drive or a volume of its own, which nothing can be moved onto as a "
            "whole: name a folder in it."
        )
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise ConfigurationError("The new bundle cannot be written where you want it: a part of the path is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError("The new bundle cannot be written where you want it: no permission.")
    return path


def copy_bundle(source: Path, target: Path, left_out: Collection[str]) -> None:
    """Copy a bundle; links to files become files.

    Args:
        source: its folder.
        target: the new folder.
        left_out: names in ``source`` itself that are not copied.

    Raises:
        ConfigurationError: if it holds a link to a folder, which could be any on this computer, or what is no file.
    """

    def ignore(folder: str, names: Sequence[str]) -> set[str]:
        return {name for name in names if name == "__pycache__" or (name in left_out and Path(folder) == source)}

    odd = set()
    for folder, folders, files in os.walk(source):
        skipped = ignore(folder, [*folders, *files])
        folders[:] = [name for name in folders if name not in skipped]
        paths = [Path(folder, name) for name in (*folders, *files) if name not in skipped]
        odd |= {p.relative_to(source).parts[0] for p in paths if not p.is_file() and (p.is_symlink() or not p.is_dir())}
    if odd:
        raise ConfigurationError(
            f"The bundle holds links to other folders, links to nothing, or what is no file, in "
            f"{', '.join(sorted(odd))}: put the folders themselves there, or take the links out and name the folder of "
            f"the images with --dataset_dir."
        )
    shutil.copytree(source, target, ignore=ignore)


def read_metadata(bundle: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metadata of a bundle.

    Raises:
        ConfigurationError: if there is none, or it cannot be read.
    """
    try:
        metadata = read_json(Path(bundle) / "configs" / "metadata.json")
    except FileNotFoundError as error:
        raise ConfigurationError(
            "There is no configs/metadata.json: name the folder of a MONAI bundle, which holds configs and models."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"configs/metadata.json of the bundle is no JSON: {error}.") from error
    if not isinstance(metadata, dict):
        raise ConfigurationError("configs/metadata.json of the bundle holds no dictionary.")
    return metadata


def not_carried(source: Path) -> list[str]:
    """Return what of a bundle is not carried over; anything unusual, since it could be images or lists of patients."""
    return sorted(path.name for path in source.iterdir() if path.name in _NOT_CARRIED or not _is_carried(path))


def _is_carried(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return path.name in _CARRIED_FOLDERS or (path / "__init__.py").is_file()
    return path.suffix in _CARRIED_SUFFIXES or path.stem.upper() in _CARRIED_STEMS


def shown_names(left_out: Sequence[str]) -> tuple[str, ...]:
    """Return names of what is not carried over as they may be shown: those that could name a patient are counted."""
    named = [name for name in left_out if name in _NOT_CARRIED]
    others = len(left_out) - len(named)
    return (*named, *([f"{others} other files or folders at its top"] if others else []))
