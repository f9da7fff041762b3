"""The configurations and the metadata of a bundle: how they are read, and what pruning changes in them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .._version import __version__
from ..errors import ConfigurationError
from ..plan import PruningPlan
from ..reading import read_bytes, structure_problem

__all__ = [
    "CONFIG_SUFFIXES",
    "config_files",
    "find_config",
    "next_metadata",
    "pruned_config",
    "read_config_file",
    "write_config",
]

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
"""The formats of a bundle's configurations."""

_MOST_BYTES, _MOST_VALUES = 16 << 20, 10**6  # far more than any configuration, with the plan of a pruned network

_UNPRUNED = "unpruned_network_def"
_IMPORT = "$import monai_basisprune"
# a reference or a macro to a part of the component: the part is in the original one now
_PART_OF_NETWORK = re.compile(r"(?<=[@%])network_def(?=#|::)")


def config_files(bundle: Path) -> dict[str, dict[str, Any]]:
    """Read all configurations of a bundle but the metadata, by file name.

    Raises:
        ConfigurationError: if one cannot be read.
    """
    found = {}
    for path in sorted((bundle / "configs").iterdir()):
        if path.suffix in CONFIG_SUFFIXES and path.stem != "metadata":
            found[path.name] = read_config_file(path)
    return found


def find_config(bundle: Path, *names: str) -> Path | None:
    """Return the first configuration of these names that a bundle has, whatever its format."""
    paths = (bundle / "configs" / f"{name}{suffix}" for name in names for suffix in CONFIG_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read one configuration as it stands, without what it refers to.

    Raises:
        ConfigurationError: if it cannot be read, is too large, or holds no dictionary.
    """
    try:
        read_bytes(path, _MOST_BYTES)
        content = ConfigParser.load_config_file(path)
    except Exception as error:  # the readers of both formats raise many types
        # of the system, the reason alone: its text holds the folder
        reason = (getattr(error, "strerror", None) or str(error)).strip().splitlines()[:1]
        raise ConfigurationError(f"configs/{path.name} of the bundle cannot be read: {reason}.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"configs/{path.name} of the bundle holds no dictionary of components.")
    problem = structure_problem(content, _MOST_VALUES)
    if problem is not None:
        raise ConfigurationError(f"configs/{path.name} of the bundle cannot be used: {problem}.")
    return content


def write_config(config: Mapping[str, Any], path: Path) -> None:
    """Write a configuration in the format that the name of its file says, each pruning plan in one line."""
    if path.suffix != ".json":
        ConfigParser.export_config_file(dict(config), str(path), fmt="yaml", sort_keys=False, default_flow_style=None)
        return
    plans: dict[str, str] = {}

    def fold(value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("format") == "monai_basisprune.plan":
            marker = f"\x00plan {len(plans)}"
            plans[json.dumps(marker)] = json.dumps(value)
            return marker
        if isinstance(value, Mapping):
            return {key: fold(part) for key, part in value.items()}
        return [fold(part) for part in value] if isinstance(value, list) else value

    text = json.dumps(fold(config), indent=4)
    for marker, plan in plans.items():
        text = text.replace(marker, plan)
    path.write_text(text + "\n", encoding="utf-8")


def pruned_config(
    config: Mapping[str, Any], plan: PruningPlan, network_def: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Let a configuration build the pruned network.

    The original component stays, as ``unpruned_network_def``, and ``network_def`` builds the pruned network from it.
    The plan stands in the configuration itself: ``monai.bundle.load`` tells a configuration nothing of its folder, so
    the path of a file would be looked for where the user happens to work.

    Args:
        config: the configuration, which is left as it is.
        plan: the plan of the pruned network.
        network_def: what builds the original network, instead of the configuration's own.

    Returns:
        a new configuration, or None if this one says nothing of ``network_def``.

    Raises:
        ConfigurationError: if it builds a pruned network already, or its ``imports`` are no lines of Python.
    """
    if _UNPRUNED in config:
        raise ConfigurationError(
            "The bundle holds a pruned network already (unpruned_network_def is in a configuration): start from the "
            "bundle of the unpruned one."
        )
    parts = [key for key in config if re.match(r"network_def(#|::)", key)]
    if "network_def" not in config and not parts:
        return None
    new: dict[str, Any] = {}
    for key, value in config.items():
        value = _renamed(value)
        if key == "network_def":
            new[_UNPRUNED] = value if network_def is None else copy.deepcopy(dict(network_def))
            new[key] = {
                "_target_": "monai_basisprune.build_pruned",
                "network_def": f"@{_UNPRUNED}",
                "plan": plan.to_dict(),
            }
        else:
            new[f"unpruned_{key}" if key in parts else key] = value
    imports = new.get("imports", [])
    if not isinstance(imports, (str, list)):
        raise ConfigurationError(
            f"imports must be a line of Python or a list of them, found {type(imports).__name__}: correct it in the "
            f"bundle's configuration."
        )
    if "network_def" in config and _IMPORT not in imports:
        new = {"imports": [], **new} if "imports" not in new else new
        new["imports"] = [*([imports] if isinstance(imports, str) else imports), _IMPORT]
    return new


def _renamed(value: Any) -> Any:
    if isinstance(value, str):
        return _PART_OF_NETWORK.sub(_UNPRUNED, value)
    if isinstance(value, Mapping):
        return {key: _renamed(part) for key, part in value.items()}
    return [_renamed(part) for part in value] if isinstance(value, list) else value


def next_metadata(metadata: Mapping[str, Any], change: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the bundle's next version.

    Args:
        metadata: those of the source, which are left as they are.
        change: what to say in the changelog.
        metrics: the figures of the pruned network; those of the source go under ``before_pruning``.

    Raises:
        ConfigurationError: if the version cannot be counted up, or an entry has another type than it should.
    """
    for key in ("changelog", "required_packages_version"):
        if not isinstance(metadata.get(key) or {}, Mapping):
            raise ConfigurationError(
                f"{key} in configs/metadata.json must be a dictionary, got {type(metadata[key]).__name__}."
            )
    old = str(metadata.get("version"))
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", old)
    if numbers is None:
        raise ConfigurationError(
            f"The version in configs/metadata.json must start with two numbers, such as 0.1.0, got {old[:40]!r}."
        )
    changelog = dict(metadata.get("changelog") or {})
    major, minor = (int(number) for number in numbers.groups())
    minor += 1
    while f"{major}.{minor}.0" in changelog:
        minor += 1
    new = f"{major}.{minor}.0"
    earlier = metadata.get("eval_metrics") or {}
    return {
        **copy.deepcopy(dict(metadata)),
        "version": new,
        "changelog": {new: change, **changelog},
        "monai_version": _public_version("monai"),
        "pytorch_version": _public_version("torch"),
        "numpy_version": _public_version("numpy"),
        "required_packages_version": {
            **(metadata.get("required_packages_version") or {}),
            "monai_basisprune": __version__,
        },
        "eval_metrics": {**metrics, **({"before_pruning": earlier} if earlier else {})},
    }


def _public_version(name: str) -> str:
    return version(name).partition("+")[0]  # what follows names a build, not a version
