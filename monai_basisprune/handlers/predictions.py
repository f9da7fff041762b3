"""Collects what a network predicts for each case of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

__all__ = ["Predictions", "PredictionsHandler", "positive_scores"]


@dataclass
class Predictions:
    """What was predicted, one entry for each case, in the order of the loader.

    Attributes:
        outputs: what the network gave for each class: logits, or probabilities after postprocessing.
        labels: the true classes; empty where the batches have no labels.
        patients: ids of patients; empty where the batches have none.
        case_ids: ids of cases; empty where the batches have none.
    """

    outputs: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    case_ids: list[str] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """One score for the positive class of each case; see :func:`positive_scores`."""
        return positive_scores(torch.tensor(self.outputs, dtype=torch.float64)).tolist() if self.outputs else []


class PredictionsHandler:
    """Collects predictions, labels, and ids of patients and cases, over each evaluation.

    Args:
        patient_key: the key of the patient's id in a batch; None if there is none.
        case_key: the key of the case's id in a batch; None if there is none.

    Attributes:
        predictions: those of the evaluation that runs, or of the last one.
    """

    def __init__(self, patient_key: str | None = "patient_id", case_key: str | None = "case_id") -> None:
        self.patient_key = patient_key
        self.case_key = case_key
        self.predictions = Predictions()

    def attach(self, engine: Engine) -> None:
        """Register on a ``SupervisedEvaluator``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add one batch, decollated or not."""
        output, batch = engine.state.output, engine.state.batch
        for item in output if isinstance(output, list) else [output]:
            prediction = torch.as_tensor(item[CommonKeys.PRED]).detach().cpu().double()
            self.predictions.outputs += prediction.reshape(-1, prediction.shape[-1] if prediction.ndim else 1).tolist()
            if item.get(CommonKeys.LABEL) is not None:
                self.predictions.labels += _classes(item[CommonKeys.LABEL])
        for item in batch if isinstance(batch, list) else [batch]:
            self.predictions.patients += _ids(item, self.patient_key)
            self.predictions.case_ids += _ids(item, self.case_key)

    def _reset(self) -> None:
        self.predictions = Predictions()


def positive_scores(outputs: torch.Tensor) -> torch.Tensor:
    """Return one score of the positive class for each case.

    With two classes it is the difference of their outputs, which ranks the cases as the probability does but does not
    saturate; with one it is that output.

    Args:
        outputs: logits or probabilities of shape ``(cases, 2)`` or ``(cases, 1)``.

    Raises:
        ValueError: if there are more classes than two.
    """
    if outputs.ndim != 2 or outputs.shape[1] not in (1, 2):
        raise ValueError(
            f"The AUC of a binary task needs one or two outputs for each case, got shape {tuple(outputs.shape)}."
        )
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]


def _classes(label: Any) -> list[int]:
    labels = torch.as_tensor(label).reshape(-1)
    if not torch.equal(labels, labels.round()):  # NaN is not equal to itself
        raise ValueError(f"A label must be the number of a class, got {labels.tolist()}.")
    return [int(one) for one in labels.tolist()]


def _ids(item: Mapping[str, Any], key: str | None) -> list[str]:
    if key is None:
        return []
    if key not in item:
        raise ValueError(
            f"A batch has no key {key!r}, only {sorted(map(str, item))}: add the id to the datalist, or say that there "
            f"is none with patient_key=None or case_key=None."
        )
    ids = item[key]
    if isinstance(ids, torch.Tensor):
        ids = ids.reshape(-1).tolist()
    return [str(one) for one in ids] if isinstance(ids, (list, tuple)) else [str(ids)]
