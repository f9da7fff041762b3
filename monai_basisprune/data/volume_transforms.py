"""How volumes are prepared for the network: one description, for training, for inference and for the report.

The file of a pruned network carries it, so that training and inference cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from monai.transforms import (
    CropForegroundd,
    NormalizeIntensityd,
    Orientationd,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    ToTensord,
)

from monai_basisprune.data.volume import LoadVolumed
from monai_basisprune.data.volume_geometry import MOST_VOXELS
from monai_basisprune.errors import ConfigurationError

__all__ = ["INTENSITIES", "VolumePreparation", "volume_transforms"]

INTENSITIES = ("window", "percentiles", "zscore")
"""What can be done to intensities: a window in Hounsfield units (CT), percentiles or a z-score in the body (MR)."""

_PERCENTILES = (1.0, 99.0)
_CENTER, _WIDTH = 0.5, 0.25  # of intensities in 0 to 1, for the network
_BODY = 0.05  # of intensities in 0 to 1, what is above it is body
_SMALLEST, _LARGEST = 8, 512


@dataclass(frozen=True)
class VolumePreparation:
    """How volumes are prepared, as JSON types.

    Attributes:
        volume_size: number of voxels that the network sees from left to right, back to front, foot to head.
        spacing: spacing in mm along these axes; what is larger than `volume_size` is cut at its edges, what is smaller
            is padded. ``None`` resizes every volume to `volume_size` as a whole.
        intensity: one of :data:`INTENSITIES`.
        window: lowest and highest value of the window, in Hounsfield units; only for "window".
        crop_to_body: whether empty borders are cut off first.

    Raises:
        ConfigurationError: when a value cannot be used.
    """

    volume_size: Sequence[int]
    spacing: Sequence[float] | None = None
    intensity: str = "window"
    window: Sequence[float] = (-1000.0, 400.0)
    crop_to_body: bool = True

    def __post_init__(self) -> None:
        problems = []
        if not _three(self.volume_size, int) or not all(_SMALLEST <= one <= _LARGEST for one in self.volume_size):
            problems.append(
                f"volume_size must be three whole numbers from {_SMALLEST} to {_LARGEST}, such as [96,96,96], got "
                f"{self.volume_size!r}"
            )
        if self.spacing is not None and (
            not _three(self.spacing, (int, float)) or not all(0.05 <= one <= 50 for one in self.spacing)
        ):
            problems.append(f"spacing must be null or three numbers from 0.05 to 50 (mm), got {self.spacing!r}")
        if self.intensity not in INTENSITIES:
            problems.append(f"intensity must be one of {', '.join(INTENSITIES)}, got {self.intensity!r}")
        if (
            not isinstance(self.window, (list, tuple))
            or len(self.window) != 2
            or not all(_is_number(edge, (int, float)) for edge in self.window)
            or not self.window[0] < self.window[1]
        ):
            problems.append(f"window must be two rising numbers, such as [-1000,400], got {self.window!r}")
        if not isinstance(self.crop_to_body, bool):
            problems.append(f"crop_to_body must be true or false, got {self.crop_to_body!r}")
        if not problems and math.prod(self.volume_size) > MOST_VOXELS:
            problems.append(f"volume_size has more than {MOST_VOXELS} voxels, got {self.volume_size!r}")
        if problems:
            raise ConfigurationError("Volumes cannot be prepared as asked for: " + "; ".join(problems) + ".")

    @property
    def hounsfield_window(self) -> Sequence[float] | None:
        """The window, where intensities are read through one."""
        return self.window if self.intensity == "window" else None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> VolumePreparation:
        """Return the preparation that a dictionary describes; other keys do not count.

        Raises:
            ConfigurationError: when a setting is missing or cannot be used.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in settings]:
            raise ConfigurationError(f"How volumes are prepared is not known: {', '.join(missing)} missing.")
        return cls(**{name: settings[name] for name in names})


def volume_transforms(settings: Mapping[str, Any], key: str = "image") -> list[Callable[[Any], Any]]:
    """Return MONAI's transforms from the path of a volume to what the network sees.

    They read it, turn it to RAS, resample it, map its intensities, cut off what is not body, and bring it to one size.

    Args:
        settings: the fields of :class:`VolumePreparation`, by name.
        key: key of the path in the dictionaries.

    Returns:
        The transforms, the result of which is a float32 tensor of shape (1, H, W, D).

    Raises:
        ConfigurationError: when a setting cannot be used.
    """
    how = VolumePreparation.of(settings)
    steps: list[Callable[[Any], Any]] = [LoadVolumed(key), Orientationd(key, axcodes="RAS", labels=None)]
    if how.spacing is not None:
        steps.append(Spacingd(key, pixdim=tuple(how.spacing), mode="bilinear", padding_mode="border"))
    low, high = how.window
    if how.intensity == "window":
        steps.append(ScaleIntensityRanged(key, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True))
    elif how.intensity == "percentiles":
        steps.append(ScaleIntensityRangePercentilesd(key, *_PERCENTILES, b_min=0.0, b_max=1.0, clip=True))
    if how.crop_to_body:
        body = above_mean if how.intensity == "zscore" else above_air
        steps.append(CropForegroundd(key, source_key=key, select_fn=body, allow_smaller=True))
    if how.intensity == "zscore":
        steps.append(NormalizeIntensityd(key, nonzero=True))
    else:
        steps.append(NormalizeIntensityd(key, subtrahend=_CENTER, divisor=_WIDTH))
    size = tuple(how.volume_size)
    if how.spacing is None:
        steps.append(Resized(key, spatial_size=size, mode="trilinear", anti_aliasing=True))
    else:
        empty = 0.0 if how.intensity == "zscore" else -_CENTER / _WIDTH
        steps.append(ResizeWithPadOrCropd(key, spatial_size=size, mode="constant", value=empty))
    return [*steps, ToTensord(key, dtype=torch.float32, track_meta=False)]


def above_air(values: torch.Tensor) -> torch.Tensor:
    """Return where the body is, of intensities in 0 to 1; everywhere when nothing is above air."""
    return _or_all(values > _BODY)


def above_mean(values: torch.Tensor) -> torch.Tensor:
    """Return where the body is, of an MR volume: above its mean."""
    return _or_all(values > values.mean())


def _or_all(body: torch.Tensor) -> torch.Tensor:
    return body if bool(body.any()) else torch.ones_like(body)


def _three(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(_is_number(one, kinds) for one in value)


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return finite and isinstance(value, kinds) and not isinstance(value, bool)
