"""The table of probabilities, in which every case of the folder has its row."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from ..errors import CohortError, ConfigurationError
from ..files import write_atomically

__all__ = [
    "SKIPPED_EXIT_CODE",
    "PredictedCases",
    "check_outputs",
    "check_predictions_file",
    "exit_code",
    "exit_if_skipped",
    "write_predictions",
]

SKIPPED_EXIT_CODE = 3
"""The exit code of a run that went well but for cases that it skipped, as it was asked to."""

_PREFIX, _PROBLEM = "probability_", "problem"


class _Predictions(Protocol):
    outputs: list[list[float]]
    case_ids: list[str]
    problems: list[str]


@dataclass
class PredictedCases:
    """What was predicted, one entry for each case, in the order of the folder.

    Attributes:
        outputs: one probability for each class.
        case_ids: ids of cases.
        problems: why a case could not be used, an empty text where it could.
    """

    outputs: list[list[float]] = field(default_factory=list)
    case_ids: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_predictions_file(path: str | os.PathLike[str]) -> None:
    """Check that a table may be written: nothing is there, or an earlier table of ours.

    Raises:
        ConfigurationError: if another file is there, such as the labels of the images.
    """
    try:
        if not os.path.lexists(path):
            return
        with open(path, newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
        if len(header) > 2 and header[-1] == _PROBLEM and all(name.startswith(_PREFIX) for name in header[1:-1]):
            return
    except (OSError, ValueError, csv.Error):
        pass
    raise ConfigurationError(
        "predictions_file names a file that is no table of predictions; it is left as it is. Pass another name."
    )


def check_outputs(predictions: _Predictions, class_names: Sequence[str], multi_label: bool = False) -> list[int]:
    """Check that every case that was not skipped has probabilities.

    Args:
        predictions: the probabilities: after the softmax, or after the sigmoid where there are several labels.
        class_names: names of the classes.
        multi_label: whether a case can be of several classes at once, so that its probabilities need not add up to 1.

    Returns:
        the positions of the cases that were not skipped.

    Raises:
        CohortError: if there is no prediction, or one is no probability.
    """
    outputs = torch.tensor(predictions.outputs, dtype=torch.float64)
    if not len(outputs) or len(outputs) != len(predictions.case_ids):
        raise CohortError(f"There are {len(outputs)} predictions for {len(predictions.case_ids)} cases.")
    if outputs.shape[1] != len(class_names):
        raise CohortError(
            f"The network gives {outputs.shape[1]} outputs, there are {len(class_names)} class names: "
            f"{list(class_names)}."
        )
    sound = outputs.isfinite().all(dim=1) & (outputs >= 0).all(dim=1) & (outputs <= 1 + 1e-3).all(dim=1)
    if not multi_label:
        sound &= (outputs.sum(dim=1) - 1).abs() < 1e-3
    used = [position for position, problem in enumerate(_problems(predictions)) if not problem]
    if broken := [predictions.case_ids[position] for position in used if not bool(sound[position])]:
        raise CohortError(
            "The network gave no probabilities for some cases; check the weights and the images.",
            [f"case {case}" for case in broken],
        )
    return used


def write_predictions(
    predictions: _Predictions,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    multi_label: bool = False,
    on_problem: str = "raise",
    id_column: str = "SOPInstanceUID",
) -> Path:
    """Write a table of probabilities: the case's id, one column for each class, and why a case was skipped.

    Args:
        predictions: the probabilities: after the softmax, or after the sigmoid where there are several labels.
        class_names: names of the classes.
        path: the CSV file.
        multi_label: whether a case can be of several classes at once, so that its probabilities need not add up to 1.
        on_problem: ``"raise"``, or ``"skip"`` to write cases that could not be used with the reason and without
            probabilities.
        id_column: the name of the column of the ids.

    Raises:
        CohortError: if there is no prediction, or one is no probability, or cases could not be used; all are listed.
        ConfigurationError: if ``path`` is a file that is no such table.
    """
    problems = _problems(predictions)
    used = set(check_outputs(predictions, class_names, multi_label))
    skipped = [f"{case}: {text}" for case, text in zip(predictions.case_ids, problems, strict=True) if text]
    if skipped and (on_problem == "raise" or not used):
        advice = "or pass --on_problem skip to predict the others" if used else "no case is left"
        raise CohortError(
            f"{len(skipped)} of {len(problems)} cases cannot be used, which showed only when they were decoded; repair "
            f"or remove them, {advice}. No table was written.",
            skipped,
        )
    check_predictions_file(path)

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([id_column, *(f"{_PREFIX}{name}" for name in class_names), _PROBLEM])
            for place, (case, row) in enumerate(zip(predictions.case_ids, predictions.outputs, strict=True)):
                values = [f"{min(value, 1.0):.6f}" if place in used else "" for value in row]
                writer.writerow([case, *values, problems[place]])

    write_atomically(path, write)
    print(f"{len(used)} predictions written to predictions_file.")
    if skipped:
        lines = "\n".join(f"  - {line}" for line in skipped)
        print(f"{len(skipped)} of {len(problems)} cases were skipped, the table says why:\n{lines}", file=sys.stderr)
    return Path(path)


def exit_code(predictions: _Predictions) -> int:
    """Return the exit code of a run: 0 where every case was predicted, else :data:`SKIPPED_EXIT_CODE`."""
    return SKIPPED_EXIT_CODE if any(predictions.problems) else 0


def exit_if_skipped(predictions: _Predictions) -> None:
    """End the process with the exit code of :func:`exit_code` unless it is 0; the last step of a bundle's run."""
    if code := exit_code(predictions):
        raise SystemExit(code)


def _problems(predictions: _Predictions) -> list[str]:
    return predictions.problems or [""] * len(predictions.case_ids)
