from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from volume_files import affine, nifti

from monai_basisprune.data import VolumePreparation, volume_transforms
from monai_basisprune.errors import ConfigurationError

SETTINGS: dict[str, Any] = {
    "volume_size": [16, 16, 16],
    "spacing": None,
    "intensity": "window",
    "window": [-1000, 400],
    "crop_to_body": True,
}


def phantom() -> np.ndarray:
    """Return air with a box of tissue, and in it one bright corner to the left, in front, at the head."""
    body = np.full((24, 20, 16), -1000.0, dtype=np.float32)
    body[4:20, 4:16, 2:14] = 0
    body[4:8, 12:16, 10:14] = 350
    return body


def prepared(path: Path, **settings: Any) -> torch.Tensor:
    return Compose(volume_transforms({**SETTINGS, **settings}))({"image": str(path)})["image"]


@pytest.mark.parametrize("settings", [{}, {"spacing": [1.5, 1.5, 1.5]}, {"intensity": "zscore"}], ids=str)
@pytest.mark.parametrize("codes", ["LPS", "SPL", "RSA"])
def test_any_orientation_gives_the_same_input(tmp_path: Path, codes: str, settings: dict[str, Any]) -> None:
    straight = prepared(nifti(tmp_path / "a.nii", phantom()), **settings)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    grid = affine() @ inv_ornt_aff(turn, phantom().shape)
    turned = prepared(nifti(tmp_path / "b.nii", apply_orientation(phantom(), turn), grid), **settings)
    assert type(straight) is torch.Tensor
    assert straight.shape == (1, 16, 16, 16)
    assert straight.dtype == torch.float32
    torch.testing.assert_close(turned, straight, atol=1e-4, rtol=0)


def test_the_window_maps_hounsfield_units(tmp_path: Path) -> None:
    image = prepared(
        nifti(tmp_path / "a.nii", phantom()), spacing=[1, 1.5, 2], crop_to_body=False, volume_size=[24] * 3
    )
    assert float(image.min()) == -2  # air, and what is padded
    assert image.shape == (1, 24, 24, 24)
    # 0 HU is (0 + 1000) / 1400, then (x - 0.5) / 0.25
    center = float(image[0, 12, 10 + 2, 8 + 4])
    assert center == pytest.approx((1000 / 1400 - 0.5) / 0.25, abs=1e-4)


def test_without_spacing_the_whole_body_is_seen(tmp_path: Path) -> None:
    image = prepared(nifti(tmp_path / "a.nii", phantom()))
    assert float(image.min()) > 0  # no air is left
    bright = (image[0] > 1.6).nonzero().float().mean(dim=0)
    assert bright[0] < 6  # left is first in RAS
    assert bright[1] > 10
    assert bright[2] > 8


def test_spacing_keeps_lengths(tmp_path: Path) -> None:
    image = prepared(nifti(tmp_path / "a.nii", phantom()), spacing=[2, 2, 2], volume_size=[16, 16, 16])
    inside = (image[0] > -1).nonzero()
    lengths = (inside.max(dim=0).values - inside.min(dim=0).values + 1).tolist()
    # the box is 16 mm, 18 mm and 24 mm long
    assert lengths == pytest.approx([8, 9, 12], abs=1)


def test_mr_is_normalized_in_the_body(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = np.zeros((24, 20, 16), dtype=np.float32)
    volume[4:20, 4:16, 2:14] = rng.normal(700, 50, (16, 12, 12))
    path = nifti(tmp_path / "a.nii", volume)
    image = prepared(path, intensity="zscore", volume_size=[16, 12, 12])
    assert abs(float(image.mean())) < 0.1
    assert float(image.std()) == pytest.approx(1, abs=0.1)
    twice = prepared(nifti(tmp_path / "b.nii", 3 * volume), intensity="zscore", volume_size=[16, 12, 12])
    torch.testing.assert_close(twice, image, atol=1e-3, rtol=0)
    image = prepared(path, intensity="percentiles")
    assert float(image.max()) <= 2
    assert float(image.min()) >= -2


def test_a_volume_of_air_is_kept_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1000, -990, (12, 12, 12)).astype(np.float32)
    assert prepared(nifti(tmp_path / "a.nii", noise)).shape == (1, 16, 16, 16)


def test_transforms_travel_to_the_processes_of_a_loader() -> None:
    pickle.loads(pickle.dumps(Compose(volume_transforms({**SETTINGS, "intensity": "zscore"}))))


def test_settings_are_json_and_come_back() -> None:
    how = VolumePreparation((32, 32, 32), (1.0, 1.0, 2.0), "zscore")
    assert VolumePreparation.of({**how.to_dict(), "class_names": ["a", "b"]}).to_dict() == how.to_dict()
    assert how.to_dict()["spacing"] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"volume_size": 32}, "volume_size must be three whole numbers from 8 to 512"),
        ({"volume_size": [32, 32]}, "volume_size must be three whole numbers"),
        ({"volume_size": [32, 32, 4]}, "volume_size must be three whole numbers"),
        ({"volume_size": [32, 32, 32.5]}, "volume_size must be three whole numbers"),
        ({"volume_size": [32, 32, True]}, "volume_size must be three whole numbers"),
        ({"spacing": 1.5}, "spacing must be null or three numbers from 0.05 to 50"),
        ({"spacing": [1, 1, 0]}, "spacing must be null or three numbers"),
        ({"spacing": [1, 1, float("nan")]}, "spacing must be null or three numbers"),
        ({"intensity": "CT"}, "intensity must be one of window, percentiles, zscore, got 'CT'"),
        ({"window": [400, -1000]}, "window must be two rising numbers"),
        ({"window": [0, float("inf")]}, "window must be two rising numbers"),
        ({"crop_to_body": "yes"}, "crop_to_body must be true or false"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match="Volumes cannot be prepared as asked for") as caught:
        volume_transforms({**SETTINGS, **change})
    assert words in str(caught.value)


def test_settings_that_are_missing_are_named() -> None:
    with pytest.raises(ConfigurationError, match="How volumes are prepared is not known: spacing, window missing"):
        VolumePreparation.of({key: value for key, value in SETTINGS.items() if key not in ("spacing", "window")})


def test_nibabel_and_monai_agree_about_ras(tmp_path: Path) -> None:
    """An independent path: nibabel's canonical orientation, and the window by hand."""
    grid = np.diag([-1.0, -1.0, 2.0, 1.0])
    path = nifti(tmp_path / "a.nii", phantom(), grid)
    image = prepared(path, crop_to_body=False, spacing=[1, 1, 2], volume_size=[24, 20, 16])
    canonical = nib.as_closest_canonical(nib.load(path)).get_fdata()
    expected = (np.clip((canonical + 1000) / 1400, 0, 1) - 0.5) / 0.25
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-4)
