from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from volume_files import SHAPE, affine, nifti, values

from monai_basisprune.data import LoadVolumed, read_volume
from monai_basisprune.data.volume import Volume, volume_digest
from monai_basisprune.errors import CohortError, ConfigurationError


def test_neither_file_nor_series(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "a.png", "is neither a folder"), (tmp_path / "empty", "without DICOM files")):
        with pytest.raises(CohortError, match=words):
            read_volume(path)
    with pytest.raises(CohortError, match=r"cannot be opened \(FileNotFoundError\)"):
        read_volume(tmp_path / "none.nii")


def test_the_transform_gives_a_tensor_with_its_affine(tmp_path: Path) -> None:
    item = LoadVolumed("image")({"image": str(nifti(tmp_path / "Doe.nii")), "label": 1})
    image = item["image"]
    assert isinstance(image, MetaTensor)
    assert image.shape == (1, *SHAPE)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.affine, affine())
    assert "Doe" not in str(image.meta)
    assert item["label"] == 1


def test_the_transform_names_the_case_and_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "Doe.nii").write_bytes(b"")
    with pytest.raises(CohortError, match=r"is empty .*\(case_id ab12\)") as caught:
        LoadVolumed("image")({"image": str(tmp_path / "Doe.nii"), "case_id": "ab12"})
    assert "Doe" not in str(caught.value)


def test_volumes_are_not_read_without_their_affine(tmp_path: Path) -> None:
    set_track_meta(False)
    try:
        with pytest.raises(ConfigurationError, match=r"call monai.data.set_track_meta\(True\)"):
            LoadVolumed("image")({"image": str(nifti(tmp_path / "a.nii"))})
    finally:
        set_track_meta(True)


def test_the_digest_is_of_content(tmp_path: Path) -> None:
    first = read_volume(nifti(tmp_path / "a.nii"))
    again = read_volume(nifti(tmp_path / "b.nii.gz"))
    assert volume_digest(first) == volume_digest(again)
    other = Volume(first.values, first.affine @ np.diag([-1.0, 1, 1, 1]))
    assert volume_digest(other) != volume_digest(first)
    assert volume_digest(Volume(first.values + 1, first.affine)) != volume_digest(first)
    assert volume_digest(Volume(np.asfortranarray(first.values), first.affine)) == volume_digest(first)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "RSA", "PIR"])
def test_any_orientation_is_read_with_its_affine(tmp_path: Path, codes: str) -> None:
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    nifti(tmp_path / "a.nii.gz", apply_orientation(values(), turn), affine() @ inv_ornt_aff(turn, SHAPE))
    volume = read_volume(tmp_path / "a.nii.gz")
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.values, volume.affine))
    np.testing.assert_array_equal(canonical.get_fdata(), values())
    np.testing.assert_allclose(canonical.affine, affine(), atol=1e-5)
