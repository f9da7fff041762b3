"""Draws simplified frontal chest radiographs from formulas: enough anatomy to hide an opacity in, and no patient.

Coordinates run from -1 to 1 over the width (x) and the height (y, downwards). Values are densities: more is brighter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Anatomy", "blurred", "draw_anatomy", "draw_chest", "smooth_noise"]

Image = npt.NDArray[np.floating[Any]]
Grid = tuple[Image, Image]


@dataclass(frozen=True)
class Anatomy:
    """What stays the same in all images of one patient, in units of half the image."""

    width: float
    lung_width: float
    lung_height: float
    heart: float
    heart_shift: float
    diaphragm: float
    rib_spacing: float
    rib_contrast: float
    rib_phase: float
    breast: float
    vessels: float


def draw_anatomy(rng: np.random.Generator, female: bool) -> Anatomy:
    """Draw the anatomy of a patient at random."""
    return Anatomy(
        width=rng.uniform(0.86, 1.0),
        lung_width=rng.uniform(0.31, 0.38),
        lung_height=rng.uniform(0.66, 0.8),
        heart=rng.uniform(0.24, 0.4),
        heart_shift=rng.uniform(0.06, 0.18),
        diaphragm=rng.uniform(0.38, 0.58),
        rib_spacing=rng.uniform(0.15, 0.2),
        rib_contrast=rng.uniform(0.04, 0.1),
        rib_phase=rng.uniform(0.0, 1.0),
        breast=rng.uniform(0.02, 0.1) if female else rng.uniform(0.0, 0.03),
        vessels=rng.uniform(0.02, 0.06),
    )


def grid(shape: tuple[int, int]) -> Grid:
    """Return the coordinates x and y of every pixel."""
    y, x = np.meshgrid(
        np.linspace(-1, 1, shape[0], dtype=np.float32), np.linspace(-1, 1, shape[1], dtype=np.float32), indexing="ij"
    )
    return x, y


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Image:
    """Return noise of mean 0 and deviation 1, smooth over `scale` of half the image."""
    noise = blurred(rng.standard_normal(shape, dtype=np.float32), scale * shape[0] / 2, truncate=2.5)
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def blurred(image: Image, sigma: float | Sequence[float], truncate: float = 4.0) -> Image:
    """Return an image smoothed by a Gaussian of `sigma` pixels, cut off at `truncate` sigmas."""
    from scipy.ndimage import gaussian_filter  # here, since inference comes without scipy

    smooth: Image = gaussian_filter(image, sigma, truncate=truncate)
    return smooth


def _step(value: Image, softness: float) -> Image:
    return 1 / (1 + np.exp(np.clip(-value / softness, -30, 30)))


def ellipse(
    at: Grid, center: tuple[float, float], radii: tuple[float, float], softness: float, power: float = 2
) -> Image:
    """Return a soft filled (super)ellipse: 1 inside, 0 outside."""
    r = np.abs((at[0] - center[0]) / radii[0]) ** power + np.abs((at[1] - center[1]) / radii[1]) ** power
    return _step(1 - r ** (1 / power), softness)


def band(at: Grid, start: tuple[float, float], end: tuple[float, float], width: float) -> Image:
    """Return a soft line between two points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((at[0] - start[0]) * dx + (at[1] - start[1]) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    distance2 = (at[0] - start[0] - along * dx) ** 2 + (at[1] - start[1] - along * dy) ** 2
    return np.exp(-distance2 / (2 * width * width))


def ribs(at: Grid, spacing: float, phase: float, slope: float) -> Image:
    """Return arcs that run down (positive slope) or up towards the sides."""
    side = np.abs(at[0])
    cycle = (at[1] - slope * side**1.5) / spacing + phase
    return np.exp(-(((cycle - np.floor(cycle) - 0.5) / 0.2) ** 2))


def blob(at: Grid, center: tuple[float, float], radii: tuple[float, float], angle: float) -> Image:
    """Return a soft spot of Gaussian shape."""
    dx, dy = at[0] - center[0], at[1] - center[1]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return np.exp(-0.5 * ((u / radii[0]) ** 2 + (v / radii[1]) ** 2))


def _lung(at: Grid, anatomy: Anatomy, side: int) -> Image:
    center = side * (anatomy.lung_width + 0.1)
    shape = ellipse(at, (center, -0.05), (anatomy.lung_width, anatomy.lung_height), 0.04, 2.4)
    dome = anatomy.diaphragm + 0.05 * side + 1.2 * (at[0] - center) ** 2
    return shape * _step(dome - at[1], 0.025)


def _opacities(at: Grid, lung: Image, anatomy: Anatomy, rng: np.random.Generator, contrast: float, count: int) -> Image:
    """Return soft patchy spots inside the lungs."""
    total = np.zeros_like(lung)
    for _ in range(count):
        side = rng.choice((-1, 1))
        turn, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 0.7))
        x = side * (anatomy.lung_width + 0.1) + reach * 0.8 * anatomy.lung_width * np.cos(turn)
        y = -0.1 + reach * 0.6 * anatomy.lung_height * np.sin(turn)
        radii = rng.uniform(0.08, 0.22), rng.uniform(0.08, 0.22)
        spot = blob(at, (x, y), radii, rng.uniform(0, np.pi)) * rng.uniform(0.7, 1.3)
        total = np.maximum(total, spot * (1 + 0.35 * smooth_noise(rng, lung.shape, 0.06)))
    return contrast * np.clip(total, 0, 1.5) * (0.15 + 0.85 * lung)


def _devices(at: Grid, rng: np.random.Generator) -> Image:
    """Return a lead, a tube or a pacemaker, whatever the label."""
    kind = rng.integers(3)
    if kind == 0:
        leads = np.zeros_like(at[0])
        for _ in range(int(rng.integers(1, 4))):
            start, end = (rng.uniform(-0.9, 0.9), -1.0), (rng.uniform(-0.6, 0.6), rng.uniform(-0.3, 0.6))
            leads += 0.25 * band(at, start, end, 0.012)
        return leads
    if kind == 1:
        return 0.2 * band(
            at, (rng.uniform(-0.05, 0.05), -1.0), (rng.uniform(-0.03, 0.03), rng.uniform(-0.4, 0.7)), 0.02
        )
    side = rng.choice((-1, 1))
    box = ellipse(at, (side * 0.6, -0.45), (0.11, 0.09), 0.03, 4)
    return 0.4 * box + 0.25 * band(at, (side * 0.55, -0.5), (0.12, 0.25), 0.012)


def draw_chest(
    shape: tuple[int, int], anatomy: Anatomy, rng: np.random.Generator, opacity: bool
) -> npt.NDArray[np.float32]:
    """Draw one radiograph.

    Args:
        shape: (rows, columns).
        anatomy: the patient.
        rng: source of everything that differs between images of a patient.
        opacity: whether to put a consolidation-like opacity into a lung. Its contrast goes down to hardly visible, and
            images without one have fainter benign shadows, so that no reader can be perfect.

    Returns:
        Densities in [0, 1], float32 of `shape`, with 0 and 1 both attained.
    """
    finding = np.random.default_rng(rng.integers(2**63))  # of its own, so that a pair differs by the opacity only
    x, y = grid(shape)
    angle, zoom = rng.normal(0, 0.03), rng.uniform(0.94, 1.06)
    turned = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    at = zoom * turned[0] + rng.normal(0, 0.03), zoom * turned[1] + rng.normal(0, 0.03)
    body = ellipse(at, (0, 0.5), (anatomy.width, 1.55), 0.03, 3.5)
    lung = np.maximum(_lung(at, anatomy, -1), _lung(at, anatomy, 1))
    density = 0.62 * body - 0.42 * lung * rng.uniform(0.85, 1.1)
    density += 0.25 * ellipse(at, (anatomy.heart_shift, 0.28), (anatomy.heart, 0.34), 0.07) * body
    density += (
        0.2 * np.exp(-((at[0] / 0.14) ** 2)) + 0.06 * np.exp(-((at[0] / 0.08) ** 2)) * np.cos(22 * at[1])
    ) * body
    bones = ribs(at, anatomy.rib_spacing, anatomy.rib_phase, 0.35)
    bones += 0.6 * ribs(at, 1.25 * anatomy.rib_spacing, anatomy.rib_phase / 2, -0.3) * _step(np.abs(at[0]) - 0.3, 0.1)
    density += anatomy.rib_contrast * bones * body * _step(np.abs(at[0]) - 0.1, 0.03)
    for side in (-1, 1):
        density += 0.12 * band(at, (side * 0.1, -0.6), (side * 0.8, -0.78 + rng.normal(0, 0.02)), 0.035) * body
        density += anatomy.breast * ellipse(at, (side * 0.48, 0.28), (0.34, 0.3), 0.08)
        hilum = blob(at, (side * 0.2, 0.02), (0.2, 0.3), 0.0)
        density += anatomy.vessels * hilum * (1 + 0.8 * smooth_noise(rng, shape, 0.04))
    density += anatomy.vessels * 0.35 * lung * smooth_noise(rng, shape, 0.03)
    density += 0.02 * lung * smooth_noise(rng, shape, 0.25)
    if opacity:
        density += _opacities(at, lung, anatomy, finding, finding.uniform(0.05, 0.25), int(finding.integers(1, 4)))
    if rng.random() < 0.3:
        density += _opacities(at, lung, anatomy, rng, rng.uniform(0.02, 0.08), 1)
    if rng.random() < 0.25:
        y0 = anatomy.diaphragm - rng.uniform(0.02, 0.2)
        density += rng.uniform(0.03, 0.1) * band(
            at, (rng.choice((-0.7, 0.25)), y0), (rng.choice((-0.25, 0.7)), y0), 0.02
        )
    if rng.random() < 0.3:
        density += _devices(at, rng)
    density = np.clip(density, 0, None)
    dose = rng.uniform(0.008, 0.025)
    density = density + dose * blurred(rng.standard_normal(shape, dtype=np.float32), 0.5) * (0.6 + density)
    density -= density.min()
    return ((density / density.max()) ** rng.uniform(0.75, 1.3)).astype(np.float32)
