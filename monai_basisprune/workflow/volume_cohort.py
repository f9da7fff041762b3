"""The cohort of a run on volumes: the user's folder, or the synthetic one where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..data.splits import check_folds
from ..data.synthetic_volumes import write_synthetic_volumes
from ..data.volume_cohort import prepare_volume_datalist
from ..data.volume_transforms import VolumePreparation
from .cohort import (
    PreparedCohort,
    check_two_classes,
    divide_again,
    moved_cohort,
    prepared_once,
    synthetic_folder,
    working_folder,
)

__all__ = ["prepare_volume_cohort"]


@prepared_once(PreparedCohort)
def prepare_volume_cohort(
    dataset_dir: str | Path | None,
    output_dir: str | os.PathLike[str],
    preparation: Mapping[str, Any],
    labels_file: str | Path | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    on_problem: Literal["raise", "skip"] = "raise",
    synthetic_patients: int = 240,
    progress: bool = True,
    split_seed: int | None = None,
    folds: int | None = None,
    fold: int | None = None,
    prepared: PreparedCohort | None = None,
) -> PreparedCohort:
    """Check a cohort of volumes and split it by patient; without a folder, make the synthetic one.

    The datalist goes to the run's working folder, so an earlier result keeps the split that it was made with until
    the run ends well. It holds no names of the user's files.

    Args:
        dataset_dir: folder of NIfTI files and DICOM series with the labels table; None for the synthetic cohort.
        output_dir: folder of the results.
        preparation: how volumes are prepared; see :class:`monai_basisprune.data.VolumePreparation`.
        labels_file: table of labels; ``labels.csv`` in ``dataset_dir`` by default.
        class_names: names of the two classes, the one to find last.
        image_column: column with the file, the folder or the SeriesInstanceUID.
        label_column: column with the class.
        patient_column: column with the patient; see :func:`monai_basisprune.data.read_volume_cohort`.
        fractions: shares of training, validation and test.
        seed: seed of the split, and of the synthetic cohort.
        on_problem: ``"raise"``, or ``"skip"`` to leave out volumes with problems, with a warning that names them.
        synthetic_patients: number of patients of the synthetic cohort, which also holds two files with problems.
        progress: whether to show a progress bar.
        split_seed: for repeats of a study; see :func:`~monai_basisprune.workflow.prepare_cohort`.
        folds: number of folds by patient instead of ``fractions``.
        fold: which fold is the test, from 0.
        prepared: a cohort that was read and divided before; then nothing is read, and its datalist is written.

    Raises:
        CohortError: if the cohort cannot be used; every problem is listed.
        ConfigurationError: if an argument cannot be used.
    """
    check_two_classes(class_names)
    check_folds(folds, fold)
    how = VolumePreparation.of(preparation)
    work = working_folder(output_dir)
    if prepared is not None:
        return moved_cohort(prepared, work)
    synthetic = dataset_dir is None
    first_seed = seed if split_seed is None else split_seed
    if dataset_dir is None:
        dataset_dir = synthetic_folder(output_dir)
        shutil.rmtree(dataset_dir, ignore_errors=True)
        write_synthetic_volumes(dataset_dir, patients=synthetic_patients, seed=first_seed)
        labels_file = image_column = label_column = patient_column = None
    datalist_file = work / "datalist.json"
    datalist = prepare_volume_datalist(
        dataset_dir,
        datalist_file,
        fractions=fractions,
        seed=first_seed,
        image_paths=synthetic,
        labels_file=labels_file,
        class_names=class_names,
        image_column=image_column,
        label_column=label_column,
        patient_column=patient_column,
        on_problem=on_problem,
        spacing=how.spacing,
        volume_size=how.volume_size,
        window=how.hounsfield_window,
        progress=progress,
    )
    if folds is not None or split_seed is not None:
        datalist = divide_again(datalist, datalist_file, seed, folds, fold, first_seed, image_paths=synthetic)
    return PreparedCohort(Path(dataset_dir), datalist_file, datalist, synthetic)
