"""Repeats of a study over seeds and folds: run, resumed, and gathered into one record."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from ..data import divide_datalist
from ..data.pseudonyms import load_or_create_salt
from ..errors import BasisPruneError, ConfigurationError
from ..files import write_atomically
from ..report import write_stability
from .child_runs import (
    RECORD_FILE,
    check_earlier,
    plain_config,
    pretrain_once,
    run_and_tell,
    run_digests,
    runs_at_once,
)
from .cohort import PreparedCohort, working_folder
from .repeat_plan import Repeat, plan_repeats
from .repeat_process import RepeatTask
from .repeat_results import forget, gather, is_complete
from .start import RunStart, running_parser

__all__ = ["run_repeats"]


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
    at_once = runs_at_once(parallel, device)
    parser = running_parser()
    if parser is None:
        raise ConfigurationError("run_repeats repeats a bundle's run: call it in the configuration of a bundle.")
    config = plain_config(parser.get())
    output = Path(output_dir)
    folders = [output / "repeats" / r.name for r in planned]
    salt = load_or_create_salt(working_folder(output))
    given = {**config, "folds": folds or None}
    check_earlier(folders, [run_digests(given, None, salt)] * len(planned))
    config["cohort"] = {**config["cohort"], "folds": None, "fold": None, "split_seed": None}
    own = ConfigParser(copy.deepcopy(config))
    own.parse(True)
    cohort: PreparedCohort = own.get_parsed_content("cohort")
    cohorts = [
        replace(cohort, datalist=divide_datalist(cohort.datalist, r.seed, r.folds, r.fold, seed)) for r in planned
    ]
    digests = [run_digests(given, c.datalist["split_sha256"], salt) for c in cohorts]
    check_earlier(folders, digests)
    pending = [index for index, folder in enumerate(folders) if not is_complete(folder)]
    if len(pending) < len(planned):
        print(f"{len(planned) - len(pending)} of {len(planned)} repeats are complete already and are not run again.")
    failed: dict[int, str] = {}
    if pending:
        weights = pretrain_once(own, output, digests[0], seed)
        tasks = []
        for index in pending:
            record = {"seed": planned[index].seed, "fold": planned[index].fold, "settings": digests[index]}
            forget(folders[index])
            write_atomically(folders[index] / RECORD_FILE, json.dumps(record, indent=1))
            child = _configuration(config, planned[index], seed, folders[index], weights, start.command)
            tasks.append(RepeatTask(folders[index], child, cohorts[index]))
        shown = {folder: str(repeat) for folder, repeat in zip(folders, planned, strict=True)}
        failed = {folders.index(folder): why for folder, why in run_and_tell(tasks, at_once, shown).items()}
    return _finish(planned, folders, failed, output)


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
