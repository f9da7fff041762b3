from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage
from pydicom.uid import JPEG2000Lossless
from volume_files import series

from monai_basisprune.data import read_volume
from monai_basisprune.errors import CohortError


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
