"""Resampling of patients, for any statistic, and a fast one for the AUC."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._inputs import Cohort, FloatArray, IntArray

__all__ = ["bootstrap_auc", "patient_weights"]

_CHUNK = 4_000_000  # numbers held at once by one block of resamples: 32 MB


def patient_weights(codes: IntArray, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Draw patients with replacement and yield how often each was drawn, in blocks of resamples.

    Every block has shape ``(patients, resamples in the block)``; a case has the weight of its patient. Drawing whole
    patients keeps the cases of one patient together, which is what makes the interval honest about them (Field and
    Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69 (2007)).
    """
    rng = np.random.default_rng(seed)
    patients = int(codes.max()) + 1
    block = max(1, _CHUNK // len(codes))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, patients, size=(size, patients)) + np.arange(size)[:, None] * patients
        counts = np.bincount(drawn.ravel(), minlength=size * patients).reshape(size, patients)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)


def bootstrap_auc(cohort: Cohort, resamples: int, seed: int) -> FloatArray:
    """Compute the AUC of every column in resamples of patients; the columns share the resamples.

    The scores are sorted once. The AUC of a resample is then a weighted Mann-Whitney statistic: for every positive
    case the weight of the negative cases below it (half of those equal to it), read from one cumulative sum.

    Returns:
        shape ``(resamples, k)``; NaN for a resample that holds one class only, which has no AUC.
    """
    negative_codes, positive_codes = cohort.codes[~cohort.labels], cohort.codes[cohort.labels]
    places = []
    for column in cohort.scores.T:
        order = np.argsort(column[~cohort.labels], kind="stable")
        ordered = column[~cohort.labels][order]
        left = np.searchsorted(ordered, column[cohort.labels], side="left")
        right = np.searchsorted(ordered, column[cohort.labels], side="right")
        places.append((negative_codes[order], left, right))
    blocks = []
    for weights in patient_weights(cohort.codes, resamples, seed):
        positive = weights[positive_codes]
        columns = []
        for codes, left, right in places:
            below = np.zeros((len(codes) + 1, weights.shape[1]))
            np.cumsum(weights[codes], axis=0, out=below[1:])
            wins = below[left] if np.array_equal(left, right) else 0.5 * (below[left] + below[right])
            columns.append(np.einsum("ir,ir->r", positive, wins))
        pairs = positive.sum(axis=0) * below[-1]
        wins_of_all = np.stack(columns, axis=1)
        blocks.append(
            np.divide(wins_of_all, pairs[:, None], out=np.full_like(wins_of_all, np.nan), where=pairs[:, None] > 0)
        )
    return np.concatenate(blocks)
