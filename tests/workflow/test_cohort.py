from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.workflow import PreparedCohort, prepare_cohort
from monai_basisprune.workflow.cohort import working_folder

from ..bundle_runs import write_cohort

SECTIONS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "images", patients=30)


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    return prepare_cohort(folder, tmp_path_factory.mktemp("own"), progress=False)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreparedCohort]:
    output = tmp_path_factory.mktemp("synthetic")
    return output, prepare_cohort(None, output, synthetic_patients=20, seed=3, progress=False)


def count_from_files(dataset_dir: Path, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Count one section from the table of labels and the PatientID in the DICOM files."""
    with open(dataset_dir / "labels.csv", newline="") as file:
        labels = {row["image"]: row["label"] for row in csv.DictReader(file)}
    cases = [(pydicom.dcmread(dataset_dir / i["image"]).PatientID, labels[i["image"]]) for i in items]
    names = ("negative", "positive")
    return {
        "cases": len(cases),
        "patients": len({patient for patient, _ in cases}),
        "cases_by_class": [sum(label == name for _, label in cases) for name in names],
        "patients_by_class": [len({patient for patient, label in cases if label == name}) for name in names],
    }


def test_the_summary_of_an_own_folder_counts_what_is_there(own: PreparedCohort, folder: Path) -> None:
    summary = own.summary()
    assert summary["class_names"] == ["negative", "positive"]
    assert summary["synthetic"] is False
    assert summary["split_sha256"] == own.datalist["split_sha256"]
    assert list(summary["splits"]) == list(SECTIONS)
    for section in SECTIONS:
        assert summary["splits"][section] == count_from_files(folder, own.datalist[section])
        assert min(summary["splits"][section]["cases_by_class"]) >= 1
    with open(folder / "labels.csv", newline="") as file:
        assert sum(split["cases"] for split in summary["splits"].values()) == len(list(csv.DictReader(file)))
    json.dumps(summary, allow_nan=False)


def test_the_datalist_is_in_the_working_folder(own: PreparedCohort, folder: Path) -> None:
    assert own.dataset_dir == folder
    assert own.datalist_file.name == "datalist.json"
    assert own.datalist_file.parent.name == "work"
    written = json.loads(own.datalist_file.read_text())
    for section in SECTIONS:  # names of files can hold names of patients
        wanted = [{key: value for key, value in item.items() if key != "image"} for item in own.datalist[section]]
        assert written.pop(section) == wanted
    assert written == {key: value for key, value in own.datalist.items() if key not in SECTIONS}


def test_sections_are_ready_for_a_data_set(own: PreparedCohort) -> None:
    seen: dict[str, str] = {}
    for section in SECTIONS:
        for item in own.split(section):
            assert Path(item["image"]).is_file()
            assert item["label"] in (0, 1)
            assert seen.setdefault(item["patient_id"], section) == section
    with pytest.raises(CohortError, match="'tset' was asked for; a datalist has training, validation, test"):
        own.split("tset")


def test_the_synthetic_cohort_is_made_in_the_working_folder(synthetic: tuple[Path, PreparedCohort]) -> None:
    output, cohort = synthetic
    assert cohort.dataset_dir == output / "work" / "synthetic_cohort"
    summary = cohort.summary()
    assert summary["synthetic"] is True
    assert sum(split["patients"] for split in summary["splits"].values()) == 20
    for section in SECTIONS:
        assert summary["splits"][section] == count_from_files(cohort.dataset_dir, cohort.datalist[section])
    assert {path.name for path in output.iterdir()} == {"work"}


def test_the_synthetic_cohort_follows_the_seed(synthetic: tuple[Path, PreparedCohort], tmp_path: Path) -> None:
    def pixels(cohort: PreparedCohort) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((cohort.dataset_dir / "images").iterdir())}

    again = prepare_cohort(None, tmp_path / "a", synthetic_patients=20, seed=3, progress=False)
    other = prepare_cohort(None, tmp_path / "b", synthetic_patients=20, seed=4, progress=False)
    assert pixels(again) == pixels(synthetic[1])
    assert pixels(other) != pixels(again)
    sections = [[[item["image"] for item in c.datalist[s]] for s in SECTIONS] for c in (synthetic[1], again)]
    assert sections[0] == sections[1]


def test_a_second_synthetic_cohort_takes_the_place_of_the_first(tmp_path: Path) -> None:
    prepare_cohort(None, tmp_path, synthetic_patients=24, progress=False)
    cohort = prepare_cohort(None, tmp_path, synthetic_patients=20, progress=False)
    assert len(list((cohort.dataset_dir / "images").iterdir())) == sum(len(cohort.datalist[s]) for s in SECTIONS)


def test_columns_meant_for_an_own_table_do_not_reach_the_synthetic_one(tmp_path: Path) -> None:
    cohort = prepare_cohort(
        None,
        tmp_path,
        labels_file="mine.csv",
        image_column="file",
        label_column="finding",
        patient_column="person",
        synthetic_patients=20,
        progress=False,
    )
    assert cohort.synthetic


def test_an_earlier_datalist_stays(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text("an earlier result")
    prepare_cohort(folder, tmp_path, progress=False)
    assert (tmp_path / "datalist.json").read_text() == "an earlier result"
    (folder.parent / "empty").mkdir()
    with pytest.raises(CohortError):
        prepare_cohort(folder.parent / "empty", tmp_path, progress=False)
    assert (tmp_path / "datalist.json").read_text() == "an earlier result"
    assert {path.name for path in tmp_path.iterdir()} == {"datalist.json", "work"}


@pytest.mark.parametrize("names", [["negative"], ["a", "b", "c"], []])
def test_two_classes_are_needed(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="class_names must name two classes, the one to find last; got"):
        prepare_cohort(None, tmp_path, class_names=names)
    assert list(tmp_path.iterdir()) == []


def test_class_names_give_the_index(folder: Path, tmp_path: Path) -> None:
    turned = prepare_cohort(folder, tmp_path, class_names=("positive", "negative"), progress=False)
    assert turned.summary()["class_names"] == ["positive", "negative"]
    with open(folder / "labels.csv", newline="") as file:
        labels = {row["image"]: row["label"] for row in csv.DictReader(file)}
    for section in SECTIONS:
        for item in turned.datalist[section]:
            assert item["label"] == (labels[item["image"]] == "negative")


def test_fractions_and_seed_reach_the_split(folder: Path, tmp_path: Path) -> None:
    cohort = prepare_cohort(folder, tmp_path, fractions=(0.4, 0.3, 0.3), seed=5, progress=False)
    assert cohort.datalist["fractions"] == [0.4, 0.3, 0.3]
    assert cohort.datalist["seed"] == 5
    with pytest.raises(ConfigurationError, match="fractions must be three numbers above 0 that add up to 1"):
        prepare_cohort(folder, tmp_path, fractions=(0.5, 0.5), progress=False)


def test_a_misspelt_way_to_treat_problems_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="on_problem must be 'raise' or 'skip', found 'skp'"):
        prepare_cohort(folder, tmp_path, on_problem="skp", progress=False)  # type: ignore[arg-type]


def test_a_file_in_place_of_the_output_folder_is_refused_in_our_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    with pytest.raises(ConfigurationError, match="output_dir"):
        prepare_cohort(folder, tmp_path / "output", progress=False)


def test_results_inside_the_folder_of_images_are_not_taken_for_images(tmp_path: Path) -> None:
    images = write_cohort(tmp_path / "study", patients=20)
    output = images / "results"
    first = prepare_cohort(images, output, progress=False)
    for name in ("report.html", "curve.csv", "study.json", "model.plan.json", "datalist.json"):
        (output / name).write_text("x")
    assert prepare_cohort(images, output, progress=False).datalist["split_sha256"] == first.datalist["split_sha256"]


def test_networks_inside_the_folder_of_images_are_not_taken_for_images(tmp_path: Path) -> None:
    images = write_cohort(tmp_path / "study", patients=20)
    output = images / "results"
    prepare_cohort(images, output, progress=False)
    for name in ("model.pt", "model.ts", "curve.svg", "curve.png"):
        (output / name).write_bytes(b"x")
    prepare_cohort(images, output, progress=False)  # the second run of the same command


def test_working_folder_is_made(tmp_path: Path) -> None:
    assert working_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b" / "work"
    assert (tmp_path / "a" / "b" / "work").is_dir()
    assert working_folder(str(tmp_path / "a" / "b")).is_dir()
