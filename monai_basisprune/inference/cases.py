"""The images of a folder as cases to predict: what cannot be used stays among them, with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset

from ..data.preflight import Problem, check_on_problem, cross_check, inspect_files, list_files
from ..errors import BasisPruneError, CohortError

__all__ = ["CaseDataset", "list_radiographs", "reasons_by_position"]


def list_radiographs(
    dataset_dir: str | os.PathLike[str] | None, on_problem: str = "raise", progress: bool = True
) -> list[dict[str, str]]:
    """Read the header of every DICOM file of a folder and list the radiographs, without labels.

    No pixel is decoded: damage that only decoding shows is found by :class:`CaseDataset`.

    Args:
        dataset_dir: the folder.
        on_problem: ``"raise"``, or ``"skip"`` to list files that cannot be used with the reason.
        progress: whether to show a progress bar.

    Returns:
        dictionaries with ``image`` (the path), ``case_id`` (the SOPInstanceUID, or the place in the sorted list of
        files where there is none) and ``problem`` (why the file cannot be used, or an empty text).

    Raises:
        CohortError: if a file cannot be used, all of them listed, or if there is none.
    """
    check_on_problem(on_problem)
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise CohortError("dataset_dir is not a folder; pass --dataset_dir with the folder that holds DICOM files.")
    root = Path(dataset_dir)
    paths, left_out = list_files(root)
    records = inspect_files(root, paths, progress, pixels=False)
    reasons = reasons_by_position(
        cross_check(records),
        len(records),
        on_problem,
        "files",
        f"no radiograph that can be read ({left_out} other files)",
    )
    return [
        {
            "image": str(root / record.path),
            "case_id": record.name.removeprefix("SOPInstanceUID "),
            "problem": reasons.get(record.position, ""),
        }
        for record in records
    ]


def reasons_by_position(
    problems: Sequence[Problem], count: int, on_problem: str, cases: str, nothing: str
) -> dict[int, str]:
    """Return why cases cannot be predicted, by their position.

    Args:
        problems: what was found in all cases.
        count: how many cases there are.
        on_problem: ``"raise"`` or ``"skip"``.
        cases: what to call the cases in a message.
        nothing: what the folder holds where none can be used.

    Raises:
        CohortError: if a case cannot be used and that is to be raised, or if none can.
    """
    reasons: dict[int, list[str]] = {}
    for problem in problems:
        for position in problem.positions:
            reasons.setdefault(position, []).append(problem.text)
    lines = [str(problem) for problem in problems]
    if problems and on_problem == "raise":
        raise CohortError(
            f"{len(reasons)} of {count} {cases} cannot be used; repair or remove them, or pass --on_problem skip to "
            f"predict the others.",
            lines,
        )
    if len(reasons) == count:
        raise CohortError(f"dataset_dir holds {nothing}.", lines)
    return {position: "; ".join(texts) for position, texts in reasons.items()}


class CaseDataset(Dataset):
    """A data set of cases to predict that a damaged image does not stop.

    A case whose image cannot be prepared comes with an image of zeros and the reason under ``problem``, so batches
    keep their size and nothing is lost; the table names it, and its probabilities count for nothing.

    Args:
        data: cases with ``image`` and ``case_id``; those that have a text under ``problem`` are not read.
        transform: what prepares a case.
        shape: the shape of a prepared image, such as ``(1, 224, 224)``.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        shape: Sequence[int],
    ) -> None:
        super().__init__(data, transform)
        self.shape = tuple(shape)

    def _transform(self, index: int) -> dict[str, Any]:
        case = {"problem": "", **self.data[index]}
        if not case["problem"]:
            try:
                return {**case, "image": self.transform(case)["image"]}
            except Exception as error:  # whatever an image can be the cause of
                case["problem"] = _reason(error)
        return {**case, "image": torch.zeros(self.shape)}


def _reason(error: BaseException) -> str:
    """Return what is wrong in our words: other errors can quote the file or its path."""
    root, ours = error, None
    link: BaseException | None = error
    while link is not None:
        root, ours = link, link if isinstance(link, BasisPruneError) else ours
        link = link.__cause__ or link.__context__
    return str(ours) if ours is not None else f"cannot be prepared ({type(root).__name__})"
