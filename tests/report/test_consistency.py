from __future__ import annotations

import re
from typing import Any

import pytest
from studies import auc_record, difference_record, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import validate_study
from monai_basisprune.report.consistency import find_contradictions

FEMALE, OTHER = "audit.subgroups.0", "audit.subgroups.4"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("curve.2.parameter_reduction", 0.5, "does not agree with"),
        ("curve.2.mac_reduction", 0.1, "does not agree with"),
        ("curve.2.auc.low", 0.95, "outside its own interval"),
        ("curve.2.auc.high", None, "only one of low and high is null"),
        ("curve.2.round", 3, "each round must occur once"),
        ("curve.2.difference.difference", -0.015, "is not the AUC of the pruned network minus"),
        ("curve.2.difference.non_inferior", True, "true is claimed for a margin of 0.01"),
        ("chosen.round", 99, "is not a round of the curve"),
        ("chosen.parameters", 1, "differs from"),
        ("test.difference", difference_record(0.007), "is not the AUC of the pruned network minus"),
        ("test.difference.non_inferior", True, "the interval reaches -0.032"),
        ("test.roc.pruned.fpr", [0.0, 1.0], "of tpr"),
        ("test.roc.pruned", {"fpr": [0.0, 0.9, 0.5], "tpr": [0.0, 0.5, 1.0]}, "must never fall"),
        ("data.splits.training.cases", 301, "sums to 300"),
        ("data.splits.training.patients", 301, "only 300 cases"),
        ("data.splits.test.cases_by_class", [100], "1 numbers for 2 classes"),
        ("layers.0.rank", 50, "above max_rank"),
        ("layers.0.rank", None, "gives no reason"),
        ("curve.2.adjusted_p_value", 0.1, r"curve\[2\]\.adjusted_p_value: 0.1 is smaller than the p-value"),
        ("curve.0.adjusted_p_value", 0.1, r"curve\[0\]\.adjusted_p_value"),
        ("test.calibration.pruned.brier.low", 0.5, r"pruned\.brier: value 0.17 lies outside its own interval"),
        ("test.calibration.pruned.brier.low", None, "must hold 'not computable'"),
        ("test.calibration.pruned.points.cases", [100], "all lists must be equally long"),
        ("test.calibration.pruned.points.cases", [10] * 9 + [11], "sums to 101, but the test set holds 100"),
        ("test.operating_point.pruned.specificity", 0.8, "a specificity of 0.9 was asked for"),
        ("test.operating_point.pruned.attained_specificity", 0.8, "of which 0.8 is attained"),
        (f"{FEMALE}.cases", 55, r"the groups by 'sex' hold 101 cases, the test set 100"),
        (f"{FEMALE}.patients", 60, "more positive cases or patients than the 54 cases"),
        (f"{FEMALE}.pruned", None, "only some of original, pruned and difference are null"),
        (f"{FEMALE}.reason", "none", "must say why nothing was computed, and be null"),
        (f"{OTHER}.reason", None, "must say why nothing was computed, and be null"),
        (f"{FEMALE}.original.low", 0.95, r"subgroups\[0\]\.original: auc 0.91 lies outside"),
        (f"{FEMALE}.difference.difference", 0.03, "is not the AUC of the pruned network minus"),
        (f"{FEMALE}.difference.non_inferior", True, "true is claimed"),
        (f"{FEMALE}.adjusted_p_value", 0.1, "is smaller than the p-value before correction: it is 0.2"),
        (f"{OTHER}.adjusted_p_value", 0.1, "is smaller than the p-value before correction: there is none"),
        ("audit.changed_cases.0.pruned", 0.9, "the largest change must come first"),
        ("audit.changed_cases.1.case_id", "000000000000a3f1", "each case must occur once"),
        ("audit.changed_cases.1.label", 2, "not the index of one of 2 classes"),
        ("audit.changed_cases.1.reason", "x", "must say why there is no class activation map"),
        ("test", None, "there is an audit, but no test results"),
        ("search.steps.1.low", 0.5, r"steps\[1\]\.low: 0.5 is above the difference"),
        ("chosen.latency.low_ms", 40.0, r"chosen\.latency: the median, 9.8 ms, lies outside"),
        ("layers.0.channels", 3, "only one of channels and max_channels is given"),
    ],
)
def test_contradictions_are_refused(place: str, value: object, words: str) -> None:
    study = make_study()
    *path, last = place.split(".")
    target: Any = study
    for part in path:
        target = target[int(part) if part.isdigit() else part]
    target[last] = value
    assert re.search(words, "\n".join(find_contradictions(study)))
    with pytest.raises(ConfigurationError, match=words):
        validate_study(study)


def test_null_auc_needs_a_reason() -> None:
    study = make_study()
    study["curve"][6]["auc"] = auc_record(None, 100)
    study["curve"][6] |= {"difference": None, "adjusted_p_value": None}
    validate_study(study)
    study["curve"][6]["auc"]["method"] = "DeLong"
    with pytest.raises(ConfigurationError, match=r"curve\[6\]\.auc\.method: .*'not computable'"):
        validate_study(study)


def test_curve_must_begin_unpruned() -> None:
    study = make_study()
    del study["curve"][0]
    with pytest.raises(ConfigurationError, match="must be the unpruned network"):
        validate_study(study)


def test_interval_that_ends_at_the_margin_shows_nothing() -> None:
    study = make_study()
    study["test"]["difference"] |= {"low": -0.01, "high": 0.0, "non_inferior": True}
    with pytest.raises(ConfigurationError, match="non_inferior: true is claimed"):
        validate_study(study)


def test_a_realistic_record_contradicts_itself_nowhere() -> None:
    assert list(find_contradictions(make_study())) == []
    assert list(find_contradictions(make_study(test=None))) == []
    assert list(find_contradictions(with_classes())) == []


def with_classes() -> dict[str, Any]:
    """Return a study of three classes, whose AUCs are the means of those of the classes."""
    study = make_study(audit=None)
    study["data"]["class_names"] = ["cat", "dog", "owl"]
    for split in study["data"]["splits"].values():
        split |= {"cases_by_class": [split["cases"] - 2, 1, 1], "patients_by_class": None}
    study["test"]["classes"] = [
        {
            "name": name,
            "cases": 100,
            "positive_cases": 30,
            "original": auc_record(0.905 + shift, 100),
            "pruned": auc_record(0.898 + shift, 100),
            "difference": difference_record(-0.007) | {"p_value_difference": 0.2},
            "adjusted_p_value": 0.6,
            "reason": None,
        }
        for name, shift in (("cat", -0.02), ("dog", 0.0), ("owl", 0.02))
    ]
    return study


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "doe"}, "the names must be those of $.data.class_names, in their order"),
        ({"cases": 99}, "$.test.classes[1]: 30 of 99 cases, the test set has 100"),
        ({"positive_cases": 101}, "$.test.classes[1]: 101 of 100 cases"),
        ({"pruned": None}, "$.test.classes[1].reason: must say why nothing was computed"),
        ({"reason": "too few"}, "$.test.classes[1].reason: must say why nothing was computed, and be null"),
        ({"original": auc_record(0.92, 100)}, "$.test.classes[1].difference.difference: -0.007 is not the AUC"),
        ({"original": auc_record(0.92, 100)}, "$.test.original.auc: 0.905 is not the mean of the AUCs of the classes"),
        ({"adjusted_p_value": 0.1}, "$.test.classes[1].adjusted_p_value: 0.1 is smaller than the p-value"),
    ],
)
def test_contradictions_of_the_classes_are_found(changes: dict[str, Any], words: str) -> None:
    study = with_classes()
    study["test"]["classes"][1] |= changes
    assert words in "\n".join(find_contradictions(study))


def test_several_classes_need_an_auc_each() -> None:
    study = with_classes()
    del study["test"]["classes"]
    assert list(find_contradictions(study)) == [
        "$.test.classes: there are several classes, so the AUC of each must be given"
    ]
    study["data"]["class_names"] = ["negative", "positive"]
    study["data"]["splits"] = make_study()["data"]["splits"]
    assert list(find_contradictions(study)) == []


def test_findings_that_occur_together_need_not_sum_to_the_cases() -> None:
    study = make_study(audit=None)
    training = study["data"]["splits"]["training"]
    training["cases_by_class"] = [200, 180]
    assert list(find_contradictions(study)) == [
        "$.data.splits.training.cases_by_class: sums to 380, but there are 300 cases"
    ]
    study["data"]["label_kind"] = "multi"
    assert not [line for line in find_contradictions(study) if "training" in line]
    training["cases_by_class"] = [200, 301]
    words = "$.data.splits.training.cases_by_class: a finding is in more cases than the 300 that there are"
    assert words in list(find_contradictions(study))
