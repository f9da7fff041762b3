"""Prunes the network of an existing bundle, with the bundle's own data, training and evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai.utils import set_determinism

from ..decomposition import layer_status
from ..errors import BasisPruneError, ConfigurationError
from ..persistence import load_pruned
from .bundle import PrunedBundle, write_pruned_bundle
from .bundle_configs import find_config, next_metadata
from .bundle_files import check_output, copy_bundle, read_metadata
from .bundle_run import BundleRun, PruningOptions
from .bundle_training import importable
from .start import is_on
from .unfinished import check_not_ended, unfinished_run

__all__ = ["DEFAULT_TARGETS", "prune_bundle"]

DEFAULT_TARGETS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""The shares that are removed in the rounds, unless others are asked for."""

_NOT_RUN = ("eval", "output")


def prune_bundle(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    targets: Sequence[float] = DEFAULT_TARGETS,
    budget: str = "parameters",
    transfer_epochs: int = 5,
    epochs_per_round: int = 2,
    margin: float = 0.01,
    selection: str = "point",
    patient_key: str | None = None,
    seed: int = 0,
    channels: bool = False,
    resume: bool | str = True,
) -> PrunedBundle:
    """Prune the network of a classification bundle in rounds, and write a new bundle with the one that is chosen.

    The bundle's own ``train`` configuration gives data, loss, optimizer and engines; only scaling factors, norms and
    head are trained. It all runs in a copy of the bundle, which itself stays as it is, in a folder beside ``output``
    with ``.unfinished`` behind its name. A run that was stopped at any moment goes on from there, and ends, on a CPU,
    with the same bits as one that was not; that folder goes with the end of the run. Every network is compared with
    the bundle's own, as its weights file holds it: to choose one, on the validation cases; for the figures of the
    chosen one, on those of the ``evaluate`` configuration where these are others, else on the validation cases too.

    Args:
        bundle: folder of the bundle, in the layout of the model zoo; its configurations are code and are run.
        output: folder of the new bundle; it must not exist, or be empty.
        overrides: values of the training configuration by id, such as ``{"dataset_dir": ...}``.
        targets: the share to remove in each round, rising.
        budget: ``"parameters"``, ``"macs"``, ``"parameters and macs"`` or ``"bases"``.
        transfer_epochs: epochs before the first cut.
        epochs_per_round: epochs after each cut.
        margin: the largest loss of AUC on the validation cases, against the bundle's own network, that is accepted.
        selection: ``"point"`` or ``"interval"``; see :meth:`~monai_basisprune.curve.PruningCurve.smallest`.
        patient_key: key of the patient's id in a batch; without it every image counts as a patient of its own.
        seed: the seed.
        channels: whether channels compete with the bases, jointly under each target (double pruning); ``budget`` is
            then ``"parameters"`` or ``"macs"``.
        resume: whether to go on from the last checkpoint, if there is one; False starts anew.

    Returns:
        what was written.

    Raises:
        ConfigurationError: if the bundle, its data or an option cannot be used.
        PlanMismatchError: if the weights do not fit the network, or the checkpoint is of a run with other settings,
            another bundle or other cases; what differs is listed.
        CohortError: if training and validation cases overlap.
        BasisPruneError: if no pruned network is good enough; nothing is written then.
    """
    options = PruningOptions(
        *(targets, budget, transfer_epochs, epochs_per_round, margin, selection, patient_key, seed, channels)
    )
    goes_on = is_on("resume", resume)
    source = _check_source(Path(bundle))
    check_not_ended(output)
    target = check_output(output, source)
    with unfinished_run(target) as work, importable(work.bundle):
        copy_bundle(source, work.bundle, [p.name for p in source.iterdir() if p.name[0] == "." or p.name in _NOT_RUN])
        set_determinism(seed)
        try:
            run = BundleRun(work, overrides or {}, options, goes_on)
            curve, pruning, saver = run.prune()
            chosen, reason = curve.smallest(margin, selection)
            if chosen.difference is None:
                work.remove()
                raise BasisPruneError(
                    f"{reason} No bundle was written. Ask for less (--targets), allow a larger --margin, or train "
                    f"longer (--epochs_per_round)."
                )
            network = load_pruned(run.original, saver.path(chosen.structure))
            evidence = run.evidence(network, chosen, reason)
        finally:
            set_determinism(None)
        record = {
            "settings": {
                **pruning.describe(),
                "transfer_epochs": transfer_epochs,
                "epochs_per_round": epochs_per_round,
                "margin": margin,
                "selection": selection,
                "seed": seed,
            },
            "chosen": asdict(chosen),
            "evidence": asdict(evidence),
            "curve": [asdict(point) for point in curve.rounds()],
            "layers": [asdict(status) for status in layer_status(network)],
        }
        return write_pruned_bundle(source, target, network, evidence, run.input_shape, record)


def _check_source(bundle: Path) -> Path:
    problems = []
    if not bundle.is_dir():
        raise ConfigurationError("BUNDLE is not a folder: name the folder of a MONAI bundle.")
    if find_config(bundle, "train") is None:
        problems.append("configs/train.json (or .yaml), which says how the network is trained")
    if not (bundle / "models" / "model.pt").is_file():
        problems.append("models/model.pt, the weights of the network")
    if not (bundle / "configs" / "metadata.json").is_file():
        problems.append("configs/metadata.json")
    if problems:
        raise ConfigurationError("The bundle cannot be pruned, it lacks:\n" + "\n".join(f"  - {p}" for p in problems))
    next_metadata(read_metadata(bundle), "", {})  # so that no training is done in vain
    return bundle
