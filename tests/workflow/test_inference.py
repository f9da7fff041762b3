from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import Dataset, save_net_with_metadata
from sklearn.metrics import roc_auc_score
from torch import nn

from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.handlers import Predictions
from monai_basisprune.workflow import (
    evaluation_cases,
    list_radiographs,
    load_deployed,
    prepare_cohort,
    read_deployment,
    write_evaluation,
    write_predictions,
)
from monai_basisprune.workflow.inference import predict

from ..bundle_runs import write_cohort
from ..networks import tiny_classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

CARRIED = {
    "image_size": 8,
    "image_channels": 1,
    "intensity_mean": 0.449,
    "intensity_std": 0.226,
    "class_names": ["negative", "positive"],
}


@pytest.fixture(scope="module")
def original_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("inference") / "images", patients=16)


@pytest.fixture
def cohort(original_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_cohort, tmp_path / "images"))


def damage(cohort: Path) -> list[str]:
    """Cut two files short, put a text among them; returns what to find in a message."""
    first, second = sorted((cohort / "images").iterdir())[:2]
    uid = str(pydicom.dcmread(first).SOPInstanceUID)
    first.write_bytes(first.read_bytes()[:-500])
    second.write_bytes(b"not an image")
    return [f"SOPInstanceUID {uid}: has pixels that cannot be decoded", "(12 bytes): is not a DICOM file"]


# --- list_radiographs


def test_every_radiograph_is_listed_with_its_uid(cohort: Path) -> None:
    listed = list_radiographs(cohort, progress=False)
    files = sorted((cohort / "images").iterdir())
    assert [Path(item["image"]) for item in listed] == files
    assert [item["case_id"] for item in listed] == [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]


def test_all_damaged_files_are_listed_at_once(cohort: Path) -> None:
    total = len(list((cohort / "images").iterdir()))
    words = damage(cohort)
    with pytest.raises(CohortError) as caught:
        list_radiographs(cohort, "raise", progress=False)
    message = str(caught.value)
    assert message.startswith(f"2 of {total} files cannot be used; repair or remove them, or pass --on_problem skip")
    assert len(caught.value.problems) == 2
    for text in words:
        assert text in message
    assert "synth0001" not in message  # names of files can be names of patients


def test_skip_leaves_damaged_files_out_with_a_warning(cohort: Path) -> None:
    total = len(list((cohort / "images").iterdir()))
    words = damage(cohort)
    with pytest.warns(UserWarning, match="Left out:") as caught:
        listed = list_radiographs(cohort, "skip", progress=False)
    assert len(listed) == total - 2
    for text in words:
        assert text in str(caught[0].message)


def test_skip_says_nothing_where_nothing_is_skipped(cohort: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list_radiographs(cohort, "skip", progress=False)


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(CohortError, match="dataset_dir is not a folder; pass --dataset_dir with the folder that"):
            list_radiographs(folder, progress=False)
    (tmp_path / "notes.txt").write_text("x")
    for way in ("raise", "skip"):
        with pytest.raises(CohortError, match=r"holds no radiograph that can be read \(1 other files\)"):
            list_radiographs(tmp_path, way, progress=False)
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(CohortError, match="holds no radiograph that can be read") as caught:
        list_radiographs(tmp_path, "skip", progress=False)
    assert "is not a DICOM file" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Left out")
def test_a_misspelt_way_to_treat_problems_is_refused(cohort: Path) -> None:
    damage(cohort)
    with pytest.raises(ConfigurationError, match="on_problem must be 'raise' or 'skip', found 'rasie'"):
        list_radiographs(cohort, "rasie", progress=False)


def test_two_images_with_one_uid_are_a_problem(cohort: Path) -> None:
    files = sorted((cohort / "images").iterdir())
    uid, other = pydicom.dcmread(files[0]).SOPInstanceUID, pydicom.dcmread(files[-1])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = uid
    other.save_as(files[-1])
    with pytest.raises(CohortError, match="is duplicated: 2 files"):
        list_radiographs(cohort, progress=False)


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


# --- write_predictions


def test_the_table_has_a_row_for_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = Predictions([[0.25, 0.75], [1.0, 0.0]], case_ids=["1.2.3", "1.2.4"])
    path = write_predictions(predictions, ["healthy", "ill, or not"], tmp_path / "new" / "predictions.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"SOPInstanceUID": "1.2.3", "probability_healthy": "0.250000", "probability_ill, or not": "0.750000"},
        {"SOPInstanceUID": "1.2.4", "probability_healthy": "1.000000", "probability_ill, or not": "0.000000"},
    ]
    printed = capsys.readouterr().out
    assert printed == "2 predictions written to predictions_file.\n"
    assert str(tmp_path) not in printed


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("row", [[NAN, NAN], [NAN, 1.0], [INF, -INF], [1.2, -0.2], [0.6, 0.6], [3.1, -2.0], [0.0, 0.0]])
def test_what_is_no_probability_is_refused(row: list[float], tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("earlier")
    predictions = Predictions([[0.5, 0.5], row, [0.1, 0.9]], case_ids=["1.1", "1.2", "1.3"])
    with pytest.raises(CohortError, match="gave no probabilities for some cases; check the weights") as caught:
        write_predictions(predictions, ["a", "b"], path)
    assert caught.value.problems == ("SOPInstanceUID 1.2",)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_predictions_without_a_case_are_refused(tmp_path: Path) -> None:
    for outputs, ids in (([], []), ([[0.5, 0.5]], []), ([[0.5, 0.5]], ["1", "2"])):
        with pytest.raises(CohortError, match=f"There are {len(outputs)} predictions for {len(ids)} cases"):
            write_predictions(Predictions(outputs, case_ids=ids), ["a", "b"], tmp_path / "p.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_columns_must_fit_the_classes(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="class"):
        write_predictions(Predictions([[0.25, 0.75]], case_ids=["1.1"]), names, tmp_path / "p.csv")


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


# --- read_deployment and load_deployed


def deploy(folder: Path, **metadata: Any) -> nn.Module:
    network = tiny_classifier().eval()
    folder.mkdir(exist_ok=True)
    script = torch.jit.script(network)
    save_net_with_metadata(script, str(folder / "model.ts"), include_config_vals=False, meta_values=metadata)
    return network


def test_a_deployed_network_carries_how_its_images_are_prepared(tmp_path: Path) -> None:
    network = deploy(tmp_path, **CARRIED, another="key")
    assert read_deployment(tmp_path) == CARRIED
    deployed = load_deployed(str(tmp_path), torch.device("cpu"))
    assert not deployed.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(deployed(x), network(x))


@pytest.mark.parametrize("read", [read_deployment, load_deployed])
def test_without_a_network_the_error_says_what_to_run(read: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path / "Doe")
    message = str(caught.value)
    assert message.startswith(
        "There is no pruned network (model.ts) in output_dir: run `python -m monai.bundle run prune`"
    )
    assert "pass --output_dir" in message
    assert "Doe" not in message


@pytest.mark.parametrize("read", [read_deployment, load_deployed])
@pytest.mark.parametrize("keep", [0, 10, 2000, -100])
def test_a_damaged_network_is_refused(read: Any, keep: int, tmp_path: Path) -> None:
    deploy(tmp_path, **CARRIED)
    path = tmp_path / "model.ts"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir cannot be read, it is damaged"):
        read(tmp_path)


def test_a_state_dict_is_no_deployed_network(tmp_path: Path) -> None:
    torch.save(tiny_classifier().state_dict(), tmp_path / "model.ts")
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir cannot be read"):
        load_deployed(tmp_path)


def test_a_network_without_metadata_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(tiny_classifier()), str(tmp_path / "model.ts"))
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir"):
        read_deployment(tmp_path)


def test_a_network_without_metadata_is_not_called_damaged(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(tiny_classifier()), str(tmp_path / "model.ts"))
    with pytest.raises(ConfigurationError, match=r"does not carry \['image_size', .*not written by this package"):
        read_deployment(tmp_path)


def test_a_network_with_one_wrong_bit_is_refused(tmp_path: Path) -> None:
    network = deploy(tmp_path, **CARRIED)
    path = tmp_path / "model.ts"
    content = bytearray(path.read_bytes())
    place = bytes(content).index(network.head.weight.detach().numpy().tobytes())
    content[place + 3] ^= 0x40
    path.write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match=r"model\.ts in output_dir cannot be read, it is damaged"):
        load_deployed(tmp_path)


@pytest.mark.parametrize("missing", list(CARRIED))
def test_a_network_that_lacks_one_of_them_is_refused(missing: str, tmp_path: Path) -> None:
    deploy(tmp_path, **{key: value for key, value in CARRIED.items() if key != missing})
    with pytest.raises(
        ConfigurationError, match=rf"does not carry \['{missing}'\]: it was not written by this package"
    ):
        read_deployment(tmp_path)
