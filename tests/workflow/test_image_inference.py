from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from monai_basisprune.data.image_classes import LabelSettings
from monai_basisprune.data.image_folder import prepare_image_datalist
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.handlers import Predictions
from monai_basisprune.workflow import image_evaluation_cases, patients_known, write_image_evaluation

from ..data.pictures import write_folders


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images")


def finished(images: Path, output: Path, **settings: Any) -> Path:
    """Leave in a folder what an evaluation needs of a run that has ended."""
    output.mkdir()
    prepare_image_datalist(
        images, output / "datalist.json", LabelSettings(**settings), progress=False, image_paths=False
    )
    return output


@pytest.mark.filterwarnings("ignore:No column and no pattern names the patients")
def test_pictures_are_found_by_their_content_and_patients_are_remembered(images: Path, tmp_path: Path) -> None:
    known = finished(images, tmp_path / "known", patient_pattern=r"/(\d+)\.")
    unknown = finished(images, tmp_path / "unknown")
    assert (patients_known(known), patients_known(unknown)) == (True, False)
    before = {
        case["case_id"]: Path(case["image"]).read_bytes() for case in image_evaluation_cases(known, "test", images)
    }
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        path.rename(images / f"{number}.png")
    cases = image_evaluation_cases(known, "test", images)
    assert {case["case_id"]: Path(case["image"]).read_bytes() for case in cases} == before
    Path(cases[0]["image"]).unlink()
    with pytest.raises(CohortError, match="is it the right folder") as error:
        image_evaluation_cases(known, "test", images)
    assert error.value.problems == (f"case {cases[0]['case_id']}",)


@pytest.mark.filterwarnings("ignore:No column and no pattern names the patients")
def test_what_is_missing_is_named(images: Path, tmp_path: Path) -> None:
    for ask in (patients_known, lambda output: image_evaluation_cases(output, "test", images)):
        with pytest.raises(ConfigurationError, match=r"There is no datalist\.json in output_dir .*run prune"):
            ask(tmp_path)
    output = finished(images, tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"are not in output_dir: pass --dataset_dir with their folder"):
        image_evaluation_cases(output, "test")
    with pytest.raises(ConfigurationError, match="The section 'tests' was asked for"):
        image_evaluation_cases(output, "tests", images)


@pytest.mark.parametrize("several", [False, True])
def test_the_figures_are_those_of_scikit_learn(
    several: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    names = ["left", "right", "both"]
    if several:
        labels = (rng.random((60, 3)) < 0.4).astype(int)
        scores = labels + rng.normal(size=(60, 3))
        wanted = roc_auc_score(labels, scores, average=None)
    else:
        labels = np.arange(60) % 3
        scores = np.eye(3)[labels] + rng.normal(size=(60, 3))
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        wanted = [roc_auc_score(labels == index, chances[:, index]) for index in range(3)]
    predictions = Predictions(scores.tolist(), labels.tolist(), [], [str(n) for n in range(60)], [""] * 60)
    content = write_image_evaluation(predictions, names, tmp_path / "e.json", "validation")
    assert json.loads((tmp_path / "e.json").read_text()) == content
    assert content["section"] == "validation"
    assert content["auc"]["auc"] == pytest.approx(np.mean(wanted), abs=1e-9)
    assert [one["name"] for one in content["classes"]] == names
    assert [one["interval"]["auc"] for one in content["classes"]] == pytest.approx(list(wanted), abs=1e-9)
    shown = capsys.readouterr().out
    assert f"AUC on 60 validation cases: {np.mean(wanted):.3f} (95 % interval " in shown
    assert f"  right: {wanted[1]:.3f} (95 % interval " in shown
    if several:
        assert "accuracy" not in content
    else:
        assert content["accuracy"]["value"] == accuracy_score(labels, scores.argmax(1))


def test_no_figure_of_classes_is_computed_while_a_picture_cannot_be_used(tmp_path: Path) -> None:
    outputs = [[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] * 3
    predictions = Predictions(outputs, [0, 1, 2] * 3, [], [f"c{case}" for case in range(9)], [""] * 9)
    assert write_image_evaluation(predictions, ["a", "b", "c"], tmp_path / "good.json")["auc"]["auc"] == 1.0
    predictions.problems[4] = "cannot be read (OSError)"
    with pytest.raises(CohortError, match="No figure is computed while cases cannot be used") as caught:
        write_image_evaluation(predictions, ["a", "b", "c"], tmp_path / "bad.json")
    assert caught.value.problems == ("c4: cannot be read (OSError)",)
    assert not (tmp_path / "bad.json").exists()
