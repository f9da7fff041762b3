from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from monai_basisprune.data import read_volume, read_volume_cohort, synthetic_source_volumes, write_synthetic_volumes
from monai_basisprune.data.synthetic_volumes import SOURCE_VOLUME_CLASSES
from monai_basisprune.errors import CohortError, ConfigurationError


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "cohort"
    write_synthetic_volumes(folder, patients=24, volume_size=16)
    return folder


def test_orientations_spacings_and_types_differ(cohort: Path) -> None:
    images = [nib.load(path) for path in sorted((cohort / "images").iterdir())[:-2]]
    assert len({aff2axcodes(image.affine) for image in images}) >= 4
    assert len({image.get_data_dtype() for image in images}) == 2
    assert {int(image.header["sform_code"]) > 0 for image in images} == {True, False}
    spacings = [sorted(image.header.get_zooms()) for image in images]
    assert any(one[2] > 1.3 * one[0] for one in spacings)
    assert len({image.shape for image in images}) > 5


def test_two_files_cannot_be_used_and_the_others_can(cohort: Path) -> None:
    with pytest.raises(CohortError) as caught:
        read_volume_cohort(cohort, progress=False)
    first, second = caught.value.problems
    assert "is 4D (16 x 16 x 16 x 2)" in first
    assert "is cut short or damaged" in second
    rows = list(csv.DictReader((cohort / "labels.csv").open()))
    usable = read_volume_cohort(cohort, on_problem="skip", progress=False)
    assert len(usable.cases) == len(rows) - 2
    assert usable.patients_per_class == {"negative": 14, "positive": 10}


def test_equal_arguments_write_equal_bytes(cohort: Path, tmp_path: Path) -> None:
    write_synthetic_volumes(tmp_path / "c", patients=24, volume_size=16)
    for path in sorted(cohort.rglob("*")):
        if path.is_file():
            assert (tmp_path / "c" / path.relative_to(cohort)).read_bytes() == path.read_bytes()
    write_synthetic_volumes(tmp_path / "d", patients=24, volume_size=16, seed=1)
    assert (tmp_path / "d/images/synth0001_1.nii.gz").read_bytes() != (
        cohort / "images/synth0001_1.nii.gz"
    ).read_bytes()


def test_values_are_hounsfield_units(cohort: Path) -> None:
    volume = read_volume(cohort / "images" / "synth0001_1.nii.gz")
    assert -1300 < volume.values.min() < -900
    assert 150 < volume.values.max() < 1500


@pytest.mark.parametrize("arguments", [{"patients": 1}, {"volume_size": 8}, {"prevalence": 1.0}])
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="A synthetic cohort needs patients >= 2"):
        write_synthetic_volumes(tmp_path / "c", **arguments)  # type: ignore[arg-type]
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigurationError, match="new or empty folder"):
        write_synthetic_volumes(tmp_path)


def test_the_source_task_has_all_classes_and_is_another_task() -> None:
    volumes, labels = synthetic_source_volumes(24, 16)
    assert volumes.shape == (24, 1, 16, 16, 16)
    assert volumes.dtype == np.float32
    assert 0 <= volumes.min() < volumes.max() <= 1
    assert np.bincount(labels).tolist() == [3] * len(SOURCE_VOLUME_CLASSES)
    again, _ = synthetic_source_volumes(24, 16)
    np.testing.assert_array_equal(again, volumes)
    with pytest.raises(ConfigurationError, match="count >= 8 and volume_size >= 16, found 7, 12"):
        synthetic_source_volumes(7, 12)
