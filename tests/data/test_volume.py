from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.transforms import LoadImage
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from pydicom.uid import JPEG2000Lossless
from volume_files import SHAPE, affine, gzipped, nifti, series, values, with_header

from monai_basisprune.data import LoadVolumed, read_volume
from monai_basisprune.data.volume import Volume, volume_digest
from monai_basisprune.errors import CohortError, ConfigurationError


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


# --- DICOM series


def test_a_series_is_put_together_by_positions(tmp_path: Path) -> None:
    folder, voxels = series(tmp_path / "s")
    (folder / "readme.txt").write_text("not a slice")
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.values, voxels)  # in Hounsfield units
    assert volume.spacing == pytest.approx((0.75, 0.5, 2.5))  # along a row of the image first
    # DICOM's x and y run to the left and to the back, NIfTI's to the right and to the front
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-0.75, -0.5, 2.5]))
    np.testing.assert_allclose(volume.affine[:3, 3], (-10, -10, 10))
    assert volume.series is not None
    assert volume.series.patient_id == "P1"
    assert volume.series.attributes["sex"] == "F"
    assert "P1" not in repr(volume.series)


@pytest.mark.parametrize(
    ("direction", "step"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, -2.5)),
        ((0, 1, 0, 0, 0, -1), (2.5, 0, 0)),
        ((1, 0, 0, 0, 0, -1), (0, 2.5, 0)),
        ((0.8, 0.6, 0, -0.6, 0.8, 0), (0, 0, 2.5)),
    ],
)
def test_voxels_of_a_series_are_where_itk_puts_them(
    tmp_path: Path, direction: tuple[float, ...], step: tuple[float, ...]
) -> None:
    """MONAI's own reader agrees about where each voxel is, on a series without problems."""
    folder, _ = series(tmp_path / "s", direction=direction, step=step)
    ours = read_volume(folder)
    theirs = LoadImage(reader="PydicomReader", image_only=True)(str(folder))

    def at(points: np.ndarray, array: np.ndarray, grid: np.ndarray) -> np.ndarray:
        index = np.rint((np.linalg.inv(grid) @ np.c_[points, np.ones(len(points))].T)[:3]).astype(int)
        return array[tuple(index)]

    corners = np.array([[0, 0, 0], [7, 0, 0], [0, 9, 0], [0, 0, 5], [3, 4, 2], [7, 9, 5]])
    points = (ours.affine @ np.c_[corners, np.ones(6)].T).T[:, :3]
    expected = at(points, theirs.numpy(), theirs.affine.numpy())
    np.testing.assert_allclose(at(points, ours.values, ours.affine), expected)


@pytest.mark.parametrize("side", [1, -1], ids=["along", "against"])
@pytest.mark.parametrize(
    "direction",
    [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, -1, 0, 0, 0, 1), (0.8, 0.6, 0, -0.6, 0.8, 0)],
)
def test_hounsfield_units_are_where_the_standard_puts_them(
    tmp_path: Path, direction: tuple[float, ...], side: int
) -> None:
    """A field of numbers in the patient, by the formula of PS3.3 C.7.6.2.1.1, each slice with a rescale of its own."""

    def field(right: np.ndarray, front: np.ndarray, head: np.ndarray) -> np.ndarray:
        return -500 + 4 * right + 2 * front + head

    along_row, along_column = np.array(direction[:3]), np.array(direction[3:])
    step = 2.5 * side * np.cross(along_row, along_column)
    folder, _ = series(tmp_path / "s", direction=direction, step=tuple(step), BitsStored=16, HighBit=15)
    column, row = (one[..., None] for one in np.meshgrid(np.arange(8), np.arange(10)))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        number = dataset.InstanceNumber - 1
        corner = np.array([float(one) for one in dataset.ImagePositionPatient])
        left, back, head = np.moveaxis(corner + column * 0.75 * along_row + row * 0.5 * along_column, -1, 0)
        slope, intercept = 0.5 + 0.25 * number, -1024 - number
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = np.rint((field(-left, -back, head) - intercept) / slope).astype("<u2").tobytes()
        dataset.InstanceNumber = (7 * number) % 5  # of no use for the order
        dataset.save_as(path)
    volume = read_volume(folder)
    index = np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"))
    right, front, head = np.tensordot(volume.affine[:3, :3], index, 1) + volume.affine[:3, 3, None, None, None]
    np.testing.assert_allclose(volume.values, field(right, front, head), atol=1.1)  # stored as integers


def edit(folder: Path, number: int, **tags: object) -> None:
    """Change tags of one slice; None deletes."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        if dataset.InstanceNumber == number:
            for keyword, value in tags.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)
            dataset.save_as(path)


def remove(folder: Path, number: int) -> None:
    for path in folder.iterdir():
        if pydicom.dcmread(path).InstanceNumber == number:
            path.unlink()
            return


def compress_all(folder: Path) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
        dataset.save_as(path)


def copy_one(folder: Path) -> None:
    first = sorted(folder.iterdir())[0]
    (folder / "copy").write_bytes(first.read_bytes())


BAD_SERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "mixed": (lambda f: series(f, seed=7, patient="P1"), "mixes 2 series in one folder"),
    "missing": (lambda f: remove(f, 3), "lacks 1 slices between those that it has (2.5 mm apart)"),
    "two missing": (lambda f: (remove(f, 3), remove(f, 4)), "lacks 2 slices between those that it has"),
    "no position": (
        lambda f: edit(f, 2, ImagePositionPatient=None),
        "has 1 of 6 slices without position (ImagePositionPatient)",
    ),
    "NaN position": (
        lambda f: edit(f, 2, ImagePositionPatient=["1", "2", "nan"]),
        "has 1 of 6 slices without position",
    ),
    "no orientation": (lambda f: edit(f, 2, ImageOrientationPatient=None), "without orientation"),
    "localizer": (lambda f: edit(f, 1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "slices of different orientation"),
    "same position": (lambda f: edit(f, 2, ImagePositionPatient=[10, 10, 10]), "at a position that another one has"),
    "uneven": (lambda f: edit(f, 6, ImagePositionPatient=[10, 10, 23.6]), "has uneven distances between slices"),
    "no spacing": (lambda f: [edit(f, n, PixelSpacing=None) for n in range(1, 7)], "has no PixelSpacing above 0"),
    "other size": (lambda f: edit(f, 2, Rows=8, Columns=10), "has slices that differ in Rows"),
    "other spacing": (lambda f: edit(f, 2, PixelSpacing=[1, 1]), "has slices that differ in PixelSpacing"),
    "copy": (copy_one, "holds 1 slices twice (same SOPInstanceUID)"),
    "not DICOM": (
        lambda f: (f / "x").write_text("x" * 999),
        "has 1 of 7 files that cannot be used: each is not a DICOM",
    ),
    "empty file": (lambda f: (f / "x").write_bytes(b""), "has 1 of 7 files that cannot be used: each is empty"),
    "too few": (lambda f: [remove(f, n) for n in (1, 2, 3)], "has 3 slices, expected at least 4"),
    "two patients": (lambda f: edit(f, 2, PatientID="P2"), "mixes files of several patients"),
    "color": (lambda f: edit(f, 2, SamplesPerPixel=3, PhotometricInterpretation="RGB"), "color image or not gray"),
    "no rotation": (
        lambda f: [edit(f, n, ImageOrientationPatient=[2, 0, 0, 0, 0.5, 0]) for n in range(1, 7)],
        "has an ImageOrientationPatient that is no rotation",
    ),
    "one without rescale": (
        lambda f: edit(f, 2, RescaleSlope=None, RescaleIntercept=None),
        "has 1 of 6 slices without RescaleSlope and RescaleIntercept",
    ),
    "CT without rescale": (
        lambda f: [edit(f, n, RescaleSlope=None, RescaleIntercept=None) for n in range(1, 7)],
        "has 6 of 6 slices without RescaleSlope and RescaleIntercept",
    ),
    "one inverted": (
        lambda f: edit(f, 2, PhotometricInterpretation="MONOCHROME1"),
        "slices that differ in Photometric",
    ),
    "other unit": (lambda f: edit(f, 2, RescaleType="US"), "has slices that differ in RescaleType"),
    "no slope": (lambda f: edit(f, 2, RescaleSlope=0), "has a RescaleSlope of 0"),
    "no pixels": (lambda f: edit(f, 2, PixelData=None), "has 1 of 6 slices that cannot be used: each holds no image"),
    "no UID": (lambda f: [edit(f, n, SeriesInstanceUID="") for n in range(1, 7)], "has no valid SeriesInstanceUID"),
    "huge": (lambda f: [edit(f, n, Rows=65000, Columns=65000) for n in range(1, 7)], "is too large: its header says"),
}


@pytest.mark.parametrize("name", BAD_SERIES)
def test_a_bad_series_is_refused_in_our_words(tmp_path: Path, name: str) -> None:
    change, words = BAD_SERIES[name]
    folder, _ = series(tmp_path / "Doe_Jane")
    change(folder)
    with pytest.raises(CohortError) as caught:
        read_volume(folder)
    assert words in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    folder, _ = series(tmp_path / "s", step=(0, 0.5, 2.5))
    with pytest.raises(CohortError, match=r"tilted gantry \(11.3 degrees\); export a reconstruction without tilt"):
        read_volume(folder)


def test_compression_without_a_decoder_is_named_before_any_pixel(tmp_path: Path) -> None:
    from pydicom.pixels import get_decoder

    folder, _ = series(tmp_path / "s")
    compress_all(folder)
    available = get_decoder(JPEG2000Lossless).is_available
    words = "cannot be" if available else "no decoder for it is installed"
    with pytest.raises(CohortError, match=words):
        read_volume(folder)


def test_a_series_of_mr_needs_no_rescale(tmp_path: Path) -> None:
    folder, voxels = series(tmp_path / "s", Modality="MR")
    for number in range(1, 7):
        edit(folder, number, RescaleSlope=None, RescaleIntercept=None)
    np.testing.assert_array_equal(read_volume(folder).values, voxels + 1024)


def test_padding_becomes_the_lowest_value_of_the_series(tmp_path: Path) -> None:
    folder, voxels = series(tmp_path / "s", PixelPaddingValue=0)
    path = sorted(folder.iterdir())[0]
    dataset = pydicom.dcmread(path)
    stored = np.frombuffer(dataset.PixelData, "<u2").copy()
    stored[:7] = 0
    dataset.PixelData = stored.tobytes()
    dataset.save_as(path)
    lowest = read_volume(folder).values.min()
    assert lowest >= voxels.min()  # and not -1024, which the padding would be


def test_neither_file_nor_series(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "a.png", "is neither a folder"), (tmp_path / "empty", "without DICOM files")):
        with pytest.raises(CohortError, match=words):
            read_volume(path)
    with pytest.raises(CohortError, match=r"cannot be opened \(FileNotFoundError\)"):
        read_volume(tmp_path / "none.nii")


# --- the transform and the digest


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
