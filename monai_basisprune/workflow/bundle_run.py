"""The run that prunes a bundle's network: its training in rounds, and the evidence about the network that is chosen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monai.handlers import ValidationHandler
from torch import nn

from ..channel_importance import ChannelTaylorImportance
from ..curve import CurvePoint, PruningCurve, check_selection
from ..decomposition import decompose
from ..errors import BasisPruneError, CohortError, ConfigurationError
from ..evidence import auc_interval, compare_auc
from ..export import export_network
from ..handlers import (
    EpochSeedHandler,
    FailureHandler,
    Predictions,
    ProgressHandler,
    PrunedNetworkSaver,
    PruningCurveHandler,
    PruningHandler,
    RunCheckpointHandler,
    TaylorImportanceHandler,
)
from ..importance import TaylorImportance
from ..kernel_caches import bound_kernel_cache
from ..plan import PruningPlan
from ..recomposition import recompose
from ..training import freeze_weights_
from .bundle import BundleEvidence, pruned_configs
from .bundle_cases import check_separate, remember_cases, shared_cases
from .bundle_configs import find_config
from .bundle_state import bundle_settings, file_digests, stateful_parts, unsteady_data
from .bundle_training import BundleEvaluation, bundle_network, load_engines, read_training, shown_problems
from .transfer import make_budgets
from .unfinished import UnfinishedRun

__all__ = ["BundleRun", "PruningOptions"]

_VALIDATION = "validation cases of the bundle, on which the network was also chosen, so the AUC may be flattering"
_TEST = "test cases of the bundle (configs/evaluate), on which this pruning chose nothing"


@dataclass(frozen=True)
class PruningOptions:
    """How a bundle's network is pruned; see :func:`~monai_basisprune.workflow.prune_bundle`."""

    targets: Sequence[float]
    budget: str
    transfer_epochs: int
    epochs_per_round: int
    margin: float
    selection: str
    patient_key: str | None
    seed: int
    channels: bool

    def __post_init__(self) -> None:
        check_selection(self.margin, self.selection)
        budgets = make_budgets(self.budget, self.targets, (1,))
        if self.channels and not all(budget.shares.keys() <= {"parameters", "macs"} for budget in budgets):
            raise ConfigurationError(
                f"With channels, budget must be parameters, macs or parameters and macs, got {self.budget!r}."
            )


class BundleRun:
    """One bundle, ready to be pruned: its network, engines, and the predictions of the unpruned network.

    Args:
        work: the folder of the run, in which a copy of the bundle lies, as yet untouched.
        overrides: values of the training configuration by id.
        options: how to prune.
        resume: False to start anew, whatever checkpoints there are.
    """

    def __init__(
        self, work: UnfinishedRun, overrides: Mapping[str, Any], options: PruningOptions, resume: bool = True
    ) -> None:
        self.work = work
        self.root = root = work.bundle
        self.overrides = dict(overrides)
        self.options = options
        self.patient_key = options.patient_key
        self.resume = resume
        self.logger = logging.getLogger(__name__)
        self.files = file_digests(root)  # before the bundle's own code writes into it
        self.original = bundle_network(read_training(root, overrides), root / "models" / "model.pt").eval()
        bound_kernel_cache(self.original)
        self.network = decompose(self.original)
        pruned_configs(root, PruningPlan.from_network(self.network))  # so that no training is done in vain
        self.trainable = freeze_weights_(self.network)
        self.notes: list[str] = []
        self.measured_on = _VALIDATION

    def prune(self) -> tuple[PruningCurve, PruningHandler, PrunedNetworkSaver]:
        """Train and prune, from the last checkpoint on if there is one; returns the curve and what made it.

        Raises:
            PlanMismatchError: if the checkpoint is of another run; what differs is listed.
        """
        options, margin = self.options, self.options.margin
        epochs = options.transfer_epochs + len(options.targets) * options.epochs_per_round
        parser = read_training(self.root, self.overrides)
        trainer: Any
        evaluator: Any
        trainer, evaluator = load_engines(parser, self.network, epochs, options.seed)
        self.network.to(evaluator.state.device)
        self._check_engines(trainer, evaluator)
        self.evaluation = BundleEvaluation(evaluator, self.patient_key)
        self.before = own = self.evaluation.run(self.original)
        _figures(self.before, self.before, margin)  # so that no training is done for data that give no AUC
        with shown_problems("The bundle's validation cases cannot be read"):
            self.input_shape = tuple(next(iter(evaluator.data_loader))["image"].shape[1:])
        self._rehearse_export()
        self._look_for_test_cases(trainer, evaluator, margin)
        importance = TaylorImportance(self.network)
        of_channels = ChannelTaylorImportance(self.network, self.input_shape) if options.channels else None
        pruning = PruningHandler(
            self.network,
            importance,
            make_budgets(options.budget, options.targets, self.input_shape),
            trainer.optimizer,
            options.transfer_epochs,
            options.epochs_per_round,
            channel_importance=of_channels,
        )
        curve = PruningCurveHandler(
            self.network, self.input_shape, margin, patient_key=self.patient_key, trainer=trainer, reference=own
        )
        saver = PrunedNetworkSaver(self.network, self.work.networks)
        taylor = TaylorImportanceHandler(importance, of_channels)
        own_parts, unkept = stateful_parts(parser, (self.network, trainer.optimizer))
        self._tell_unsteady(unsteady_data(trainer, options.seed), unkept)
        parts = {"pruning": pruning, "network": self.network, "optimizer": trainer.optimizer}
        parts |= {**own_parts, "curve": curve, "taylor": taylor}
        loaders = {"training": trainer.data_loader, "validation": evaluator.data_loader}
        settings = bundle_settings(self.files, self.overrides, asdict(options), loaders)
        curve.attach(evaluator)
        for handler in (
            FailureHandler(self.work.networks, self.network),
            EpochSeedHandler(options.seed),
            taylor,
            ValidationHandler(interval=1, validator=evaluator, epoch_level=True),
            ProgressHandler(curve, "Training and pruning"),
            saver,
            pruning,
            RunCheckpointHandler(self.work.checkpoints, parts, settings, self.resume),
        ):
            handler.attach(trainer)
        with shown_problems("The bundle's training failed", running=True):
            trainer.run()
        return PruningCurve(list(curve.curve.points)), pruning, saver

    def _rehearse_export(self) -> None:
        """Find out before the training whether the network can be exported."""
        self.work.networks.mkdir(exist_ok=True)
        file = self.work.networks / "rehearsal.ts"
        try:
            export_network(self.network, file, self.input_shape)
        finally:
            file.unlink(missing_ok=True)

    def _tell_unsteady(self, reasons: Sequence[str], unkept: Sequence[str]) -> None:
        """Say where a run that was stopped may end with another network than one that was not."""
        reasons = [*reasons, *(f"no checkpoint can keep the state of {name}" for name in unkept)]
        if reasons:
            text = (
                f"The training of the bundle does not follow from the seed alone: {'; '.join(reasons)}. A run that was "
                f"stopped goes on all the same, but may end with another network than one that was not."
            )
            self.notes.append(text)
            self.logger.warning(text)

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
            _, tester = load_engines(parser, self.original, None, self.options.seed)
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

    def evidence(self, network: nn.Module, chosen: CurvePoint, reason: str) -> BundleEvidence:
        """Compare the recomposed network with the bundle's own."""
        margin = self.options.margin
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
