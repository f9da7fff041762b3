"""Turns a PNG or JPEG picture into numbers of one meaning: [0, 1], upright, channels first, gray or RGB."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform
from PIL import Image, ImageOps, UnidentifiedImageError

from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.errors import CohortError, ConfigurationError

__all__ = ["LoadPictured", "decode_picture", "scale_pixels", "to_channels"]

FORMATS = ("PNG", "JPEG")
MOST_PIXELS = 1 << 26
MOST_BYTES = 1 << 28
_SMALLEST_SIDE = 2
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""


def decode_picture(content: bytes) -> npt.NDArray[np.float32]:
    """Decode a PNG or JPEG file.

    The size in the header is checked before anything is decoded. Gray of 8 or 16 bits, RGB, palettes and CMYK are
    understood; 16 bits per color are read as 8. The rotation that a camera notes (EXIF) is carried out, and what is
    transparent becomes black.

    Args:
        content: the bytes of the file.

    Returns:
        float32 of shape (1, height, width) for gray and (3, height, width) for RGB, 0 to 1.

    Raises:
        ImageProblemError: if it cannot be used; the message says why, without the name of the file.
    """
    try:
        # no filter of warnings here: it is one for all threads, and could stay behind
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageProblemError(_too_large("more pixels than Pillow accepts")) from None
    except UnidentifiedImageError:
        raise ImageProblemError("is no PNG or JPEG picture, or its beginning is damaged") from None
    except Exception as error:  # the reader raises many types for a damaged header
        raise ImageProblemError(f"has a damaged header ({type(error).__name__}); export it again") from None
    _check_size(picture)
    count = getattr(picture, "n_frames", 1)
    if count > 1:
        raise ImageProblemError(f"holds {count} pictures, one file must be one picture")
    try:
        picture.load()
        return _numbers(ImageOps.exif_transpose(picture))
    except ImageProblemError:
        raise
    except Exception as error:  # a truncated file raises OSError, a broken check sum SyntaxError, and others
        raise ImageProblemError(
            f"is truncated or damaged, its pixels cannot be decoded ({type(error).__name__}); export it again"
        ) from None


def scale_pixels(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return pixels as :func:`decode_picture` returns those of a file that holds them.

    Args:
        pixels: uint8 or uint16 of shape (height, width), or uint8 of shape (height, width, 3).

    Raises:
        ImageProblemError: if they cannot be used.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    _check_size(picture)
    return _numbers(picture)


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise ImageProblemError(_too_large(f"{width} x {height} pixels"))
    if min(width, height) < _SMALLEST_SIDE:
        raise ImageProblemError(f"has {width} x {height} pixels, too few for a picture")


def _too_large(found: str) -> str:
    return f"has {found}, at most {MOST_PIXELS} in all are decoded (a decompression bomb?); make it smaller"


def _numbers(picture: Image.Image) -> npt.NDArray[np.float32]:
    if picture.mode.startswith("I"):  # 16 bits of gray
        values = np.asarray(picture).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ImageProblemError("holds gray values outside 0 to 65535")
        return np.ascontiguousarray(values[None] / np.float32(65535))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        black = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        gray = picture.mode in ("L", "LA", "1")
        picture = Image.alpha_composite(black, opaque).convert("L" if gray else "RGB")
    if picture.mode == "P" and all(red == green == blue for red, green, blue in _colors(picture)):
        picture = picture.convert("L")
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode != "L":
        picture = picture.convert("RGB")
    values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))


def _colors(picture: Image.Image) -> list[tuple[int, int, int]]:
    flat = picture.getpalette("RGB") or []
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=False))


def to_channels(image: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """Return an image with one channel (gray) or three (RGB).

    Args:
        image: shape (1, height, width) or (3, height, width).
        channels: 1 or 3.
    """
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    gray: npt.NDArray[np.float32] = np.tensordot(np.asarray(_LUMA, dtype=np.float32), image, axes=1)[None]
    return gray


class LoadPictured(MapTransform):
    """Load PNG and JPEG files from their paths, or take pixels that are loaded already.

    Args:
        keys: keys of paths, or of pixels as :func:`scale_pixels` takes them; the images take their places, float32 of
            shape (channels, height, width), 0 to 1.
        channels: 1 for gray, 3 for RGB.
        allow_missing_keys: whether a key may be absent.
    """

    def __init__(self, keys: KeysCollection, channels: int = 1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if channels not in (1, 3):
            raise ConfigurationError(f"image_channels must be 1 (gray) or 3 (RGB), got {channels!r}.")
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load the pictures of all keys."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            source = loaded[key]
            try:
                if isinstance(source, np.ndarray):
                    image = scale_pixels(source)
                else:
                    image = decode_picture(read_limited(Path(source)))
            except (ImageProblemError, OSError) as error:
                name = loaded.get("case_id", "unknown")
                reason = str(error) if isinstance(error, ImageProblemError) else f"({type(error).__name__})"
                raise CohortError(f"The picture of case {name} cannot be read: it {reason}.") from None
            tensor = torch.from_numpy(to_channels(image, self.channels).copy())
            loaded[key] = MetaTensor(tensor) if get_track_meta() else tensor
        return loaded


def read_limited(path: Path) -> bytes:
    """Return the content of a file that is not larger than any picture that is decoded.

    Raises:
        ImageProblemError: if it is.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ImageProblemError(f"has {size} bytes, at most {MOST_BYTES} are read; is it a picture?")
    return path.read_bytes()
