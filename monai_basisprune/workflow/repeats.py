"""Repeats of a study over seeds and folds: run, resumed, and gathered into one record."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from .._version import __version__
from ..data import divide_datalist
from ..data.pseudonyms import load_or_create_salt
from ..errors import BasisPruneError, ConfigurationError
from ..files import write_atomically
from ..report import write_stability
from ..training import linear_layers
from .cohort import PreparedCohort, working_folder
from .repeat_plan import Repeat, plan_repeats
from .repeat_process import RepeatTask, available_cores, run_tasks
from .repeat_results import forget, gather, is_complete
from .start import RunStart, running_parser

__all__ = ["run_repeats", "setting_digests"]

_NOT_SETTINGS = {"output_dir", "bundle_root", "parallel", "repeats", "fold", "split_seed", "save_execute_config"}
_RECORD = "repeat.json"
_SPLIT = "(the images, their labels and their split)"


def run_repeats(
    repeats: int,
    output_dir: str | os.PathLike[str],
    start: RunStart,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    parallel: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Run the pruning of the running configuration once for each repeat, and say how far the results agree.

    Each repeat is a process of its own with a folder of its own below ``output_dir/repeats``. The cohort is read once,
    a synthetic one made once, and a network that is pretrained on the synthetic task is pretrained once. Repeats that
    are complete, and were made with the same settings, are not run again.

    With folds, the test section of repeat r is fold r. Without, all repeats have the same test patients, and seeds
    differ in the division into training and validation and in everything that is random in the training.

    Args:
        repeats: number of repeats.
        output_dir: folder of the results; ``stability.json`` and a report page of it are written.
        start: what :func:`start_run` returned.
        seed: seed of the first repeat; also of the folds, of the test section and of the synthetic cohort.
        folds: number of folds by patient; see :func:`plan_repeats`.
        fold: must be None.
        parallel: how many repeats at once; by default half the cores, and one on a GPU.
        device: where the repeats compute.

    Returns:
        the record, as written to ``stability.json``.

    Raises:
        ConfigurationError: if earlier repeats were made with other settings, which are named, or a value cannot be
            used; before anything is run.
        CohortError: if the cohort cannot be used, or has too few patients for the folds.
        BasisPruneError: at the end, if a repeat failed; what the others found is written.
    """
    planned = plan_repeats(repeats, seed, folds, fold)
    at_once = _parallel(parallel, device)
    parser = running_parser()
    if parser is None:
        raise ConfigurationError("run_repeats repeats a bundle's run: call it in the configuration of a bundle.")
    config = _plain(parser.get())
    output = Path(output_dir)
    folders = [output / "repeats" / r.name for r in planned]
    salt = load_or_create_salt(working_folder(output))
    given = {**config, "folds": folds or None}
    _check_earlier(folders, [setting_digests(given, None, salt)] * len(planned))
    config["cohort"] = {**config["cohort"], "folds": None, "fold": None, "split_seed": None}
    own = ConfigParser(copy.deepcopy(config))
    own.parse(True)
    cohort: PreparedCohort = own.get_parsed_content("cohort")
    cohorts = [
        replace(cohort, datalist=divide_datalist(cohort.datalist, r.seed, r.folds, r.fold, seed)) for r in planned
    ]
    digests = [setting_digests(given, c.datalist["split_sha256"], salt) for c in cohorts]
    _check_earlier(folders, digests)
    pending = [index for index, folder in enumerate(folders) if not is_complete(folder)]
    if len(pending) < len(planned):
        print(f"{len(planned) - len(pending)} of {len(planned)} repeats are complete already and are not run again.")
    failed: dict[int, str] = {}
    if pending:
        weights = _pretrain_once(own, output, digests[0], seed)
        tasks = []
        for index in pending:
            record = {"seed": planned[index].seed, "fold": planned[index].fold, "settings": digests[index]}
            forget(folders[index])
            write_atomically(folders[index] / _RECORD, json.dumps(record, indent=1))
            child = _configuration(config, planned[index], seed, folders[index], weights, start.command)
            tasks.append(RepeatTask(folders[index], child, cohorts[index]))
        failed = _run_and_tell(tasks, at_once, dict(zip(folders, planned, strict=True)))
    return _finish(planned, folders, failed, output)


def _run_and_tell(tasks: Sequence[RepeatTask], parallel: int, planned: Mapping[Path, Repeat]) -> dict[int, str]:
    """Run the repeats with a line for each that has ended; returns the reasons of those that failed, by number."""
    failed: dict[int, str] = {}
    done = len(planned) - len(tasks)
    with contextlib.closing(run_tasks(tasks, parallel)) as finished:
        for task, reason in finished:
            repeat, done = planned[task.folder], done + 1
            if reason is None and not is_complete(task.folder):
                reason = "it ended without a result"
            if reason is not None:
                failed[repeat.number] = reason
            print(f"[{done}/{len(planned)}] {repeat}: {reason or 'done'}", flush=True)
    return failed


def setting_digests(config: Mapping[str, Any], split_sha256: str | None, salt: bytes) -> dict[str, str]:
    """Return a salted hash of each setting of a run: equal settings are told apart from others without their values.

    Args:
        config: the configuration, as JSON types.
        split_sha256: hash of the split; None where it is not known yet.
        salt: secret of the hashes.
    """
    settings = {key: value for key, value in config.items() if key not in _NOT_SETTINGS and not key.startswith("_")}
    settings |= {"(the version)": __version__}
    if split_sha256 is not None:
        settings[_SPLIT] = split_sha256
    return {
        key: hmac.new(salt, json.dumps([key, value], sort_keys=True).encode(), hashlib.sha256).hexdigest()[:16]
        for key, value in sorted(settings.items())
    }


def _parallel(parallel: int | None, device: torch.device | str) -> int:
    if parallel is None:
        return 1 if torch.device(device).type != "cpu" else max(1, available_cores() // 2)
    if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
        raise ConfigurationError(f"parallel must be a whole number from 1, or null; got {parallel!r}.")
    return parallel


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration that another process can read."""
    unfit = []
    for key, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            unfit.append(f"{key} ({type(value).__name__})")
    if unfit:
        raise ConfigurationError(
            f"Repeats run in processes of their own, which only get what JSON can hold. Pass these as components with "
            f"a _target_ or as expressions: {', '.join(unfit)}."
        )
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _configuration(
    config: Mapping[str, Any], repeat: Repeat, seed: int, folder: Path, weights: Path | None, command: str
) -> dict[str, Any]:
    """Return the configuration of one repeat."""
    own = copy.deepcopy(dict(config))
    own |= {"seed": repeat.seed, "fold": repeat.fold, "folds": repeat.folds, "split_seed": seed}
    own["output_dir"] = str(folder)
    own["cohort"] |= {"folds": "@folds", "fold": "@fold", "split_seed": "@split_seed"}
    own["start"]["command"] = f"{command} [{repeat}]"
    if weights is not None:
        own["pretrained_network"]["pretrained"] = str(weights)
    return own


def _check_earlier(folders: Sequence[Path], digests: Sequence[Mapping[str, str]]) -> None:
    """Refuse to mix repeats of different settings; nothing is changed."""
    differing: set[str] = set()
    for folder, wanted in zip(folders, digests, strict=True):
        if not is_complete(folder):
            continue
        try:
            found = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["settings"]
            keys = {*wanted, *found} - ({_SPLIT} - set(wanted))
            differing |= {key for key in keys if wanted.get(key) != found.get(key)}
        except (OSError, ValueError, KeyError, TypeError):
            differing.add(f"({_RECORD} of {folder.name} cannot be read)")
    if differing:
        raise ConfigurationError(
            f"output_dir holds repeats that were made with other settings: {', '.join(sorted(differing))}. Set them as "
            f"they were to go on, or pass another --output_dir."
        )


def _pretrain_once(parser: ConfigParser, output: Path, settings: Mapping[str, str], seed: int) -> Path | None:
    """Pretrain on the synthetic task for all repeats, if they start from it; the head stays that of each repeat."""
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


def _finish(
    planned: Sequence[Repeat], folders: Sequence[Path], failed: Mapping[int, str], output: Path
) -> dict[str, Any]:
    complete = [(r, folder) for r, folder in zip(planned, folders, strict=True) if is_complete(folder)]
    losses = [{"seed": planned[i].seed, "fold": planned[i].fold, "reason": failed[i]} for i in sorted(failed)]
    lines = "\n".join(f"  - {planned[i]}: {failed[i]}" for i in sorted(failed))
    if not complete:
        raise BasisPruneError(f"All {len(planned)} repeats failed, so there is nothing to compare:\n{lines}")
    stability = gather([(r.seed, r.fold, r.folds, folder) for r, folder in complete], losses)
    write_atomically(output / "stability.json", json.dumps(stability, indent=1, allow_nan=False))
    write_stability(stability, output)
    chosen = stability["chosen"]
    print(
        f"\n{len(complete)} repeats chose to remove {100 * chosen['minimum']:.1f} % to "
        f"{100 * chosen['maximum']:.1f} %, median {100 * chosen['median']:.1f} %; stability.html in output_dir shows "
        f"the rest.\n"
    )
    if failed:
        raise BasisPruneError(
            f"{len(failed)} of {len(planned)} repeats failed; the others are in stability.html. Run the same command "
            f"again to run only these:\n{lines}"
        )
    return stability
