from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monai_basisprune.evidence import delong_covariance

from . import reference


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(5))
def test_covariance_equals_the_sum_over_all_pairs(seed, decimals):
    labels, columns, _ = reference.clustered_sample(seed, patients=60, mixed=True)
    if decimals is not None:
        columns = columns.round(decimals)  # ties
    aucs, covariance = delong_covariance(labels, columns)
    np.testing.assert_allclose(covariance, reference.delong(labels, columns), atol=1e-12, rtol=1e-9)
    np.testing.assert_allclose(aucs, [roc_auc_score(labels, column) for column in columns.T], atol=1e-12)


@pytest.mark.parametrize("mixed", [True, False])
def test_clustered_covariance_is_obuchowskis(mixed):
    labels, columns, patients = reference.clustered_sample(3, mixed=mixed)
    _, covariance = delong_covariance(labels, columns, patients)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        expected = reference.obuchowski(labels, (columns[:, i], columns[:, j]), patients)
        assert covariance[i, j] == pytest.approx(expected, rel=1e-9)
    assert np.linalg.eigvalsh(covariance).min() > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=30))
def test_any_ties(cases):
    labels = np.array([case[0] for case in cases], dtype=int)
    columns = np.array([case[1:] for case in cases], dtype=float)
    if min(labels.sum(), (1 - labels).sum()) < 2:
        return
    aucs, covariance = delong_covariance(labels, columns)
    np.testing.assert_allclose(covariance, reference.delong(labels, columns), atol=1e-12)
    np.testing.assert_allclose(aucs, [reference.auc(labels, column) for column in columns.T], atol=1e-12)


def test_one_column_may_be_flat():
    aucs, covariance = delong_covariance([0, 0, 1, 1], [1.0, 3.0, 2.0, 4.0])
    assert aucs.shape == (1,)
    assert covariance.shape == (1, 1)


def test_errors():
    with pytest.raises(ValueError, match=r"two positive and two negative patients, found 1 and 3"):
        delong_covariance([0, 0, 0, 1], [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"one column per network, found \(2, 2, 2\)"):
        delong_covariance([0, 1], np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"scores\[:, 1\] hold 1 NaN"):
        delong_covariance([0, 0, 1, 1], [[1, 2], [2, np.nan], [3, 4], [4, 5]])
