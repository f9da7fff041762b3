from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.workflow import (
    classification_loss,
    find_class_names,
    image_evaluation_cases,
    locate_images,
    prepare_image_cohort,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pictures import CLASSES, gray, save, write_folders, write_npz

pytestmark = pytest.mark.filterwarnings("ignore:No column and no pattern names the patients")
DIGITS = [str(digit) for digit in range(10)]


def prepare(images: Path | None, output: Path, names: Any = None, **settings: Any) -> Any:
    names = find_class_names(images, settings.get("label_kind", "single")) if names is None else names
    return prepare_image_cohort(images, output, names, progress=False, **settings)


def test_the_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    cohort = prepare(None, tmp_path)
    summary = cohort.summary()
    assert summary["class_names"] == DIGITS
    assert summary["synthetic"] is False
    cases = {name: split["cases"] for name, split in summary["splits"].items()}
    assert sum(cases.values()) == 1797
    assert all(0.19 < cases[name] / 1797 < 0.21 for name in ("validation", "test"))
    assert min(min(split["cases_by_class"]) for split in summary["splits"].values()) > 30
    assert cohort.patient_key is None
    assert summary["splits"]["test"]["patients"] is None
    assert len(image_evaluation_cases_of(tmp_path, cohort)) == cases["test"]


def image_evaluation_cases_of(output: Path, cohort: Any) -> list[dict[str, Any]]:
    (output / "datalist.json").write_bytes(cohort.datalist_file.read_bytes())
    return image_evaluation_cases(output, "test")


@pytest.mark.parametrize("findings", [0, 3])
def test_a_medmnist_file_keeps_its_split(tmp_path: Path, findings: int) -> None:
    path = write_npz(tmp_path / "a.npz", findings=findings)
    kind = "multi" if findings else "single"
    cohort = prepare(locate_images(path, None, tmp_path), tmp_path / "out", label_kind=kind)
    assert cohort.datalist["split_source"] == "npz file"
    assert [split["cases"] for split in cohort.summary()["splits"].values()] == [12, 12, 12]
    case = cohort.split("validation")[0]
    if findings:
        assert case["label"].dtype == np.float32
        assert case["label"].shape == (3,)
    else:
        assert case["label"] in (0, 1, 2)


def test_a_prepared_cohort_is_not_read_again(tmp_path: Path) -> None:
    first = prepare(write_folders(tmp_path / "images"), tmp_path / "a")
    again = prepare(tmp_path / "images", tmp_path / "b", CLASSES, prepared=first)
    assert again.datalist == first.datalist
    assert "image" not in (tmp_path / "b" / "work" / "datalist.json").read_text().replace("image_sha256", "")


def test_folds_and_seeds(tmp_path: Path) -> None:
    images = write_folders(tmp_path / "images")
    tests = [prepare(images, tmp_path / str(fold), folds=4, fold=fold).datalist["test"] for fold in range(4)]
    assert sum(map(len, tests)) == len({item["image_sha256"] for test in tests for item in test}) == 36
    with pytest.raises(ConfigurationError, match="folds and fold belong together"):
        prepare(images, tmp_path / "x", folds=4)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"class_names": ["a", "b"]}, "12 labels outside the classes (2), allowed are 0 to 1"),
        ({"test_labels": np.full(12, -1)}, {}, "has 12 labels outside the classes (-1)"),
        (
            {f"{s}_labels": np.zeros((12, 2), int) for s in ("train", "val", "test")},
            {"class_names": ["a", "b"]},
            "has 2 labels for each image; pass --label_kind multi",
        ),
        ({}, {"class_names": ["a", "b"], "label_kind": "multi"}, "has 1 findings, class_names are 2"),
    ],
)
def test_labels_outside_the_classes(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    path = write_npz(tmp_path / "a.npz", **changes)
    names = settings.pop("class_names", ["a", "b", "c"])
    if not changes:
        words = words.replace("12 labels", "4 labels")
    with pytest.raises(CohortError) as error:
        prepare(path, tmp_path / "out", names, **settings)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("dataset_dir", "download", "words"),
    [
        ("missing", None, "dataset_dir is neither a folder of PNG or JPEG files nor a MedMNIST file"),
        (None, "ImageNet", "download must be one of ('MedNIST',)"),
        (".", "MedNIST", "without a dataset_dir of your own"),
    ],
)
def test_where_pictures_are(tmp_path: Path, dataset_dir: str | None, download: str | None, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        locate_images(dataset_dir and tmp_path / dataset_dir, download, tmp_path)
    assert words in str(error.value)
    assert locate_images(None, None, tmp_path) is None


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.apps import MedNISTDataset

    monkeypatch.setattr(MedNISTDataset, "resource", "http://127.0.0.1:9/MedNIST.tar.gz")
    with pytest.raises(ConfigurationError, match="MedNIST could not be fetched") as error:
        locate_images(None, "MedNIST", tmp_path)
    assert "pass --dataset_dir with the folder MedNIST" in str(error.value)
    assert not (tmp_path / "work" / "MedNIST").exists()


def test_class_names_that_cannot_be_found(tmp_path: Path) -> None:
    save(tmp_path / "0.png", gray(0))
    with pytest.raises(CohortError, match="The classes cannot be found"):
        find_class_names(tmp_path)


def test_losses() -> None:
    logits, labels = torch.tensor([[1.0, -2.0], [0.5, 0.1]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    chances = logits.sigmoid()
    expected = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    assert classification_loss("multi")(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = -logits.log_softmax(1)[[0, 1], [1, 0]].mean()
    assert classification_loss("single")(logits, torch.tensor([1, 0])).item() == pytest.approx(wanted.item(), rel=1e-6)
    with pytest.raises(ConfigurationError, match="label_kind must be one of"):
        classification_loss("both")
