from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from monai.transforms import Compose, Resized

from monai_basisprune.data import LoadRadiographd
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.inference import CaseDataset, list_radiographs

from ..bundle_runs import write_cohort


@pytest.fixture(scope="module")
def original_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("inference") / "images", patients=8)


@pytest.fixture
def cohort(original_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_cohort, tmp_path / "images"))


def damage(cohort: Path) -> tuple[str, list[str]]:
    """Cut one file short, put a text and a multi-frame image among them; returns the UID of the first, and words."""
    first, second, third = sorted((cohort / "images").iterdir())[:3]
    uid = str(pydicom.dcmread(first).SOPInstanceUID)
    first.write_bytes(first.read_bytes()[:-500])
    second.write_bytes(b"not an image")
    frames = pydicom.dcmread(third)
    frames.NumberOfFrames = 3
    frames.save_as(third)
    return uid, ["(12 bytes): is not a DICOM file", f"SOPInstanceUID {frames.SOPInstanceUID}: is a multi-frame image"]


def test_every_radiograph_is_listed_with_its_uid(cohort: Path) -> None:
    listed = list_radiographs(cohort, progress=False)
    files = sorted((cohort / "images").iterdir())
    assert [Path(item["image"]) for item in listed] == files
    assert [item["case_id"] for item in listed] == [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    assert {item["problem"] for item in listed} == {""}


def test_all_files_that_cannot_be_used_are_listed_at_once(cohort: Path) -> None:
    total = len(list((cohort / "images").iterdir()))
    _, words = damage(cohort)
    with pytest.raises(CohortError) as caught:
        list_radiographs(cohort, "raise", progress=False)
    message = str(caught.value)
    assert message.startswith(f"2 of {total} files cannot be used; repair or remove them, or pass --on_problem skip")
    assert len(caught.value.problems) == 2  # what only decoding shows is none of them
    for text in words:
        assert text in message
    assert "synth0001" not in message  # names of files can be names of patients


def test_skip_lists_them_with_the_reason(cohort: Path) -> None:
    total = len(list((cohort / "images").iterdir()))
    damage(cohort)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed = list_radiographs(cohort, "skip", progress=False)
    assert len(listed) == total
    assert [bool(item["problem"]) for item in listed[:4]] == [False, True, True, False]
    assert listed[1]["case_id"] == "file #2 of the sorted list (12 bytes)"
    assert listed[1]["problem"].startswith("is not a DICOM file")


def test_no_pixel_is_read_to_list_files(cohort: Path) -> None:
    for path in (cohort / "images").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 600])  # nothing but pixels at the end
    assert {item["problem"] for item in list_radiographs(cohort, progress=False)} == {""}


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(CohortError, match="dataset_dir is not a folder; pass --dataset_dir with the folder that"):
            list_radiographs(folder, progress=False)
    (tmp_path / "notes.txt").write_text("x")
    for way in ("raise", "skip"):
        with pytest.raises(CohortError, match=r"holds no radiograph that can be read \(1 other files\)"):
            list_radiographs(tmp_path, way, progress=False)
    (tmp_path / "a.dcm").write_bytes(b"x")
    (tmp_path / "b.dcm").write_bytes(b"")
    with pytest.raises(CohortError, match="holds no radiograph that can be read") as caught:
        list_radiographs(tmp_path, "skip", progress=False)
    assert "is not a DICOM file" in str(caught.value)
    assert "is empty (0 bytes)" in str(caught.value)


def test_a_misspelt_way_to_treat_problems_is_refused(cohort: Path) -> None:
    with pytest.raises(ConfigurationError, match="on_problem must be 'raise' or 'skip', found 'rasie'"):
        list_radiographs(cohort, "rasie", progress=False)


def test_two_images_with_one_uid_are_a_problem(cohort: Path) -> None:
    files = sorted((cohort / "images").iterdir())
    uid, other = pydicom.dcmread(files[0]).SOPInstanceUID, pydicom.dcmread(files[-1])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = uid
    other.save_as(files[-1])
    with pytest.raises(CohortError, match=r"is duplicated: 2 files .* hold images that were not compared; keep one"):
        list_radiographs(cohort, progress=False)


def preparation(size: int = 8) -> Compose:
    return Compose([LoadRadiographd("image"), Resized("image", [size, size], mode="area")])


def test_a_damaged_image_stops_nothing_and_says_why(cohort: Path) -> None:
    uid, _ = damage(cohort)
    cases = list_radiographs(cohort, "skip", progress=False)
    data = CaseDataset(cases, preparation(), (1, 8, 8))
    found = [data[index] for index in range(len(data))]
    assert [item["case_id"] for item in found] == [case["case_id"] for case in cases]
    assert found[0]["case_id"] == uid
    assert found[0]["problem"].startswith("has pixels that cannot be decoded")
    assert [bool(item["problem"]) for item in found[:4]] == [True, True, True, False]
    for item in found[:3]:
        assert item["image"].shape == (1, 8, 8)
        assert not item["image"].any()
    assert all(item["image"].any() for item in found[3:])


def test_errors_of_others_are_named_by_type_alone() -> None:
    def fail(case: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            raise KeyError("/data/Doe^Jane/a.dcm")
        except KeyError as error:
            raise RuntimeError("applying transform to Doe^Jane") from error

    item = CaseDataset([{"image": "a", "case_id": "1", "label": 1}], fail, (2, 4))[0]
    assert item["problem"] == "cannot be prepared (KeyError)"
    assert item["label"] == 1
    assert torch.equal(item["image"], torch.zeros(2, 4))
