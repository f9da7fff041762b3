from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from monai_basisprune.report.pictures import data_uri, overlay


def test_image_alone_stays_gray() -> None:
    image = np.linspace(-0.2, 1.2, 48).reshape(6, 8)
    pixels = overlay(image, None)
    assert pixels.shape == (6, 8, 3)
    assert (pixels == pixels[..., :1]).all()
    assert (pixels[..., 0] == np.round(255 * np.clip(image, 0, 1))).all()


def test_heat_is_orange_with_an_outline_that_gray_prints_show() -> None:
    heat = np.zeros((9, 9))
    heat[3:6, 3:6] = 1.0
    pixels = overlay(np.full((9, 9), 0.4), heat)
    red, green, blue = pixels[4, 4].tolist()
    assert red > green > blue
    assert pixels[3, 4].tolist() == [255, 255, 255]  # inside of the outline
    assert pixels[2, 4].tolist() == [0, 0, 0]  # outside of it
    assert pixels[0, 0].tolist() == [102, 102, 102]
    assert (pixels[2, 2], pixels[0, 4]) == (pytest.approx([102] * 3), pytest.approx([102] * 3))


def test_nothing_is_colored_without_evidence() -> None:
    image = np.random.default_rng(0).random((5, 5))
    assert (overlay(image, np.zeros((5, 5))) == overlay(image, None)).all()


def test_address_holds_the_pixels_and_nothing_else() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    uri = data_uri(pixels)
    assert uri.startswith("data:image/png;base64,")
    with image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        assert (np.asarray(picture.convert("RGB")) == pixels).all()
        assert set(picture.info) <= {"dpi"}
