"""Simplified chest radiographs: what stays in a patient, what an opacity adds, and what noise is."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from monai_basisprune.data.phantom import Anatomy, blurred, draw_anatomy, draw_chest, smooth_noise


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def chest(seed: int, opacity: bool = False, shape: tuple[int, int] = (64, 64), **changes: float) -> np.ndarray:
    anatomy = draw_anatomy(rng(seed), False)
    return draw_chest(shape, replace(anatomy, **changes), rng(seed), opacity)


def test_the_anatomy_follows_from_the_generator_and_sex_changes_the_breast_alone():
    female, male = draw_anatomy(rng(0), True), draw_anatomy(rng(0), False)
    assert female == draw_anatomy(rng(0), True) != draw_anatomy(rng(1), True)
    assert {name for name, value in asdict(female).items() if value != asdict(male)[name]} == {"breast"}
    drawn = [[asdict(draw_anatomy(rng(seed), kind))["breast"] for seed in range(50)] for kind in (True, False)]
    assert np.mean(drawn[0]) > 2 * np.mean(drawn[1])


@pytest.mark.parametrize("shape", [(48, 40), (33, 64)])
def test_a_chest_has_densities_from_0_to_1_both_attained(shape):
    for seed in range(4):
        image = chest(seed, bool(seed % 2), shape)
        assert image.shape == shape
        assert image.dtype == np.float32
        assert (image.min(), image.max()) == (0.0, 1.0)


def test_the_same_generator_draws_the_same_chest_and_the_next_one_another():
    anatomy, source = draw_anatomy(rng(0), False), rng(5)
    first, second = draw_chest((32, 32), anatomy, source, True), draw_chest((32, 32), anatomy, source, True)
    np.testing.assert_array_equal(first, draw_chest((32, 32), anatomy, rng(5), True))
    assert np.abs(first - second).max() > 0.1


def test_lungs_are_darker_than_what_is_between_and_below_them():
    mean = np.mean([chest(seed) for seed in range(12)], axis=0)
    lungs = (mean[24:34, 14:20].mean() + mean[24:34, 44:50].mean()) / 2
    assert lungs < mean[24:34, 30:34].mean() - 0.1
    assert lungs < mean[54:60, 20:44].mean() - 0.1


@pytest.mark.parametrize(
    ("name", "low", "high", "place"),
    [
        ("heart", 0.24, 0.4, (slice(36, 44), slice(42, 52))),
        ("diaphragm", 0.58, 0.38, (slice(44, 48), slice(14, 20))),
        ("breast", 0.0, 0.1, (slice(36, 44), slice(12, 20))),
    ],
)
def test_the_anatomy_is_seen_where_it_is(name, low, high, place):
    """A larger heart, a higher diaphragm and a breast are brighter than none there, in the mean of some images."""
    changes = np.mean([chest(seed, **{name: high}) - chest(seed, **{name: low}) for seed in range(8)], axis=0)
    assert changes[place].mean() > 0.015
    assert changes[place].mean() > 3 * np.abs(changes[2:10, 2:10]).mean()


def test_an_opacity_brightens_a_lung_and_nothing_else():
    brighter = []
    for seed in range(20):
        anatomy = draw_anatomy(rng(seed), False)
        with_it, without = (draw_chest((64, 64), anatomy, rng(seed), kind) for kind in (1, 0))
        brighter.append(with_it - without)
    mean = np.mean(brighter, axis=0)
    assert mean[:, 8:56].max() > 0.01
    assert np.abs(mean[:, [0, 1, 62, 63]]).max() < 0.005


def test_opacities_go_from_clear_to_hardly_visible():
    strongest = sorted(float(np.abs(chest(seed, True) - chest(seed, False)).max()) for seed in range(40))
    assert strongest[0] < 0.12
    assert strongest[-1] > 0.25
    assert strongest[0] > 0.0


def test_noise_has_mean_0_and_deviation_1_and_is_smooth_over_its_scale():
    neighbors = []
    for scale in (0.02, 0.1, 0.4):
        noise = smooth_noise(rng(0), (96, 64), scale)
        assert noise.shape == (96, 64)
        assert float(noise.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(noise.std()) == pytest.approx(1.0, abs=1e-5)
        neighbors.append(np.corrcoef(noise[4:].ravel(), noise[:-4].ravel())[0, 1])
    assert neighbors == sorted(neighbors)
    assert neighbors[0] < 0.3
    assert neighbors[-1] > 0.9
    np.testing.assert_array_equal(smooth_noise(rng(0), (1, 1), 0.1), np.zeros((1, 1)))


def test_a_blur_keeps_what_there_is_and_spreads_it_as_far_as_asked():
    image = np.zeros((41, 41))
    image[20, 20] = 1.0
    smooth = blurred(image, 2.0)
    assert float(smooth.sum()) == pytest.approx(1.0)
    rows, _ = np.indices(image.shape)
    assert float((smooth * (rows - 20) ** 2).sum()) == pytest.approx(4.0, rel=0.01)
    along = blurred(image, (3.0, 0.0))
    assert np.count_nonzero(along.sum(axis=0)) == 1
    assert float((along * (rows - 20) ** 2).sum()) == pytest.approx(9.0, rel=0.01)
    assert np.count_nonzero(blurred(image, 2.0, truncate=1.0)) == 25
    np.testing.assert_array_equal(blurred(image, 0.0), image)
    ramp = np.linspace(0, 1, 50).reshape(10, 5)
    np.testing.assert_allclose(blurred(ramp, 1.5), gaussian_filter(ramp, 1.5))


def test_an_anatomy_does_not_change():
    with pytest.raises(AttributeError):
        draw_anatomy(rng(0), True).heart = 1.0  # type: ignore[misc]
    assert isinstance(draw_anatomy(rng(0), True), Anatomy)
