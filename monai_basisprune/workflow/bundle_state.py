"""What the training of a bundle depends on, what of it has a state, and whether its data follow from a seed alone."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.bundle import ConfigParser
from monai.data import SmartCacheDataset

from ..files import sha256_of
from ..loading import seed_epoch
from .bundle_cases import content_of
from .bundle_training import shown_problems
from .resumption import versions
from .start import PATH_FLAGS

__all__ = ["bundle_settings", "file_digests", "stateful_parts", "unsteady_data"]


def file_digests(bundle: Path) -> dict[str, list[list[str]]]:
    """Return the files of a bundle that its training may read, with their hashes, by a name that may be shown.

    Args:
        bundle: folder of the bundle, with nothing in it that a run has written.
    """
    files: dict[str, list[list[str]]] = {}
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        relative = path.relative_to(bundle)
        if relative.parts[0] != "docs":
            files.setdefault(_shown(relative), []).append([relative.as_posix(), sha256_of(path)])
    return files


def _shown(relative: Path) -> str:
    """Return how to call a file, whose name could be that of a patient unless it is a configuration."""
    top = relative.parts[0]
    return relative.as_posix() if top == "configs" else top if top in ("models", "scripts") else "other files"


def bundle_settings(
    files: Mapping[str, Any], overrides: Mapping[str, Any], options: Mapping[str, Any], loaders: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the result of pruning a bundle depends on, by a name that may be shown.

    Args:
        files: its files, from :func:`file_digests`.
        overrides: values of its training configuration by id; where files lie is no part of it.
        options: the options of the pruning.
        loaders: loaders of data, whose cases count.

    Returns:
        values of JSON types, for :class:`~monai_basisprune.handlers.RunCheckpointHandler`.
    """
    return {
        **options,
        **{f"--{key}": value for key, value in overrides.items() if not key.endswith(PATH_FLAGS)},
        **{f"the bundle's {name}": content for name, content in files.items()},
        **{f"the {name} cases": content_of(_listed(loader)) for name, loader in loaders.items()},
        "versions": versions(),
    }


def _listed(loader: Any) -> Any:
    items = getattr(loader.dataset, "data", None)
    return items if isinstance(items, (list, tuple)) else len(loader.dataset)


def stateful_parts(parser: ConfigParser, others: Collection[object]) -> tuple[dict[str, Any], list[str]]:
    """Return what of a bundle's training has a state, above all schedules of the learning rate.

    Args:
        parser: the configuration, whose components were made.
        others: what somebody else looks after, such as the network and the optimizer.

    Returns:
        the objects by their ids, and the ids of those whose state cannot be kept, as it is more than tensors and plain
        types.
    """
    found: dict[str, Any] = {}
    unkept, seen = [], {id(one) for one in others}
    for name, item in parser.ref_resolver.resolved_content.items():
        if isinstance(item, (type, Engine, Metric)) or id(item) in seen:
            continue
        if not all(callable(getattr(item, verb, None)) for verb in ("state_dict", "load_state_dict")):
            continue
        seen.add(id(item))
        try:
            stream = io.BytesIO()
            torch.save(item.state_dict(), stream)
            stream.seek(0)
            torch.load(stream, weights_only=True)
        except Exception:  # a state can be anything, and so can what saving it raises
            unkept.append(name)
        else:
            found[name] = item
    return found, unkept


def unsteady_data(trainer: Any, seed: int) -> list[str]:
    """Return why the training data of a bundle do not follow from the seed and the epoch alone; empty if they do.

    The first batch is read twice with the same seed, which finds what draws from a state of its own.

    Args:
        trainer: the bundle's trainer.
        seed: the seed.
    """
    loader = trainer.data_loader
    reasons = []
    if trainer.state.epoch_length and trainer.state.epoch_length % len(loader):
        reasons.append("an epoch ends in the middle of the data (epoch_length)")
    if getattr(loader, "persistent_workers", False):
        reasons.append("the loader keeps its processes from epoch to epoch (persistent_workers)")
    if isinstance(loader.dataset, SmartCacheDataset):
        reasons.append("the data set changes its cases from epoch to epoch (SmartCacheDataset)")
    first = []
    for _ in range(2):
        with shown_problems("The bundle's training data cannot be read"):
            seed_epoch(loader, seed, 1)
            first.append(json.dumps(content_of(next(iter(loader)))))
    if first[0] != first[1]:
        reasons.append(
            "the first batch is another one each time with the same seed, as with a sampler or a transform that draws "
            "from random numbers of its own"
        )
    return reasons
