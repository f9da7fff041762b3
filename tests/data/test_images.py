from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import gray, save
from PIL import Image

from monai_basisprune.data import LoadPictured
from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.data.images import MOST_PIXELS, decode_picture, read_limited, to_channels
from monai_basisprune.errors import CohortError, ConfigurationError


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_promises(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_gray_of_8_and_16_bits() -> None:
    values = gray(0)
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(values)))[0], np.float32(values) / 255)
    wide = values.astype(np.uint16) * 257 - (values > 9)
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(wide)))[0], np.float32(wide) / 65535)
    one = Image.fromarray(values > 99)
    assert set(np.unique(decode_picture(encoded(one)))) == {0.0, 1.0}


def test_color_keeps_its_order() -> None:
    values = np.stack([gray(seed) for seed in range(3)], axis=-1)
    image = decode_picture(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(image, np.float32(values.transpose(2, 0, 1)) / 255)
    luma = to_channels(image, 1)
    expected = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    np.testing.assert_allclose(luma[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(to_channels(luma, 3), np.repeat(luma, 3, axis=0))
    jpeg = decode_picture(encoded(Image.fromarray(values).convert("CMYK"), "JPEG"))
    assert jpeg.shape == (3, 12, 12)


def test_palettes_are_looked_up() -> None:
    picture = Image.new("P", (3, 2))
    picture.putdata([0, 1, 2, 2, 1, 0])
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    assert decode_picture(encoded(picture))[:, 0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    picture.putpalette([0, 0, 0, 51, 51, 51, 255, 255, 255])
    grays = decode_picture(encoded(picture))
    assert grays.shape == (1, 2, 3)
    np.testing.assert_allclose(grays[0, 0], [0, 0.2, 1])


def test_what_is_transparent_is_black() -> None:
    values = np.full((2, 2, 4), 255, np.uint8)
    values[0, 0, 3] = 0
    values[0, 1, 3] = 51
    image = decode_picture(encoded(Image.fromarray(values)))
    np.testing.assert_allclose(image[:, 0, 0], 0)
    np.testing.assert_allclose(image[:, 0, 1], 0.2, atol=0.004)
    np.testing.assert_allclose(image[:, 1], 1)


def test_the_rotation_of_a_camera_is_carried_out() -> None:
    values = np.zeros((8, 16), np.uint8)
    values[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = decode_picture(encoded(Image.fromarray(values), "JPEG", exif=exif, quality=100))
    assert image.shape == (1, 16, 8)
    assert image[0, :8].mean() > 0.95
    assert image[0, 8:].mean() < 0.05


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no PNG or JPEG picture"),
        (b"GIF89a" + bytes(100), "is no PNG or JPEG picture"),
        (encoded(Image.fromarray(gray(0)), "BMP"), "is no PNG or JPEG picture"),
        (encoded(Image.fromarray(gray(0)))[:-60], "is truncated or damaged"),
        (encoded(Image.fromarray(gray(0)), "JPEG")[:-60], "is truncated or damaged"),
        (png_that_promises(40_000, 40_000), "a decompression bomb?"),
        (png_that_promises(MOST_PIXELS, 2), "a decompression bomb?"),
        (png_that_promises(100, 100), "is truncated or damaged"),
        (png_that_promises(1, 500), "too few for a picture"),
    ],
    ids=["empty", "gif", "bmp", "short png", "short jpeg", "bomb", "wide bomb", "short pixels", "line"],
)
def test_unusable_pictures_are_named(content: bytes, words: str) -> None:
    with pytest.raises(ImageProblemError) as error:
        decode_picture(content)
    assert words in str(error.value)


def test_several_pictures_in_a_file_are_refused() -> None:
    frames = [Image.fromarray(gray(seed)) for seed in (0, 1)]
    with pytest.raises(ImageProblemError, match="holds 2 pictures, one file must be one picture"):
        decode_picture(encoded(frames[0], save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transform(tmp_path: Path, channels: int) -> None:
    path = save(tmp_path / "a.png", gray(0))
    loaded = LoadPictured("image", channels)({"image": str(path), "label": 1})
    assert loaded["image"].shape == (channels, 12, 12)
    assert loaded["image"].dtype == torch.float32
    assert loaded["label"] == 1


def test_the_transform_names_the_case_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "Jane Doe.png"
    path.write_bytes(b"nothing")
    with pytest.raises(CohortError) as error:
        LoadPictured("image")({"image": str(path), "case_id": "a1"})
    assert str(error.value) == (
        "The picture of case a1 cannot be read: it is no PNG or JPEG picture, or its beginning is damaged."
    )
    with pytest.raises(CohortError, match=r"case a1 cannot be read: it \(FileNotFoundError\)"):
        LoadPictured("image")({"image": str(tmp_path / "Jane.png"), "case_id": "a1"})
    with pytest.raises(ConfigurationError, match="image_channels must be 1"):
        LoadPictured("image", 2)


def test_huge_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_basisprune.data.images.MOST_BYTES", 10)
    with pytest.raises(ImageProblemError, match="at most 10 are read"):
        read_limited(save(tmp_path / "a.png", gray(0)))
