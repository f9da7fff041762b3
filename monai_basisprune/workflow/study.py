"""The end of a pruning run: choose a network, test it once, and write all that the run leaves."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import nn

from .._version import __version__
from ..curve import CurvePoint, PruningCurve
from ..decomposition import layer_status
from ..distributed import by_first_process, process_count
from ..evidence import holm
from ..export import export_network
from ..files import write_atomically
from ..handlers import PrunedNetworkSaver, PruningHandler
from ..inference import load_deployed
from ..latency import device_name
from ..persistence import load_pruned, save_pruned
from ..report import format_summary, save_study, write_report
from .audit import audit_networks, check_audit_cases
from .cohort import PreparedCohort
from .start import RunStart
from .study_test import compare_on_test_cases, cost_on_device, files_of_test, save_test_predictions

__all__ = ["finish_study"]


@by_first_process
def finish_study(
    original: nn.Module,
    curve: PruningCurve,
    pruning: PruningHandler,
    saver: PrunedNetworkSaver,
    cohort: PreparedCohort,
    test_data: Dataset,
    input_shape: Sequence[int],
    preprocessing: Mapping[str, Any],
    output_dir: str | os.PathLike[str],
    start: RunStart,
    margin: float = 0.01,
    selection: str = "point",
    seed: int | None = 0,
    device: torch.device | str = "cpu",
    title: str = "Pruning study",
    settings: Mapping[str, Any] | None = None,
    audit_cases: int = 6,
) -> dict[str, Any]:
    """Choose the smallest network that is good enough, read the test cases once, and write the results.

    What the test measures is the network that is shipped: the recomposed one, read back from its TorchScript file.
    All files are first written into a folder of their own and only then moved, so a run that fails leaves an earlier
    result as it was.

    Args:
        original: the network before decomposition; it gives the architecture.
        curve: AUC against pruning ratio on validation cases.
        pruning: the handler that pruned.
        saver: the handler that kept the network of each ratio.
        cohort: the cohort.
        test_data: the test cases, with ``image``, ``label``, ``patient_id`` and ``case_id``.
        input_shape: shape of one input without the batch.
        preprocessing: how images are prepared; the file of the deployed network carries it, see
            :func:`read_deployment`.
        output_dir: folder of the results.
        start: what :func:`start_run` returned.
        margin: margin of AUC.
        selection: ``"point"`` or ``"interval"``; see :meth:`PruningCurve.smallest`. Where ``pruning`` searches, its
            search has chosen, and ``margin`` and ``selection`` are those of the search.
        seed: seed of the run.
        device: where to test.
        title: title of the report.
        settings: further settings to note in the study.
        audit_cases: how many of the test cases whose prediction changed most the report lists, with their images;
            with 0 the report holds no image of a patient.

    Returns:
        the study record, as written to ``study.json``.

    Raises:
        BasisPruneError: if the exported network does not reproduce the pruned one.
    """
    check_audit_cases(audit_cases)
    rounds = curve.rounds()
    search = None if pruning.search is None else pruning.search.search
    if not pruning.targets:
        chosen, reason = curve.unpruned(), "The network was trained and never cut, to be compared with others."
    elif search is None:
        chosen, reason = curve.smallest(margin, selection)
    else:
        chosen, reason = search.choose(curve)
        margin, selection = search.margin, search.rule
    unpruned = load_pruned(original, saver.path(rounds[0].structure))
    network = load_pruned(original, saver.path(chosen.structure))
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    notes = _notes(curve, pruning, chosen, margin)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=output) as folder:
        staging = Path(folder)
        carried = {**preprocessing, "class_names": cohort.datalist["class_names"]}
        notes += export_network(network, staging / "model.ts", input_shape, metadata=carried).remarks
        save_pruned(network, staging / "model.pt")
        test, before, after = compare_on_test_cases(
            unpruned.to(device),
            load_deployed(staging, device),
            test_data,
            device,
            margin,
            cohort.patient_key,
            cohort.datalist["class_names"],
        )
        items = cohort.datalist["test"]
        audit, pictures = audit_networks(
            before, after, unpruned, network, test_data, items, margin, audit_cases, device
        )
        adjusted = _adjusted_p_values(rounds)
        study = {
            "format": "monai_basisprune.study",
            "format_version": 2,
            "title": title,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": start.command,
            "versions": _versions(),
            "device": device_name(device),
            "seed": seed,
            "wall_seconds": round(time.perf_counter() - start.time, 1),
            "peak_memory_bytes": _peak_memory(),
            "data": cohort.summary(),
            "network": {
                "name": type(original).__name__,
                "input_shape": list(input_shape),
                "parameters": rounds[0].parameters,
                "macs": rounds[0].macs,
                **cost_on_device(unpruned, input_shape, device),
            },
            "pruning": {
                **pruning.describe(),
                "transfer_epochs": pruning.transfer_epochs,
                "epochs_per_round": pruning.epochs_per_round,
                "auc_margin": margin,
                "selection": selection,
                "preprocessing": dict(preprocessing),
                "threads": torch.get_num_threads(),
                "processes": process_count(),
                **(settings or {}),
            },
            "curve": [
                {**_curve_entry(i, point, pruning), "adjusted_p_value": adjusted.get(i)}
                for i, point in enumerate(rounds)
            ],
            "chosen": {
                "round": rounds.index(chosen),
                "parameters": chosen.parameters,
                "macs": chosen.macs,
                "parameter_reduction": chosen.parameter_reduction,
                "mac_reduction": chosen.mac_reduction,
                **cost_on_device(network, input_shape, device),
                "reason": reason,
                "supported_by_interval": bool(chosen.difference and chosen.difference["non_inferior"]),
            },
            "test": test,
            "audit": audit,
            "search": None if search is None else search.to_record(),
            "layers": [asdict(status) for status in layer_status(network)],
            "files": {
                "network": "model.pt",
                "plan": "model.plan.json",
                "torchscript": "model.ts",
                "datalist": "datalist.json",
                "study": "study.json",
                "report": "report.html",
                "curve": "curve.csv",
                **files_of_test(test),
                "subgroups": "subgroups.csv",
                "evaluations": "evaluations.json",
                "picture": "curve.svg",
            },
            "warnings": notes,
        }
        write_report(study, staging, pictures)
        write_atomically(staging / "evaluations.json", json.dumps(curve.to_list(), indent=1, allow_nan=False))
        shutil.copyfile(cohort.datalist_file, staging / "datalist.json")
        save_study(study, staging / "study.json")
        save_test_predictions(before, after, output / "work" / "test_predictions.json")
        _publish(staging, output)
    print(f"\n{format_summary(study)}\n")
    return study


def _adjusted_p_values(rounds: Sequence[CurvePoint]) -> dict[int, float]:
    """Correct the non-inferiority tests of all rounds for their number."""
    p_values = {
        str(index): point.difference["p_value"]
        for index, point in enumerate(rounds)
        if point.difference is not None and point.difference["p_value"] is not None
    }
    return {int(test.name): test.adjusted_p_value for test in holm(p_values, alpha=0.025)} if p_values else {}


def _publish(staging: Path, output: Path) -> None:
    """Move all files to their places, or, where one cannot be moved, none."""
    # the record leaves first and comes last: whoever finds one, even after a kill, finds all that it names
    new = sorted(staging.iterdir(), key=lambda path: path.name == "study.json")
    earlier = staging / "earlier"
    earlier.mkdir()
    try:
        for path in reversed(new):
            if (output / path.name).is_file():
                os.replace(output / path.name, earlier / path.name)
        for path in new:
            os.replace(path, output / path.name)
    except BaseException:  # Ctrl-C as well
        for path in new:
            if (earlier / path.name).is_file():
                os.replace(earlier / path.name, output / path.name)
            elif not path.exists():  # it was moved, and there was none before
                (output / path.name).unlink(missing_ok=True)
        raise


def _notes(curve: PruningCurve, pruning: PruningHandler, chosen: CurvePoint, margin: float) -> list[str]:
    notes = [] if pruning.search is None else list(pruning.search.search.warnings)
    missed = len(pruning.targets) + 1 - len(curve.rounds())
    if missed > 0 and pruning.search is None:
        notes.append(f"{missed} of {len(pruning.targets)} rounds changed nothing or were not reached.")
    if chosen.difference is not None:
        before, epochs = (pruning.trained_epochs(point.epoch) for point in (curve.rounds()[0], chosen))
        if pruning.search is not None:  # without the rounds that it went back from
            accepted = sum(step.accepted for step in pruning.search.search.steps)
            epochs = pruning.transfer_epochs + accepted * pruning.epochs_per_round
        notes.append(
            f"The chosen network was trained for {epochs} epochs, the unpruned one for {before}: a part of any gain "
            f"may come from the longer training."
            if epochs > before
            else "The chosen network was not trained after it was cut."
        )
    if chosen.difference is not None and not chosen.difference["non_inferior"]:
        notes.append(
            f"The validation cases are too few to show with confidence that the chosen network is not worse by more "
            f"than {margin:g} AUC: it was chosen by its AUC alone. Collect more patients before you rely on it."
        )
    return notes


def _curve_entry(index: int, point: CurvePoint, pruning: PruningHandler) -> dict[str, Any]:
    target = 0.0 if index == 0 else None
    if pruning.search is not None:
        targets = {step.epoch: step.target for step in pruning.search.search.steps}
        target = targets.get(point.epoch, target)
    elif index > 0:
        fitting = [
            budget.share
            for budget, structure in zip(pruning.targets, pruning.structures, strict=False)
            if structure == point.structure
        ]
        target = fitting[-1] if fitting else None
    return {"round": index, "target": target, **asdict(point)}


def _versions() -> dict[str, str]:
    names = ("monai", "torch", "numpy", "pytorch-ignite", "pydicom", "scikit-learn")
    return {"monai_basisprune": __version__, "python": platform.python_version(), **{n: version(n) for n in names}}


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
