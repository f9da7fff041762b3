"""The cohort of a run on pictures: a folder, a MedMNIST file, a download of MONAI, or scikit-learn's digits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from ..data.datalist import load_split, write_datalist
from ..data.image_classes import ImageLabel, ImageLabels, LabelSettings, check_image_classes
from ..data.image_files import list_pictures
from ..data.image_folder import prepare_image_datalist
from ..data.image_labels import read_image_labels
from ..data.npz import NpzSection, read_npz, write_pictures
from ..data.splits import check_folds
from ..distributed import from_first_process
from ..errors import CohortError, ConfigurationError
from .cohort import PreparedCohort, divide_again, prepared_once, working_folder

__all__ = ["PreparedImages", "classification_loss", "find_class_names", "locate_images", "prepare_image_cohort"]

DOWNLOADS = ("MedNIST",)
"""Data sets that MONAI fetches."""


class PreparedImages(PreparedCohort):
    """A cohort of pictures that has passed the preflight and is split."""

    @property
    def label_kind(self) -> str:
        """``"single"`` or ``"multi"``."""
        return str(self.datalist["label_kind"])

    @property
    def patient_key(self) -> str | None:
        """Key of the patient in a case; None where it is not known, and each image counts as a patient of its own."""
        return "patient_id" if self.datalist["patients_known"] else None

    def split(self, section: str) -> list[dict[str, Any]]:
        """Return one section as a list of dictionaries, ready for a MONAI data set.

        Args:
            section: ``"training"``, ``"validation"`` or ``"test"``.
        """
        return load_items(self.datalist, section, self.dataset_dir)

    def summary(self) -> dict[str, Any]:
        """Count cases and patients of every section, overall and by class, as JSON types."""
        names = self.datalist["class_names"]
        splits = {}
        for section in ("training", "validation", "test"):
            items = self.datalist[section]
            members = [[item for item in items if _is_of(item["label"], index)] for index in range(len(names))]
            by_class = [len({item["patient_id"] for item in own}) for own in members]
            splits[section] = {
                "cases": len(items),
                "patients": len({item["patient_id"] for item in items}) if self.patient_key else None,
                "cases_by_class": [len(own) for own in members],
                "patients_by_class": by_class if self.patient_key else None,
            }
        return {
            "class_names": list(names),
            "label_kind": self.label_kind,
            "split_sha256": self.datalist["split_sha256"],
            "synthetic": False,
            "splits": splits,
        }


def _is_of(label: int | list[int], index: int) -> bool:
    return bool(label[index]) if isinstance(label, list) else label == index


def load_items(datalist: Any, section: str, root: Path) -> list[dict[str, Any]]:
    """Return one section of a datalist; findings become an array of float32, as their loss needs."""
    cases = load_split(datalist, section, root)
    for case in cases:
        if isinstance(case["label"], list):
            case["label"] = np.asarray(case["label"], dtype=np.float32)
    return cases


def locate_images(
    dataset_dir: str | os.PathLike[str] | None, download: str | None, output_dir: str | os.PathLike[str]
) -> Path | None:
    """Return the folder or .npz file of a run's pictures; None for the digits of scikit-learn.

    Args:
        dataset_dir: the user's folder or file, or None.
        download: ``"MedNIST"`` to fetch it by MONAI's ``MedNISTDataset`` into the run's working folder, or None.
        output_dir: folder of the results.

    Raises:
        ConfigurationError: if both are given, there is nothing, or it cannot be fetched.
    """
    if download is not None and (dataset_dir is not None or download not in DOWNLOADS):
        raise ConfigurationError(
            f"download must be one of {DOWNLOADS}, without a dataset_dir of your own; got {download!r}."
        )
    if download is not None:
        return Path(from_first_process(lambda: str(_download_mednist(working_folder(output_dir)))))
    if dataset_dir is None:
        return None
    path = Path(dataset_dir)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".npz"):
        return path
    raise ConfigurationError(
        "dataset_dir is neither a folder of PNG or JPEG files nor a MedMNIST file (.npz); pass --dataset_dir with one."
    )


def _download_mednist(work: Path) -> Path:
    folder = work / "MedNIST"
    if not folder.is_dir():
        from monai.apps import MedNISTDataset  # imports much that nobody else needs

        try:
            MedNISTDataset(str(work), section="test", download=True, cache_num=0, progress=False)
        except Exception as error:  # the network raises many types
            shutil.rmtree(folder, ignore_errors=True)
            raise ConfigurationError(
                f"MedNIST could not be fetched ({type(error).__name__}): the network may not allow it. Download "
                f"{MedNISTDataset.resource} elsewhere, unpack it, and pass --dataset_dir with the folder MedNIST "
                "instead of --download."
            ) from None
    return folder


def find_class_names(
    images: Path | None,
    label_kind: str = "single",
    labels_file: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> list[str]:
    """Return the names of the classes that a folder, its table or a MedMNIST file holds, in the order of the indices.

    Args:
        images: what :func:`locate_images` returned.
        label_kind: ``"single"`` or ``"multi"``.
        labels_file: the table of labels.
        image_column: its column of images.
        label_column: its column of labels.

    Raises:
        CohortError: if they cannot be found; every problem is listed.
    """
    settings = LabelSettings(label_kind, None, labels_file, image_column, label_column)
    if images is None:
        return [str(digit) for digit in range(10)]
    if images.is_file():
        return _npz_names(read_npz(images), label_kind)
    found = read_image_labels(images, list_pictures(images)[0], settings)
    if not found.class_names:
        raise CohortError("The classes cannot be found; correct the labels, or pass class_names.", found.problems)
    return list(found.class_names)


def _npz_names(sections: Sequence[NpzSection], label_kind: str) -> list[str]:
    width = sections[0].labels.shape[1]
    count = width if label_kind == "multi" else max(int(section.labels.max()) for section in sections) + 1
    return [str(number) for number in range(count)]


@prepared_once(PreparedImages)
def prepare_image_cohort(
    images: Path | None,
    output_dir: str | os.PathLike[str],
    class_names: Sequence[str],
    label_kind: str = "single",
    labels_file: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    patient_pattern: str | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    on_problem: Literal["raise", "skip"] = "raise",
    progress: bool = True,
    split_seed: int | None = None,
    folds: int | None = None,
    fold: int | None = None,
    prepared: PreparedCohort | None = None,
) -> PreparedImages:
    """Check a cohort of pictures and split it, by patient where the patients are known.

    The pictures of a MedMNIST file, and the digits, are written into the run's working folder as PNG files.

    Args:
        images: what :func:`locate_images` returned.
        output_dir: folder of the results.
        class_names: names of the classes or findings.
        label_kind: ``"single"`` for one class of each image, ``"multi"`` for any number of findings.
        labels_file: table of labels; by default ``labels.csv`` in the folder, or else the names of its subfolders.
        image_column: column with the path of the image.
        label_column: column with the class, or with findings separated by ``;``.
        patient_column: column with the patient.
        patient_pattern: regular expression with one group that finds the patient in the path of a file.
        fractions: shares of training, validation and test; unused where a table, folders or a MedMNIST file split.
        seed: seed of the split.
        on_problem: ``"raise"`` or ``"skip"``.
        progress: whether to show a progress bar.
        split_seed: see :func:`.prepare_cohort`, also for what follows.
        folds: number of folds.
        fold: which fold is the test.
        prepared: a cohort that was read and divided before.

    Raises:
        CohortError: if the cohort cannot be used; every problem is listed.
        ConfigurationError: if an argument cannot be used.
    """
    names = check_image_classes(class_names)
    settings = LabelSettings(
        label_kind, names, labels_file, image_column, label_column, patient_column, patient_pattern
    )
    check_folds(folds, fold)
    work = working_folder(output_dir)
    datalist_file = work / "datalist.json"
    own = images is not None and images.is_dir()
    if prepared is not None:
        write_datalist(prepared.datalist, datalist_file, image_paths=not own)
        return PreparedImages(prepared.dataset_dir, datalist_file, prepared.datalist, False)
    root, labels, source = (images, None, None) if own and images is not None else _unpack(images, work, settings)
    first_seed = seed if split_seed is None else split_seed
    datalist = prepare_image_datalist(
        root, datalist_file, settings, fractions, first_seed, on_problem, progress, not own, labels, source
    )
    if folds is not None or split_seed is not None:
        datalist = divide_again(datalist, datalist_file, seed, folds, fold, first_seed, image_paths=not own)
    return PreparedImages(root, datalist_file, datalist, False)


def unpacked_folder(output_dir: str | os.PathLike[str]) -> Path:
    """Return the folder of pictures that a run writes itself."""
    return Path(output_dir) / "work" / "pictures"


def _unpack(images: Path | None, work: Path, settings: LabelSettings) -> tuple[Path, ImageLabels, str | None]:
    """Write the digits, or the pictures of a MedMNIST file, as PNG files; returns their folder and labels."""
    names = check_image_classes(settings.class_names or ())
    sections = [_digits()] if images is None else read_npz(images)
    root = unpacked_folder(work.parent)
    shutil.rmtree(root, ignore_errors=True)
    several = settings.label_kind == "multi"
    problems = [problem for section in sections for problem in _label_problems(section, names, several)]
    if problems:
        raise CohortError("The labels of the .npz file cannot be used.", problems)
    found = {}
    for section in sections:
        for path, row in zip(write_pictures(section, root / section.name), section.labels.tolist(), strict=True):
            label = tuple(row) if several else row[0]
            found[path.relative_to(root).as_posix()] = ImageLabel(label, "", None if images is None else section.name)
    return root, ImageLabels(names, found), None if images is None else "npz file"


def _digits() -> NpzSection:
    from sklearn.datasets import load_digits  # here, since inference comes without scikit-learn

    digits = load_digits()
    values = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return NpzSection("digits", values, digits.target.astype(np.int64)[:, None])


def _label_problems(section: NpzSection, names: Sequence[str], several: bool) -> list[str]:
    labels, count = section.labels, len(names)
    if several and labels.shape[1] != count:
        return [f"section {section.name}: has {labels.shape[1]} findings, class_names are {count}"]
    if not several and labels.shape[1] != 1:
        return [
            f"section {section.name}: has {labels.shape[1]} labels for each image; pass --label_kind multi if they are "
            "findings of one image"
        ]
    outside = labels[(labels < 0) | (labels > (1 if several else count - 1))]
    if outside.size:
        shown = ", ".join(str(value) for value in np.unique(outside)[:5])
        allowed = "0 and 1" if several else f"0 to {count - 1}"
        return [
            f"section {section.name}: has {outside.size} labels outside the classes ({shown}), allowed are {allowed}"
        ]
    return []


def classification_loss(label_kind: str) -> nn.Module:
    """Return the loss of classes that exclude each other, or of findings that can occur together.

    Args:
        label_kind: ``"single"`` for cross-entropy, ``"multi"`` for binary cross-entropy of each finding.
    """
    LabelSettings(label_kind)
    return nn.BCEWithLogitsLoss() if label_kind == "multi" else nn.CrossEntropyLoss()
