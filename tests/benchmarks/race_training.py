"""How all contestants of the race are trained: Adam, one cosine for each round, equally many epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from race_data import Images, shuffled_batches, to_network
from torch import nn

import monai_basisprune as mbp

Step = tuple[float, nn.Module]
"""The share of parameters to remove, and the network that was trained after the cut."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the network's outputs and the labels."""

cross_entropy: Loss = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Settings:
    """What is equal for all contestants.

    Attributes:
        ratios: the share of parameters removed in each round.
        transfer_epochs: epochs before the first cut.
        round_epochs: epochs of each round.
        learning_rate: where each cosine starts, where norms, head and scaling factors are trained.
        weight_learning_rate: the same where all weights are trained.
        batch_size: images in a mini-batch.
    """

    ratios: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)
    transfer_epochs: int = 6
    round_epochs: int = 2
    learning_rate: float = 0.01
    weight_learning_rate: float = 0.001
    batch_size: int = 16


class Trainer:
    """Trains networks on the training images of one fold.

    Args:
        images: the data set.
        fold: which fold is the test.
        seed: seed of shuffling and augmentation.
        settings: epochs, batch size.
    """

    def __init__(self, images: Images, fold: int, seed: int, settings: Settings) -> None:
        training, test = images.folds[fold]
        self.settings = settings
        self.inputs, self.labels = images.inputs(training), images.labels[training]
        self.test_inputs = images.inputs(test)
        self.input_shape = images.input_shape
        self.generator = torch.Generator().manual_seed(1000 * seed + fold)

    def train(
        self,
        network: nn.Module,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        epochs: int,
        learning_rate: float,
        loss: Loss = cross_entropy,
        after_backward: Callable[[float], None] | None = None,
    ) -> None:
        """Train some parameters with Adam and a cosine.

        Args:
            network: the network.
            parameters: what is trained; groups may have learning rates of their own.
            epochs: how long.
            learning_rate: where the cosine starts.
            loss: the loss.
            after_backward: called after each backward pass with the share of this training that is done.
        """
        optimizer = torch.optim.Adam(list(parameters), lr=learning_rate)  # type: ignore[arg-type]
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = epochs * (len(self.inputs) // self.settings.batch_size)
        # what it learns from was noted for the images as they are
        distills = isinstance(loss, mbp.DistillationLoss) and loss.active
        network.train()
        step = 0
        for _ in range(epochs):
            for batch, x in shuffled_batches(self.inputs, self.settings.batch_size, self.generator, not distills):
                if isinstance(loss, mbp.DistillationLoss):
                    loss.cases = batch
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
                optimizer.zero_grad(set_to_none=True)
                loss(network(x), self.labels[batch]).backward()
                if after_backward is not None:
                    after_backward(step / steps)
                optimizer.step()
                step += 1

    def plain_batches(self, images: int | None = None) -> list[torch.Tensor]:
        """Return training images without labels or augmentation, in batches, drawn with the trainer's seed."""
        order = torch.randperm(len(self.inputs), generator=self.generator)[:images]
        return [to_network(self.inputs[chosen]) for chosen in order.split(self.settings.batch_size * 2)]

    def all_batches(self) -> list[torch.Tensor]:
        """Return all training images once, without labels or augmentation, in their order."""
        return [to_network(x) for x in self.inputs.split(4 * self.settings.batch_size)]

    def labeled_batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return all training images once, with labels and without augmentation."""
        size = self.settings.batch_size
        return [(to_network(x), y) for x, y in zip(self.inputs.split(size), self.labels.split(size), strict=True)]

    def scores(self, network: nn.Module) -> np.ndarray:
        """Return for each test image how much the network is for the positive class: a difference of logits."""
        network.eval()
        with torch.inference_mode():
            outputs = torch.cat([network(to_network(x)) for x in self.test_inputs.split(64)])
        return (outputs[:, 1] - outputs[:, 0]).double().numpy()
