from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from monai_basisprune.evidence import brier_score, calibration_error, reliability_points


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(150), 3)
    truth = rng.beta(2, 3, size=150)[patients]
    return (rng.random(450) < truth).astype(int), np.clip(truth + 0.1 * rng.normal(size=450), 0, 1), patients


def test_brier_score_is_sklearns(data):
    labels, probabilities, patients = data
    found = brier_score(labels, probabilities, patients)
    assert found.value == pytest.approx(brier_score_loss(labels, probabilities))
    assert found.low < found.value < found.high
    losses = (probabilities - labels) ** 2
    totals = np.bincount(patients, weights=losses - losses.mean())
    reach = 1.976 * np.sqrt((totals**2).sum()) / 450  # the sandwich variance of a clustered mean
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.06)


def test_points_are_sklearns(data):
    labels, probabilities, _ = data
    points = reliability_points(labels, probabilities, bins=8)
    fraction, mean = calibration_curve(labels, probabilities, n_bins=8)
    np.testing.assert_allclose(points.positive_fraction, fraction)
    np.testing.assert_allclose(points.mean_probability, mean)
    assert sum(points.cases) == 450
    json.dumps(points.to_dict(), allow_nan=False)


def test_error_is_the_mean_distance_of_the_points(data):
    labels, probabilities, patients = data
    points = reliability_points(labels, probabilities)
    distance = np.abs(np.subtract(points.mean_probability, points.positive_fraction))
    found = calibration_error(labels, probabilities, patients)
    assert found.value == pytest.approx(np.average(distance, weights=points.cases))
    assert found.low < found.value < found.high
    assert "10 bins of equal width" in found.method
    assert found.patients == 150


def test_perfect_probabilities():
    found = brier_score([0, 0, 1, 1], [0, 0, 1, 1])
    assert found.value == 0
    assert found.low == 0
    assert found.high > 0.3
    assert "Wilson" in found.method


def test_errors():
    with pytest.raises(ValueError, match=r"found 1 of 2 outside, from -3 to 1; apply a sigmoid or softmax"):
        brier_score([0, 1], [-3, 1])
    with pytest.raises(ValueError, match="probabilities hold 1 NaN"):
        brier_score([0, 1], [np.nan, 1])
    with pytest.raises(ValueError, match="bins must be 1 or more"):
        calibration_error([0, 1], [0, 1], bins=0)
    with pytest.raises(ValueError, match="probabilities and labels differ in length: 3 probabilities for 2 labels"):
        reliability_points([0, 1], [0, 1, 1])
