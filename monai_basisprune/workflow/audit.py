"""What a mean hides: groups of patients, the cases that changed most, calibration, and one operating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset
from torch import nn

from ..errors import BasisPruneError, ConfigurationError
from ..evidence import brier_score, calibration_error, reliability_points, sensitivity_at_specificity
from ..evidence.subgroups import AGE_BANDS, age_band, compare_subgroups
from ..handlers import Predictions
from ..report import CasePictures
from .activation_maps import ActivationMaps

__all__ = ["SPECIFICITY", "audit_networks", "check_audit_cases", "describe_probabilities"]

SPECIFICITY = 0.9
"""The specificity at which the sensitivity is reported."""

_MINIMUM_PATIENTS = 5
_ROUNDING = 1e-4  # a recomposed network differs that little from the same one decomposed
# What Grad-CAM raises on a network that it does not understand; an audit without pictures is still an audit.
_FAILURES = (BasisPruneError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
_NO_GROUPS = (
    "Groups of patients are compared for two classes only; of several classes, the table of the classes shows whether "
    "one of them lost."
)
_SEXES = {"F": "female", "M": "male", "O": "other"}


def check_audit_cases(audit_cases: int) -> None:
    """Check, before any training, how many cases are to be shown with their images.

    Raises:
        ConfigurationError: if it is not a whole number from 0 on.
    """
    if isinstance(audit_cases, bool) or not isinstance(audit_cases, int) or audit_cases < 0:
        raise ConfigurationError(
            f"audit_cases must be the number of test cases to show with their images, 0 for none, got {audit_cases!r}."
        )


def audit_networks(
    before: Predictions,
    after: Predictions,
    unpruned: nn.Module,
    pruned: nn.Module,
    data: Dataset,
    items: Sequence[Mapping[str, Any]],
    margin: float = 0.01,
    audit_cases: int = 6,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], dict[str, CasePictures]]:
    """Look for harm that the AUC of all test cases hides.

    Args:
        before: predictions of the unpruned network for the test cases.
        after: those of the pruned network for the same cases in the same order.
        unpruned: the unpruned network, decomposed, for class activation maps.
        pruned: the pruned network, decomposed.
        data: the test cases, in the order of the predictions, with ``image`` and ``case_id``.
        items: the test section of the datalist, with ``case_id`` and, where known, ``sex``, ``age``,
            ``manufacturer``, ``view_position``.
        margin: margin of AUC.
        audit_cases: how many of the cases that changed most are listed and drawn; 0 for none.
        device: where to compute the maps.

    Returns:
        the part ``audit`` of the study record, and pictures by case id. The pictures are no part of the record: they
        are images of patients.

    Raises:
        ConfigurationError: if ``audit_cases`` cannot be used.
    """
    check_audit_cases(audit_cases)
    attributes = _attributes(before.case_ids, items)
    changed, pictures = _changed_cases(before, after, unpruned, pruned, data, audit_cases, device)
    if before.several:
        remarks = [_NO_GROUPS, *_of_cases(audit_cases, changed)]
        return {"subgroups": [], "changed_cases": changed, "remarks": remarks}, pictures
    groups = compare_subgroups(
        before.labels,
        before.scores,
        after.scores,
        attributes,
        before.patients or None,
        margin,
        minimum_patients=_MINIMUM_PATIENTS,
    )
    tested = sum(group.adjusted_p_value is not None for group in groups)
    remarks = [
        "A small group cannot show safety: a wide interval is compatible with a loss, and a p-value that is not small "
        "is no proof that nothing changed.",
        f"P-values are two-sided, against no change of the AUC, with Holm's correction over the {tested} groups that "
        "could be tested."
        if tested
        else "No group could be tested, so it is not known whether pruning harms one.",
        f"Groups of fewer than {_MINIMUM_PATIENTS} patients are merged into 'other', or into the largest group ('and "
        "others'), or not shown, so that nobody can be recognized.",
        f"Age bands in years: {', '.join(name for _, name in AGE_BANDS)}.",
    ]
    remarks += _of_cases(audit_cases, changed)
    record = {"subgroups": [group.to_dict() for group in groups], "changed_cases": changed, "remarks": remarks}
    return record, pictures


def _of_cases(audit_cases: int, changed: Sequence[Mapping[str, Any]]) -> list[str]:
    if audit_cases == 0:
        return ["audit_cases is 0, so no case is listed and no image of a patient is shown."]
    return [] if changed else ["The prediction of no test case changed."]


def describe_probabilities(before: Predictions, after: Predictions) -> dict[str, Any]:
    """Return the parts ``calibration`` and ``operating_point`` of the test results in the study record.

    Args:
        before: predictions of the unpruned network for the test cases.
        after: those of the pruned network.
    """
    calibration: dict[str, Any] = {}
    operating_point: dict[str, Any] = {"specificity": SPECIFICITY}
    for name, predictions in (("original", before), ("pruned", after)):
        labels, patients = predictions.labels, predictions.patients or None
        chances = _probabilities(predictions)
        calibration[name] = {
            "brier": brier_score(labels, chances, patients).to_dict(),
            "calibration_error": calibration_error(labels, chances, patients).to_dict(),
            "points": reliability_points(labels, chances).to_dict(),
        }
        operating_point[name] = sensitivity_at_specificity(labels, chances, SPECIFICITY, patients).to_dict()
    return {"calibration": calibration, "operating_point": operating_point}


def _probabilities(predictions: Predictions) -> list[float]:
    # the softmax of two outputs is the sigmoid of their difference, which is the score
    return torch.sigmoid(torch.tensor(predictions.scores, dtype=torch.float64)).tolist()


def _shown_chances(before: Predictions, after: Predictions) -> list[tuple[int, float, float]]:
    """Return for each case the class whose probability is shown, and both probabilities.

    Of two classes it is the last one, of several that of the case, of findings the one that changed most.
    """
    first, second = (torch.tensor(_probabilities(one), dtype=torch.float64) for one in (before, after))
    if not before.several:
        pairs = zip(before.labels, first.tolist(), second.tolist(), strict=True)
        return [(int(label), old, new) for label, old, new in pairs]
    labels = torch.tensor(before.labels)
    place = (second - first).abs().argmax(dim=1) if labels.ndim == 2 else labels
    rows = torch.arange(len(place))
    return list(zip(place.tolist(), first[rows, place].tolist(), second[rows, place].tolist(), strict=True))


def _attributes(case_ids: Sequence[str], items: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    by_case = {item["case_id"]: item for item in items}
    missing = [case for case in case_ids if case not in by_case]
    if missing:
        raise BasisPruneError(
            f"{len(missing)} of {len(case_ids)} test cases are not in the datalist, such as case {missing[0]}: the "
            "audit needs the datalist that the test cases came from."
        )
    cases = [by_case[case] for case in case_ids]
    return {
        "sex": [_SEXES.get(str(item.get("sex"))) for item in cases],
        "age band": [None if item.get("age") is None else age_band(item["age"]) for item in cases],
        "scanner manufacturer": [item.get("manufacturer") for item in cases],
        "view position": [item.get("view_position") for item in cases],
    }


def _changed_cases(
    before: Predictions,
    after: Predictions,
    unpruned: nn.Module,
    pruned: nn.Module,
    data: Dataset,
    audit_cases: int,
    device: torch.device | str,
) -> tuple[list[dict[str, Any]], dict[str, CasePictures]]:
    chances = _shown_chances(before, after)
    order = sorted(range(len(chances)), key=lambda i: (-abs(chances[i][2] - chances[i][1]), before.case_ids[i]))
    picked = [index for index in order[:audit_cases] if abs(chances[index][2] - chances[index][1]) > _ROUNDING]
    records, pictures = [], {}
    maps: ActivationMaps | None = None
    reason = None
    if picked:
        try:
            maps = ActivationMaps.of(unpruned, pruned, data[picked[0]]["image"], device)
        except _FAILURES as error:
            reason = _because(error)
    for index in picked:
        case, own = before.case_ids[index], reason
        if maps is not None:
            try:
                pictures[case] = maps.draw(data[index]["image"], chances[index][0] if before.several else None)
            except _FAILURES as error:
                own = _because(error)
        records.append(
            {
                "case_id": case,
                "label": chances[index][0],
                "original": chances[index][1],
                "pruned": chances[index][2],
                "activation_layer": maps.layer if maps is not None and own is None else None,
                "reason": own,
            }
        )
    return records, pictures


def _because(error: Exception) -> str:
    # the text of an error that is not ours can name a file, and files can be named after people
    text = str(error).splitlines()[0] if isinstance(error, BasisPruneError) else f"of {type(error).__name__}"
    return f"no class activation map could be computed, because {text}"
