from __future__ import annotations

from pathlib import Path

import pytest

from monai_basisprune.data import VolumePreparation
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.workflow import PreparedCohort, prepare_volume_cohort

HOW = VolumePreparation((16, 16, 16)).to_dict()


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreparedCohort]:
    output = tmp_path_factory.mktemp("default")
    with pytest.warns(UserWarning, match="left out of the datalist, 2 problems") as caught:
        cohort = prepare_volume_cohort(None, output, HOW, on_problem="skip", synthetic_patients=12, progress=False)
    text = "\n".join(str(one.message) for one in caught)
    assert "is 4D" in text
    assert "is cut short or damaged" in text
    return output, cohort


def test_without_a_folder_the_synthetic_cohort_is_made(default: tuple[Path, PreparedCohort]) -> None:
    output, cohort = default
    assert cohort.synthetic
    assert cohort.datalist["skipped_problems"] == 2
    assert cohort.dataset_dir == output / "work" / "synthetic_cohort"
    summary = cohort.summary()
    assert sum(part["patients"] for part in summary["splits"].values()) == 12
    assert all(Path(item["image"]).is_file() for item in cohort.split("test"))


def test_the_synthetic_cohort_with_its_broken_files_can_also_stop_a_run(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="2 problems were found"):
        prepare_volume_cohort(None, tmp_path, HOW, synthetic_patients=12, progress=False)


def test_a_folder_of_the_user_leaves_no_names_in_the_datalist(volumes: Path, tmp_path: Path) -> None:
    cohort = prepare_volume_cohort(volumes, tmp_path, HOW, progress=False)
    assert not cohort.synthetic
    assert "synth0" not in cohort.datalist_file.read_text()
    assert all(Path(item["image"]).is_file() for item in cohort.split("training"))
    again = prepare_volume_cohort(None, tmp_path / "b", HOW, prepared=cohort)
    assert again.datalist == cohort.datalist
    assert "synth0" not in again.datalist_file.read_text()


def test_folds_divide_by_patient(volumes: Path, tmp_path: Path) -> None:
    tested = []
    for fold in range(3):
        cohort = prepare_volume_cohort(volumes, tmp_path, HOW, folds=3, fold=fold, progress=False)
        tested += [item["case_id"] for item in cohort.datalist["test"]]
    whole = prepare_volume_cohort(volumes, tmp_path, HOW, progress=False).datalist
    assert sorted(tested) == sorted(
        item["case_id"] for name in ("training", "validation", "test") for item in whole[name]
    )


def test_arguments_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="class_names must name two classes"):
        prepare_volume_cohort(None, tmp_path, HOW, class_names=("a", "b", "c"))
    with pytest.raises(ConfigurationError, match="folds and fold belong together"):
        prepare_volume_cohort(None, tmp_path, HOW, folds=5)
    with pytest.raises(ConfigurationError, match="volume_size must be three whole numbers"):
        prepare_volume_cohort(None, tmp_path, {**HOW, "volume_size": 32})
    assert list(tmp_path.iterdir()) == []


# --- the cases of an evaluation
