"""Small steps of the bundles: what to prune to, and the result of a transfer without pruning."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..budgets import Budget
from ..errors import ConfigurationError
from ..files import write_atomically
from ..handlers import Predictions
from .inference import write_evaluation

__all__ = ["make_budgets", "save_transferred"]


def make_budgets(quantity: str, targets: Sequence[float], input_shape: Sequence[int]) -> list[Budget]:
    """Return one budget for each round.

    Args:
        quantity: ``"parameters"``, ``"macs"`` or ``"bases"``: what the targets are shares of; or ``"threshold"``.
        targets: the share to remove in each round, rising.
        input_shape: shape of one input without the batch, to count operations.

    Raises:
        ConfigurationError: if the targets do not rise, or the quantity is unknown.
    """
    if quantity not in ("parameters", "macs", "bases", "threshold"):
        raise ConfigurationError(f"budget must be parameters, macs, bases or threshold, got {quantity!r}.")
    numbers = isinstance(targets, (list, tuple)) and all(isinstance(target, (int, float)) for target in targets)
    if not numbers or not targets or any(later <= earlier for earlier, later in itertools.pairwise(targets)):
        raise ConfigurationError(
            f"targets must be a list of rising numbers, such as [0.5, 0.9, 0.95]; got {targets!r}."
        )
    try:
        return [Budget(**{quantity: target}, input_shape=tuple(input_shape)) for target in targets]
    except ValueError as error:
        raise ConfigurationError(f"targets: {error}") from error


def save_transferred(network: nn.Module, predictions: Predictions, output_dir: str | os.PathLike[str]) -> None:
    """Save a transferred network that is not pruned, and its AUC on the validation cases.

    Args:
        network: the network.
        predictions: those of its last evaluation.
        output_dir: folder of the results; ``transferred.pt`` and ``transferred.json`` are written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(Path(output_dir) / "transferred.pt", lambda temporary: torch.save(state, temporary))
    write_evaluation(predictions, Path(output_dir) / "transferred.json", "validation")
