from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volume_files import SHAPE, affine, gzipped, nifti, values, with_header

from monai_basisprune.data import read_volume
from monai_basisprune.errors import CohortError


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_is_read_as_nibabel_reads_it(tmp_path: Path, name: str, kind: type) -> None:
    path = nifti(tmp_path / name.lower(), kind=kind)
    expected = nib.load(path)
    volume = read_volume(path.rename(tmp_path / name))
    np.testing.assert_array_equal(volume.values, values())
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)
    assert volume.values.dtype == np.float32
    assert volume.spacing == pytest.approx((1, 1.5, 2))


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u1", "<f8", ">f4", "<i4"])
def test_types_byte_orders_and_scalings(tmp_path: Path, dtype: str) -> None:
    data = values()
    header = nib.Nifti1Header(endianness=dtype[0])
    image = nib.Nifti1Image(data, affine(), header)
    image.set_data_dtype(np.dtype(dtype).type)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(
        read_volume(tmp_path / "a.nii").values, nib.load(tmp_path / "a.nii").get_fdata(), rtol=1e-5, atol=1e-3
    )


def test_a_qform_counts_where_there_is_no_sform(tmp_path: Path) -> None:
    grid = affine() @ np.diag([-1.0, -1, 1, 1])
    image = nib.Nifti1Image(values(), grid)
    image.set_qform(grid, code=1)
    image.set_sform(grid, code=0)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, grid, atol=1e-5)


def test_an_sform_counts_before_a_qform_that_only_turns(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), affine())
    image.set_sform(affine(), code=2)
    image.set_qform(affine() @ np.diag([-1.0, -1, 1, 1]), code=1)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, affine(), atol=1e-5)


def test_one_more_axis_of_one_voxel_is_removed(tmp_path: Path) -> None:
    assert read_volume(nifti(tmp_path / "a.nii", values(shape=(*SHAPE, 1)))).values.shape == SHAPE


def broken(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = nifti(folder / "a.nii")
        change(path)
        return path

    return write


def no_affine(path: Path) -> None:
    with_header(path, sform_code=0, qform_code=0)


BAD_NIFTI: dict[str, tuple[Callable[[Path], Path], str]] = {
    "4D": (lambda f: nifti(f / "a.nii", values(shape=(*SHAPE, 3))), "is 4D (8 x 10 x 6 x 3), expected one gray volume"),
    "2D": (lambda f: nifti(f / "a.nii", values(shape=(8, 10))), "is 2D (8 x 10), expected one gray volume"),
    "one slice": (lambda f: nifti(f / "a.nii", values(shape=(8, 10, 1))), "its size is 8 x 10 x 1"),
    "no affine": (broken(no_affine), "has no affine (sform_code and qform_code are 0)"),
    "zero affine": (broken(lambda p: with_header(p, srow_x=0, srow_y=0, srow_z=0)), "has an affine without three"),
    "NaN affine": (broken(lambda p: with_header(p, srow_x=np.nan)), "has an affine that is not finite"),
    "flat affine": (broken(lambda p: with_header(p, srow_y=[1, 0, 0, 0])), "has an affine without three directions"),
    "sheared": (broken(lambda p: with_header(p, srow_y=[0.3, 1.5, 0, 0])), "has a sheared affine: its axes are off by"),
    "anisotropic": (
        lambda f: nifti(f / "a.nii", grid=affine((0.5, 0.5, 12))),
        "is too anisotropic: its spacing is 0.5 x 0.5 x 12 mm, a ratio of 24",
    ),
    "too long": (lambda f: nifti(f / "a.nii", grid=affine((900, 900, 900))), "so it is longer than 4 m"),
    "micrometers": (broken(lambda p: with_header(p, xyzt_units=3)), "has its affine in micrometers"),
    "NaN": (
        lambda f: nifti(f / "a.nii", np.where(values() > 390, np.nan, values())),
        "of 480 voxels that are NaN or infinite",
    ),
    "infinite": (lambda f: nifti(f / "a.nii", np.where(values() > 0, np.inf, 0)), "voxels that are NaN or infinite"),
    "constant": (lambda f: nifti(f / "a.nii", np.ones(SHAPE)), "is a constant volume"),
    "empty": (broken(lambda p: p.write_bytes(b"")), "is empty (0 bytes)"),
    "text": (broken(lambda p: p.write_text("no image " * 99)), "is not a NIfTI file (wrong magic"),
    "wrong magic": (broken(lambda p: with_header(p, magic=b"abc")), "is not a NIfTI file (wrong magic"),
    "pair": (broken(lambda p: with_header(p, magic=b"ni1")), "is one half of a pair (.hdr and .img)"),
    "header only": (broken(lambda p: p.write_bytes(p.read_bytes()[:200])), "is cut short or damaged"),
    "cut": (broken(lambda p: p.write_bytes(p.read_bytes()[:-1])), "is cut short or damaged"),
    "huge": (
        broken(lambda p: with_header(p, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])),
        "is too large: its header says",
    ),
    "promises": (broken(lambda p: with_header(p, dim=[3, 800, 800, 800, 1, 1, 1, 1])), "is cut short or damaged"),
    "no size": (broken(lambda p: with_header(p, dim=[3, 0, 4, 4, 1, 1, 1, 1])), "impossible size in its header"),
    "negative": (broken(lambda p: with_header(p, dim=[3, -5, 8, 8, 1, 1, 1, 1])), "impossible size in its header"),
    "color": (broken(lambda p: with_header(p, datatype=128, bitpix=24)), "holds no gray numbers"),
    "unknown type": (broken(lambda p: with_header(p, datatype=999)), "holds no gray numbers"),
    "offset": (broken(lambda p: with_header(p, vox_offset=1e30)), "impossible place of its voxels"),
    "NaN offset": (broken(lambda p: with_header(p, vox_offset=np.nan)), "impossible place of its voxels"),
    "scaling": (broken(lambda p: with_header(p, scl_slope=1, scl_inter=np.inf)), "scaling in its header that is not"),
    "infinite slope": (broken(lambda p: with_header(p, scl_slope=np.inf)), "scaling in its header that is not"),
    "too high for 32 bits": (lambda f: nifti(f / "a.nii", values().astype(np.float64) * 1e300), "NaN or infinite"),
    "mirrored": (
        broken(lambda p: with_header(p, qform_code=1, pixdim=[-1, 1, 1.5, 2, 0, 0, 0, 0])),
        "has a qform and an sform of which one is the mirror image of the other",
    ),
}


@pytest.mark.parametrize("name", BAD_NIFTI)
@pytest.mark.parametrize("packed", [False, True], ids=["nii", "nii.gz"])
def test_bad_nifti_is_refused_in_our_words(tmp_path: Path, name: str, packed: bool) -> None:
    write, words = BAD_NIFTI[name]
    path = write(tmp_path / "Doe_John")
    if packed:
        path = gzipped(path.with_name("a.nii.gz"), path.read_bytes())
    with pytest.raises(CohortError) as caught:
        read_volume(path)
    if not (packed and name == "empty"):
        assert words in str(caught.value)
    assert str(caught.value).startswith("A volume was asked for, but it ")
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95, 0.999])
def test_a_truncated_nii_gz_is_refused(tmp_path: Path, part: float) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(CohortError, match="is cut short or damaged: its header promises more than the file holds"):
        read_volume(path)


def test_a_flipped_bit_in_a_nii_gz_is_found_by_its_checksum(tmp_path: Path) -> None:
    content = gzip.decompress(nifti(tmp_path / "a.nii.gz").read_bytes())
    raw = bytearray(gzip.compress(content, compresslevel=0))  # stored: a flip changes a voxel and nothing else
    raw[-40] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(raw)
    with pytest.raises(CohortError, match="or its checksum is wrong"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_header_is_not_believed_before_memory_is_taken(tmp_path: Path) -> None:
    import tracemalloc

    path = with_header(nifti(tmp_path / "a.nii"), dim=[3, 800, 800, 800, 1, 1, 1, 1])  # 2 GB as floats
    tracemalloc.start()
    with pytest.raises(CohortError):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_all_problems_of_a_header_are_named_at_once(tmp_path: Path) -> None:
    path = with_header(nifti(tmp_path / "a.nii", values(shape=(*SHAPE, 2))), sform_code=0, datatype=128, bitpix=24)
    with pytest.raises(CohortError) as caught:
        read_volume(path)
    for words in ("is 4D", "no gray numbers", "has no affine"):
        assert words in str(caught.value)
