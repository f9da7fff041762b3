"""How radiographs and pictures are prepared for the network: one list of steps for training and for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.transforms import NormalizeIntensityd, RepeatChanneld, Resized, ToTensord

from monai_basisprune.data.images import LoadPictured
from monai_basisprune.data.radiograph import LoadRadiographd

__all__ = ["picture_transforms", "radiograph_transforms"]


def radiograph_transforms(settings: Mapping[str, Any], key: str = "image") -> list[Callable[[Any], Any]]:
    """Return MONAI's transforms from the path of a DICOM radiograph to what the network sees.

    They read it, resize it by the mean of the pixels, repeat it for each channel and normalize it.

    Args:
        settings: ``image_size`` (pixels of each side), ``image_channels``, ``intensity_mean`` and ``intensity_std`` (of
            intensities in 0 to 1); other keys do not count.
        key: key of the path in the dictionaries.

    Returns:
        The transforms, the result of which is a float32 tensor of shape (image_channels, image_size, image_size).
    """
    return [
        LoadRadiographd(key),
        _resized(settings, key),
        RepeatChanneld(key, settings["image_channels"]),
        *_normalized(settings, key),
    ]


def picture_transforms(settings: Mapping[str, Any], key: str = "image") -> list[Callable[[Any], Any]]:
    """Return MONAI's transforms from a picture to what the network sees.

    They read it in gray or in color, resize it by the mean of the pixels and normalize it.

    Args:
        settings: see :func:`radiograph_transforms`; with 1 as ``image_channels`` pictures are gray, with 3 RGB.
        key: key of the path, or of the pixels, see :class:`LoadPictured`.

    Returns:
        The transforms, the result of which is a float32 tensor of shape (image_channels, image_size, image_size).

    Raises:
        ConfigurationError: when ``image_channels`` is neither 1 nor 3.
    """
    return [LoadPictured(key, settings["image_channels"]), _resized(settings, key), *_normalized(settings, key)]


def _resized(settings: Mapping[str, Any], key: str) -> Callable[[Any], Any]:
    resized: Callable[[Any], Any] = Resized(key, [settings["image_size"]] * 2, mode="area")
    return resized


def _normalized(settings: Mapping[str, Any], key: str) -> list[Callable[[Any], Any]]:
    return [
        NormalizeIntensityd(key, settings["intensity_mean"], settings["intensity_std"]),
        ToTensord(key, track_meta=False),
    ]
