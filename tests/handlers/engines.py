"""Real trainers and evaluators on a data set of a few images, for the tests of the handlers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

import monai_basisprune as mbp

from ..networks import tiny_classifier

CASES = 12


def cases(count: int = CASES, seed: int = 0) -> list[dict[str, Any]]:
    """Return cases with an image, a label, a patient and a position; every patient but the last two has two images."""
    generator = torch.Generator().manual_seed(seed)
    labels = [int(torch.rand(1, generator=generator) < 0.5) for _ in range(count // 2)]
    labels[:2] = [0, 1]
    return [
        {
            "image": torch.rand(1, 8, 8, generator=generator) + 0.3 * labels[i // 2],
            "label": labels[i // 2],
            "patient_id": f"patient {i // 2}" if i < count - 2 else f"patient {i}",
            "position": i,
        }
        for i in range(count)
    ]


def loader(data: Sequence[Any], batch_size: int = 4, shuffle: bool = False) -> DataLoader:
    return DataLoader(Dataset(data), batch_size=batch_size, shuffle=shuffle)


def network_and_optimizer(seed: int = 0, **arguments: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = mbp.decompose(tiny_classifier(seed))
    return network, torch.optim.Adam(mbp.trainable_parameters(network), lr=0.01, **arguments)


def trainer(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    handlers: Sequence[Any],
    epochs: int = 1,
    data: DataLoader | None = None,
    **arguments: Any,
) -> SupervisedTrainer:
    arguments.setdefault("loss_function", nn.CrossEntropyLoss())
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader(cases()) if data is None else data,
        network=network,
        optimizer=optimizer,
        train_handlers=list(handlers),
        **arguments,
    )


def evaluator(network: nn.Module, handlers: Sequence[Any], data: DataLoader, **arguments: Any) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        network=network,
        val_handlers=list(handlers),
        **arguments,
    )
