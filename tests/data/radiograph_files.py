"""Writes real DICOM files for the tests, one element at a time under control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.1"


def ramp(rows: int = 12, columns: int = 20, low: int = 100, high: int = 3900) -> np.ndarray:
    """Values that grow along the rows, then the columns: not square, no two equal lines."""
    return np.linspace(low, high, rows * columns).round().astype(np.int64).reshape(rows, columns)


def lut(entries: Any, first: int = 0, bits: int = 16, vr: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    words = np.asarray(entries).astype("<u2")
    item.add_new("LUTData", vr, words.tobytes() if vr == "OW" else words.tolist())
    return Sequence([item])


def radiograph(
    values: np.ndarray | None = None, number: int = 1, patient: str = "P1", signed: bool = False, **elements: Any
) -> FileDataset:
    """Return a CR image; keywords replace elements, ``None`` removes them. Stored in 16 bits, 12 used, by default."""
    values = ramp() if values is None else values
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = f"{ROOT}.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"{ROOT}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.8.{number}", f"{ROOT}.9.{number}"
    dataset.PatientID, dataset.PatientName, dataset.Modality, dataset.InstanceNumber = patient, f"N^{patient}", "CR", 1
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = values.shape[0], values.shape[1], 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = values.astype("<i2" if signed else "<u2").tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, path: Path, implicit: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def uid(number: int) -> str:
    return f"{ROOT}.{number}"


def write_cohort(folder: Path, patients: int = 12, images: int = 1, positives: int | None = None) -> Path:
    """Write `patients` with `images` each, the first ones positive, and labels.csv; returns the folder."""
    positives = patients // 2 if positives is None else positives
    lines = ["image,label"]
    number = 0
    for patient in range(patients):
        for _ in range(images):
            number += 1
            save(radiograph(number=number, patient=f"P{patient}"), folder / f"{number:03d}.dcm")
            lines.append(f"{number:03d}.dcm,{'positive' if patient < positives else 'negative'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
