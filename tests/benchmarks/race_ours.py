"""The contestants that use monai_basisprune."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

from race_training import Loss, Step, Trainer, cross_entropy
from torch import nn

import monai_basisprune as mbp

CHANNEL_PENALTY = 1e-4
"""Factor of the L1 penalty of channel scaling."""


@dataclass(frozen=True)
class Recipe:
    """One way to prune bases, alone or together with channels; scaling factors, norms and head are trained.

    Attributes:
        criterion: ``"taylor"``, ``"scaling"`` or ``"singular_value"``.
        channels: whether channels are pruned together with bases, under one budget.
        operations: whether each round removes its share of the operations as well.
        per_parameter: whether the scores of bases are divided by what one costs, as joint pruning does by itself.
        compensation: whether what is left is fitted to the outputs before the cut, after each, from 100 images.
        distilled_from: the ratio from which on the outputs of the unpruned network are learned from as well, or None.
    """

    criterion: str = "taylor"
    channels: bool = False
    operations: bool = False
    per_parameter: bool = False
    compensation: bool = False
    distilled_from: float | None = None

    def __call__(self, network: nn.Module, trainer: Trainer) -> Iterator[Step]:
        """Prune a transferred, decomposed network in rounds."""
        settings = trainer.settings
        loss: Loss = cross_entropy
        if self.distilled_from is not None:
            loss = distillation = mbp.DistillationLoss()
            distillation.start(network)
        scores = _Scores(network, trainer, self)
        with contextlib.closing(scores):
            if scores.collecting:
                scores.score_pass(trainer)
            for ratio in settings.ratios:
                before = copy.deepcopy(network) if self.compensation else None
                try:
                    scores.cut(ratio)
                except mbp.BudgetError:
                    return  # not even one basis in every layer is that small
                if before is not None:
                    mbp.compensate_(network, before, trainer.plain_batches(100))
                if self.distilled_from is not None:
                    distillation.resting = ratio < self.distilled_from
                parameters = mbp.freeze_weights_(network)
                # the scores come from the second half of a round, when the network has recovered from the cut
                trainer.train(network, parameters, settings.round_epochs, settings.learning_rate, loss, scores.add)
                yield ratio, network


def channel_scaling(network: nn.Module, trainer: Trainer) -> Iterator[Step]:
    """Prune the channels of a network that was transferred with channel scaling, by what it has come to; no bases."""
    settings, shape = trainer.settings, trainer.input_shape
    importance = mbp.ChannelScalingImportance(network, shape)
    loss = mbp.ChannelScalingLoss(cross_entropy, network, CHANNEL_PENALTY)
    for ratio in settings.ratios:
        try:
            mbp.prune_channels_(network, importance.scores(), mbp.Budget(parameters=ratio), shape)
        except mbp.BudgetError:
            return  # not even one channel in every group is that small
        importance.reset()
        trainer.train(network, mbp.freeze_weights_(network), settings.round_epochs, settings.learning_rate, loss)
        yield ratio, network


class _Scores:
    """What the bases of a network matter, and its channels."""

    def __init__(self, network: nn.Module, trainer: Trainer, recipe: Recipe) -> None:
        self.network, self.input_shape, self.operations = network, trainer.input_shape, recipe.operations
        normalization = "size" if recipe.per_parameter else "none"
        kinds = {"scaling": mbp.ScalingImportance, "singular_value": mbp.SingularValueImportance}
        self.bases = kinds.get(recipe.criterion, mbp.TaylorImportance)(network, normalization=normalization)
        self.channels = mbp.ChannelTaylorImportance(network, self.input_shape) if recipe.channels else None
        self.collecting = [one for one in (self.bases, self.channels) if hasattr(one, "accumulate")]
        self.settled = True

    def score_pass(self, trainer: Trainer) -> None:
        """Collect gradients over half of the training images, without training, for the first cut."""
        network = self.network.train()
        for x, labels in trainer.labeled_batches()[::2]:
            network.zero_grad()
            cross_entropy(network(x), labels).backward()
            self.add(1.0)

    def add(self, done: float) -> None:
        """Add the gradients of one batch of the second half of a round; before that, the gates are off."""
        if done < 0.5:
            return
        if self.settled:
            for one in self.collecting:
                one.accumulate()
            return
        self.settled = True  # new gates have no gradient yet
        for one in self.collecting:
            one.reset()

    def cut(self, ratio: float) -> None:
        """Prune, and forget the scores."""
        bases, macs = self.bases.scores(), ratio if self.operations else None
        budget = mbp.Budget(parameters=ratio, macs=macs, input_shape=self.input_shape)
        if self.channels is None:
            mbp.prune_(self.network, bases, budget)
        else:
            groups = self.channels.groups
            mbp.prune_jointly_(self.network, bases, self.channels.scores(), budget, self.input_shape, groups=groups)
        self.settled = False
        self.close()

    def close(self) -> None:
        """Take the gates off the network."""
        if self.channels is not None:
            self.channels.close()
