"""Small steps of the bundles: what to prune to, and the result of a transfer without pruning."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..budgets import Budget
from ..distributed import by_first_process
from ..errors import ConfigurationError
from ..files import write_atomically
from ..handlers import Predictions
from .inference import write_evaluation

__all__ = ["make_budgets", "save_transferred", "unlabeled_images"]


def make_budgets(quantity: str, targets: Sequence[float], input_shape: Sequence[int]) -> list[Budget]:
    """Return one budget for each round.

    Args:
        quantity: ``"parameters"``, ``"macs"``, ``"parameters and macs"`` (of both at once) or ``"bases"``: what the
            targets are shares of; or ``"threshold"``.
        targets: the share to remove in each round, rising.
        input_shape: shape of one input without the batch, to count operations.

    Raises:
        ConfigurationError: if the targets do not rise, or the quantity is unknown.
    """
    known = ("parameters", "macs", "parameters and macs", "bases", "threshold")
    if quantity not in known:
        raise ConfigurationError(f"budget must be {', '.join(known[:-1])} or {known[-1]}, got {quantity!r}.")
    numbers = isinstance(targets, (list, tuple)) and all(isinstance(target, (int, float)) for target in targets)
    if not numbers or not targets or any(later <= earlier for earlier, later in itertools.pairwise(targets)):
        raise ConfigurationError(
            f"targets must be a list of rising numbers, such as [0.5, 0.9, 0.95]; got {targets!r}."
        )
    try:
        shares = [dict.fromkeys(quantity.split(" and "), target) for target in targets]
        return [Budget(**share, input_shape=tuple(input_shape)) for share in shares]
    except ValueError as error:
        raise ConfigurationError(f"targets: {error}") from error


def unlabeled_images(cases: Sequence[Mapping[str, Any]], images: int, seed: int | None = 0) -> list[dict[str, Any]]:
    """Draw some cases, and leave out all but their images, so that nothing can read a label.

    Args:
        cases: cases with ``image``.
        images: how many at most, at least 1.
        seed: seed of the draw.

    Raises:
        ConfigurationError: if ``images`` is no whole number from 1.
    """
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise ConfigurationError(f"The number of unlabeled images must be a whole number from 1, got {images!r}.")
    order = np.random.default_rng(seed).permutation(len(cases))[:images]
    return [{"image": cases[place]["image"]} for place in sorted(order.tolist())]


@by_first_process
def save_transferred(network: nn.Module, predictions: Predictions, output_dir: str | os.PathLike[str]) -> None:
    """Save a transferred network that is not pruned, and its AUC on the validation cases.

    Args:
        network: the network.
        predictions: those of its last evaluation.
        output_dir: folder of the results; ``transferred.pt`` and ``transferred.json`` are written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    stream = io.BytesIO()
    torch.save(state, stream)
    write_atomically(Path(output_dir) / "transferred.pt", stream.getvalue())
    write_evaluation(predictions, Path(output_dir) / "transferred.json", "validation")
