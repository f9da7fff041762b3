"""The images of the audit with their class activation maps, as PNG inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave

__all__ = ["CasePictures", "data_uri", "overlay"]

# Okabe and Ito's orange, which stands out from gray for color-blind readers as well.
_HEAT = np.array([230, 159, 0]) / 255
_STRONGEST = 0.6
_OUTLINED = 0.5


@dataclass(frozen=True)
class CasePictures:
    """One case of the audit; pixels from 0 to 1, all of one shape ``(rows, columns)``.

    Attributes:
        image: the image as the network saw it.
        original: activation map of the unpruned network, 1 at its largest value.
        pruned: activation map of the pruned network.
        slice_index: which axial slice of a volume is shown, from 0 at the feet; None for a flat image.
    """

    image: npt.NDArray[np.float64]
    original: npt.NDArray[np.float64]
    pruned: npt.NDArray[np.float64]
    slice_index: int | None = None


def overlay(image: npt.NDArray[np.float64], heat: npt.NDArray[np.float64] | None) -> npt.NDArray[np.uint8]:
    """Return a gray image as RGB, colored where a map is high and outlined where it passes half its largest value.

    The outline, white beside black, is what a print without colors still shows.

    Args:
        image: shape ``(rows, columns)``, from 0 to 1.
        heat: a map of the same shape, or None for the image alone.
    """
    pixels = np.repeat(np.clip(image, 0, 1)[..., None], 3, axis=2)
    if heat is not None:
        share = _STRONGEST * np.clip(heat, 0, 1)[..., None]
        pixels = (1 - share) * pixels + share * _HEAT
        inside = heat >= _OUTLINED
        pixels[_grown(inside) & ~inside] = 0.0
        pixels[inside & _grown(~inside)] = 1.0
    return np.round(255 * pixels).astype(np.uint8)


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an RGB picture as a PNG in a ``data:`` address, which a page without outside resources can hold."""
    stream, no_address = io.BytesIO(), {"Software": None}  # else Matplotlib names itself and its place on the web
    imsave(stream, np.ascontiguousarray(pixels), format="png", metadata=cast("dict[str, str]", no_address))
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return a mask with its four neighbors."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
