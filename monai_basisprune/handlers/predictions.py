"""Collects what a network predicts for each case of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from ..distributed import gathered, process_count
from ..loading import EveryNth

__all__ = ["Predictions", "PredictionsHandler", "class_scores", "positive_scores"]


@dataclass
class Predictions:
    """What was predicted, one entry for each case, in the order of the loader.

    Attributes:
        outputs: what the network gave for each class: logits, or probabilities after postprocessing.
        labels: the true classes, or 0 and 1 for each of several findings; empty where the batches have no labels.
        patients: ids of patients; empty where the batches have none.
        case_ids: ids of cases; empty where the batches have none.
        problems: why a case could not be used, an empty text where it could; empty where the batches do not tell.
    """

    outputs: list[list[float]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    case_ids: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def several(self) -> bool:
        """Whether there are more than two classes, or findings of which each is there or not."""
        if self.labels and isinstance(self.labels[0], list):
            return True
        return bool(self.outputs) and len(self.outputs[0]) > 2

    @property
    def scores(self) -> list[Any]:
        """One score for the positive class of each case, or one for each of several classes or findings.

        See :func:`positive_scores` and :func:`class_scores`; those of findings are the outputs themselves.
        """
        if not self.outputs:
            return []
        outputs = torch.tensor(self.outputs, dtype=torch.float64)
        if self.labels and isinstance(self.labels[0], list):
            return outputs.tolist()
        return (class_scores(outputs) if self.several else positive_scores(outputs)).tolist()


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
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._gather)

    def __call__(self, engine: Engine) -> None:
        """Add one batch, decollated or not."""
        output, batch = engine.state.output, engine.state.batch
        for item in output if isinstance(output, list) else [output]:
            prediction = torch.as_tensor(item[CommonKeys.PRED]).detach().cpu().double()
            self.predictions.outputs += prediction.reshape(-1, prediction.shape[-1] if prediction.ndim else 1).tolist()
            if item.get(CommonKeys.LABEL) is not None:
                self.predictions.labels += _classes(item[CommonKeys.LABEL], prediction)
        for item in batch if isinstance(batch, list) else [batch]:
            self.predictions.patients += _ids(item, self.patient_key)
            self.predictions.case_ids += _ids(item, self.case_key)
            self.predictions.problems += _ids(item, "problem" if "problem" in item else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the predictions as plain data, for a checkpoint."""
        return asdict(self.predictions)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: after the last epoch of a run, no other evaluation comes."""
        self.predictions = Predictions(**state)

    def _reset(self) -> None:
        self.predictions = Predictions()

    def _gather(self, engine: Engine) -> None:
        """Put the cases of all processes together, in the order in which one alone has them."""
        if process_count() > 1 and isinstance(getattr(engine.state.dataloader, "sampler", None), EveryNth):
            parts = gathered(asdict(self.predictions))
            self.predictions = Predictions(**{name: _interleaved([part[name] for part in parts]) for name in parts[0]})


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


def class_scores(outputs: torch.Tensor) -> torch.Tensor:
    """Return one score of each class against the rest for each case.

    It is the logit of the class's probability, which ranks the cases as the probability does but does not saturate.

    Args:
        outputs: logits or probabilities of classes that exclude each other, shape ``(cases, classes)``.
    """
    if bool((outputs >= 0).all()) and bool(((outputs.sum(dim=1) - 1).abs() < 1e-5).all()):
        return outputs
    others = outputs.unsqueeze(1).expand(-1, outputs.shape[1], -1).clone()
    others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return outputs - others.logsumexp(dim=2)


def _interleaved(parts: Sequence[list[Any]]) -> list[Any]:
    missing = object()
    return [one for one in chain.from_iterable(zip_longest(*parts, fillvalue=missing)) if one is not missing]


def _classes(label: Any, prediction: torch.Tensor) -> list[Any]:
    labels = torch.as_tensor(label).detach().cpu()
    if not torch.equal(labels, labels.round()):  # NaN is not equal to itself
        raise ValueError(f"A label must be the number of a class, got {labels.reshape(-1).tolist()}.")
    if labels.shape == prediction.shape and labels.ndim and labels.shape[-1] > 1:  # 0 or 1 for each finding
        rows: list[Any] = labels.long().reshape(-1, labels.shape[-1]).tolist()
        return rows
    return [int(one) for one in labels.reshape(-1).tolist()]


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
