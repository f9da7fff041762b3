"""What a network learns from and trains in addition, once most of it is gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from ..budgets import Budget, network_cost
from ..distillation import DistillationLoss
from ..errors import ConfigurationError
from ..loading import POSITION, SeededCacheDataset
from ..training import recombination_weights, train_recombination_

__all__ = ["LateTraining"]


class LateTraining:
    """Turns distillation and the training of the 1×1 convolutions on, each from a share of removed parameters on.

    Args:
        network: the decomposed network that is trained.
        optimizer: the optimizer that trains it.
        distillation: the loss function of the trainer, or None.
        distilled_from: the share of the parameters that has to be gone before it distills; None never does.
        recombined_from: the share that has to be gone before the 1×1 convolutions are trained; None never trains them.
        training_cases: the data set of the trainer, which leaves random transforms out while the network distills: what
            was noted is of the images as they are.

    Raises:
        ValueError: if a share is none.
        ConfigurationError: if the optimizer does not hold what is to be trained.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        distillation: DistillationLoss | None,
        distilled_from: float | None,
        recombined_from: float | None,
        training_cases: SeededCacheDataset | None = None,
    ) -> None:
        for name, share in (("distilled_from", distilled_from), ("recombined_from", recombined_from)):
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name} is a share of the parameters, from 0 and below 1, got {share}.")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if recombined_from is not None and not held >= {id(weight) for weight in recombination_weights(network)}:
            raise ConfigurationError(
                "recombined_from trains the 1×1 convolutions, and the optimizer does not hold them: make it with "
                "parameter_groups(network, recombination_learning_rate) in place of freeze_weights_(network)."
            )
        self.network = network
        self.distillation = None if distilled_from is None else distillation
        self.distilled_from = 0.0 if distilled_from is None else distilled_from
        self.recombined_from = recombined_from
        self.training_cases = training_cases

    def start(self) -> None:
        """Note what the network puts out before its first cut; later calls do nothing."""
        if self.distillation is not None and self.distillation.wanted is None:
            self.distillation.start(self.network)

    def choose(self, rounds: int) -> None:
        """Turn on, or off again after a step back, what the share of the parameters that is gone decides on."""
        if self.distillation is None and self.recombined_from is None:
            return
        cost = network_cost(self.network, Budget(parameters=0.0))
        gone = cost.reduction(cost.total)
        if self.distillation is not None:
            self.distillation.resting = gone < self.distilled_from
            if self.training_cases is not None:
                self.training_cases.set_augmented(not self.distillation.active)
        if self.recombined_from is not None:
            train_recombination_(self.network, rounds > 0 and gone >= self.recombined_from)

    def tell_cases(self, engine: Engine) -> None:
        """Tell the loss which images the batch of an engine holds.

        Raises:
            ConfigurationError: if the batch does not say so.
        """
        if self.distillation is None or not self.distillation.active:
            return
        batch = engine.state.batch
        if not isinstance(batch, Mapping) or POSITION not in batch:
            found = list(batch)[:9] if isinstance(batch, Mapping) else type(batch).__name__
            raise ConfigurationError(
                f"Distillation needs the position of each case of a batch under {POSITION!r}, found {found}: take "
                f"monai_basisprune.loading.SeededCacheDataset for the training cases, or leave distillation out."
            )
        self.distillation.cases = batch[POSITION]

    def describe(self) -> dict[str, Any]:
        """Return what is learned from which share on, as JSON types."""
        loss = self.distillation
        return {
            "recombined_from": self.recombined_from,
            "distillation": None
            if loss is None
            else {
                "weight": loss.weight,
                "temperature": loss.temperature,
                "from": self.distilled_from,
                "augmented": self.training_cases is None,
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted before the first cut, for a checkpoint."""
        loss = self.distillation
        return {} if loss is None or loss.wanted is None else {"distillation": loss.wanted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint has kept."""
        if self.distillation is not None and "distillation" in state:
            self.distillation.wanted = state["distillation"]
