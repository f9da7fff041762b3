from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from monai_basisprune.data import VolumePreparation
from monai_basisprune.errors import CohortError
from monai_basisprune.files import sha256_of
from monai_basisprune.inference import list_volumes

from ..data.volume_files import nifti, series, values

MARK = "ZQXDOE"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three NIfTI files and two DICOM series, the names of which are a patient's."""
    for number in range(3):
        nifti(tmp_path / "c" / f"{MARK}_{number}.nii.gz", values(number))
    for number in (3, 4):
        series(tmp_path / "c" / f"{MARK}_{number}", seed=number)
    return tmp_path / "c"


def test_the_volumes_of_a_folder_are_listed(folder: Path) -> None:
    cases = list_volumes(folder, progress=False)
    assert all(set(case) == {"image", "case_id", "problem"} for case in cases)
    assert [case["case_id"] for case in cases[:3]] == [sha256_of(path) for path in sorted(folder.glob("*.nii.gz"))]
    for case in cases[3:]:
        slices = {str(pydicom.dcmread(path).SeriesInstanceUID) for path in Path(case["image"]).iterdir()}
        assert slices == {case["case_id"]}
    assert not any(MARK in case["case_id"] or case["problem"] for case in cases)


def test_a_damaged_volume_stops_the_list_or_stays_in_it_with_the_reason(folder: Path) -> None:
    (folder / f"{MARK}_0.nii.gz").write_bytes(b"x" * 500)
    with pytest.raises(CohortError, match=r"1 of 5 volumes cannot be used.*--on_problem") as caught:
        list_volumes(folder, progress=False)
    assert MARK not in str(caught.value)
    cases = list_volumes(folder, "skip", progress=False)
    assert [bool(case["problem"]) for case in cases] == [True, False, False, False, False]
    assert "is not a NIfTI file" in cases[0]["problem"]
    assert cases[0]["case_id"] == "volume #1 of the sorted list (500 bytes)"


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(CohortError, match="holds no volume that can be read"):
        list_volumes(tmp_path, "skip", progress=False)
    for nothing in (None, tmp_path / "nowhere"):
        with pytest.raises(CohortError, match="is not a folder"):
            list_volumes(nothing)


def test_a_volume_that_the_network_would_see_as_empty_is_not_predicted(folder: Path) -> None:
    nifti(folder / f"{MARK}_0.nii.gz", values(0) + 5000)
    how = VolumePreparation((16, 16, 16)).to_dict()
    with pytest.raises(CohortError, match="1 of 5 volumes cannot be used") as caught:
        list_volumes(folder, preparation=how, progress=False)
    assert "shows nothing in the window from -1000 to 400" in str(caught.value)
    assert not [case for case in list_volumes(folder, preparation={**how, "intensity": "zscore"}) if case["problem"]]
