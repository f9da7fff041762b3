from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_basisprune.evidence import bootstrap
from monai_basisprune.evidence._inputs import Cohort
from monai_basisprune.evidence.bootstrap import bootstrap_auc, patient_weights

from . import reference


@pytest.mark.parametrize("decimals", [8, 0])
def test_each_resample_is_the_auc_of_the_repeated_cases(decimals):
    labels, columns, patients = reference.clustered_sample(0, patients=20, mixed=True)
    columns = columns.round(decimals)
    areas = bootstrap_auc(Cohort(labels == 1, columns, patients, True), 60, seed=3)
    weights = np.concatenate(list(patient_weights(patients, 60, seed=3)), axis=1)
    assert weights.shape == (20, 60)
    assert (weights.sum(axis=0) == 20).all()
    for area, drawn in zip(areas, weights.T, strict=True):
        cases = np.repeat(np.arange(len(labels)), drawn[patients].astype(int))
        if labels[cases].min() == labels[cases].max():
            assert np.isnan(area).all()
        else:
            np.testing.assert_allclose(area, [roc_auc_score(labels[cases], c[cases]) for c in columns.T], atol=1e-12)


def test_resamples_of_one_class_are_nan():
    cohort = Cohort(np.array([True, True, False, False]), np.arange(4.0)[:, None], np.array([0, 0, 1, 1]), True)
    share = np.isnan(bootstrap_auc(cohort, 1000, 0)).mean()
    assert share == pytest.approx(0.5, abs=0.06)


def test_blocks_hold_all_resamples(monkeypatch):
    labels, columns, patients = reference.clustered_sample(1, patients=20)
    monkeypatch.setattr(bootstrap, "_CHUNK", 700)
    assert bootstrap_auc(Cohort(labels == 1, columns, patients, True), 137, 0).shape == (137, 2)
