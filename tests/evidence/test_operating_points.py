from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, roc_auc_score, roc_curve

from monai_basisprune.evidence import roc_curve_points, sensitivity_at_specificity

from . import reference


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_curve_is_sklearns(decimals):
    labels, columns, _ = reference.clustered_sample(0)
    scores = columns[:, 0].round(decimals)
    curve = roc_curve_points(labels, scores)
    false, true, thresholds = roc_curve(labels, scores)
    assert auc(curve.false_positive_rate, curve.true_positive_rate) == pytest.approx(roc_auc_score(labels, scores))
    assert set(zip(curve.false_positive_rate, curve.true_positive_rate, strict=True)) <= set(
        zip(*(x.tolist() for x in roc_curve(labels, scores, drop_intermediate=False)[:2]), strict=True)
    )
    assert (curve.false_positive_rate[0], curve.true_positive_rate[0], curve.thresholds[0]) == (0, 0, None)
    assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1, 1)
    assert curve.thresholds[-1] == thresholds[-1]
    assert len(curve.thresholds) <= len(false) == len(true)
    json.dumps(curve.to_dict(), allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=4, max_size=25),
    st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0]),
)
def test_sensitivity_is_the_best_on_the_curve(cases, specificity):
    labels, scores = (np.array(values) for values in zip(*cases, strict=True))
    if labels.all() or not labels.any():
        return
    found = sensitivity_at_specificity(labels, scores, specificity, resamples=100)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found.value == pytest.approx(true[1 - false >= specificity - 1e-9].max())
    assert found.attained_specificity >= specificity - 1e-9
    called = np.zeros(len(labels), bool) if found.threshold is None else scores >= found.threshold
    assert called[labels].mean() == pytest.approx(found.value)
    assert (~called[~labels]).mean() == pytest.approx(found.attained_specificity)
    assert (found.low is None) == (found.high is None) == ("not computable" in found.method)
    json.dumps(found.to_dict(), allow_nan=False)


def test_interval_holds_the_value_and_widens_with_clusters():
    labels, columns, patients = reference.clustered_sample(2, patients=200)
    clustered = sensitivity_at_specificity(labels, columns[:, 0], 0.8, patients)
    plain = sensitivity_at_specificity(labels, columns[:, 0], 0.8)
    assert clustered.low < clustered.value < clustered.high
    assert clustered.high - clustered.low > plain.high - plain.low
    assert "patient-clustered bootstrap, 2000 resamples" in clustered.method


def test_perfect_separation_has_a_wilson_interval():
    found = sensitivity_at_specificity([0] * 10 + [1] * 10, range(20), 0.9)
    assert found.value == 1
    assert found.low == pytest.approx(0.7225, abs=1e-3)
    assert "Wilson interval on 10 cases" in found.method


@pytest.mark.parametrize("specificity", [0, 90, -0.1, float("nan")])
def test_errors(specificity):
    with pytest.raises(ValueError, match="specificity must be above 0 and at most 1"):
        sensitivity_at_specificity([0, 1], [0, 1], specificity)
