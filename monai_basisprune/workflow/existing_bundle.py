"""Prunes the network of an existing bundle, with the bundle's own data, training and evaluation."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai.handlers import ValidationHandler
from monai.utils import set_determinism
from torch import nn

from ..channel_importance import ChannelTaylorImportance
from ..curve import CurvePoint, PruningCurve, check_selection
from ..decomposition import decompose, layer_status
from ..errors import BasisPruneError, CohortError, ConfigurationError
from ..evidence import auc_interval, compare_auc
from ..export import export_network
from ..handlers import (
    FailureHandler,
    Predictions,
    ProgressHandler,
    PrunedNetworkSaver,
    PruningCurveHandler,
    PruningHandler,
    TaylorImportanceHandler,
)
from ..importance import TaylorImportance
from ..persistence import load_pruned
from ..plan import PruningPlan
from ..recomposition import recompose
from ..training import freeze_weights_
from .bundle import BundleEvidence, PrunedBundle, pruned_configs, write_pruned_bundle
from .bundle_cases import check_separate, remember_cases, shared_cases
from .bundle_configs import find_config, next_metadata
from .bundle_files import check_output, copy_bundle, read_metadata
from .bundle_training import (
    BundleEvaluation,
    bundle_network,
    importable,
    load_engines,
    read_training,
    shown_problems,
)
from .transfer import make_budgets

__all__ = ["DEFAULT_TARGETS", "prune_bundle"]

DEFAULT_TARGETS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""The shares that are removed in the rounds, unless others are asked for."""

_VALIDATION = "validation cases of the bundle, on which the network was also chosen, so the AUC may be flattering"
_TEST = "test cases of the bundle (configs/evaluate), on which this pruning chose nothing"
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
) -> PrunedBundle:
    """Prune the network of a classification bundle in rounds, and write a new bundle with the one that is chosen.

    The bundle's own ``train`` configuration gives data, loss, optimizer and engines; only scaling factors, norms and
    head are trained. It all runs in a copy of the bundle, which itself stays as it is. Every network is compared with
    the bundle's own, as its weights file holds it: to choose one, on the validation cases; for the figures of the
    chosen one, on those of the ``evaluate`` configuration where these are others, else on the validation cases too.

    Args:
        bundle: folder of the bundle, in the layout of the model zoo; its configurations are code and are run.
        output: folder of the new bundle; it must not exist, or be empty.
        overrides: values of the training configuration by id, such as ``{"dataset_dir": ...}``.
        targets: the share to remove in each round, rising.
        budget: ``"parameters"``, ``"macs"`` or ``"bases"``.
        transfer_epochs: epochs before the first cut.
        epochs_per_round: epochs after each cut.
        margin: the largest loss of AUC on the validation cases, against the bundle's own network, that is accepted.
        selection: ``"point"`` or ``"interval"``; see :meth:`~monai_basisprune.curve.PruningCurve.smallest`.
        patient_key: key of the patient's id in a batch; without it every image counts as a patient of its own.
        seed: the seed.
        channels: whether channels compete with the bases, jointly under each target (double pruning); ``budget`` is
            then ``"parameters"`` or ``"macs"``.

    Returns:
        what was written.

    Raises:
        ConfigurationError: if the bundle, its data or an option cannot be used.
        PlanMismatchError: if the weights do not fit the network.
        CohortError: if training and validation cases overlap.
        BasisPruneError: if no pruned network is good enough; nothing is written then.
    """
    check_selection(margin, selection)
    make_budgets(budget, targets, (1,))
    source = _check_source(Path(bundle))
    check_output(output, source)
    with tempfile.TemporaryDirectory(prefix="monai-basisprune-") as folder, importable(Path(folder) / "bundle"):
        root = Path(folder) / "bundle"
        copy_bundle(source, root, [p.name for p in source.iterdir() if p.name[0] == "." or p.name in _NOT_RUN])
        set_determinism(seed)
        try:
            run = _Run(root, dict(overrides or {}), patient_key, seed)
            curve, pruning, saver = run.prune(
                Path(folder) / "networks", targets, budget, transfer_epochs, epochs_per_round, margin, channels
            )
            chosen, reason = curve.smallest(margin, selection)
            if chosen.difference is None:
                raise BasisPruneError(
                    f"{reason} No bundle was written. Ask for less (--targets), allow a larger --margin, or train "
                    f"longer (--epochs_per_round)."
                )
            network = load_pruned(run.original, saver.path(chosen.structure))
            evidence = run.evidence(network, chosen, reason, margin)
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
        return write_pruned_bundle(source, output, network, evidence, run.input_shape, record)


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


class _Run:
    """One bundle, ready to be pruned: its network, engines, and the predictions of the unpruned network."""

    def __init__(self, root: Path, overrides: dict[str, Any], patient_key: str | None, seed: int) -> None:
        self.root = root
        self.overrides = overrides
        self.patient_key = patient_key
        self.seed = seed
        self.original = bundle_network(read_training(root, overrides), root / "models" / "model.pt").eval()
        self.network = decompose(self.original)
        pruned_configs(root, PruningPlan.from_network(self.network))  # so that no training is done in vain
        self.trainable = freeze_weights_(self.network)
        self.notes: list[str] = []
        self.measured_on = _VALIDATION

    def prune(
        self,
        folder: Path,
        targets: Sequence[float],
        budget: str,
        transfer_epochs: int,
        epochs_per_round: int,
        margin: float,
        channels: bool,
    ) -> tuple[PruningCurve, PruningHandler, PrunedNetworkSaver]:
        """Train and prune; returns the curve and the handlers that made it."""
        epochs = transfer_epochs + len(targets) * epochs_per_round
        trainer: Any
        evaluator: Any
        trainer, evaluator = load_engines(read_training(self.root, self.overrides), self.network, epochs, self.seed)
        self.network.to(evaluator.state.device)
        self._check_engines(trainer, evaluator)
        self.evaluation = BundleEvaluation(evaluator, self.patient_key)
        self.before = own = self.evaluation.run(self.original)
        _figures(self.before, self.before, margin)  # so that no training is done for data that give no AUC
        with shown_problems("The bundle's validation cases cannot be read"):
            self.input_shape = tuple(next(iter(evaluator.data_loader))["image"].shape[1:])
        export_network(self.network, folder.parent / "rehearsal.ts", self.input_shape)
        self._look_for_test_cases(trainer, evaluator, margin)
        importance = TaylorImportance(self.network)
        of_channels = ChannelTaylorImportance(self.network, self.input_shape) if channels else None
        budgets = make_budgets(budget, targets, self.input_shape)
        pruning = PruningHandler(
            *(self.network, importance, budgets, trainer.optimizer, transfer_epochs, epochs_per_round),
            channel_importance=of_channels,
        )
        curve = PruningCurveHandler(
            self.network, self.input_shape, margin, patient_key=self.patient_key, trainer=trainer, reference=own
        )
        saver = PrunedNetworkSaver(self.network, folder)
        curve.attach(evaluator)
        for handler in (
            FailureHandler(folder, self.network),
            TaylorImportanceHandler(importance, of_channels),
            ValidationHandler(interval=1, validator=evaluator, epoch_level=True),
            ProgressHandler(curve, "Training and pruning"),
            saver,
            pruning,
        ):
            handler.attach(trainer)
        with shown_problems("The bundle's training failed"):
            trainer.run()
        return PruningCurve(list(curve.curve.points)), pruning, saver

    def _check_engines(self, trainer: Any, evaluator: Any) -> None:
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        if any(id(parameter) not in held for parameter in self.trainable):
            raise ConfigurationError(
                "The bundle's optimizer does not hold all trained parameters of its network (scaling factors, norms, "
                "head): let train#optimizer take network.parameters()."
            )
        for loader in (trainer.data_loader, evaluator.data_loader):
            remember_cases(loader, self.patient_key)
        self.notes += check_separate(trainer.data_loader, evaluator.data_loader, self.patient_key)

    def _look_for_test_cases(self, trainer: Any, evaluator: Any, margin: float) -> None:
        """Let the evidence come from test cases, if the bundle has any that are in no other part."""
        if find_config(self.root, "evaluate") is None:
            self.notes.append("The bundle has no test cases of its own (no configs/evaluate).")
            return
        try:
            parser = read_training(self.root, self.overrides, "evaluate")
            _, tester = load_engines(parser, self.original, None, self.seed)
            remember_cases(tester.data_loader, self.patient_key)
            loaders = (trainer.data_loader, evaluator.data_loader)
            shared = [shared_cases(tester.data_loader, loader, self.patient_key) for loader in loaders]
            if shared != [0, 0]:
                raise CohortError("in part or wholly, they are those of training or validation, or are not listed")
            evaluation = BundleEvaluation(tester, self.patient_key)
            before = evaluation.run(self.original)
            _figures(before, before, margin)
        except CohortError as error:
            self.notes.append(f"The cases of the bundle's configs/evaluate were not used as test cases: {error}")
        except BasisPruneError as error:
            what = "The cases of the bundle's configs/evaluate were not used as test cases: they could not be evaluated"
            self.notes.append(f"{what}.")
            # the reason can be a text of other code, so it is shown, but goes into no file
            warnings.warn(f"{what}. {error}", stacklevel=2)
        else:
            self.evaluation, self.before, self.measured_on = evaluation, before, _TEST

    def evidence(self, network: nn.Module, chosen: CurvePoint, reason: str, margin: float) -> BundleEvidence:
        """Compare the recomposed network with the bundle's own."""
        auc, difference = _figures(self.before, self.evaluation.run(recompose(network).eval()), margin)
        notes = [reason, *self.notes]
        if difference["difference"] < -margin:
            notes.append(
                f"On these cases the pruned network loses {-difference['difference']:.3f} AUC against the bundle's "
                f"own, more than the margin of {margin:g}: look at the figures before you use it."
            )
        elif not difference["non_inferior"]:
            notes.append(
                f"The cases are too few to show with confidence that the pruned network is not worse by more than "
                f"{margin:g} AUC."
            )
        return BundleEvidence(
            measured_on=self.measured_on,
            auc=auc,
            difference=difference,
            parameter_reduction=chosen.parameter_reduction,
            mac_reduction=chosen.mac_reduction,
            notes=tuple(notes),
        )


def _figures(before: Predictions, after: Predictions, margin: float) -> tuple[dict[str, Any], dict[str, Any]]:
    if before.labels != after.labels or before.patients != after.patients:
        raise BasisPruneError(
            "The evaluation data of the bundle come in another order each time, so two networks cannot be compared "
            "case by case: do not shuffle them, and let no random transform act on them."
        )
    try:
        auc = auc_interval(after.labels, after.scores, after.patients or None)
        difference = compare_auc(after.labels, before.scores, after.scores, after.patients or None, margin)
    except ValueError as error:
        raise CohortError(f"No AUC can be computed from the bundle's evaluation data: {error}") from error
    return asdict(auc), asdict(difference)
