from __future__ import annotations

import csv
from pathlib import Path

import pytest
from studies import auc_record, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import format_summary, write_curve_csv
from monai_basisprune.report.tables import CURVE_COLUMNS


def read(text: str) -> object:
    return {"": None, "true": True, "false": False}[text] if text in ("", "true", "false") else float(text)


def test_csv_read_again_equals_the_study(tmp_path: Path) -> None:
    study = make_study()
    study["curve"][6]["auc"] = auc_record(None, 100)
    study["curve"][6]["difference"] = None
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
        assert read(row["chosen"]) is (point["round"] == 3)
    assert "nan" not in path.read_text().lower()


def test_csv_of_a_wrong_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        write_curve_csv(make_study(curve=[]), tmp_path / "curve.csv")
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
    study["curve"][3]["difference"] = None
    text = format_summary(study)
    assert "Not tested" in text
    assert "not computable: all cases belong to one class" in " ".join(text.split())
    assert "AUC, test" not in text
    assert max(len(line) for line in text.splitlines()) <= 90


def test_summary_cannot_steer_the_terminal() -> None:
    text = format_summary(make_study(title="\x1b[2Jgone", warnings=["a\x07b"]))
    assert "\x1b" not in text
    assert "\x07" not in text
