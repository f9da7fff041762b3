"""Several methods of pruning on the same split, each a run in a process of its own, on one page."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from ..data.pseudonyms import load_or_create_salt
from ..errors import BasisPruneError, ConfigurationError
from ..evidence import compare_auc
from ..files import write_atomically
from ..report import compare_studies, load_study
from .bundle_configs import find_config, read_config_file
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
from .repeat_process import RepeatTask
from .repeat_results import forget, is_complete, read_predictions
from .start import RunStart, running_parser

__all__ = ["compare_methods"]

_BASE = "prune"
# what the network that all runs start from is made of
_START = ("pretrained_network", "network_def", "networks", "pretrained", "image_size", "image_channels", "seed")


@dataclass(frozen=True)
class _Method:
    """One contestant: its name, what it is called on the page, and its configuration."""

    name: str
    title: str
    config: dict[str, Any]
    own_start: bool


def compare_methods(
    methods: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    start: RunStart,
    bundle_root: str | os.PathLike[str],
    seed: int = 0,
    parallel: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Run the pruning of the running configuration once for each method, and compare the results on one page.

    A method is a configuration that is laid over the running one and holds only what differs. All have the same
    images in the same sections, the same network to start from, and, unless they set these themselves, the same epochs.
    The cohort is read once. Runs that are complete, and were made with the same settings, are not run again. Where one
    method never cuts its network (``targets`` of its study are empty), each of the others is compared with it on the
    test cases: it was trained as long, which tells a gain by pruning from one by training.

    Args:
        methods: names of configurations of the bundle, or files of your own; ``"prune"`` is the running configuration
            without anything laid over it.
        output_dir: folder of the results; each run has a folder below ``methods``.
        start: what :func:`start_run` returned.
        bundle_root: folder of the bundle.
        seed: the seed.
        parallel: how many runs at once; by default half the cores, and one on a GPU.
        device: where the runs compute.

    Returns:
        the record, as written to ``comparison.json``.

    Raises:
        ConfigurationError: if a method is no configuration, or earlier runs were made with other settings, which are
            named; before anything is run.
        CohortError: if the cohort cannot be used.
        BasisPruneError: at the end, if a run failed; the others are compared.
    """
    at_once = runs_at_once(parallel, device)
    parser = running_parser()
    if parser is None:
        raise ConfigurationError("compare_methods runs a bundle: call it in the configuration of a bundle.")
    base = plain_config(parser.get())
    planned = _read_methods(methods, base, Path(bundle_root))
    output = Path(output_dir)
    folders = [output / "methods" / method.name for method in planned]
    salt = load_or_create_salt(working_folder(output))
    check_earlier(folders, [run_digests(method.config, None, salt) for method in planned], "runs")
    own = ConfigParser(copy.deepcopy(base))
    own.parse(True)
    cohort: PreparedCohort = own.get_parsed_content("cohort")
    split = cohort.datalist["split_sha256"]
    digests = [run_digests(method.config, split, salt) for method in planned]
    check_earlier(folders, digests, "runs")
    pending = [index for index, folder in enumerate(folders) if not is_complete(folder)]
    if len(pending) < len(planned):
        print(f"{len(planned) - len(pending)} of {len(planned)} runs are complete already and are not run again.")
    weights = None
    if not all(planned[index].own_start for index in pending):
        weights = pretrain_once(own, output, run_digests(base, split, salt), seed)
    tasks = []
    for index in pending:
        method, folder = planned[index], folders[index]
        forget(folder)
        write_atomically(folder / RECORD_FILE, json.dumps({"settings": digests[index]}, indent=1))
        child = copy.deepcopy(method.config) | {"title": method.title, "output_dir": str(folder)}
        child["start"]["command"] = f"{start.command} [{method.name}]"
        if weights is not None and not method.own_start:
            child["pretrained_network"]["pretrained"] = str(weights)
        tasks.append(RepeatTask(folder, child, cohort))
    shown = {folder: f"{method.name} ({method.title})" for folder, method in zip(folders, planned, strict=True)}
    failed = run_and_tell(tasks, at_once, shown)
    return _finish(planned, folders, failed, output)


def _read_methods(methods: Sequence[str | os.PathLike[str]], base: Mapping[str, Any], bundle: Path) -> list[_Method]:
    if isinstance(methods, (str, os.PathLike)) or len(methods) < 2:
        raise ConfigurationError(
            f"methods must be a list of at least two configurations, such as ['prune','bases']; got {methods!r}."
        )
    found, problems = [], []
    for method in methods:
        path = Path(method)
        place = (path if path.is_file() else None) if path.suffix else find_config(bundle, str(method))
        if place is None and str(method) != _BASE:
            problems.append(f"{path.name}: there is no such file, and no configuration of the bundle has this name")
            continue
        overlay = {} if str(method) == _BASE or place is None else read_config_file(place)
        own = ConfigParser(copy.deepcopy(dict(base)))
        for key, value in overlay.items():
            merge_kv(own, key, value)
        config = plain_config(own.get())
        title = config.get("method")
        if not isinstance(title, str) or title.startswith("$"):
            problems.append(f"{path.name}: its 'method', which says in words what it does, must be a text")
        roots = {key.lstrip("+").replace("::", "#").split("#")[0] for key in overlay}
        found.append(_Method(path.stem, str(title), config, bool(roots & {*_START})))
    names = [method.name for method in found]
    titles = [method.title for method in found]
    problems += [f"{name}: given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [
        f"{method.name}: has the 'method' of another one, {method.title!r}; say in it what differs"
        for number, method in enumerate(found)
        if method.title in titles[:number] and method.name not in names[:number]
    ]
    if problems:
        raise ConfigurationError("The methods cannot be compared:\n" + "\n".join(f"  - {line}" for line in problems))
    return found


def _finish(
    planned: Sequence[_Method], folders: Sequence[Path], failed: Mapping[Path, str], output: Path
) -> dict[str, Any]:
    lines = "\n".join(f"  - {m.name}: {failed[f]}" for m, f in zip(planned, folders, strict=True) if f in failed)
    complete = [(m, f) for m, f in zip(planned, folders, strict=True) if is_complete(f)]
    if len(complete) < 2:
        raise BasisPruneError(f"Fewer than two methods came to their end, so there is nothing to compare:\n{lines}")
    studies = [load_study(folder / "study.json") for _, folder in complete]
    reference = next((i for i, study in enumerate(studies) if not study["pruning"]["targets"]), None)
    margin = studies[0]["pruning"]["auc_margin"]
    differences = [
        None if reference in (None, i) else _difference(complete[reference][1], folder, margin)
        for i, (_, folder) in enumerate(complete)
    ]
    record = {
        "reference": None if reference is None else complete[reference][0].name,
        "methods": [
            {
                "name": method.name,
                "method": method.title,
                "epochs": study["curve"][study["chosen"]["round"]]["epoch"],
                "chosen": study["chosen"],
                "test": {key: study["test"][key] for key in ("original", "pruned", "difference")},
                "difference_to_reference": difference,
                "curve": [
                    {key: point[key] for key in ("target", "epoch", "parameter_reduction", "mac_reduction", "auc")}
                    for point in study["curve"]
                ],
                "wall_seconds": study["wall_seconds"],
            }
            for (method, _), study, difference in zip(complete, studies, differences, strict=True)
        ],
        "failed": [
            {"name": method.name, "reason": failed[folder]}
            for method, folder in zip(planned, folders, strict=True)
            if folder in failed
        ],
    }
    write_atomically(output / "comparison.json", json.dumps(record, indent=1, allow_nan=False))
    paths = [folder / "study.json" for _, folder in complete]
    compare_studies(paths, output / "comparison.html", reference, differences)
    print(f"\n{len(complete)} methods are compared in comparison.html in output_dir.\n")
    if failed:
        raise BasisPruneError(
            f"{len(failed)} of {len(planned)} runs failed; the others are in comparison.html. Run the same command "
            f"again to run only these:\n{lines}"
        )
    return record


def _difference(reference: Path, folder: Path, margin: float) -> dict[str, Any] | None:
    """Compare the network that a method chose with the one that was never cut, on the same test cases."""
    before, after = read_predictions(reference), read_predictions(folder)
    if (before["labels"], before["patients"]) != (after["labels"], after["patients"]):
        return None  # a method with another split, which the page marks
    return compare_auc(
        before["labels"], before["pruned"], after["pruned"], before["patients"] or None, margin
    ).to_dict()
