from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from studies import auc_record, difference_record
from test_page import HOSTILE, assert_self_contained

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import write_stability
from monai_basisprune.report.curves import stretch
from monai_basisprune.report.stability import STABILITY_COLUMNS, band_figure, validate_stability

TARGETS = (0.0, 0.5, 0.9, 0.98)


def make_stability() -> dict[str, Any]:
    repeats = [
        {
            "seed": seed,
            "fold": fold,
            "folds": 2,
            "curve": [
                {
                    "target": target,
                    "parameter_reduction": target + 0.001 * (target > 0),
                    "auc": 0.9 - (0.1 + 0.04 * seed - 0.03 * fold) * target**8,
                }
                for target in TARGETS
            ],
            "chosen_reduction": 0.901 if seed else 0.501,
            "chosen_parameters": 690_000 if seed else 3_480_000,
            "test_auc": 0.88 + 0.01 * fold,
            "test_difference": -0.004,
            "test_low": -0.03 + 0.022 * seed,
            "test_high": 0.02,
            "test_confidence": 0.95,
            "margin": 0.01,
            "non_inferior": bool(seed),
        }
        for seed in (0, 1)
        for fold in (0, 1)
    ]
    return {
        "repeats": repeats,
        "failed": [{"seed": 2, "fold": 0, "reason": "CohortError: one class only in the fold"}],
        "band": [
            {"target": target, "mean": 0.9 - 0.1 * target**8, "low": 0.75, "high": 0.93, "repeats": 4}
            for target in TARGETS
        ],
        "band_method": "smallest and largest AUC of the repeats",
        "chosen": {"median": 0.701, "minimum": 0.501, "maximum": 0.901},
        "overlap": [
            {"layer": "stem", "jaccard": 0.8, "by_chance": 0.3, "reason": None},
            {"layer": "head", "jaccard": None, "by_chance": None, "reason": "no repeat pruned this layer"},
        ],
        "pooled": {
            "original": auc_record(0.9, 200),
            "pruned": auc_record(0.89, 200),
            "difference": difference_record(-0.01),
        },
        "remarks": ["Folds of one seed share training cases."],
    }


def test_page_table_and_picture(tmp_path: Path) -> None:
    paths = write_stability(make_stability(), tmp_path / "out")
    assert {key: path.name for key, path in paths.items()} == {
        "stability_html": "stability.html",
        "stability_csv": "stability.csv",
        "stability_svg": "stability.svg",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in paths.values()}
    text = paths["stability_html"].read_text(encoding="utf-8")
    assert_self_contained(text)
    for words in (
        "The choice depends on the repeat",
        "70.1\u00a0%",
        "from 50.1\u00a0% to 90.1\u00a0% over 4 repeats of seed and patient-level fold (2 folds)",
        "0.890 (0.845 to 0.924)",
        "1 repeat failed.</strong>",
        "seed 2, fold 0: CohortError: one class only in the fold",
        "Folds of one seed share training cases.",
        "smallest and largest AUC of the repeats.",
        "no repeat pruned this layer",
        "In the 1 of 1 layers from which bases were removed, two repeats share 80.0\u00a0% of the bases",
        "drawn at random they would share 30.0\u00a0%",
        "margin of 0.01 AUC is shown for <strong>2 of 4</strong> pruned networks.",
        "\u22120.004 (\u22120.030 to +0.020)",
        "Change by pruning (95\u00a0% interval)",
        "is no confidence interval",
    ):
        assert words in text, words
    assert ElementTree.parse(paths["stability_svg"]).getroot().tag.endswith("svg")
    with paths["stability_csv"].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == STABILITY_COLUMNS
    assert len(rows) == 4 * len(TARGETS)
    assert [row["parameter_reduction"] for row in rows if row["chosen"] == "true"] == ["0.501"] * 2 + ["0.901"] * 2


def test_one_repeat_without_folds_test_and_overlap(tmp_path: Path) -> None:
    record = make_stability()
    record["repeats"] = record["repeats"][:1]
    record["repeats"][0] |= {"fold": None, "folds": None, "test_auc": None, "test_difference": None}
    record["repeats"][0] |= {"test_low": None, "test_high": None, "non_inferior": None}
    record["repeats"][0]["curve"][1] |= {"target": None, "auc": None}
    record |= {"failed": [], "band": [], "overlap": [], "pooled": None, "remarks": []}
    record["chosen"] = {"median": 0.501, "minimum": 0.501, "maximum": 0.501}
    text = write_stability(record, tmp_path)["stability_html"].read_text(encoding="utf-8")
    assert_self_contained(text)
    for words in ("One repeat shows no spread", "not tested", "No overlap was computed."):
        assert words in text, words
    assert 'id="failed"' not in text


def test_layers_that_keep_all_bases_do_not_flatter_the_overlap(tmp_path: Path) -> None:
    record = make_stability()
    record["overlap"] += [{"layer": f"{n}", "jaccard": 1.0, "by_chance": 1.0, "reason": None} for n in range(8)]
    text = write_stability(record, tmp_path)["stability_html"].read_text(encoding="utf-8")
    assert "In the 1 of 9 layers from which bases were removed, two repeats share 80.0\u00a0% of the bases" in text


def test_a_repeat_that_kept_the_unpruned_network_is_not_counted_as_shown(tmp_path: Path) -> None:
    record = make_stability()
    record["repeats"][3]["chosen_reduction"] = record["chosen"]["minimum"] = 0.0
    record["chosen"]["maximum"] = max(repeat["chosen_reduction"] for repeat in record["repeats"])
    record["repeats"][3] |= dict.fromkeys(("test_difference", "test_low", "test_high", "non_inferior"))
    text = write_stability(record, tmp_path)["stability_html"].read_text(encoding="utf-8")
    assert "<strong>1 of 3</strong> pruned networks; 1 repeat kept the unpruned network" in text


def test_the_band_is_drawn_where_all_repeats_have_a_network() -> None:
    record = make_stability()
    record["band"][1]["repeats"] = 2
    axes = band_figure(record).axes[0]
    (mean,) = [line for line in axes.get_lines() if line.get_label() == "mean"]
    assert list(mean.get_xdata()) == [stretch(target) for target in TARGETS if target != 0.5]


def test_every_string_is_escaped(tmp_path: Path) -> None:
    record = make_stability()
    record["failed"][0]["reason"] = record["band_method"] = record["overlap"][0]["layer"] = HOSTILE
    record["overlap"][1]["reason"] = record["pooled"]["pruned"]["method"] = record["remarks"][0] = HOSTILE
    assert_self_contained(write_stability(record, tmp_path)["stability_html"].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("repeats", [], "repeats"),
        ("surprise", 1, "'surprise'"),
        ("band.1.mean", math.nan, r"\$\.band\[1\]\.mean: nan is not a finite number"),
        ("band.1.mean", 0.99, "outside 0.75 to 0.93"),
        ("band.1.low", None, "only some of low, mean and high"),
        ("band.1.repeats", 9, "there are 4 repeats"),
        ("repeats.1.fold", 0, "each pair of seed and fold"),
        ("chosen.minimum", 0.2, r"chosen\.minimum: 0.2, but the repeats say 0.501"),
        ("chosen.maximum", 0.95, r"chosen\.maximum"),
        ("chosen.median", 0.95, r"chosen\.median"),
        ("overlap.0.reason", "none", "must say why there is no overlap"),
        ("overlap.1.reason", None, "must say why there is no overlap"),
        ("pooled.pruned.low", 0.95, "outside its own interval"),
        ("repeats.0.test_low", 0.01, r"repeats\[0\]: difference -0.004 lies outside its own interval, 0.01 to 0.02"),
        ("repeats.0.non_inferior", True, "true is claimed, but the interval does not show it"),
    ],
)
def test_wrong_records_write_nothing(place: str, value: object, words: str, tmp_path: Path) -> None:
    record = make_stability()
    validate_stability(record)
    *path, last = place.split(".")
    target: Any = record
    for part in path:
        target = target[int(part) if part.isdigit() else part]
    target[last] = value
    with pytest.raises(ConfigurationError, match=words):
        write_stability(record, tmp_path / "out")
    assert not (tmp_path / "out").exists()
