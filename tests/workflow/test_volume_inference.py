from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from monai_basisprune.data import VolumePreparation
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.workflow import PreparedCohort, prepare_volume_cohort, volume_evaluation_cases

HOW = VolumePreparation((16, 16, 16)).to_dict()


def published(cohort: PreparedCohort, output: Path) -> Path:
    output.mkdir(exist_ok=True)
    shutil.copyfile(cohort.datalist_file, output / "datalist.json")
    (output / "study.json").write_text("{}")
    return output


def test_cases_are_found_by_their_content(volumes: Path, tmp_path: Path) -> None:
    cohort = prepare_volume_cohort(volumes, tmp_path / "run", HOW, progress=False)
    output = published(cohort, tmp_path / "run")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted((volumes / "images").iterdir())):
        shutil.copyfile(path, renamed / f"x{99 - number}.nii.gz")
    cases = volume_evaluation_cases(output, "test", renamed)
    assert [case["case_id"] for case in cases] == [item["case_id"] for item in cohort.datalist["test"]]
    assert all(Path(case["image"]).parent == renamed for case in cases)
    for path in renamed.iterdir():
        path.write_bytes(b"")
    with pytest.raises(CohortError, match="has no file in dataset_dir; is it the right folder"):
        volume_evaluation_cases(output, "test", renamed)


def test_what_is_missing_for_an_evaluation_is_named(volumes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no datalist.json in output_dir"):
        volume_evaluation_cases(tmp_path, "test", volumes)
    output = published(prepare_volume_cohort(volumes, tmp_path, HOW, progress=False), tmp_path)
    with pytest.raises(ConfigurationError, match="made with volumes of your own: pass --dataset_dir"):
        volume_evaluation_cases(output, "test")
    with pytest.raises(CohortError, match="is not a folder"):
        volume_evaluation_cases(output, "test", tmp_path / "none")
    with pytest.raises(CohortError, match="'tests' was asked for"):
        volume_evaluation_cases(output, "tests", volumes)
    content = json.loads((output / "datalist.json").read_text())
    content["test"][0]["label"] = 1 - content["test"][0]["label"]
    (output / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(CohortError, match="does not match its split_sha256"):
        volume_evaluation_cases(output, "test", volumes)
    (output / "datalist.json").write_text("[")
    with pytest.raises(CohortError, match="cannot be read"):
        volume_evaluation_cases(output, "test", volumes)
