from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from volume_files import affine, nifti, series, values

from monai_basisprune.data.volume_preflight import cross_check_volumes, find_volumes, inspect_volume, inspect_volumes
from monai_basisprune.files import sha256_of

MARK = "ZQXDOE"


def test_files_and_folders_of_slices_are_found_and_others_left_out(tmp_path: Path) -> None:
    nifti(tmp_path / "b" / "one.nii.gz")
    nifti(tmp_path / "TWO.NII")
    series(tmp_path / "ct" / "first")
    series(tmp_path / "ct" / "second", seed=1)
    for name in ("labels.csv", "b/notes.txt", ".hidden.nii", "ct/first/DICOMDIR"):
        (tmp_path / name).write_bytes(b"x")
    nifti(tmp_path / "ignored.nii")
    found, left_out = find_volumes(tmp_path, [tmp_path / "ignored.nii"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "TWO.NII",
        "b/one.nii.gz",
        "ct/first",
        "ct/second",
    ]
    assert left_out == 5


def test_a_record_says_what_a_volume_is(tmp_path: Path) -> None:
    path = nifti(tmp_path / f"{MARK}.nii.gz", values(0))
    record = inspect_volume(tmp_path, path, 3)
    assert (record.problems, record.position, record.size) == ((), 3, path.stat().st_size)
    assert (record.shape, record.spacing) == ((8, 10, 6), pytest.approx((1.0, 1.5, 2.0)))
    assert (record.lowest, record.highest) == (values(0).min(), values(0).max())
    assert record.case_name == record.file_sha256 == sha256_of(path)
    assert record.name == f"volume #3 of the sorted list ({record.size} bytes)"
    assert MARK not in repr(record)
    folder, voxels = series(tmp_path / f"{MARK}_ct", patient=f"{MARK}1")
    record = inspect_volume(tmp_path, folder, 1)
    assert record.name == f"SeriesInstanceUID {record.case_name}"
    assert (record.modality, record.patient_id, record.size) == ("CT", f"{MARK}1", 0)
    assert record.attributes["sex"] == "F"
    assert record.shape == (8, 10, 6)
    assert record.spacing == pytest.approx((0.75, 0.5, 2.5))  # columns, rows, slices
    assert (record.lowest, record.highest) == (voxels.min(), voxels.max())
    assert MARK not in repr(record)


def test_shape_and_spacing_are_those_of_the_turned_volume(tmp_path: Path) -> None:
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = -1.0, 1.5, 2.0, 1  # feet first, then right, then front
    record = inspect_volume(tmp_path, nifti(tmp_path / "a.nii", grid=turned), 1)
    assert record.shape == (10, 6, 8)
    assert record.spacing == pytest.approx((1.5, 2.0, 1.0))


@pytest.mark.parametrize(
    ("spacing", "window", "words"),
    [
        ((0.005, 0.005, 0.005), None, "would have more than"),
        (None, (500, 900), "shows nothing in the window from 500 to 900"),
        (None, (-3000, -1000), "shows nothing in the window from -3000 to -1000"),
    ],
)
def test_what_the_network_could_not_see_is_a_problem(
    spacing: tuple[float, ...] | None, window: tuple[float, float] | None, words: str, tmp_path: Path
) -> None:
    data = values(0).clip(-1000, 400)
    data[0, 0, 0] = -1000
    path = nifti(tmp_path / "a.nii", data)
    (problem,) = inspect_volume(tmp_path, path, 1, spacing, window).problems
    assert words in problem
    assert inspect_volume(tmp_path, path, 1, (1, 1, 1), (-1000, 400)).problems == ()


def test_nothing_is_raised_for_damaged_volumes_and_the_others_are_read(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"x" * 500)
    folder, _ = series(tmp_path / "c")
    sorted(folder.iterdir())[2].unlink()  # a slice is missing
    nifti(tmp_path / "d.nii", np.full((8, 8, 8), np.nan, np.float32))
    records = inspect_volumes(tmp_path, find_volumes(tmp_path)[0], progress=False)
    assert [len(record.problems) for record in records] == [0, 1, 1, 1]
    assert [record.position for record in records] == [1, 2, 3, 4]
    assert records[2].name.startswith("SeriesInstanceUID ")  # known although it cannot be used
    assert math.isnan(records[1].lowest)
    assert [problem.positions for problem in cross_check_volumes(records)] == [(2,), (3,), (4,)]


def test_a_series_in_two_folders_is_found(tmp_path: Path) -> None:
    folder, _ = series(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    sorted((tmp_path / "b").iterdir())[0].write_bytes(sorted(folder.iterdir())[1].read_bytes())
    for path in (tmp_path / "a", tmp_path / "b"):
        assert path in find_volumes(tmp_path)[0]
    records = inspect_volumes(tmp_path, find_volumes(tmp_path)[0], progress=False)
    texts = [str(problem) for problem in cross_check_volumes(records)]
    assert [text for text in texts if "is in 2 folders (#1, #2 of the sorted list) that differ" in text]


def test_copies_are_found_whatever_their_names_and_compression(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii")
    nifti(tmp_path / "b.nii.gz")
    nifti(tmp_path / "c.nii", grid=affine((1.0, 1.5, 2.5)))  # the same voxels, but of another size
    records = inspect_volumes(tmp_path, find_volumes(tmp_path)[0], progress=False)
    (problem,) = cross_check_volumes(records)
    assert problem.positions == (1, 2)
    assert "is duplicated: 2 volumes (#1, #2 of the sorted list) hold the same voxels; keep one" in str(problem)
