"""Runs of a bundle in processes of their own: what they are given, what they share, and which are complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from ..checkpoints import setting_digests
from ..errors import ConfigurationError
from ..files import write_atomically
from ..reading import read_json
from ..training import linear_layers
from .repeat_process import RepeatTask, available_cores, run_tasks
from .repeat_results import is_complete
from .resumption import config_settings, versions

__all__ = [
    "RECORD_FILE",
    "check_earlier",
    "plain_config",
    "pretrain_once",
    "run_and_tell",
    "run_digests",
    "runs_at_once",
]

RECORD_FILE = "repeat.json"
"""Says what a run was made with."""

_SPLIT = "(the images, their labels and their split)"


def run_and_tell(tasks: Sequence[RepeatTask], parallel: int, shown: Mapping[Path, str]) -> dict[Path, str]:
    """Run tasks with a line for each that has ended.

    Args:
        tasks: what to run.
        parallel: how many at once.
        shown: for the folder of each run, of those that are complete as well, how to call it.

    Returns:
        the folders of those that failed, with the reasons.
    """
    failed: dict[Path, str] = {}
    done = len(shown) - len(tasks)
    with contextlib.closing(run_tasks(tasks, parallel)) as finished:
        for task, reason in finished:
            done += 1
            if reason is None and not is_complete(task.folder):
                reason = "it ended without a result"
            if reason is not None:
                failed[task.folder] = reason
            print(f"[{done}/{len(shown)}] {shown[task.folder]}: {reason or 'done'}", flush=True)
    return failed


def run_digests(config: Mapping[str, Any], split_sha256: str | None, salt: bytes) -> dict[str, str]:
    """Return a salted digest of each setting of a run: equal settings are told apart from others without their values.

    Args:
        config: the configuration, as JSON types.
        split_sha256: hash of the split; None where it is not known yet.
        salt: secret of the digests.
    """
    settings = {**config_settings(config), "versions": versions()}
    return setting_digests(settings if split_sha256 is None else {**settings, _SPLIT: split_sha256}, salt)


def runs_at_once(parallel: int | None, device: torch.device | str) -> int:
    """Return how many runs to have at once; by default half the cores, and one on a GPU.

    Raises:
        ConfigurationError: if it is no whole number from 1.
    """
    if parallel is None:
        return 1 if torch.device(device).type != "cpu" else max(1, available_cores() // 2)
    if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
        raise ConfigurationError(f"parallel must be a whole number from 1, or null; got {parallel!r}.")
    return parallel


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration that another process can read.

    Raises:
        ConfigurationError: if it holds what JSON cannot, which is named.
    """
    unfit = []
    for key, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            unfit.append(f"{key} ({type(value).__name__})")
    if unfit:
        raise ConfigurationError(
            f"These runs are processes of their own, which only get what JSON can hold. Pass these as components with "
            f"a _target_ or as expressions: {', '.join(unfit)}."
        )
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def check_earlier(folders: Sequence[Path], digests: Sequence[Mapping[str, str]], what: str = "repeats") -> None:
    """Refuse to mix runs of different settings; nothing is changed.

    Args:
        folders: where the runs are or will be.
        digests: what each of them is to be made with, from :func:`run_digests`.
        what: how to call them.

    Raises:
        ConfigurationError: if one that is complete was made with other settings, which are named.
    """
    differing: set[str] = set()
    for folder, wanted in zip(folders, digests, strict=True):
        if not is_complete(folder):
            continue
        try:
            found = read_json(folder / RECORD_FILE)["settings"]
            keys = {*wanted, *found} - ({_SPLIT} - set(wanted))
            differing |= {ascii(key)[1:-1][:60] for key in keys if wanted.get(key) != found.get(key)}
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            differing.add(f"({RECORD_FILE} of {folder.name} cannot be read)")
    if differing:
        raise ConfigurationError(
            f"output_dir holds {what} that were made with other settings: {', '.join(sorted(differing))}. Set them as "
            f"they were to go on, or pass another --output_dir."
        )


def pretrain_once(parser: ConfigParser, output: Path, settings: Mapping[str, str], seed: int) -> Path | None:
    """Pretrain on the synthetic task for all runs, if they start from it; the head stays that of each run.

    Args:
        parser: a configuration that was parsed.
        output: folder of all runs.
        settings: digests of what the network depends on.
        seed: the seed.

    Returns:
        the file of the weights, or None where the runs start from something else.
    """
    if parser.get_parsed_content("pretrained") != "synthetic":
        return None
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = output / "work" / f"pretrained-{digest}.pt"
    if not path.is_file():
        set_determinism(seed)
        network: torch.nn.Module = parser.get_parsed_content("pretrained_network")
        state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        for name in linear_layers(network)[-1:]:
            # a head of no class: the one of the network that it is loaded into stays
            state |= {key: state[key][:0].clone() for key in (f"{name}.weight", f"{name}.bias") if key in state}
        write_atomically(path, lambda temporary: torch.save(state, temporary))
    return path
