"""Writes small volumes: NIfTI files and DICOM series, sound ones and broken ones."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (8, 10, 6)


def values(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.float32)


def affine(spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> np.ndarray:
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = 3, -4, 5
    return grid


def nifti(path: Path, data: np.ndarray | None = None, grid: np.ndarray | None = None, kind: Any = None) -> Path:
    """Write a NIfTI file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (kind or nib.Nifti1Image)(values() if data is None else data, affine() if grid is None else grid)
    image.to_filename(path)
    return path


def with_header(path: Path, **fields: Any) -> Path:
    """Write fields into the header of an uncompressed NIfTI-1 file, as they are."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(raw[348:]))
    return path


def gzipped(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


def series(
    folder: Path,
    seed: int = 0,
    slices: int = 6,
    patient: str = "P1",
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    step: tuple[float, float, float] = (0, 0, 2.5),
    **tags: Any,
) -> tuple[Path, np.ndarray]:
    """Write a CT series in a random order of files; returns the folder and the voxels (columns, rows, slices), HU."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-1000, 400, (8, 10, slices))  # columns, rows, slices
    uid, frame = generate_uid(entropy_srcs=[str(folder), str(seed)]), generate_uid(entropy_srcs=["frame", str(seed)])
    names = rng.permutation(slices)
    for number in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid, str(number)])
        meta.ImplementationClassUID = generate_uid(entropy_srcs=["tests"])
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", uid])
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uid, frame
        dataset.PatientID, dataset.PatientName, dataset.PatientSex, dataset.PatientAge = (
            patient,
            "Doe^Jane",
            "F",
            "050Y",
        )
        dataset.PatientBirthDate, dataset.Modality, dataset.InstanceNumber = "19700101", "CT", number + 1
        dataset.ImageOrientationPatient = list(direction)
        dataset.ImagePositionPatient = [round(10 + number * one, 4) for one in step]
        dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.75], 2.5
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 10, 8, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (voxels[..., number].T + 1024).astype("<u2").tobytes()
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / f"IM{seed}{names[number]:04d}", enforce_file_format=True)
    return folder, voxels


def table(folder: Path, rows: list[tuple[str, ...]], columns: str = "image,label,patient_id") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "labels.csv"
    path.write_text("\n".join([columns, *(",".join(row) for row in rows)]) + "\n")
    return path
