"""Records AUC against pruning ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from ..budgets import Budget, network_cost
from ..channel_slices import cut_modules
from ..curve import CurvePoint, PruningCurve
from ..decomposition import decomposed_layers
from ..evidence import auc_interval, compare_auc
from ..structure import structure_of
from .predictions import Predictions, PredictionsHandler

__all__ = ["PruningCurveHandler"]


class PruningCurveHandler:
    """Adds a point to a :class:`~monai_basisprune.curve.PruningCurve` at each evaluation.

    Each point holds the size of the network, its AUC with an interval that respects patients, and the paired
    difference to the last evaluation of the unpruned network, or to predictions that are given.

    Args:
        network: the decomposed network that the evaluator evaluates.
        input_shape: shape of one input without the batch, to count operations.
        margin: the margin of AUC of the non-inferiority test.
        confidence: the confidence of the intervals.
        patient_key: the key of the patient's id in a batch; None if every image is of another patient.
        trainer: the trainer that runs the evaluator, to note its epoch.
        reference: what another network gives for the same cases, such as the one that the run started from.

    Attributes:
        curve: the points.
        unpruned: ``scores``, ``labels`` and ``patients`` of the last evaluation of the unpruned network, or of
            ``reference``.
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        margin: float = 0.01,
        confidence: float = 0.95,
        patient_key: str | None = "patient_id",
        trainer: Engine | None = None,
        reference: Predictions | None = None,
    ) -> None:
        self.network = network
        self.input_shape = tuple(input_shape)
        self.margin = margin
        self.confidence = confidence
        self.trainer = trainer
        self.curve = PruningCurve()
        self._collector = PredictionsHandler(patient_key, case_key=None)
        self.unpruned: dict[str, list[Any]] = {} if reference is None else _compared(reference)
        self._fixed = reference is not None

    def attach(self, engine: Engine) -> None:
        """Register on a ``SupervisedEvaluator`` whose ``pred`` holds logits or probabilities of classes or findings.

        The AUC of more than two classes, and of several findings, is the mean of the AUCs of each; see
        :func:`~monai_basisprune.evidence.auc_interval`.
        """
        self._collector.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add a point for the evaluation that has just ended."""
        collected = self._collector.predictions
        scores, patients = collected.scores, collected.patients or None
        auc = auc_interval(collected.labels, scores, patients, self.confidence)
        parameters = network_cost(self.network, Budget(parameters=0.0))
        macs = network_cost(self.network, Budget(macs=0.0, input_shape=self.input_shape))
        layers = [layer for _, layer in decomposed_layers(self.network)]
        difference = None
        if all(layer.rank() == layer.max_rank for layer in layers) and not any(cut_modules(self.network)):
            if not self._fixed:
                self.unpruned = _compared(collected)
        elif self.unpruned:
            if [collected.labels, collected.patients] != [self.unpruned["labels"], self.unpruned["patients"]]:
                raise ValueError(
                    "The cases of this evaluation are others, or in another order, than those of the unpruned network, "
                    "so the two cannot be compared case by case: use one validation set and do not shuffle it."
                )
            difference = asdict(
                compare_auc(
                    collected.labels,
                    self.unpruned["scores"],
                    scores,
                    patients,
                    self.margin,
                    confidence=self.confidence,
                )
            )
        point = CurvePoint(
            epoch=int((self.trainer or engine).state.epoch),
            bases=sum(layer.rank() for layer in layers),
            parameters=int(parameters.total),
            macs=int(macs.total),
            parameter_reduction=parameters.reduction(parameters.total),
            mac_reduction=macs.reduction(macs.total),
            auc=asdict(auc),
            difference=difference,
            structure=structure_of(self.network),
        )
        self.curve.points.append(point)
        engine.state.metrics.update(auc=auc.auc, parameter_reduction=point.parameter_reduction)
        for name, end in (("auc_low", auc.low), ("auc_high", auc.high)):
            if end is None:  # MONAI's trackers take numbers only, and would repeat that of an earlier evaluation
                engine.state.metrics.pop(name, None)
            else:
                engine.state.metrics[name] = end

    def state_dict(self) -> dict[str, Any]:
        """Return the points and the unpruned network's scores as plain data, for a checkpoint; not those given."""
        return {"points": self.curve.to_list(), "reference": {} if self._fixed else dict(self.unpruned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curve = PruningCurve.from_list(state["points"])
        if not self._fixed:
            self.unpruned = dict(state["reference"])


def _compared(predictions: Predictions) -> dict[str, list[Any]]:
    return {"scores": predictions.scores, "labels": predictions.labels, "patients": predictions.patients}
