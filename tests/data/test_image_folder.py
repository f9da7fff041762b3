from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
from pictures import CLASSES, SECTIONS, gray, prepare, problems, save, write_folders, write_table

from monai_basisprune.data import load_split
from monai_basisprune.data.image_classes import LabelSettings
from monai_basisprune.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:No column and no pattern names the patients")


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
