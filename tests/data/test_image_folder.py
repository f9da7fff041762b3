from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import CLASSES, gray, save, write_folders, write_table

from monai_basisprune.data import divide_datalist, load_split
from monai_basisprune.data.image_classes import LabelSettings
from monai_basisprune.data.image_files import place_pictures
from monai_basisprune.data.image_folder import prepare_image_datalist
from monai_basisprune.errors import CohortError, ConfigurationError

SECTIONS = ("training", "validation", "test")
pytestmark = pytest.mark.filterwarnings("ignore:No column and no pattern names the patients")


def prepare(root: Path, work: Path | None = None, on_problem: str = "raise", **settings: Any) -> dict[str, Any]:
    settings = {"label_kind": "single", **settings}
    seed = settings.pop("seed", 0)
    output = (work or root.parent / "work") / "datalist.json"
    return prepare_image_datalist(
        root, output, LabelSettings(**settings), seed=seed, on_problem=on_problem, progress=False
    )


def problems(root: Path, **settings: Any) -> str:
    with pytest.raises(CohortError) as error:
        prepare(root, **settings)
    return str(error.value)


# --- what can be read


def test_folders_are_classes(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    datalist = prepare(root)
    assert datalist["class_names"] == list(CLASSES)
    assert (datalist["label_kind"], datalist["patients_known"], datalist["split_source"]) == ("single", False, "random")
    items = [item for name in SECTIONS for item in datalist[name]]
    assert len(items) == 36
    assert all(item["image"].startswith(CLASSES[item["label"]] + "/") for item in items)
    for name, count in zip(SECTIONS, (7, 2, 2), strict=True):
        counts = Counter(item["label"] for item in datalist[name])
        assert set(counts) == {0, 1, 2}
        assert all(abs(value - count) <= 1 for value in counts.values())
    loaded = load_split(datalist, "test", root)
    assert all(Path(case["image"]).is_file() for case in loaded)


def test_the_split_depends_on_pictures_and_seed_only(tmp_path: Path) -> None:
    first = prepare(write_folders(tmp_path / "a"), tmp_path / "1")
    root = write_folders(tmp_path / "b")
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_name(f"zz{path.stem[::-1]}.png"))
    assert prepare(root, tmp_path / "2")["split_sha256"] == first["split_sha256"]
    assert prepare(root, tmp_path / "3", seed=1)["split_sha256"] != first["split_sha256"]


def test_train_val_and_test_above_the_classes_are_the_split(tmp_path: Path) -> None:
    for place, name in enumerate(("train", "val", "test")):
        for index, kind in enumerate(("a", "b")):
            for number in range(3):
                save(tmp_path / "images" / name / kind / f"{number}.png", gray(100 * place + 10 * index + number))
    datalist = prepare(tmp_path / "images")
    assert datalist["class_names"] == ["a", "b"]
    assert datalist["fractions"] is None
    assert all(item["image"].startswith("val/") for item in datalist["validation"])


def test_numbered_folders_are_sorted_as_numbers(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images", 4, ("10", "9", "2"))
    assert prepare(root)["class_names"] == ["2", "9", "10"]


def table_of(root: Path, patients: int = 15, images: int = 2) -> list[str]:
    rows = []
    for patient in range(patients):
        for number in range(images):
            save(root / f"p{patient:02d}_{number}.png", gray(10 * patient + number))
            rows.append(f"p{patient:02d}_{number}.png,{CLASSES[patient % 3]},P{patient:02d}")
    return rows


def test_patients_of_a_table_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_table(root, table_of(root), "image,label,patient_id")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datalist = prepare(root)
    assert datalist["patients_known"] is True
    sections = [{item["patient_id"] for item in datalist[name]} for name in SECTIONS]
    assert sum(map(len, sections)) == len(set.union(*sections)) == 15
    text = json.dumps(datalist)
    assert not any(f"P{number:02d}" in text for number in range(15))


def test_a_pattern_finds_the_patient(tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_table(root, [row.rsplit(",", 1)[0] for row in table_of(root)])
    datalist = prepare(root, patient_pattern=r"(p\d+)_\d")
    assert len({item["patient_id"] for name in SECTIONS for item in datalist[name]}) == 15
    assert "finds no patient in the paths of 30 of 30 images" in problems(root, patient_pattern=r"(x\d+)")
    with pytest.raises(ConfigurationError, match="must have one group"):
        LabelSettings(patient_pattern="p")
    with pytest.raises(ConfigurationError, match="is no regular expression"):
        LabelSettings(patient_pattern="(")


def test_without_patients_it_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="each image counts as a patient of its own: the intervals are too narrow"):
        prepare(write_folders(tmp_path / "images"))


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


def test_written_lists_hold_no_paths_and_pictures_are_found_again(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    output = tmp_path / "work" / "datalist.json"
    prepare_image_datalist(root, output, LabelSettings(), progress=False, image_paths=False)
    written = json.loads(output.read_text())
    assert "healthy/" not in output.read_text()
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(root / f"{number}.png")
    placed = place_pictures(written["test"], root)
    assert all((root / item["image"]).is_file() for item in placed)
    (root / placed[0]["image"]).unlink()
    with pytest.raises(CohortError, match="is it the right folder") as error:
        place_pictures(written["test"], root)
    assert error.value.problems == (f"case {placed[0]['case_id']}",)


# --- what cannot be


def test_all_problems_come_at_once_and_name_nobody(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    (root / "ill" / "Jane Doe.png").write_bytes(b"nothing")
    content = (root / "ill" / "000.png").read_bytes()
    (root / "ill" / "John Doe.png").write_bytes(content[: len(content) // 2])
    save(root / "healthy" / "copy.png", gray(100) // 3 + 60)
    (root / "ill" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "unclear" / "far").symlink_to(tmp_path)
    text = problems(root)
    for words in (
        "4 problems were found in 39 files before any training",
        "is no PNG or JPEG picture",
        "is truncated or damaged",
        "hold the same image with different labels",
        "holds 2 symbolic links, which could lead outside and are not followed",
    ):
        assert words in text
    assert "Doe" not in text
    assert str(tmp_path) not in text
    with pytest.warns(UserWarning, match="left out of the datalist, 4 problems"):
        datalist = prepare(root, on_problem="skip")
    assert datalist["skipped_problems"] == 4
    assert sum(len(datalist[name]) for name in SECTIONS) == 35


def test_copies_with_the_same_label_are_left_out(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    for number in range(3):
        (root / "ill" / f"copy{number}.png").write_bytes((root / "ill" / "003.png").read_bytes())
    with pytest.warns(UserWarning, match="3 exact copies of another picture with the same label were left out"):
        datalist = prepare(root)
    assert sum(len(datalist[name]) for name in SECTIONS) == 36


def test_a_copy_for_another_patient_is_a_problem(tmp_path: Path) -> None:
    root = tmp_path / "images"
    rows = table_of(root)
    (root / "p03_0.png").write_bytes((root / "p00_0.png").read_bytes())
    write_table(root, rows, "image,label,patient_id")
    assert "hold the same image for several patients or sections; keep one" in problems(root)


def test_a_class_with_one_case_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    save(root / "rare" / "0.png", gray(999))
    text = problems(root)
    assert "cannot be split" in text
    assert "1 of 'rare'" in text
    assert "at least 3 of each class" in text


def test_empty_folders_and_loose_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert "dataset_dir: is empty, no pictures among 0 files" in problems(tmp_path / "images")
    root = write_folders(tmp_path / "images", classes=("a",))
    assert "holds 1 folders of classes with images, at least 2 are needed" in problems(root)
    save(root / "loose.png", gray(0))
    assert "1 images lie in no folder of a class" in problems(root)
    assert "several findings of one image need a table" in problems(root, label_kind="multi")


def test_folders_outside_the_classes(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    text = problems(root, class_names=["healthy", "ill"])
    assert "1 outside the classes ('unclear'); known are healthy, ill" in text


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_kind": "many"}, "label_kind must be one of ('single', 'multi')"),
        ({"class_names": "abc"}, "class_names must be a list of names"),
        ({"class_names": ["a", "A"]}, "found 2, of which 1 differ"),
        ({"class_names": ["a", "@b"]}, "do not start with $, @ or %"),
        ({"class_names": ["a", "b" * 99]}, "1 to 80 characters"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        LabelSettings(**settings)
    assert words in str(error.value)
