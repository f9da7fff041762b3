"""The cohort of a run: the user's folder, or the synthetic one where there is none."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from ..data import divide_datalist, load_split, prepare_datalist, write_datalist, write_synthetic_cohort
from ..data.identifiers import known
from ..data.splits import check_folds
from ..distributed import from_first_process, process_count
from ..errors import ConfigurationError

__all__ = [
    "PreparedCohort",
    "check_two_classes",
    "divide_again",
    "moved_cohort",
    "prepare_cohort",
    "prepared_once",
    "synthetic_folder",
    "working_folder",
]


_Arguments = ParamSpec("_Arguments")
_Cohort = TypeVar("_Cohort", bound="PreparedCohort")


@dataclass(frozen=True)
class PreparedCohort:
    """A cohort that has passed the preflight and is split by patient.

    Attributes:
        dataset_dir: folder of the images.
        datalist_file: the MONAI datalist.
        datalist: its content.
        synthetic: whether the images are simulated.
    """

    dataset_dir: Path
    datalist_file: Path
    datalist: dict[str, Any]
    synthetic: bool

    @property
    def patient_key(self) -> str | None:
        """Key of the patient's id in a case; None where it is not known who the patients are."""
        return "patient_id"

    def split(self, section: str) -> list[dict[str, Any]]:
        """Return one section as a list of dictionaries, ready for a MONAI data set.

        Args:
            section: ``"training"``, ``"validation"`` or ``"test"``.
        """
        return load_split(self.datalist, section, self.dataset_dir)

    def summary(self) -> dict[str, Any]:
        """Count cases and patients of every section, overall and by class, as JSON types."""
        names = self.datalist["class_names"]
        splits = {}
        for section in ("training", "validation", "test"):
            items = self.datalist[section]
            splits[section] = {
                "cases": len(items),
                "patients": len({item["patient_id"] for item in items}),
                "cases_by_class": [sum(item["label"] == c for item in items) for c in range(len(names))],
                "patients_by_class": [
                    len({item["patient_id"] for item in items if item["label"] == c}) for c in range(len(names))
                ],
            }
        return {
            "class_names": list(names),
            "split_sha256": self.datalist["split_sha256"],
            "synthetic": self.synthetic,
            "splits": splits,
        }


def prepared_once(kind: type[_Cohort]) -> Callable[[Callable[_Arguments, _Cohort]], Callable[_Arguments, _Cohort]]:
    """Let only the first of several processes prepare a cohort, and tell the others what it holds.

    They hear as well what must not be shown, to take it out of their own logs and errors.

    Args:
        kind: the class of the cohort.
    """

    def decorate(prepare: Callable[_Arguments, _Cohort]) -> Callable[_Arguments, _Cohort]:
        @functools.wraps(prepare)
        def prepared(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Cohort:
            if process_count() == 1:
                return prepare(*args, **kwargs)

            def tell() -> list[Any]:
                cohort = prepare(*args, **kwargs)
                folder, file = str(cohort.dataset_dir), str(cohort.datalist_file)
                return [folder, file, cohort.datalist, cohort.synthetic, sorted(known.texts())]

            folder, datalist_file, datalist, synthetic, texts = from_first_process(tell)
            known.remember(texts)
            return kind(Path(folder), Path(datalist_file), datalist, synthetic)

        return prepared

    return decorate


@prepared_once(PreparedCohort)
def prepare_cohort(
    dataset_dir: str | Path | None,
    output_dir: str | os.PathLike[str],
    labels_file: str | Path | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    on_problem: Literal["raise", "skip"] = "raise",
    synthetic_patients: int = 400,
    progress: bool = True,
    split_seed: int | None = None,
    folds: int | None = None,
    fold: int | None = None,
    prepared: PreparedCohort | None = None,
) -> PreparedCohort:
    """Check a cohort and split it by patient; without a folder, make the synthetic one.

    The datalist goes to the run's working folder, so an earlier result keeps the split that it was made with until
    the run ends well. It holds no names of the user's files.

    Args:
        dataset_dir: folder of DICOM files with the labels table; None for the synthetic cohort.
        output_dir: folder of the results.
        labels_file: table of labels; ``labels.csv`` in ``dataset_dir`` by default.
        class_names: names of the two classes, the one to find last.
        image_column: column with the file or SOPInstanceUID.
        label_column: column with the class.
        patient_column: column with the patient.
        fractions: shares of training, validation and test.
        seed: seed of the split, and of the synthetic cohort.
        on_problem: ``"raise"`` or ``"skip"``; see :func:`monai_basisprune.data.prepare_datalist`.
        synthetic_patients: number of patients of the synthetic cohort.
        progress: whether to show a progress bar.
        split_seed: for repeats of a study, the seed of the folds, or of the test section, and of the synthetic cohort;
            then ``seed`` is only that of the division into training and validation. None where ``seed`` is for all.
        folds: number of folds by patient instead of ``fractions``; then training is all but two of them.
        fold: which fold is the test, from 0; validation is the next one.
        prepared: a cohort that was read and divided before; then nothing is read, and its datalist is written.

    Raises:
        CohortError: if the cohort cannot be used; every problem is listed.
        ConfigurationError: if an argument cannot be used.
    """
    check_two_classes(class_names)
    check_folds(folds, fold)
    work = working_folder(output_dir)
    if prepared is not None:
        return moved_cohort(prepared, work)
    synthetic = dataset_dir is None
    first_seed = seed if split_seed is None else split_seed
    if dataset_dir is None:
        dataset_dir = synthetic_folder(output_dir)
        shutil.rmtree(dataset_dir, ignore_errors=True)
        write_synthetic_cohort(dataset_dir, patients=synthetic_patients, seed=first_seed)
        labels_file = image_column = label_column = patient_column = None
    datalist_file = work / "datalist.json"
    datalist = prepare_datalist(
        dataset_dir,
        datalist_file,
        labels_file=labels_file,
        class_names=class_names,
        image_column=image_column,
        label_column=label_column,
        patient_column=patient_column,
        fractions=fractions,
        seed=first_seed,
        on_problem=on_problem,
        progress=progress,
        image_paths=synthetic,
    )
    if folds is not None or split_seed is not None:
        datalist = divide_again(datalist, datalist_file, seed, folds, fold, first_seed, image_paths=synthetic)
    return PreparedCohort(Path(dataset_dir), datalist_file, datalist, synthetic)


def check_two_classes(class_names: Sequence[str]) -> None:
    """Check that there are two classes.

    Raises:
        ConfigurationError: if there are not.
    """
    if len(class_names) != 2:
        raise ConfigurationError(f"class_names must name two classes, the one to find last; got {list(class_names)!r}.")


def moved_cohort(prepared: PreparedCohort, work: Path) -> PreparedCohort:
    """Return a cohort that was prepared before, with its datalist written into another working folder."""
    cohort = replace(prepared, datalist_file=work / "datalist.json")
    write_datalist(cohort.datalist, cohort.datalist_file, image_paths=cohort.synthetic)
    return cohort


def divide_again(
    datalist: dict[str, Any],
    datalist_file: Path,
    seed: int,
    folds: int | None,
    fold: int | None,
    first_seed: int,
    image_paths: bool,
) -> dict[str, Any]:
    """Divide a datalist for one of several repeats, write it anew and return it; see :func:`divide_datalist`."""
    datalist = divide_datalist(datalist, seed, folds, fold, first_seed)
    write_datalist(datalist, datalist_file, image_paths=image_paths)
    return datalist


def synthetic_folder(output_dir: str | os.PathLike[str]) -> Path:
    """Return the folder of a run's synthetic cohort."""
    return Path(output_dir) / "work" / "synthetic_cohort"


def working_folder(output_dir: str | os.PathLike[str]) -> Path:
    """Return the folder for what a run writes before its end, and make it.

    Raises:
        ConfigurationError: if it cannot be made.
    """
    work = Path(output_dir) / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"output_dir cannot be used as a folder ({type(error).__name__}): pass --output_dir with a folder that can "
            f"be written to."
        ) from None
    return work
