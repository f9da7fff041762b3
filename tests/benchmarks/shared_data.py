"""Writes the shared data sets as folders of DICOM files, the way that the bundle reads them.

python tests/benchmarks/shared_data.py radiographs ../shared/data/cxr OUTPUT
python tests/benchmarks/shared_data.py pneumoniamnist ../shared/data/pneumoniamnist_28.npz OUTPUT --training 1000
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def write_dicom(path: Path, pixels: np.ndarray, patient: str, name: str) -> None:
    """Write one 8-bit gray image as a digital radiograph; UIDs follow from the name."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, "instance"])
    data.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    data.Modality, data.PatientID, data.PatientName = "DX", patient, f"PUBLIC^{patient}"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PresentationLUTShape = 1, "MONOCHROME2", "IDENTITY"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 127.5, 255, "LINEAR_EXACT"
    data.PixelData = np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def write_labels(output: Path, rows: list[dict[str, object]]) -> None:
    """Write the table of labels."""
    with open(output / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def radiographs(source: Path, output: Path) -> None:
    """NIH ChestX-ray8 images (PNG) with pneumonia or without finding."""
    rows = []
    with open(source / "labels.csv", newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            name = f"images/{Path(line['image']).stem}.dcm"
            pixels = np.asarray(Image.open(source / "images" / line["image"]).convert("L"))
            write_dicom(output / name, pixels, line["patient_id"], line["image"])
            rows.append({"image": name, "label": line["pneumonia"]})
    write_labels(output, rows)


def pneumoniamnist(source: Path, output: Path, training: int, seed: int) -> None:
    """PneumoniaMNIST with its own split; it does not tell patients apart, so every image counts as one."""
    rows = []
    with np.load(source, allow_pickle=False) as arrays:
        for section, key in (("training", "train"), ("validation", "val"), ("test", "test")):
            images, labels = arrays[f"{key}_images"], arrays[f"{key}_labels"].reshape(-1)
            chosen = np.arange(len(images))
            if section == "training":
                chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:training])
            for index in chosen:
                name = f"images/{key}{index:05d}.dcm"
                write_dicom(output / name, images[index], f"{key}{index:05d}", f"pneumoniamnist {key} {index}")
                rows.append({"image": name, "label": int(labels[index]), "split": section})
    write_labels(output, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["radiographs", "pneumoniamnist"])
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--training", type=int, default=1000, help="training images of PneumoniaMNIST")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data == "radiographs":
        radiographs(arguments.source, arguments.output)
    else:
        pneumoniamnist(arguments.source, arguments.output, arguments.training, arguments.seed)
