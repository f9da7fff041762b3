from __future__ import annotations

from typing import Any

import pytest
from studies import auc_record, difference_record, make_study

from monai_basisprune.report import wording


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2009", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (9999, "9999"),
        (10_000, "10.0 k"),
        (696_000, "696 k"),
        (999_700, "1.00 M"),
        (6_955_906, "6.96 M"),
        (99_960_000, "100 M"),
        (2_100_000_000, "2.10 G"),
    ],
)
def test_count(value: int, words: str) -> None:
    assert plain(wording.count(value)) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0.0 %"), (0.9012, "90.1 %"), (0.9996, "99.96 %"), (0.99999, "99.999 %"), (1, "100.0 %"), (-0.02, "-2.0 %")],
)
def test_percent_never_rounds_to_all(share: float, words: str) -> None:
    assert plain(wording.percent(share)) == words


def test_targets_and_settings_are_told_in_full() -> None:
    assert [plain(wording.target_words(share)) for share in (0.0, 0.0625, 0.71875, None)] == [
        "0 %", "6.25 %", "71.875 %", "–",
    ]  # fmt: skip
    assert (
        wording.setting_words({"image_size": 96, "intensity_mean": [0.5, None]})
        == "image_size 96, intensity_mean 0.5, none"
    )
    assert wording.setting_words([]) == "none"  # a run that was never cut has no targets


def test_a_refused_difference_does_not_look_like_the_margin() -> None:
    assert plain(wording.beside_margin(-0.0102, 0.01)) == "-0.0102"
    assert plain(wording.beside_margin(-0.02, 0.01)) == "-0.020"
    assert wording.beside_margin(None, 0.01) == "–"


def test_signs() -> None:
    assert plain(wording.signed(-0.0001)) == "0.000"
    assert plain(wording.signed(0.0125)) in ("+0.012", "+0.013")
    assert plain(wording.signed(-0.003)) == "-0.003"
    assert wording.decimal(None) == "not computable"


def test_auc_words() -> None:
    assert plain(wording.auc_words(auc_record(0.9, 100, 0.04))) == "0.900 (0.860 to 0.930)"
    assert wording.auc_words(auc_record(None, 100)) == "not computable: all cases belong to one class"
    record = auc_record(0.9, 100) | {"low": None, "high": None, "method": "not computable: one patient"}
    assert wording.auc_words(record) == "0.900 (interval not computable: one patient)"


def test_difference_words() -> None:
    assert wording.difference_words(None) == "not compared"
    assert plain(wording.difference_words(difference_record(-0.003))) == "-0.003 (-0.023 to +0.017)"


def test_bound_next_to_the_margin_is_told_apart() -> None:
    record = difference_record(-0.0002, 0.0102)  # low = -0.0104, which is beyond 0.01
    assert "-0.0104" in plain(wording.difference_words(record))


@pytest.mark.parametrize(
    ("difference", "kind", "words"),
    [
        (difference_record(-0.007, 0.025), "not shown", "reaches -0.032, beyond the margin of 0.01"),
        (difference_record(-0.007, 0.010, margin=0.02), "shown", "a loss of more than 0.02 is excluded"),
        (difference_record(-0.007, 0.002, margin=0.02), "shown", "the AUC did fall"),
        (difference_record(-0.007, 0.005), "worse", "lies below zero"),
        (difference_record(-0.007, 0.010, margin=0.05) | {"non_inferior": False}, "not shown", "does not claim it"),
        (None, "open", "were not compared"),
        (
            {"difference": -0.007, "low": None, "high": None, "margin": 0.01, "non_inferior": False}
            | {"method": "not computable: one patient"},
            "open",
            "not computable: one patient.",
        ),
    ],
)
def test_verdict(difference: Any, kind: str, words: str) -> None:
    study = make_study()
    study["test"]["difference"] = difference
    found = wording.verdict(study)
    assert found.kind == kind
    assert words in plain(found.sentences[-1])
    assert "0.905 (0.860 to 0.939) before pruning and 0.898" in plain(found.sentences[0])


def test_verdict_without_test_set() -> None:
    found = wording.verdict(make_study(test=None))
    assert (found.kind, found.headline) == ("open", "Not tested")
    assert "optimistic" in found.sentences[0]


def test_verdict_where_nothing_was_pruned() -> None:
    study = make_study()
    study["chosen"] |= {key: study["curve"][0][key] for key in ("round", "parameters", "macs")}
    study["chosen"] |= {"parameter_reduction": 0.0, "mac_reduction": 0.0, "reason": "no round was good enough."}
    found = wording.verdict(study)
    assert found.headline == "Nothing was pruned"
    assert found.sentences[0].endswith("no round was good enough.")


def test_small_words() -> None:
    assert wording.plural(1, "case", "cases") == "1 case"
    assert wording.plural(None, "patient", "patients") == "patients not known"
    assert wording.duration(241) == "4 min"
    assert wording.duration(12.345) == "12.3 s"
    assert wording.duration(3 * 3600 + 120) == "3 h 2 min"
    assert wording.moment("2026-11-21T05:00:00+00:00") == "2026-11-21 05:00 UTC"
    assert wording.moment("2026-11-21T05:00:00+01:00") == "2026-11-21 05:00 UTC+01:00"
    assert wording.shorten("abcdefghij", 5) == "ab\u2026ij"
    assert len(wording.shorten("x" * 99, 20)) == 20


def test_estimates_p_values_sizes_and_times() -> None:
    record = {"value": 0.75, "low": 0.7, "high": 0.8, "method": "Brier score; bootstrap"}
    assert wording.estimate_words(record) == "0.750 (0.700 to 0.800)"
    record |= {"low": None, "high": None, "method": "Brier score; not computable: one patient"}
    assert wording.estimate_words(record) == "0.750 (interval not computable: one patient)"
    assert [plain(wording.p_words(value)) for value in (None, 0.0004, 0.0126, 1.0)] == [
        "–",
        "< 0.001",
        "0.013",
        "1.000",
    ]
    assert [plain(wording.size_words(size)) for size in (None, 900, 28_400_000)] == ["not measured", "900 B", "28.4 MB"]
    assert wording.latency_words(None) == "not measured"
    latency = {"median_ms": 21.44, "low_ms": 20.0, "high_ms": 22.96}
    assert plain(wording.latency_words(latency)) == "21.4 ms (20 to 23)"
