from __future__ import annotations

import csv
from pathlib import Path

import pytest
from studies import auc_record, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import (
    format_summary,
    write_curve_csv,
    write_reliability_csv,
    write_roc_csv,
    write_subgroups_csv,
)
from monai_basisprune.report.tables import CURVE_COLUMNS, SUBGROUP_COLUMNS


def read(text: str) -> object:
    return {"": None, "true": True, "false": False}[text] if text in ("", "true", "false") else float(text)


def test_csv_read_again_equals_the_study(tmp_path: Path) -> None:
    study = make_study()
    study["curve"][6]["auc"] = auc_record(None, 100)
    study["curve"][6] |= {"difference": None, "adjusted_p_value": None}
    path = write_curve_csv(study, tmp_path / "curve.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CURVE_COLUMNS
    assert len(rows) == len(study["curve"])
    for row, point in zip(rows, study["curve"], strict=True):
        auc, difference = point["auc"], point["difference"]
        for key in CURVE_COLUMNS[:8]:
            assert read(row[key]) == point[key]
        for key in ("low", "high", "confidence"):
            assert read(row[f"auc_{key}"]) == auc[key]
        for key in ("auc", "cases", "patients", "positive_cases", "positive_patients"):
            assert read(row[key]) == auc[key]
        assert row["auc_method"] == auc["method"]
        for key in ("low", "high", "margin"):
            assert read(row[f"difference_{key}"]) == (difference and difference[key])
        for key in ("difference", "non_inferior"):
            assert read(row[key]) == (difference and difference[key])
        assert read(row["adjusted_p_value"]) == point["adjusted_p_value"]
        assert read(row["chosen"]) is (point["round"] == 3)
    assert "nan" not in path.read_text().lower()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_roc_and_reliability_read_again_equal_the_study(tmp_path: Path) -> None:
    study = make_study()
    roc = rows_of(write_roc_csv(study, tmp_path / "roc.csv"))
    reliability = rows_of(write_reliability_csv(study, tmp_path / "reliability.csv"))
    for name in ("original", "pruned"):
        own = [row for row in roc if row["network"] == name]
        assert [float(row["false_positive_rate"]) for row in own] == study["test"]["roc"][name]["fpr"]
        assert [float(row["true_positive_rate"]) for row in own] == study["test"]["roc"][name]["tpr"]
        own = [row for row in reliability if row["network"] == name]
        for key, values in study["test"]["calibration"][name]["points"].items():
            assert [float(row[key]) for row in own] == values


def test_subgroups_read_again_equal_the_study(tmp_path: Path) -> None:
    study = make_study()
    rows = rows_of(write_subgroups_csv(study, tmp_path / "subgroups.csv"))
    assert tuple(rows[0]) == SUBGROUP_COLUMNS
    for row, group in zip(rows, study["audit"]["subgroups"], strict=True):
        for key in ("cases", "positive_cases", "patients", "adjusted_p_value"):
            assert read(row[key]) == group[key]
        assert (row["attribute"], row["value"], row["reason"]) == (
            group["attribute"],
            group["value"],
            group["reason"] or "",
        )
        for name in ("original", "pruned"):
            for key in ("auc", "low", "high"):
                assert read(row[f"{name}_{key}"]) == (group[name] and group[name][key])
        difference = group["difference"] or {}
        for key in ("low", "high", "margin"):
            assert read(row[f"difference_{key}"]) == difference.get(key)
        for key in ("difference", "non_inferior"):
            assert read(row[key]) == difference.get(key)


def test_csv_of_a_wrong_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        write_curve_csv(make_study(curve=[]), tmp_path / "curve.csv")
    bare = make_study(test=None)
    for write, words in (
        (write_roc_csv, "no 'test.roc'"),
        (write_reliability_csv, "no 'test.calibration'"),
        (write_subgroups_csv, "holds no audit"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            write(bare, tmp_path / "x.csv")
    assert not list(tmp_path.iterdir())


def test_summary_says_what_matters() -> None:
    text = format_summary(make_study())
    for words in (
        "SYNTHETIC DATA",
        "6.96 M",
        "696 k (90.0 % removed)",
        "0.912 (0.872 to 0.942)",
        "0.898 (0.853 to 0.932)",
        "-0.007 (-0.032 to +0.018)",
        "95 % intervals",
        "Non-inferiority is not shown",
        "Warning: 2 patients occur in both classes",
        "model.plan.json",
    ):
        assert words in text, words
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 90


def test_summary_without_test_set_and_with_missing_auc() -> None:
    study = make_study(test=None, files={})
    study["curve"][3]["auc"] = auc_record(None, 100)
    study["curve"][3] |= {"difference": None, "adjusted_p_value": None}
    text = format_summary(study)
    assert "Not tested" in text
    assert "not computable: all cases belong to one class" in " ".join(text.split())
    assert "AUC, test" not in text
    assert max(len(line) for line in text.splitlines()) <= 90


def test_summary_cannot_steer_the_terminal() -> None:
    text = format_summary(make_study(title="\x1b[2Jgone", warnings=["a\x07b"]))
    assert "\x1b" not in text
    assert "\x07" not in text
