"""Writes cohorts of synthetic radiographs as real DICOM files, and a source task to pretrain a network on.

Nothing here comes from a patient. It serves tests, tutorials and dry runs; a result on it says nothing about medicine.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from monai_basisprune.data.phantom import (
    band,
    blob,
    draw_anatomy,
    draw_chest,
    ellipse,
    grid,
    ribs,
    smooth_noise,
)
from monai_basisprune.errors import ConfigurationError

__all__ = ["SOURCE_CLASSES", "draw_sick", "new_cohort_folder", "synthetic_source_images", "write_synthetic_cohort"]

SOURCE_CLASSES = ("plain", "spot", "many spots", "line", "ring", "arcs", "fine texture", "patchy texture")
"""Classes of the source task, in the order of their index."""


def _encode(dataset: Dataset, image: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
    """Store densities the way one of many machines would; none of the choices knows the label."""
    bits = int(rng.choice((12, 16)))
    display = rng.choice(("none", "window", "exact", "lut"))
    if display == "lut":
        bits = 12  # a table for 16 bits would be larger than the image
    top = 2**bits - 1
    low, high = int(rng.uniform(0, 0.05) * top), int(rng.uniform(0.9, 1.0) * top)
    codes = np.rint(low + image * (high - low)).astype(np.int64)
    inverse = bool(rng.random() < 0.5)
    if inverse:
        codes, low, high = top - codes, top - high, top - low
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    if rng.random() < 0.7:  # older files leave it out
        dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.PixelData = codes.astype("<u2").tobytes()
    slope, intercept = 1.0, 0.0
    if display != "lut" and rng.random() < 0.4:
        slope, intercept = float(rng.choice((0.5, 2.0))), float(rng.choice((-1000, 100)))
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    first, last = slope * low + intercept, slope * high + intercept
    if display == "window":  # LINEAR, PS3.3 C.11.2.1.2: half a step more on either side
        dataset.WindowCenter, dataset.WindowWidth = (first + last + 1) / 2, last - first + 1
    elif display == "exact":
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = (
            (first + last) / 2,
            last - first,
            "LINEAR_EXACT",
        )
    elif display == "lut":
        curve = np.linspace(0, 1, top + 1) ** rng.uniform(0.85, 1.2)
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [top + 1, 0, 16])
        item.add_new("LUTData", "OW", np.rint(curve * 65535).astype("<u2").tobytes())
        dataset.VOILUTSequence = DicomSequence([item])


def _uid(*parts: object) -> UID:
    return generate_uid(entropy_srcs=["monai_basisprune synthetic cohort", *(str(part) for part in parts)])


def _dataset(seed: int, patient: int, number: int, rng: np.random.Generator) -> FileDataset:
    """Return a data set without pixels; technical and personal tags come from `rng`, which does not know the label."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(seed, patient, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = _uid("study", seed, patient, number)
    dataset.SeriesInstanceUID = _uid("series", seed, patient, number)
    dataset.PatientName, dataset.PatientID = f"SYNTH^{patient:04d}", f"SYNTH{patient:04d}"
    dataset.StudyDate, dataset.StudyTime = f"2020{1 + patient % 12:02d}{1 + number:02d}", "120000"
    dataset.PatientBirthDate, dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "", "", "1", ""
    dataset.Modality, dataset.PresentationIntentType = "DX", "FOR PRESENTATION"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.BodyPartExamined = 1, 1, "CHEST"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.Manufacturer = f"Synthetic {rng.choice(('A', 'B', 'C'), p=(0.5, 0.3, 0.2))}"
    dataset.ViewPosition = str(rng.choice(("PA", "AP"), p=(0.7, 0.3)))
    dataset.PatientOrientation = ["L", "F"]
    spacing = float(rng.choice((0.143, 0.168, 0.2))) * 16
    dataset.ImagerPixelSpacing = [round(spacing, 4)] * 2
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", 1
    dataset.BurnedInAnnotation = "NO"
    return dataset


def new_cohort_folder(output_dir: str | Path) -> Path:
    """Make the folder of a synthetic cohort, with a folder ``images`` in it.

    Raises:
        ConfigurationError: when there is one that is not empty.
    """
    root = Path(output_dir)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigurationError("output_dir must be a new or empty folder, so that cohorts do not mix; pass another")
    (root / "images").mkdir(parents=True)
    return root


def draw_sick(patients: int, prevalence: float, seed: int) -> set[int]:
    """Draw which of the patients, numbered from 1, are sick: at least one is, and at least one is not."""
    sick_count = min(max(1, round(prevalence * patients)), patients - 1)
    order = np.random.default_rng([seed, 1]).permutation(patients)
    return set((order[:sick_count] + 1).tolist())


def write_synthetic_cohort(
    output_dir: str | Path,
    patients: int = 200,
    seed: int = 0,
    image_size: int = 128,
    prevalence: float = 0.4,
) -> Path:
    """Write a cohort of synthetic frontal chest radiographs with and without an opacity in a lung.

    Files are Digital X-Ray Images For Presentation: 12 and 16 bits, MONOCHROME1 and MONOCHROME2, with and without
    rescale, window or VOI LUT, of mixed and not square sizes, one to three of each patient. The same arguments write
    the same bytes. Patients are called ``SYNTH^0001`` and so on. Tags are drawn independently of the label.

    Args:
        output_dir: a new or empty folder; ``labels.csv`` (columns image, label) and ``images/`` are written into it.
        patients: number of patients, at least 2.
        seed: seed of everything.
        image_size: typical height and width in pixels, at least 32; sizes vary by up to a fifth.
        prevalence: share of patients with an opacity in at least one image; at least one patient is of either kind.

    Returns:
        Path of the table of labels.

    Raises:
        ConfigurationError: when an argument is out of range or the folder is not empty.
    """
    if patients < 2 or image_size < 32 or not 0 < prevalence < 1:
        raise ConfigurationError(
            "A synthetic cohort needs patients >= 2, image_size >= 32 and prevalence between 0 and 1, "
            f"found {patients}, {image_size}, {prevalence}"
        )
    root = new_cohort_folder(output_dir)
    sick = draw_sick(patients, prevalence, seed)
    rows = []
    for patient in range(1, patients + 1):
        person = np.random.default_rng([seed, 2, patient])
        female, age = bool(person.random() < 0.5), int(person.integers(18, 95))
        anatomy = draw_anatomy(person, female)
        count = int(person.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))
        for number in range(1, count + 1):
            # A patient may recover: later images of a sick one can be negative.
            picture = np.random.default_rng([seed, 3, patient, number])
            opacity = patient in sick and (number == 1 or bool(picture.random() < 0.8))
            technique = np.random.default_rng([seed, 4, patient, number])
            height, width = image_size * technique.uniform((0.9, 0.8), (1.2, 1.1))
            dataset = _dataset(seed, patient, number, technique)
            dataset.PatientSex, dataset.PatientAge = "F" if female else "M", f"{age:03d}Y"
            _encode(dataset, draw_chest((round(height), round(width)), anatomy, picture, opacity), technique)
            name = f"images/synth{patient:04d}_{number}.dcm"
            dataset.save_as(root / name, enforce_file_format=True)
            rows.append((name, "positive" if opacity else "negative"))
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return root / "labels.csv"


def _source_image(size: int, label: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw one image of the source task: its pattern on a random background, half of the time on a chest."""
    shape = (size, size)
    at = grid(shape)
    if rng.random() < 0.5:
        image = 0.7 * draw_chest(shape, draw_anatomy(rng, bool(rng.random() < 0.5)), rng, False)
    else:
        image = 0.4 + 0.1 * smooth_noise(rng, shape, rng.uniform(0.2, 0.6)) + 0.15 * rng.normal() * at[rng.integers(2)]
    contrast = rng.uniform(0.12, 0.4)

    def point(reach: float = 0.6) -> tuple[float, float]:
        return rng.uniform(-reach, reach), rng.uniform(-reach, reach)

    if label == 1:
        image = image + contrast * blob(at, point(), tuple(rng.uniform(0.12, 0.3, 2)), rng.uniform(0, np.pi))
    elif label == 2:
        for _ in range(int(rng.integers(6, 14))):
            radius = rng.uniform(0.03, 0.07)
            image = image + contrast * blob(at, point(0.85), (radius, radius), 0.0)
    elif label == 3:
        image = image + contrast * band(at, point(0.9), point(0.9), rng.uniform(0.015, 0.04))
    elif label == 4:
        center, radius = point(0.5), rng.uniform(0.15, 0.4)
        ring = ellipse(at, center, (radius, radius), 0.06) * (
            1 - ellipse(at, center, (0.75 * radius, 0.75 * radius), 0.06)
        )
        image = image + 1.4 * contrast * ring
    elif label == 5:
        image = image + 0.6 * contrast * ribs(at, rng.uniform(0.15, 0.35), rng.random(), rng.uniform(-0.5, 0.5))
    elif label == 6:
        image = image + 0.35 * contrast * smooth_noise(rng, shape, rng.uniform(0.015, 0.03))
    elif label == 7:
        patches = np.clip(smooth_noise(rng, shape, rng.uniform(0.08, 0.14)), 0, None)
        image = image + 0.5 * contrast * patches
    image = image + rng.uniform(0.01, 0.04) * rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.2:
        image = image.max() - image
    return np.clip(image * rng.uniform(0.8, 1.2) + rng.normal(0, 0.05), 0, 1).astype(np.float32)


def synthetic_source_images(
    count: int, image_size: int = 64, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Make images of a source task, to pretrain a network where none can be downloaded.

    The task is to name a pattern (`SOURCE_CLASSES`) on a smooth or a chest-like background: it needs the edges, spots
    and textures that finding an opacity needs, and is another task.

    Args:
        count: number of images, at least one of each class.
        image_size: height and width in pixels, at least 16.
        seed: seed of everything.

    Returns:
        Images, float32 of shape (count, 1, image_size, image_size) in [0, 1]; and class indices, int64 of shape
        (count,), as many of each class as `count` allows, in random order.

    Raises:
        ConfigurationError: when an argument is out of range.
    """
    if count < len(SOURCE_CLASSES) or image_size < 16:
        raise ConfigurationError(
            f"A source task needs count >= {len(SOURCE_CLASSES)} and image_size >= 16, found {count}, {image_size}"
        )
    rng = np.random.default_rng([seed, 5])
    labels = rng.permutation(np.arange(count) % len(SOURCE_CLASSES)).astype(np.int64)
    images = np.stack([_source_image(image_size, int(label), rng) for label in labels])
    return images[:, None], labels
