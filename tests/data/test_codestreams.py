"""The size that a compressed image says of its own, read before a decoder makes room for it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from radiograph_files import radiograph

from monai_basisprune.data.codestreams import codestream_size, compressed_problem

SIZES = [(1, 1), (13, 7), (40, 501), (300, 2)]
FILES = {
    "JPEG-lossy.dcm": (1024, 256),
    "SC_rgb_jpeg_gdcm.dcm": (100, 100),
    "SC_rgb_small_odd_jpeg.dcm": (3, 3),
    "SC_rgb_jpeg_app14_dcmd.dcm": (256, 256),
    "MR_small_jpeg_ls_lossless.dcm": (64, 64),
    "JPEGLSNearLossless_16.dcm": (50, 10),
    "JPEG2000.dcm": (1024, 256),
    "SC_rgb_gdcm_KY.dcm": (100, 100),
    "MR_small_RLE.dcm": (64, 64),
}
"""Files of several encoders that pydicom brings along, and the size of what they show."""


def encoded(size: tuple[int, int], kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).save(stream, kind, **options)
    return stream.getvalue()


def segment(marker: int, content: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def frame(rows: int, columns: int, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, rows, columns, 1) + b"\x01\x11\x00")


def compressed(stream: bytes, syntax: str, rows: int = 12, columns: int = 20) -> Dataset:
    dataset = radiograph(Rows=rows, Columns=columns, BitsAllocated=8, PixelData=encapsulate([stream]))
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_a_jpeg_is_that_of_its_picture(size):
    assert codestream_size(encoded(size, "JPEG")) == size
    assert codestream_size(encoded(size, "JPEG", progressive=True)) == size
    # a thumbnail in another segment has a frame of its own
    thumbnail = encoded((5, 5), "JPEG")
    assert codestream_size(encoded(size, "JPEG", exif=b"Exif\0\0" + thumbnail, comment=b"\xff\xc0" * 50)) == size


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_a_jpeg_2000_is_that_of_its_picture(size):
    assert codestream_size(encoded(size, "JPEG2000", no_jp2=True), jpeg_2000=True) == size
    assert codestream_size(encoded(size, "JPEG2000"), jpeg_2000=True) == size  # inside a file of its own
    # an image may begin somewhere on its grid
    siz = b"\xff\x4f\xff\x51" + struct.pack(">HH4I", 41, 0, 50 + size[1], 7 + size[0], 50, 7)
    assert codestream_size(siz, jpeg_2000=True) == size


def test_markers_that_are_no_frames_are_passed_over():
    start, end = b"\xff\xd8", segment(0xDA, b"\x01")
    no_frames = b"".join(segment(marker, struct.pack(">BHH", 8, 9, 9) + b"\1") for marker in (0xC4, 0xC8, 0xCC, 0xE1))
    bare = b"\xff\x01\xff\xd0\xff\xd7"
    fill = b"\xff\xff\xff"
    for marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCF, 0xF7):
        assert codestream_size(start + no_frames + bare + fill + frame(30, 40, marker) + end) == (30, 40)
    assert codestream_size(start + no_frames + end) is None


def test_one_size_counts_and_two_are_none():
    start, end = b"\xff\xd8", segment(0xDA, b"\x01")
    assert codestream_size(start + frame(30, 40) + frame(30, 40, 0xC1) + end) == (30, 40)
    assert codestream_size(start + frame(30, 40) + frame(31, 40) + end) is None
    assert codestream_size(start + frame(30, 40) + end + frame(31, 40)) == (30, 40)  # among the pixels
    twice = encoded((4, 4), "JPEG2000", no_jp2=True) * 2
    assert codestream_size(twice, jpeg_2000=True) is None


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xc0\x00\x0b",
        b"\xff\xd8" + b"\xff" * 500,
        b"\0" * 99,
        b"\xff\xd8" + segment(0xE0, b"x") + b"\0" + frame(3, 3),
        b"\xff\xd8" + b"\xff\xe0\0\0" * 20,
        b"\xff\x4f\xff\x51" + b"\0" * 19,
    ],
)
def test_a_stream_without_a_size_has_none(stream):
    assert codestream_size(stream) is None
    assert codestream_size(stream, jpeg_2000=True) is None


# --- a data set


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")  # of pydicom, on odd headers
def test_files_of_other_encoders_may_be_decoded(name):
    path = get_testdata_file(name, download=False)
    assert path is not None
    dataset = pydicom.dcmread(path)
    rows, columns = FILES[name]
    assert (dataset.Rows, dataset.Columns) == (rows, columns)
    bits = dataset.BitsAllocated // 8 * dataset.SamplesPerPixel
    assert compressed_problem(dataset, rows, columns, bits) is None
    if dataset.file_meta.TransferSyntaxUID != RLELossless:
        found = compressed_problem(dataset, rows + 1, columns, bits)
        assert found == f"holds compressed pixels of {rows} x {columns}, its header says {rows + 1} x {columns}"


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_what_is_not_compressed_has_no_size_to_check():
    dataset = radiograph()
    assert compressed_problem(dataset, 1, 1, 1) is None
    for text in ("", "no uid", "1.2.840.10008.1.1"):
        dataset.file_meta.TransferSyntaxUID = text
        assert compressed_problem(dataset, 1, 1, 1) is None
    del dataset.file_meta
    assert compressed_problem(dataset, 1, 1, 1) is None


def test_more_bytes_than_the_pixels_need_are_refused():
    stream = encoded((12, 20), "JPEG")
    allowed = 2 * 12 * 20 + (1 << 16)
    for syntax in (JPEGBaseline8Bit, RLELossless):
        dataset = compressed(stream, syntax)
        dataset.PixelData += bytes(allowed - len(dataset.PixelData))
        assert "bytes of compressed pixels" not in (compressed_problem(dataset, 12, 20, 1) or "")
        dataset.PixelData += b"\0\0"
        assert compressed_problem(dataset, 12, 20, 1) == (
            f"has {allowed + 2} bytes of compressed pixels, far more than its 12 x 20 pixels need"
        )


def test_the_size_in_a_header_has_to_be_that_of_the_pixels():
    for syntax, stream in (
        (JPEGBaseline8Bit, encoded((12, 20), "JPEG")),
        (JPEG2000Lossless, encoded((12, 20), "JPEG2000", no_jp2=True)),
        (JPEGLSLossless, b"\xff\xd8" + frame(12, 20, 0xF7) + segment(0xDA, b"\x01")),
        (JPEGBaseline8Bit, encoded((12, 20), "JPEG2000", no_jp2=True)),  # some writers name the wrong one
    ):
        assert compressed_problem(compressed(stream, syntax), 12, 20, 1) is None
        found = compressed_problem(compressed(stream, syntax), 20, 12, 1)
        assert found == "holds compressed pixels of 12 x 20, its header says 20 x 12"


@pytest.mark.parametrize("value", [b"", b"\0" * 40, b"\xfe\xff\0\xe0\xff\xff\xff\x7f"])
def test_pixels_without_a_size_are_refused(value):
    dataset = compressed(encoded((12, 20), "JPEG"), JPEGBaseline8Bit)
    dataset.PixelData = value
    found = compressed_problem(dataset, 12, 20, 1)
    assert found == "has compressed pixels without a readable size of their own; copy or export it again"


def test_pixels_that_are_not_there_are_refused():
    dataset = compressed(encoded((12, 20), "JPEG"), JPEGBaseline8Bit)
    del dataset.PixelData
    assert compressed_problem(dataset, 12, 20, 1) == "has pixels that cannot be read; export it again"


def test_a_size_beyond_the_picture_is_never_given_to_a_decoder(tmp_path: Path):
    stream = bytearray(encoded((12, 20), "JPEG"))
    place = stream.index(b"\xff\xc0") + 5
    stream[place : place + 4] = b"\xff\xff\xff\xff"
    dataset = compressed(bytes(stream), JPEGBaseline8Bit)
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    found = compressed_problem(pydicom.dcmread(tmp_path / "x.dcm"), 12, 20, 1)
    assert found == "holds compressed pixels of 65535 x 65535, its header says 12 x 20"
