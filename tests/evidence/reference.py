"""Slow, plain implementations that the tests compare with; they share no code with the package."""

from __future__ import annotations

import numpy as np


def pair_matrix(labels, scores):
    """1 where a positive case (row) scores above a negative one (column), one half where equal."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    return (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)


def auc(labels, scores):
    return pair_matrix(labels, scores).mean()


def delong(labels, columns):
    """DeLong, DeLong and Clarke-Pearson 1988, over all pairs."""
    matrices = [pair_matrix(labels, column) for column in columns.T]
    rows = np.stack([matrix.mean(axis=1) for matrix in matrices])
    cols = np.stack([matrix.mean(axis=0) for matrix in matrices])
    return np.atleast_2d(np.cov(rows)) / rows.shape[1] + np.atleast_2d(np.cov(cols)) / cols.shape[1]


def obuchowski(labels, columns, patients):
    """Obuchowski 1997, covariance of two clustered AUCs (of one with itself: its variance), as in the paper."""
    names = np.unique(patients)
    positive, negative = [], []
    for column in columns:
        matrix = pair_matrix(labels, column)
        area, above, below = matrix.mean(), matrix.mean(axis=1), matrix.mean(axis=0)
        positive.append(np.array([(above[patients[labels == 1] == p] - area).sum() for p in names]))
        negative.append(np.array([(below[patients[labels == 0] == p] - area).sum() for p in names]))
    m, n = matrix.shape
    with_positive = len(np.unique(patients[labels == 1]))
    with_negative = len(np.unique(patients[labels == 0]))
    s10 = with_positive / ((with_positive - 1) * m) * (positive[0] * positive[1]).sum()
    s01 = with_negative / ((with_negative - 1) * n) * (negative[0] * negative[1]).sum()
    s11 = len(names) / (len(names) - 1) * (positive[0] * negative[1] + positive[1] * negative[0]).sum()
    return s10 / m + s01 / n + s11 / (m * n)


def clustered_sample(seed, patients=80, images=4, prevalence=0.4, mixed=False, shift=1.2):
    """Labels, two columns of correlated scores, patients."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(patients), rng.integers(1, images + 1, size=patients))
    labels = rng.random(len(codes)) < prevalence if mixed else (rng.random(patients) < prevalence)[codes]
    shared = rng.normal(size=patients)[codes] + 0.5 * rng.normal(size=len(codes))
    columns = shared[:, None] + shift * labels[:, None] + 0.4 * rng.normal(size=(len(codes), 2))
    return labels.astype(int), columns, codes
