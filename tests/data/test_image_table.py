from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import SECTIONS, gray, prepare, problems, save, write_folders, write_table

from monai_basisprune.data import divide_datalist, load_split

pytestmark = pytest.mark.filterwarnings("ignore:No column and no pattern names the patients")


@pytest.mark.parametrize("columns", [True, False])
def test_findings_of_a_table(tmp_path: Path, columns: bool) -> None:
    root, rng = tmp_path / "images", np.random.default_rng(0)
    truth = (rng.random((60, 3)) < [0.2, 0.4, 0.5]).astype(int)
    names = ["effusion", "mass", "nodule"]
    rows = []
    for number, row in enumerate(truth):
        save(root / f"{number}.png", gray(number))
        found = ";".join(name for name, one in zip(names, row, strict=True) if one) or "none"
        rows.append(f"{number}.png," + (",".join(map(str, row)) if columns else f'"{found}"'))
    write_table(root, rows, "image," + (",".join(names) if columns else "label"))
    datalist = prepare(root, label_kind="multi")
    assert datalist["class_names"] == names
    labels = {item["image"]: item["label"] for name in SECTIONS for item in datalist[name]}
    assert labels == {f"{number}.png": row.tolist() for number, row in enumerate(truth)}
    for name in SECTIONS:
        share = np.mean([item["label"] for item in datalist[name]], axis=0)
        np.testing.assert_allclose(share, truth.mean(axis=0), atol=0.2)
        assert len(load_split(datalist, name, root)) == len(datalist[name])
    again = divide_datalist(datalist, 3)
    assert {item["case_id"] for item in again["test"]} == {item["case_id"] for item in datalist["test"]}
    assert again["split_sha256"] != datalist["split_sha256"]
    fold = divide_datalist(datalist, 0, 3, 1)
    assert sum(len(fold[name]) for name in SECTIONS) == 60


def test_a_finding_that_is_mostly_unknown_is_not_left_out_in_silence(tmp_path: Path) -> None:
    root = tmp_path / "images"
    rows = [f"{number}.png,{number % 2},{'1' if number < 2 else ''},note {number}" for number in range(8)]
    for number in range(8):
        save(root / f"{number}.png", gray(number))
    write_table(root, rows, "image,mass,rare,remark")
    found = problems(root, label_kind="multi")
    assert "labels table, column 'rare': 6 cells are neither 0 nor 1 (blank, NaN or uncertain); decide each" in found
    assert "remark" not in found


def test_a_separator_that_is_not_quoted_is_a_problem(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images", 2)
    write_table(root, ["healthy/000.png,healthy", "ill/000.png,early, ill"])
    assert "labels table, line 3: has 3 cells where the header has 2; quote cells" in problems(root)


@pytest.mark.parametrize(
    ("rows", "header", "settings", "words"),
    [
        (["0.png,a", "1.png,b", "../2.png,a"], "image,label", {}, "line 4: names a file outside dataset_dir"),
        (["/etc/0.png,a", "1.png,b"], "image,label", {}, "line 2: names a file outside dataset_dir"),
        (["C:\\0.png,a", "1.png,b"], "image,label", {}, "line 2: names a file outside dataset_dir"),
        (["0.png,a", "1.png,b", "9.png,a"], "image,label", {}, "line 4: names no image in dataset_dir"),
        (["0.png,a", "1.png,"], "image,label", {}, "line 3: has no label"),
        (["0.png,a", "1.png,NaN"], "image,label", {}, "line 3: has no label"),
        (["0.png,a", "1.png,b", "2.png,b"], "image,label", {}, "file #4 of the sorted list"),
        (["0.png,a", "0.png,b"], "image,label", {}, "line 3: names an image again, with another label"),
        (["0.png,a,P", "1.png,b,"], "image,label,patient_id", {}, "line 3: has no patient"),
        (["0.png,a,train", "1.png,b,some"], "image,label,split", {}, "line 3: has a blank or unknown split"),
        (["0.png,a", "1.png,b"], "image,class", {}, "no label column 'label'; found columns 'image', 'class'"),
        (["0.png,a", "1.png,c"], "image,label", {"class_names": ["a", "b"]}, "1 outside the classes ('c')"),
        (["0.png,0", "1.png,2"], "image,label", {"class_names": ["a", "b"]}, "1 outside the classes ('2')"),
        (["0.png,a", "1.png,a"], "image,label", {}, "must be 2 to 100 different names, found 1"),
        (["0.png,$a", "1.png,b"], "image,label", {}, "do not start with $, @ or %"),
        (
            ["0.png,0,1", "1.png,1,", "2.png,0,nan", "3.png,1,0"],
            "image,mass,node",
            {"label_kind": "multi"},
            "column 'node': 2 cells are neither 0 nor 1 (blank, NaN or uncertain)",
        ),
        (
            ["0.png,0,1", "1.png,1,0"],
            "image,mass,node",
            {"label_kind": "multi", "class_names": ["mass", "cyst"]},
            "has not one column for each of the class_names ['cyst']",
        ),
        (["0.png,0.5", "1.png,x"], "image,mass", {"label_kind": "multi"}, "a column with 0 and 1 for each of several"),
        ([], "image,label", {}, "has a header but no rows"),
    ],
)
def test_wrong_tables_are_named(
    tmp_path: Path, rows: list[str], header: str, settings: dict[str, Any], words: str
) -> None:
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", gray(number))
    assert words in problems(write_table(tmp_path / "images", rows, header), **settings)


def test_many_unknown_labels_are_not_quoted(tmp_path: Path) -> None:
    root = tmp_path / "images"
    rows = []
    for number in range(12):
        save(root / f"{number}.png", gray(number))
        rows.append(f"{number}.png,Jane{number}")
    write_table(root, rows)
    text = problems(root, class_names=["a", "b"])
    assert "12 outside the classes (withheld)" in text
    assert "Jane" not in text
