from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from volume_files import affine, nifti, series, table, values

from monai_basisprune.data import Cohort, load_split, prepare_volume_datalist, read_volume_cohort
from monai_basisprune.data.volume_preflight import find_volumes, inspect_volumes
from monai_basisprune.errors import CohortError, ConfigurationError

MARK = "ZQXDOE"


def write_cohort(folder: Path, count: int = 8, columns: str = "image,label,patient_id") -> Path:
    """Write NIfTI files, and two DICOM series at the end, with alternating labels."""
    rows = []
    for number in range(count):
        if number < count - 2:
            nifti(folder / f"{MARK}_{number}.nii.gz", values(number))
            name = f"{MARK}_{number}.nii.gz"
        else:
            series(folder / f"{MARK}_{number}", seed=number, patient=f"{MARK}P{number}")
            name = f"{MARK}_{number}/"
        rows.append((name, str(number % 2), f"{MARK}P{number}")[: columns.count(",") + 1])
    table(folder, rows, columns)
    return folder


def read(folder: Path, **arguments: object) -> Cohort:
    return read_volume_cohort(folder, progress=False, **arguments)  # type: ignore[arg-type]


def problems(folder: Path, **arguments: object) -> tuple[str, ...]:
    with pytest.raises(CohortError) as caught:
        read(folder, **arguments)
    assert MARK not in str(caught.value)
    return caught.value.problems


def test_files_and_series_become_one_cohort(tmp_path: Path) -> None:
    cohort = read(write_cohort(tmp_path / "c"), salt=b"0123456789abcdef")
    assert cohort.cases_per_class == {"negative": 4, "positive": 4}
    assert cohort.patient_count == 8
    assert MARK not in repr(cohort)
    by_sex = [case.sex for case in cohort.cases]
    assert sorted(map(str, by_sex)) == ["F", "F"] + ["None"] * 6
    assert all(case.image_sha256 and len(case.case_id) == 16 for case in cohort.cases)


def test_the_order_and_the_ids_do_not_depend_on_names(tmp_path: Path) -> None:
    first = write_cohort(tmp_path / "a")
    second = tmp_path / "b"
    second.mkdir()
    rows = []
    for number in range(8):
        old = first / f"{MARK}_{number}{'.nii.gz' if number < 6 else ''}"
        new = second / f"x{9 - number}{'.nii.gz' if number < 6 else ''}"
        (shutil.copytree if old.is_dir() else shutil.copyfile)(old, new)
        rows.append((new.name, str(number % 2), f"{MARK}P{number}"))
    table(second, rows)
    one, two = (read(folder, salt=b"0123456789abcdef") for folder in (first, second))
    assert [(c.case_id, c.label, c.patient_id) for c in one.cases] == [
        (c.case_id, c.label, c.patient_id) for c in two.cases
    ]


def test_a_row_may_name_the_series_by_its_uid(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    records = inspect_volumes(folder, find_volumes(folder)[0], progress=False)
    text = (folder / "labels.csv").read_text()
    for record in records:
        if record.series:
            text = text.replace(f"{record.path}/", record.series)
    (folder / "labels.csv").write_text(text)
    assert len(read(folder).cases) == 8


def test_a_patient_is_never_made_up(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", columns="image,label")
    found = problems(folder)
    assert len(found) == 6  # the series have PatientID
    assert all("has no patient: NIfTI files hold none" in text for text in found)
    assert all("pass the column of the image as patient_column" in text for text in found)
    assert read(folder, patient_column="image").patient_count == 8


def test_volumes_of_one_patient_stay_together(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", count=14)
    rows = [(f"{MARK}_{n}.nii.gz", str(n % 2), f"P{n % 2}{n // 4}") for n in range(12)]
    rows += [(f"{MARK}_{n}", str(n % 2), f"Q{n}") for n in (12, 13)]
    table(folder, rows)
    datalist = prepare_volume_datalist(folder, tmp_path / "work" / "datalist.json", progress=False)
    places: dict[str, set[str]] = {}
    for section in ("training", "validation", "test"):
        for item in datalist[section]:
            places.setdefault(item["patient_id"], set()).add(section)
    assert len(places) == 8
    assert all(len(where) == 1 for where in places.values())
    loaded = load_split(datalist, "training", folder)
    assert all(Path(item["image"]).exists() for item in loaded)
    written = prepare_volume_datalist(folder, tmp_path / "w" / "datalist.json", image_paths=False, progress=False)
    assert MARK not in (tmp_path / "w" / "datalist.json").read_text()
    assert "image" in written["test"][0]
    assert "image" not in json.loads((tmp_path / "w" / "datalist.json").read_text())["test"][0]


def test_every_problem_is_named_at_once_and_skipped_if_asked(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", count=12)
    nifti(folder / f"{MARK}_0.nii.gz", values(shape=(8, 10, 6, 2)))
    raw = (folder / f"{MARK}_1.nii.gz").read_bytes()
    (folder / f"{MARK}_1.nii.gz").write_bytes(raw[: len(raw) // 2])
    nifti(folder / f"{MARK}_2.nii.gz", np.where(values() > 390, np.nan, values()))
    series(folder / f"{MARK}_10", seed=99)  # a second series in one folder
    nifti(folder / f"{MARK}_new.nii", values(50))
    with open(folder / "labels.csv", "a") as file:
        file.write(f"{MARK}_none.nii,1,{MARK}X\n{MARK}_3.nii.gz,maybe,{MARK}P3\n")
    found = problems(folder)
    for words in (
        "is 4D (8 x 10 x 6 x 2)",
        "is cut short or damaged",
        "voxels that are NaN or infinite",
        "mixes 2 series in one folder",
        "has no row in the labels table",
        "names an image for which there is no file",
        "or its SeriesInstanceUID",
        "has conflicting labels in lines",
    ):
        assert [text for text in found if words in text], words
    assert any(text.startswith("volume #") and "of the sorted list" in text for text in found)
    cohort = read(folder, on_problem="skip")
    assert len(cohort.cases) == 7  # 12 without the five above
    assert len(cohort.skipped) == len(found)
    with pytest.warns(UserWarning, match="left out of the datalist"):
        prepare_volume_datalist(
            folder, tmp_path / "d.json", on_problem="skip", progress=False, fractions=(0.34, 0.33, 0.33)
        )


def test_copies_are_found_under_other_names_and_compressions(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    nifti(folder / "again.nii", values(0))
    shutil.copytree(folder / f"{MARK}_7", folder / "series again")
    with open(folder / "labels.csv", "a") as file:
        file.write("again.nii,0,X\nseries again,1,Y\n")
    found = [text for text in problems(folder) if "is duplicated" in text]
    assert len(found) == 2
    assert all("2 volumes (#" in text and "hold the same voxels; keep one" in text for text in found)


@pytest.mark.parametrize(("labels", "words"), [("00000001", "of 'positive'"), ("00000000", "missing: positive")])
def test_a_class_with_one_case_or_none(tmp_path: Path, labels: str, words: str) -> None:
    folder = write_cohort(tmp_path / "c")
    lines = (folder / "labels.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    table(folder, [(cell[0], label, cell[2]) for cell, label in zip(cells, labels, strict=True)])
    for on_problem in ("raise", "skip"):
        with pytest.raises(CohortError) as caught:
            prepare_volume_datalist(folder, tmp_path / "d.json", on_problem=on_problem, progress=False)
        assert words in str(caught.value)
        assert "cannot be" in str(caught.value)


def test_one_patient_must_be_one_person(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    series(folder / f"{MARK}_6", seed=6, PatientBirthDate="19991231", PatientID="same")
    shutil.rmtree(folder / f"{MARK}_7")
    series(folder / f"{MARK}_7", seed=7, PatientID="same")
    rows = [(f"{MARK}_{n}.nii.gz", str(n % 2), f"P{n}") for n in range(6)]
    table(folder, [*rows, (f"{MARK}_6", "0", ""), (f"{MARK}_7", "1", "")])
    assert [text for text in problems(folder) if "differ in birth dates" in text]


def test_folders_and_arguments_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="is not a folder; pass the folder that holds the volumes"):
        read(tmp_path / "none")
    table(tmp_path, [("a.nii", "1", "P")])
    assert "neither NIfTI files nor folders of DICOM files" in problems(tmp_path)[0]
    with pytest.raises(ConfigurationError, match="on_problem must be"):
        read(tmp_path, on_problem="ignore")


def test_volumes_that_the_field_cuts_are_warned_of(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    # 8 mm, 15 mm and 12 mm: the series are smaller
    with pytest.warns(
        UserWarning, match=r"6 of 8 volumes are larger than the field .* \(14 x 14 x 16 mm\) and are cut"
    ):
        read(folder, spacing=(1, 1, 1), volume_size=(14, 14, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(folder, spacing=(1, 1, 1), volume_size=(16, 16, 16))
        read(folder, spacing=None, volume_size=(8, 8, 8))


def test_a_spacing_that_would_make_too_many_voxels_is_refused(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    nifti(folder / f"{MARK}_0.nii.gz", values(), affine((400, 300, 500)))
    found = problems(folder, spacing=(1, 1, 1))
    assert [text for text in found if "would have more than 536870912 voxels at the spacing" in text]


def test_what_is_hardly_ct_is_warned_of(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(folder, window=(-1000, 400))
    nifti(folder / f"{MARK}_0.nii.gz", values(0) + 1000)
    shutil.rmtree(folder / f"{MARK}_7")
    series(folder / f"{MARK}_7", seed=7, patient=f"{MARK}P7", Modality="MR")
    with pytest.warns(UserWarning, match=r"^2 of 8 volumes do not look like CT .* window from -1000 to 400; for MR"):
        read(folder, window=(-1000, 400))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(folder)


def test_a_volume_outside_of_the_window_is_refused(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c")
    nifti(folder / f"{MARK}_0.nii.gz", values(0) + 5000)
    (found,) = problems(folder, window=(-1000, 400))
    assert "shows nothing in the window from -1000 to 400, its values run from 4" in found
    assert len(read(folder).cases) == 8
