"""What the repeats of a study found, gathered into one record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import BasisPruneError, ConfigurationError, PlanMismatchError
from ..evidence import auc_interval, chosen_spread, compare_auc, curve_band, layer_overlap
from ..persistence import plan_path
from ..plan import PruningPlan
from ..reading import read_json, read_weights
from ..report import load_study
from ..report.wording import nothing_pruned
from .pretrained import _state_dict as state_dict_of

__all__ = ["forget", "gather", "is_complete", "read_predictions"]

_BASIS = ".basis.weight"
_TOLERANCE = 1e-3
_POOLED = ("labels", "original", "pruned", "patients")


def is_complete(folder: Path) -> bool:
    """Tell whether a repeat came to its end: its study is there and valid, and so is what is pooled over folds."""
    try:
        load_study(folder / "study.json")
        read_predictions(folder)
    except (BasisPruneError, OSError):
        return False
    return True


def forget(folder: Path) -> None:
    """Mark a repeat as not complete before it runs again: what it left to be pooled is of an earlier network."""
    _predictions(folder).unlink(missing_ok=True)


def gather(
    repeats: Sequence[tuple[int, int | None, int | None, Path]], failed: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Say how far complete repeats agree.

    Args:
        repeats: seed, fold, number of folds and folder of each; at least one.
        failed: seed, fold and reason of those that have no result.

    Returns:
        the record that :func:`monai_basisprune.report.write_stability` takes, as JSON types.
    """
    studies = [load_study(folder / "study.json") for *_, folder in repeats]
    remarks: list[str] = []
    entries = [_entry(seed, fold, folds, study) for (seed, fold, folds, _), study in zip(repeats, studies, strict=True)]
    folds = repeats[0][2]
    if len(repeats) < 2:
        remarks.append("One repeat is left, so there is neither a band nor an overlap: run the failed ones again.")
    if folds is None:
        remarks.append(
            "All repeats have the same test patients; the seeds differ in the division of the others into training "
            "and validation, and in all that is random in training. So the spread leaves out what other test patients "
            "would change."
        )
    remarks += _unsupported(studies)
    if any(study["pruning"].get("epochs_per_round") and not nothing_pruned(study) for study in studies):
        remarks.append(
            "The pruned networks were trained for more epochs than the unpruned ones: a part of any gain may come from "
            "the longer training."
        )
    quantity = studies[0]["pruning"]["budget"]
    if quantity != "parameters":
        remarks.append(
            f"The targets of the curves are shares of {quantity}, the chosen reductions those of parameters."
        )
    band = curve_band([_band_points(entry["curve"]) for entry in entries])
    spread = chosen_spread([entry["chosen_reduction"] for entry in entries])
    overlap, remark = _overlap([folder for *_, folder in repeats], studies, spread.median)
    pooled, pooled_remark = _pooled(repeats, studies[0]["pruning"]["auc_margin"])
    return {
        "repeats": entries,
        "failed": [dict(entry) for entry in failed],
        "band": [asdict(point) for point in band.points],
        "band_method": band.method,
        "chosen": asdict(spread),
        "overlap": overlap,
        "pooled": pooled,
        "remarks": [*remarks, *remark, *pooled_remark],
    }


def _entry(seed: int, fold: int | None, folds: int | None, study: Mapping[str, Any]) -> dict[str, Any]:
    difference = study["test"]["difference"]
    # the unpruned network, where it was kept, is not compared with itself
    test = dict.fromkeys(difference) if nothing_pruned(study) else difference
    return {
        "seed": seed,
        "fold": fold,
        "folds": folds,
        "curve": [
            {
                "target": None if point["target"] is None else _target(point),
                "parameter_reduction": point["parameter_reduction"],
                "auc": point["auc"]["auc"],
            }
            for point in study["curve"]
        ],
        "chosen_reduction": study["chosen"]["parameter_reduction"],
        "chosen_parameters": study["chosen"]["parameters"],
        "test_auc": study["test"]["pruned"]["auc"],
        "test_difference": test["difference"],
        "test_low": test["low"],
        "test_high": test["high"],
        "test_confidence": difference["confidence"],
        "margin": difference["margin"],
        "non_inferior": test["non_inferior"],
    }


def _unsupported(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in how many repeats the validation cases do not show that the chosen network is good enough."""
    unsupported = sum(not study["chosen"]["supported_by_interval"] and not nothing_pruned(study) for study in studies)
    if not unsupported:
        return []
    needed = [(study["search"] or {}).get("required_positive_patients") for study in studies]
    known = [patients for patients in needed if patients is not None]
    patients = f"{min(known)} to {max(known)}" if known and min(known) < max(known) else f"{max(known, default=0)}"
    would = f" About {patients} positive patients would be needed for that." if known else ""
    return [
        f"In {unsupported} of {len(studies)} repeats the validation cases do not show that the chosen network is not "
        f"worse by more than the margin of {studies[0]['pruning']['auc_margin']:g} AUC: it was chosen by its AUC alone."
        f"{would}"
    ]


def _target(point: Mapping[str, Any]) -> float:
    # halving steps comes to one target on several ways, which differ by rounding
    return round(float(point["target"]), 9)


def _band_points(curve: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    # a search can come to one target twice: the last network is the one that counts
    return list({p["target"]: (p["target"], p["auc"]) for p in curve if p["target"] is not None}.values())


def _overlap(
    folders: Sequence[Path], studies: Sequence[Mapping[str, Any]], median: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare the kept bases at the target nearest to the median choice, or those of the chosen networks."""
    max_ranks = {layer["name"]: layer["max_rank"] for layer in studies[0]["layers"] if layer["rank"] is not None}
    structures = [{_target(p): p.get("structure") for p in study["curve"] if p["target"]} for study in studies]
    common = set(structures[0]).intersection(*structures[1:])
    if common:
        by_target = [
            {_target(p): p["parameter_reduction"] for p in study["curve"] if p["target"] and _target(p) in common}
            for study in studies
        ]
        reached = {target: statistics.median(points[target] for points in by_target) for target in common}
        target = min(common, key=lambda candidate: (abs(reached[candidate] - median), candidate))
        plans = [plan_path(_network_file(folder, of[target])) for folder, of in zip(folders, structures, strict=True)]
        where = f"at the target of {100 * target:g} %, the common one that is nearest to the median choice"
    else:
        plans = [folder / "model.plan.json" for folder in folders]
        where = "between the networks that the repeats chose, since no target ratio is common to all"
    try:
        kept = [{name: layer.kept_bases for name, layer in PruningPlan.load(path).layers.items()} for path in plans]
        not_comparable = _not_comparable(folders, studies, max_ranks)
    except (BasisPruneError, OSError) as error:
        reason = f"not computable, because the networks of a repeat cannot be read ({type(error).__name__})"
        return [{"layer": name, "jaccard": None, "by_chance": None, "reason": reason} for name in max_ranks], []
    overlap = [asdict(layer) for layer in layer_overlap(kept, max_ranks, not_comparable)]
    remarks = [f"The overlap of the kept bases is taken {where}."] if len(folders) > 1 else []
    if not_comparable:
        remarks.append(
            f"The bases of {len(not_comparable)} of {len(max_ranks)} layers differ between repeats before any pruning, "
            "because the decomposed weights differ: which of them were kept cannot be compared."
        )
    return overlap, remarks


def _not_comparable(
    folders: Sequence[Path], studies: Sequence[Mapping[str, Any]], max_ranks: Mapping[str, int]
) -> dict[str, str]:
    """Return the layers whose bases are not the same ones in all repeats before any pruning, with the reason.

    The bases are not trained, so those of the unpruned network are those of the decomposition.
    """
    reason = "not comparable, because the bases of the unpruned networks differ between the repeats"
    found = {}
    first: dict[str, torch.Tensor] = {}
    for folder, study in zip(folders, studies, strict=True):
        try:
            state = state_dict_of(read_weights(_network_file(folder, study["curve"][0].get("structure"))), folder.name)
        except ValueError as error:
            raise PlanMismatchError(f"The unpruned network of {folder.name} cannot be read: {error}.") from error
        own = {
            layer: state[f"{layer}{_BASIS}".lstrip(".")]
            for layer in max_ranks
            if f"{layer}{_BASIS}".lstrip(".") in state
        }
        first = first or own
        for layer in max_ranks:
            if layer not in own or layer not in first or not _same_bases(first[layer], own[layer]):
                found[layer] = reason
    return found


def _same_bases(first: torch.Tensor, second: torch.Tensor) -> bool:
    # the sign of a basis and that of its scaling vector may change together
    if first.shape != second.shape or first.ndim < 2:
        return False
    a, b = (tensor.float().flatten(1) for tensor in (first, second))
    norms = a.norm(dim=1) * b.norm(dim=1)
    return bool(torch.all((a * b).sum(dim=1).abs() >= (1 - _TOLERANCE) * norms))


def _predictions(folder: Path) -> Path:
    return folder / "work" / "test_predictions.json"


def read_predictions(folder: Path) -> dict[str, list[Any]]:
    """Return the labels, both scores and the patients of the test cases of a repeat, one of each for each case."""
    try:
        content = read_json(_predictions(folder))
    except ValueError as error:
        raise ConfigurationError(f"test_predictions.json of {folder.name} cannot be read: {error}.") from error
    columns = [content.get(name) if isinstance(content, dict) else None for name in _POOLED]
    kinds: tuple[Any, ...] = (int, (int, float), (int, float), str)
    labels, patients = columns[0], columns[-1]
    if (
        not all(_is_column(column, kind) for column, kind in zip(columns, kinds, strict=True))
        or any(len(column or ()) != len(labels or ()) for column in columns[1:-1])
        or len(patients or ()) not in (0, len(labels or ()))
        or any(isinstance(patient, list) for patient in patients or ())
    ):
        raise ConfigurationError(
            f"test_predictions.json of {folder.name} must hold lists of one length under {', '.join(_POOLED)}: whole "
            f"numbers, two times scores (of several classes, lists of them), and texts, which may all be missing. "
            f"Delete it, and the repeat is run again."
        )
    return dict(zip(_POOLED, columns, strict=True))  # type: ignore[arg-type]


def _is_column(column: Any, kind: Any) -> bool:
    """Tell whether it is a list of values of a kind, or of lists of as many of them in each."""
    if not isinstance(column, list):
        return False
    rows = [one if isinstance(one, list) else [one] for one in column]
    shapes = {(isinstance(one, list), len(row)) for one, row in zip(column, rows, strict=True)}
    return len(shapes) <= 1 and all(
        isinstance(value, kind) and type(value) is not bool for row in rows for value in row
    )


def _network_file(folder: Path, structure: str | None) -> Path:
    return folder / "work" / "networks" / f"{structure}.pt"


def _pooled(
    repeats: Sequence[tuple[int, int | None, int | None, Path]], margin: float
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return both AUCs of the test cases of all folds together and their difference, where each patient is there once.

    The difference is that of the procedure: in each fold, the network that was chosen there against its unpruned one.
    """
    folds = repeats[0][2]
    if folds is None:
        return None, []
    missing = sorted(set(range(folds)) - {fold for _, fold, _, _ in repeats if fold is not None})
    if missing:
        return None, [
            f"The AUC over the test cases of all folds is not computable, because these of {folds} folds have no "
            f"result: {', '.join(map(str, missing))}."
        ]
    pooled: dict[str, list[Any]] = {name: [] for name in _POOLED}
    for *_, folder in repeats:
        found = read_predictions(folder)
        if set(found["patients"]) & set(pooled["patients"]):
            return None, ["The AUC over all folds is not computable, because a patient is in two test sections."]
        for name, values in pooled.items():
            values += found[name]
    labels, original, pruned = (pooled[name] for name in _POOLED[:3])
    patients = pooled["patients"] or None  # where it is not known, every case counts as a patient
    return {
        "original": auc_interval(labels, original, patients).to_dict(),
        "pruned": auc_interval(labels, pruned, patients).to_dict(),
        "difference": compare_auc(labels, original, pruned, patients, margin).to_dict(),
    }, [
        f"The AUC over the test cases of all {folds} folds compares scores of different networks with each other, and "
        "its interval leaves out how the networks would change with other training patients."
    ]
