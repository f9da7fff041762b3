"""Readers of images: DICOM, NIfTI, pictures and arrays."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom import dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from monai_basisprune.data.identifiers import known
from monai_basisprune.data.images import decode_picture
from monai_basisprune.data.npz import read_npz
from monai_basisprune.data.preflight import cross_check, inspect_file
from monai_basisprune.data.radiograph import read_radiograph
from monai_basisprune.data.volume_nifti import read_nifti
from monai_basisprune.errors import CohortError
from tests.data.radiograph_files import lut, radiograph, ramp

from .mutations import archive_aware, blind, dicom_aware
from .network_targets import RunsCode
from .target import Target

__all__ = ["image_targets", "picture_targets"]


def image_targets() -> list[Target]:
    """Return the reader of radiographs."""
    seeds = [_dicom(radiograph()), _dicom(radiograph(signed=True, RescaleSlope="2.5", RescaleIntercept="-1024"))]
    table = np.arange(4096) * 16
    seeds.append(_dicom(radiograph(ModalityLUTSequence=lut(table), PhotometricInterpretation="MONOCHROME1")))
    seeds.append(_dicom(radiograph(VOILUTSequence=lut(table), PixelPaddingValue=100, WindowCenter=[1, 2])))
    window = {"WindowCenter": "2000", "WindowWidth": "1500", "VOILUTFunction": "SIGMOID"}
    seeds.append(_dicom(radiograph(**window, NumberOfFrames="1", PatientAge="045Y", PixelSpacing=["0.1", "0.1"])))
    packed = radiograph()
    packed.compress(RLELossless, encoding_plugin="pydicom")
    for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        other = radiograph()
        other.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            other.PixelData = ramp().astype(">u2").tobytes()
        seeds.append(_dicom(other, little=syntax != ExplicitVRBigEndian))
    seeds.append(_dicom(packed))
    for syntax, kind in ((JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")):
        values = ramp(32, 40, 0, 255)
        image, stream = radiograph(values, BitsAllocated=8, BitsStored=8, HighBit=7), io.BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(stream, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
        image.file_meta.TransferSyntaxUID, image.PixelData = syntax, encapsulate([stream.getvalue()])
        seeds.append(_dicom(image))

    def read(path: Path) -> None:
        known.forget()
        record = inspect_file(path.parent, path, 1)
        cross_check([record])
        try:
            image, info = read_radiograph(path)
        except CohortError:
            assert record.problems, "the preflight found nothing wrong with a file that cannot be read"
            raise
        assert image.dtype == np.float32
        assert image.shape == (info.rows, info.columns)
        assert np.isfinite(image).all()
        assert 0 <= image.min() <= image.max() <= 1

    return [Target("DICOM radiograph", tuple(seeds), read, (dicom_aware, dicom_aware, blind), 24, ".dcm")]


def _dicom(dataset: Any, little: bool = True) -> bytes:
    stream = io.BytesIO()
    how = {"enforce_file_format": True} if little else {"force_encoding": True}
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=little, **how)
    return stream.getvalue()


def picture_targets() -> list[Target]:
    """Return the readers of volumes, pictures and arrays."""
    voxels = np.arange(16 * 16 * 16, dtype=np.int16).reshape(16, 16, 16)
    volumes = [nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), nib.Nifti2Image(voxels, np.eye(4))]
    niftis = [volume.to_bytes() for volume in volumes] + [gzip.compress(volumes[0].to_bytes(), mtime=0)]
    niftis.append(gzip.compress(volumes[0].to_bytes() + bytes(1 << 26), mtime=0))
    pictures = []
    for mode, kind in (("L", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("CMYK", "JPEG")):
        stream = io.BytesIO()
        Image.new(mode, (24, 16), 7).save(stream, kind)
        pictures.append(stream.getvalue())
    sections = {f"{name}_images": np.zeros((4, 8, 8), np.uint8) for name in ("train", "val", "test")}
    sections |= {f"{name}_labels": np.array([[0], [1], [0], [1]]) for name in ("train", "val", "test")}
    plain, packed, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(plain, **sections)
    np.savez_compressed(packed, **sections)
    np.savez(objects, **{**sections, "val_labels": np.array([RunsCode(exec, "import sys; sys.hostile = 1")] * 4)})

    def read_volume_file(path: Path) -> None:
        values, affine = read_nifti(path)
        assert values.ndim == 3
        assert affine.shape == (4, 4)

    def read_picture(path: Path) -> None:
        image = decode_picture(path.read_bytes())
        assert image.ndim == 3
        assert len(image) in (1, 3)
        assert 0 <= image.min() <= image.max() <= 1

    def read_arrays(path: Path) -> None:
        assert {section.name for section in read_npz(path)} == {"training", "validation", "test"}

    arrays = tuple(stream.getvalue() for stream in (plain, packed, objects))
    return [
        Target("NIfTI volume", tuple(niftis), read_volume_file, (blind,), 6, ".nii"),
        Target("picture", tuple(pictures), read_picture, (blind,), 6, ".png"),
        Target("arrays (.npz)", arrays, read_arrays, (archive_aware, archive_aware, blind), 5, ".npz"),
    ]
