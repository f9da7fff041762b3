from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from pictures import gray, save
from radiograph_files import radiograph
from radiograph_files import save as save_radiograph

from monai_basisprune.data import picture_transforms, radiograph_transforms, read_radiograph
from monai_basisprune.errors import ConfigurationError

SETTINGS = {"image_size": 4, "image_channels": 1, "intensity_mean": 0.25, "intensity_std": 0.5, "class_names": ["a"]}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_radiograph_by_hand(tmp_path: Path, channels: int) -> None:
    path = save_radiograph(radiograph(), tmp_path / "a.dcm")
    pixels = torch.from_numpy(read_radiograph(path)[0])[None, None]
    wanted = (torch.nn.functional.interpolate(pixels, (4, 4), mode="area")[0] - 0.25) / 0.5
    found = Compose(radiograph_transforms({**SETTINGS, "image_channels": channels}))({"image": path})["image"]
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, wanted.repeat(channels, 1, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_by_hand(tmp_path: Path, channels: int) -> None:
    """12 x 12 pixels to 4 x 4: each is the mean of 3 x 3."""
    color = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    path = save(tmp_path / "a.png", color)
    found = Compose(picture_transforms({**SETTINGS, "image_channels": channels}, "picture"))({"picture": path})
    scaled = color.transpose(2, 0, 1) / 255
    if channels == 1:
        scaled = np.tensordot([0.299, 0.587, 0.114], scaled, 1)[None]
    wanted = (scaled.reshape(channels, 4, 3, 4, 3).mean(axis=(2, 4)) - 0.25) / 0.5
    assert type(found["picture"]) is torch.Tensor
    np.testing.assert_allclose(found["picture"], wanted, atol=2e-6)


def test_they_can_be_sent_to_processes_that_load(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", gray(1))
    transform = Compose(picture_transforms(SETTINGS))
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again({"image": path})["image"], transform({"image": path})["image"])


def test_pictures_are_gray_or_in_color() -> None:
    with pytest.raises(ConfigurationError, match=r"image_channels must be 1 \(gray\) or 3 \(RGB\), got 2"):
        picture_transforms({**SETTINGS, "image_channels": 2})
