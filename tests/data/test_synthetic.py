from __future__ import annotations

import csv

import numpy as np
import pydicom
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from monai_basisprune.data import (
    read_cohort,
    read_radiograph,
    split_cohort,
    synthetic_source_images,
    write_synthetic_cohort,
)
from monai_basisprune.data.phantom import draw_anatomy, draw_chest
from monai_basisprune.data.radiograph import render_radiograph
from monai_basisprune.data.synthetic import SOURCE_CLASSES, _dataset, _encode
from monai_basisprune.errors import ConfigurationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic_cohort(tmp_path_factory.mktemp("cohort") / "new", patients=100, image_size=48).parent


@pytest.fixture(scope="module")
def cohort(folder):
    return read_cohort(folder, salt="s" * 16, progress=False)


def test_passes_the_preflight_and_splits(cohort):
    assert cohort.patient_count == 100
    assert cohort.patients_per_class["positive"] == 40
    assert 130 < len(cohort.cases) < 220
    assert all(case.sex and case.age and case.manufacturer and case.view_position for case in cohort.cases)
    assert {case.manufacturer for case in cohort.cases} == {"Synthetic A", "Synthetic B", "Synthetic C"}
    split_cohort(cohort)


def test_variety(folder, cohort):
    infos = [read_radiograph(folder / case.image)[1] for case in cohort.cases]
    assert {info.bits_stored for info in infos} == {12, 16}
    assert {info.photometric_interpretation for info in infos} == {"MONOCHROME1", "MONOCHROME2"}
    assert {info.display_transform for info in infos} == {
        "full range",
        "window LINEAR",
        "window LINEAR_EXACT",
        "VOI LUT",
    }
    assert {info.modality_transform for info in infos} == {"none", "rescale"}
    assert len({(info.rows, info.columns) for info in infos}) > 50


def test_same_seed_same_bytes(tmp_path):
    first, again, other = (
        write_synthetic_cohort(tmp_path / name, patients=5, image_size=32, seed=seed).parent
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((first / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert (other / files[0]).read_bytes() != (first / files[0]).read_bytes()


def test_every_encoding_shows_the_same_picture():
    picture = draw_chest((48, 40), draw_anatomy(np.random.default_rng(0), True), np.random.default_rng(1), True)
    seen = set()
    for number in range(80):
        rng = np.random.default_rng(number)
        dataset = _dataset(0, 1, number % 9 + 1, rng)
        _encode(dataset, picture, rng)
        image, info = render_radiograph(dataset)
        seen.add((info.display_transform, info.modality_transform, info.inverted))
        # A VOI LUT changes the curve of the gray scale, by a power and at most that of its range of codes.
        limit = 0.16 if info.display_transform == "VOI LUT" else 5e-4
        assert np.abs(image - picture).max() < limit
        assert np.corrcoef(image.ravel(), picture.ravel())[0, 1] > 0.99
    assert len(seen) >= 12  # of 14


def test_patients_are_synthetic(folder):
    for path in list((folder / "images").iterdir())[:20]:
        dataset = pydicom.dcmread(path)
        assert str(dataset.PatientName).startswith("SYNTH^")
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def out_of_fold_auc(features, labels, patients):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500))
    scores = cross_val_predict(model, features, labels, groups=patients, cv=GroupKFold(5), method="decision_function")
    return roc_auc_score(labels, scores)


def test_technical_tags_do_not_tell_the_label(folder, cohort):
    rows = []
    for case in cohort.cases:
        path = folder / case.image
        dataset, info = pydicom.dcmread(path), read_radiograph(path)[1]
        rows.append(
            [
                info.bits_stored,
                info.inverted,
                info.rows,
                info.columns,
                info.display_transform == "VOI LUT",
                info.display_transform == "full range",
                info.modality_transform == "rescale",
                "PresentationLUTShape" in dataset,
                case.sex == "F",
                case.age,
                case.view_position == "PA",
                case.manufacturer == "Synthetic A",
                case.pixel_spacing[0],
            ]
        )
    labels = [case.label for case in cohort.cases]
    auc = out_of_fold_auc(np.array(rows, float), labels, [case.patient_id for case in cohort.cases])
    assert auc < 0.62  # out of fold, chance is at or below one half


@pytest.mark.slow
def test_a_small_network_finds_the_label_but_not_perfectly(tmp_path):
    folder = write_synthetic_cohort(tmp_path / "new", patients=300, seed=1).parent
    sections = split_cohort(read_cohort(folder, salt="s" * 16, progress=False), (0.6, 0.1, 0.3))
    images, labels = {}, {}
    for name, cases in sections.items():
        pictures = [torch.from_numpy(read_radiograph(folder / case.image)[0])[None, None] for case in cases]
        resized = [nn.functional.interpolate(p, (64, 64), mode="bilinear", antialias=True)[0] for p in pictures]
        images[name] = torch.stack(resized) - torch.stack(resized).mean((2, 3), keepdim=True)
        labels[name] = torch.tensor([float(case.label) for case in cases])
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for a, b in ((1, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(25):
        for batch in torch.randperm(len(labels["training"])).split(32):
            x = images["training"][batch]
            x = x.flip(3) if torch.rand(()) < 0.5 else x
            loss = nn.functional.binary_cross_entropy_with_logits(network(x)[:, 0], labels["training"][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        auc = roc_auc_score(labels["test"], network(images["test"])[:, 0])
    assert 0.7 < auc < 0.99


def test_labels_table(folder):
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "label"]
    assert {row[1] for row in rows[1:]} == {"negative", "positive"}


def test_refuses_a_folder_in_use_and_wrong_numbers(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="new or empty folder"):
        write_synthetic_cohort(folder)
    with pytest.raises(ConfigurationError, match=r"patients >= 2.*found 1, 128, 0.4"):
        write_synthetic_cohort(tmp_path, patients=1)
    with pytest.raises(ConfigurationError, match="count >= 8"):
        synthetic_source_images(3)


def test_source_images():
    images, labels = synthetic_source_images(64, image_size=32, seed=2)
    assert images.shape == (64, 1, 32, 32)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert images.min() >= 0
    assert images.max() <= 1
    assert np.bincount(labels).tolist() == [8] * len(SOURCE_CLASSES)
    again, _ = synthetic_source_images(64, image_size=32, seed=2)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, synthetic_source_images(64, image_size=32, seed=3)[0])
