"""Training and prediction prepare images alike: the bundles' own steps on one side, `predict_folder` on the other."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from monai_basisprune.errors import CohortError
from monai_basisprune.inference import (
    IMAGE_KINDS,
    CaseDataset,
    input_shape,
    list_cases,
    load_deployed,
    predict_cases,
    predict_folder,
    prepare_cases,
)

from ..bundle_runs import ROOT, write_cohort
from ..data.pictures import save, write_folders, write_npz
from ..data.volume_files import affine, nifti, series, values
from .deployments import Brightness, deploy, deployment_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

BUNDLES = {"radiographs": "chest_xray", "pictures": "small_dataset", "volumes": "volume"}


def write_volumes(folder: Path) -> Path:
    for number, spacing in enumerate([(1.0, 1.0, 1.0), (0.7, 1.5, 3.0), (2.0, 0.5, 1.0)]):
        turned = affine(spacing)
        turned[:, number] *= -1  # along another axis each
        nifti(folder / f"{number}.nii.gz", values(number, (18, 20, 16)), turned)
    series(folder / "ct", seed=3, slices=12)
    series(folder / "sagittal", seed=4, slices=12, direction=(0, 1, 0, 0, 0, -1), step=(2.5, 0, 0))
    return folder


def write_pictures(folder: Path) -> Path:
    write_folders(folder, 2)
    rng = np.random.default_rng(1)
    save(folder / "color.jpg", rng.integers(0, 256, (30, 21, 3)).astype(np.uint8))
    save(folder / "deep.png", rng.integers(0, 65536, (9, 40)).astype(np.uint16))
    save(folder / "clear.png", rng.integers(0, 256, (16, 16, 4)).astype(np.uint8))
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "radiographs": lambda folder: write_cohort(folder, patients=6),
    "pictures": write_pictures,
    "volumes": write_volumes,
}

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("radiographs", {"image_channels": 3, "class_names": ["a", "b", "c"]}),
    ("pictures", {"class_names": ["a", "b", "c", "d"]}),
    ("pictures", {"image_channels": 3, "label_kind": "multi", "class_names": ["left", "right", "both"]}),
    ("volumes", {}),
    ("volumes", {"spacing": [1.0, 2.0, 1.5], "window": [-600.0, 200.0], "class_names": ["a", "b", "c"]}),
    ("volumes", {"intensity": "zscore", "volume_size": [12, 16, 20]}),
    ("volumes", {"intensity": "percentiles", "crop_to_body": False}),
]
IDS = [f"{kind}-{'-'.join(settings) or 'default'}" for kind, settings in SETTINGS]


def training_transform(kind: str, deployment: dict[str, Any]) -> Compose:
    """Return what prepares the validation cases in the bundle's own configuration of training."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / f"{BUNDLES[kind]}_classification" / "configs" / "train.json"))
    for key, value in deployment.items():
        parser[key] = value
    parser["validate#dataset"] = parser["validate#dataset#transform"]
    transform = parser.get_parsed_content("validate#dataset")
    assert isinstance(transform, Compose)
    return transform


@pytest.mark.parametrize(("kind", "changes"), SETTINGS, ids=IDS)
def test_training_and_prediction_give_the_same_probabilities(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder, deployment = WRITERS[kind](tmp_path / "images"), deployment_of(kind, **changes)
    shape, names = input_shape(deployment), deployment["class_names"]
    network = deploy(tmp_path / "out", Brightness(shape, len(names)), **deployment)
    run = predict_folder(tmp_path / "out", folder, tmp_path / "p.csv", num_workers=0, progress=False)
    cases = list_cases(deployment, folder, progress=False)
    assert run.cases == len(cases) >= 5
    transform = training_transform(kind, deployment)
    with torch.inference_mode():
        images = torch.stack([transform({"image": case["image"]})["image"] for case in cases])
        logits = network(images).double()
    assert images.shape[1:] == shape
    several = deployment.get("label_kind") == "multi"
    wanted = (logits.sigmoid() if several else logits.softmax(1)).numpy()
    assert wanted.std(axis=0).min() > 1e-3  # the network cares for what it sees
    found = predict_cases(
        load_deployed(tmp_path / "out", optimize=True),
        prepare_cases(cases, deployment),
        3,
        0,
        multi_label=several,
        progress=False,
    )
    np.testing.assert_allclose(found.outputs, wanted, rtol=0, atol=1e-6)
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [IMAGE_KINDS[kind].id_column, *(f"probability_{name}" for name in names), "problem"]
    assert [row[IMAGE_KINDS[kind].id_column] for row in rows] == [case["case_id"] for case in cases]
    table = np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    np.testing.assert_allclose(table, wanted, rtol=0, atol=1e-6)  # six decimals


@pytest.mark.parametrize("kind", list(IMAGE_KINDS))
def test_the_bundle_for_inference_prepares_them_the_same_way(kind: str, tmp_path: Path) -> None:
    folder, deployment = WRITERS[kind](tmp_path / "images"), deployment_of(kind)
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / f"{BUNDLES[kind]}_classification" / "configs" / "inference.json"))
    parser["deployment"], parser["dataset_dir"] = deployment, str(folder)
    bundled = parser.get_parsed_content("dataset")
    assert isinstance(bundled, CaseDataset)
    ours = prepare_cases(list_cases(deployment, folder, progress=False), deployment)
    assert bundled.shape == ours.shape
    for one, other in zip(bundled, ours, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert (one["case_id"], one["problem"]) == (other["case_id"], other["problem"])


def test_the_images_of_an_npz_file_are_predicted(tmp_path: Path) -> None:
    deployment = deployment_of("pictures")
    deploy(tmp_path / "out", Brightness((1, 8, 8), 2), **deployment)
    path = write_npz(tmp_path / "new.npz", train_labels=None)
    run = predict_folder(tmp_path / "out", path, tmp_path / "p.csv", num_workers=1, progress=False)
    assert (run.cases, run.skipped) == (36, 0)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "case_id,probability_negative,probability_positive,problem"
    assert lines[1].startswith("train_images[0],")
    assert lines[-1].startswith("test_images[11],")


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_damage_stops_the_run_or_is_skipped(kind: str, tmp_path: Path) -> None:
    deployment = deployment_of(kind)
    folder = WRITERS[kind](tmp_path / "images")
    deploy(tmp_path / "out", Brightness(input_shape(deployment), 2), **deployment)
    victim = folder / ("healthy/000.png" if kind == "pictures" else "0.nii.gz")
    victim.write_bytes(victim.read_bytes()[:-60])
    total = len(list_cases(deployment, folder, "skip", progress=False))
    with pytest.raises(CohortError) as caught:
        predict_folder(tmp_path / "out", folder, tmp_path / "p.csv", num_workers=0, progress=False)
    assert not (tmp_path / "p.csv").exists()
    assert "--on_problem skip" in str(caught.value)
    assert victim.name not in str(caught.value)
    run = predict_folder(tmp_path / "out", folder, tmp_path / "p.csv", "skip", num_workers=1, progress=False)
    assert (run.cases, run.skipped, run.exit_code) == (total, 1, 3)
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    assert len(rows) == total
    (bad,) = [row for row in rows if row[-1]]
    assert bad[1:3] == ["", ""]
    assert victim.name not in ",".join(bad)


def test_a_file_that_breaks_after_it_was_listed_costs_no_other_case(tmp_path: Path) -> None:
    deployment = deployment_of("volumes")
    folder = WRITERS["volumes"](tmp_path / "images")
    cases = list_cases(deployment, folder, progress=False)
    shutil.rmtree(folder / "ct")
    predicted = predict_cases(Brightness((1, 16, 16, 16), 2), prepare_cases(cases, deployment), 2, 0, progress=False)
    assert [bool(problem) for problem in predicted.problems] == [Path(case["image"]).name == "ct" for case in cases]
    assert predicted.case_ids == [case["case_id"] for case in cases]
