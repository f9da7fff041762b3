from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_basisprune.elimination import Elimination, compensated, damped_solution, eliminate


def layer(features: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a layer reads, with features that depend on each other, and its weights."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(features, 8 * features, generator=generator, dtype=torch.float64)
    return x, torch.randn(rows, features, generator=generator, dtype=torch.float64)


def least_squares_error(x: torch.Tensor, weight: torch.Tensor, keep: list[int]) -> float:
    """Return what is lost of the outputs when new weights are fitted to the features that are left, by numpy."""
    wanted = (weight @ x).numpy()
    solution = np.linalg.lstsq(x[keep].numpy().T, wanted.T, rcond=None)[0].T
    return float(((wanted - solution @ x[keep].numpy()) ** 2).sum() / (wanted**2).sum())


@settings(max_examples=25, deadline=None)
@given(units=st.integers(2, 7), size=st.integers(1, 3), rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_what_is_lost_is_the_error_of_the_least_squares_solution_and_the_least_goes_first(units, size, rows, seed):
    x, weight = layer(units * size, rows, seed)
    places = torch.randperm(units * size, generator=torch.Generator().manual_seed(seed)).reshape(units, size)
    order, losses = eliminate([Elimination(x @ x.T, weight.T @ weight, places)], units - 1, 1e-13)
    assert len(set(order)) == len(order) == units - 1
    gone: list[int] = []
    for unit, loss in zip(order, losses, strict=True):

        def without(one: int, gone: tuple[int, ...] = tuple(gone)) -> float:
            out = {*gone, *places[one].tolist()}
            return least_squares_error(x, weight, [f for f in range(units * size) if f not in out])

        others = [without(one) for one in range(units) if not set(places[one].tolist()) & set(gone)]
        assert loss == pytest.approx(without(unit), rel=1e-5, abs=1e-8)
        assert without(unit) <= min(others) + 1e-8
        gone += places[unit].tolist()
    assert losses == sorted(losses)


def test_a_channel_counts_in_all_layers_that_read_it():
    first, second = layer(5, 3, 0), layer(5, 2, 1)
    places = torch.arange(5).reshape(-1, 1)
    one, two = (Elimination(x @ x.T, w.T @ w, p) for (x, w), p in ((first, places), (second, places.flip(0))))
    order, losses = eliminate([one, two], 1, 1e-13)
    sums = [
        least_squares_error(*first, [f for f in range(5) if f != unit])
        + least_squares_error(*second, [f for f in range(5) if f != 4 - unit])
        for unit in range(5)
    ]
    assert order == [int(np.argmin(sums))]
    assert losses[0] == pytest.approx(min(sums), rel=1e-6)


def test_a_copy_and_a_feature_that_nobody_reads_go_for_nothing():
    x, weight = layer(6, 3, 2)
    x[4] = x[1]
    weight[:, 2] = 0
    order, losses = eliminate([Elimination(x @ x.T, weight.T @ weight, torch.arange(6).reshape(-1, 1))], 3, 1e-9)
    assert 2 in order[:2]
    assert {1, 4} & set(order[:2])
    assert losses[1] < 1e-6 < losses[2]


def test_features_that_are_left_tell_the_others_as_least_squares_do():
    x, _ = layer(7, 1, 3)
    keep = [0, 2, 3, 6]
    found = compensated((x @ x.T).unsqueeze(0), keep, 1e-13)[0]
    wanted = np.linalg.lstsq(x[keep].numpy().T, x.numpy().T, rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-8)
    strong = compensated((x @ x.T).unsqueeze(0), keep, 1e12)[0]
    torch.testing.assert_close(strong, torch.eye(7, dtype=torch.float64)[:, keep])


@pytest.mark.parametrize("ridge", [0.0, 0.1, 3.0])
def test_the_damped_solution_is_that_of_an_equation_with_rows_for_the_damping(ridge):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(2, 4, 30)), rng.normal(size=(2, 3, 30))
    start = rng.normal(size=(2, 3, 4))
    products, crossed = features @ features.transpose(0, 2, 1), targets @ features.transpose(0, 2, 1)
    found = damped_solution(*map(torch.from_numpy, (start, products, crossed)), ridge)
    for group in range(2):
        damping = np.sqrt(ridge * np.square(features[group]).sum() / 4)
        left = np.concatenate([features[group].T, damping * np.eye(4)])
        right = np.concatenate([targets[group].T, damping * start[group].T])
        wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
        np.testing.assert_allclose(found[group], wanted, rtol=1e-9, atol=1e-12)


def test_features_that_are_all_zero_leave_the_start():
    start = torch.rand(1, 2, 3, dtype=torch.float64)
    nothing = torch.zeros(1, 3, 3, dtype=torch.float64)
    assert torch.equal(damped_solution(start, nothing, torch.zeros(1, 2, 3, dtype=torch.float64), 1e-3), start)
