from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import Dataset
from sklearn.metrics import roc_auc_score

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.handlers import Predictions
from monai_basisprune.workflow import evaluation_cases, prepare_cohort, write_evaluation
from monai_basisprune.workflow.inference import predict

from ..bundle_runs import write_cohort
from ..networks import tiny_classifier

NAN = float("nan")


@pytest.fixture(scope="module")
def original_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("inference") / "images", patients=16)


@pytest.fixture
def cohort(original_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_cohort, tmp_path / "images"))


# --- predict


def test_predictions_are_in_the_order_of_the_cases() -> None:
    network = tiny_classifier()
    images = torch.randn(21, 1, 8, 8)
    items = [
        {"image": image, "label": i % 2, "case_id": f"c{i}", "patient_id": f"p{i // 3}"}
        for i, image in enumerate(images)
    ]
    found = predict(network.train(), Dataset(items), "cpu", batch_size=4, patient_key="patient_id")
    with torch.no_grad():
        wanted = network.eval()(images)
    np.testing.assert_allclose(found.outputs, wanted.numpy(), rtol=1e-5)
    assert found.case_ids == [f"c{i}" for i in range(21)]
    assert found.patients == [f"p{i // 3}" for i in range(21)]
    assert found.labels == [i % 2 for i in range(21)]


# --- write_evaluation


def test_an_evaluation_is_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    labels = [i % 2 for i in range(40)]
    outputs = [[0.0, float(generator.normal() + label)] for label in labels]
    patients = [f"p{i // 2}" for i in range(40)]
    content = write_evaluation(Predictions(outputs, labels, patients), tmp_path / "e.json", "validation")
    assert json.loads((tmp_path / "e.json").read_text()) == content
    expected = roc_auc_score(labels, [row[1] for row in outputs])
    assert content["section"] == "validation"
    assert content["auc"]["auc"] == pytest.approx(expected, abs=1e-12)
    assert content["auc"]["patients"] == 20
    assert content["auc"]["low"] < expected < content["auc"]["high"]
    assert f"AUC on 40 validation cases: {expected:.3f} (95 % interval {content['auc']['low']:.3f} to" in (
        capsys.readouterr().out
    )


def test_an_evaluation_of_too_few_patients_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = write_evaluation(Predictions([[0.0, 1.0], [0.0, 2.0]], [0, 1], ["p", "q"]), tmp_path / "e.json")
    assert content["auc"]["low"] is None
    assert "AUC on 2 test cases: 1.000; not computable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        ([[0.0, 1.0], [0.0, 2.0]], [1, 1]),
        ([[0.0, 1.0], [0.0, 2.0]], []),
        ([[0.0, NAN], [0.0, 2.0]], [0, 1]),
        ([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]], [0, 1]),
        ([], []),
    ],
    ids=["one class", "no labels", "NaN", "three classes", "nothing"],
)
def test_an_evaluation_that_means_nothing_is_not_written(outputs: Any, labels: Any, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text("earlier")
    with pytest.raises(ValueError):
        write_evaluation(Predictions(outputs, labels), tmp_path / "e.json")
    assert (tmp_path / "e.json").read_text() == "earlier"


def test_no_figure_is_computed_while_a_case_cannot_be_used(tmp_path: Path) -> None:
    predictions = Predictions([[0.0, 1.0], [1.0, 0.0]], [1, 0], ["p", "q"], ["c1", "c2"], ["", "has no pixels"])
    with pytest.raises(CohortError, match="No figure is computed while cases cannot be used") as caught:
        write_evaluation(predictions, tmp_path / "e.json")
    assert caught.value.problems == ("c2: has no pixels",)
    assert list(tmp_path.iterdir()) == []


# --- evaluation_cases


def finished(output: Path, dataset_dir: Path | None, synthetic_patients: int = 24) -> Path:
    """Leave in a folder what evaluation_cases needs of a run that has ended."""
    cohort = prepare_cohort(dataset_dir, output, synthetic_patients=synthetic_patients, progress=False)
    shutil.copyfile(cohort.datalist_file, output / "datalist.json")
    (output / "study.json").write_text("{}")  # read only where dataset_dir is not given
    return output


def test_cases_of_each_section_are_found(cohort: Path, tmp_path: Path) -> None:
    output = finished(tmp_path / "out", cohort)
    datalist = json.loads((output / "datalist.json").read_text())
    for section in ("training", "validation", "test"):
        cases = evaluation_cases(output, section, cohort)
        assert [case["case_id"] for case in cases] == [item["case_id"] for item in datalist[section]]
        assert all(Path(case["image"]).is_file() for case in cases)


def test_an_output_without_a_result_is_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"no datalist\.json in output_dir: run `python -m monai\.bundle run prune`"
    ):
        evaluation_cases(tmp_path / "nothing", "test", cohort)


def test_an_unknown_section_is_refused(cohort: Path, tmp_path: Path) -> None:
    output = finished(tmp_path / "out", cohort)
    with pytest.raises(CohortError, match="'tset' was asked for; a datalist has training, validation, test"):
        evaluation_cases(output, "tset", cohort)


def test_own_images_must_be_named(cohort: Path, tmp_path: Path) -> None:
    output = finished(tmp_path / "out", cohort)
    with pytest.raises(ConfigurationError, match="with images of your own: pass --dataset_dir with their folder"):
        evaluation_cases(output, "test")


def test_a_folder_without_the_images_is_refused(cohort: Path, tmp_path: Path) -> None:
    output = finished(tmp_path / "out", cohort)
    (tmp_path / "other").mkdir()
    with pytest.raises(CohortError, match="has no file in dataset_dir; is it the right folder") as caught:
        evaluation_cases(output, "test", tmp_path / "other")
    assert "synth0" not in str(caught.value)


def test_images_are_found_by_content_whatever_their_names(cohort: Path, tmp_path: Path) -> None:
    output = finished(tmp_path / "out", cohort)
    wanted = {case["case_id"]: Path(case["image"]).read_bytes() for case in evaluation_cases(output, "test", cohort)}
    files = sorted((cohort / "images").iterdir())
    first, rest = files[0].read_bytes(), files[1:]
    for before, after in zip(files, rest, strict=False):  # every name now stands for another patient's image
        before.write_bytes(after.read_bytes())
    files[-1].write_bytes(first)
    found = evaluation_cases(output, "test", cohort)
    assert {case["case_id"]: Path(case["image"]).read_bytes() for case in found} == wanted
    changed = pydicom.dcmread(found[0]["image"])
    changed.PixelData = changed.PixelData[::-1]
    changed.save_as(found[0]["image"])
    with pytest.raises(CohortError, match=f"case {found[0]['case_id']}: has no file in dataset_dir"):
        evaluation_cases(output, "test", cohort)


def test_the_synthetic_images_of_an_earlier_result_stay(tmp_path: Path) -> None:
    output = finished(tmp_path / "out", None)
    images = output / "work" / "synthetic_cohort"
    before = {case["case_id"]: Path(case["image"]).read_bytes() for case in evaluation_cases(output, "test", images)}
    prepare_cohort(None, output, synthetic_patients=40, progress=False)  # a later run, which never ends
    try:
        after = {c["case_id"]: Path(c["image"]).read_bytes() for c in evaluation_cases(output, "test", images)}
    except CohortError:
        return  # refused in words would do as well
    assert after == before


def test_a_datalist_without_a_study_is_refused_in_our_words(tmp_path: Path) -> None:
    output = finished(tmp_path / "out", None)
    (output / "study.json").unlink()
    with pytest.raises(ConfigurationError, match=r"study\.json"):
        evaluation_cases(output, "test")
