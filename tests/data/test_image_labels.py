from __future__ import annotations

from pathlib import Path

import pytest
from pictures import write_folders, write_table

from monai_basisprune.data.image_classes import ImageLabel, LabelSettings
from monai_basisprune.data.image_files import list_pictures
from monai_basisprune.data.image_labels import read_image_labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images", 2)


def test_names_of_folders_are_classes(root: Path) -> None:
    images = list_pictures(root)[0]
    found = read_image_labels(root, images, LabelSettings())
    assert found.class_names == ("healthy", "ill", "unclear")
    assert {path: one.label for path, one in found.images.items()} == {
        path: found.class_names.index(path.split("/")[0]) for path in images
    }
    assert (found.problems, found.unlabeled) == ((), ())


def test_a_table_counts_before_folders_and_a_pattern_finds_the_patient_in_either(root: Path) -> None:
    write_table(root, ["healthy/000.png,b", "ill/001.png,a"])
    images = list_pictures(root)[0]
    found = read_image_labels(root, images, LabelSettings(patient_pattern=r"/(\d+)\."))
    assert found.class_names == ("a", "b")
    assert found.images == {"healthy/000.png": ImageLabel(1, "000"), "ill/001.png": ImageLabel(0, "001")}
    assert sorted(found.unlabeled) == sorted(set(images) - set(found.images))
    (root / "labels.csv").unlink()
    again = read_image_labels(root, images, LabelSettings(patient_pattern=r"/(\d+)\."))
    assert [again.images[path].patient for path in images] == ["000", "001"] * 3


def test_a_pattern_that_misses_some_is_a_problem(root: Path) -> None:
    found = read_image_labels(root, list_pictures(root)[0], LabelSettings(patient_pattern=r"healthy/(\d)"))
    (problem,) = found.problems
    assert "finds no patient in the paths of 4 of 6 images; correct it" in problem
    assert not found.images


def test_a_table_that_is_not_there_is_a_problem_and_not_replaced_by_folders(root: Path) -> None:
    found = read_image_labels(root, list_pictures(root)[0], LabelSettings(labels_file="mine.csv"))
    (problem,) = found.problems
    assert "the labels_file that was passed exists neither as such nor relative to dataset_dir" in problem
    assert not found.images
