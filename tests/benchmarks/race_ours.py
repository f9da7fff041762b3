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

RECOMBINATION_LEARNING_RATE = 0.002
"""Where each cosine starts for the 1×1 convolutions, where they are trained."""


@dataclass(frozen=True)
class Recipe:
    """One way to prune bases, alone or together with channels; scaling factors, norms and head are trained.

    Attributes:
        criterion: ``"taylor"``, ``"scaling"`` or ``"singular_value"``.
        channels: whether channels are pruned together with bases, under one budget.
        operations: whether each round removes its share of the operations as well.
        per_parameter: whether the scores of bases are divided by what one costs, as joint pruning does by itself.
        compensated_from: the ratio from which on what is left is fitted after a cut to the outputs before it, from 100
            images; None for never.
        distilled_from: the ratio from which on the outputs of the unpruned network are learned from as well, without
            augmentation; None for never.
        recombined_from: the ratio from which on the 1×1 convolutions that recombine the bases are trained; None for
            never.
    """

    criterion: str = "taylor"
    channels: bool = False
    operations: bool = False
    per_parameter: bool = False
    compensated_from: float | None = None
    distilled_from: float | None = None
    recombined_from: float | None = None

    def __call__(self, network: nn.Module, trainer: Trainer) -> Iterator[Step]:
        """Prune a transferred, decomposed network in rounds."""
        settings = trainer.settings
        loss: Loss = cross_entropy
        if self.distilled_from is not None:
            loss = distillation = mbp.DistillationLoss(trainer.all_batches())
            distillation.start(network)
        scores = Scores(network, trainer, self)
        with contextlib.closing(scores):
            if scores.collecting:
                scores.score_pass(trainer)
            for ratio in settings.ratios:
                compensated = self.compensated_from is not None and ratio >= self.compensated_from
                before = copy.deepcopy(network) if compensated else None
                try:
                    macs = ratio if self.operations else None
                    scores.cut(mbp.Budget(parameters=ratio, macs=macs, input_shape=trainer.input_shape))
                except mbp.BudgetError:
                    return  # not even one basis in every layer is that small
                if before is not None:
                    mbp.compensate_(network, before, trainer.plain_batches(100))
                parameters = mbp.parameter_groups(network, RECOMBINATION_LEARNING_RATE)
                if self.distilled_from is not None:
                    distillation.resting = ratio < self.distilled_from
                if self.recombined_from is not None:
                    mbp.train_recombination_(network, ratio >= self.recombined_from)
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


class Scores:
    """What the bases of a network matter, and its channels."""

    def __init__(self, network: nn.Module, trainer: Trainer, recipe: Recipe) -> None:
        self.network, self.input_shape = network, trainer.input_shape
        normalization = "size" if recipe.per_parameter else "none"
        kinds = {"scaling": mbp.ScalingImportance, "singular_value": mbp.SingularValueImportance}
        self.bases = kinds.get(recipe.criterion, mbp.TaylorImportance)(network, normalization=normalization)
        self.channels = mbp.ChannelTaylorImportance(network, self.input_shape) if recipe.channels else None
        self.collecting = [one for one in (self.bases, self.channels) if hasattr(one, "accumulate")]
        self.settled = True

    def score_pass(self, trainer: Trainer, every: int = 2) -> None:
        """Collect gradients over every second batch, or another, without training, for the first cut."""
        network = self.network.train()
        for x, labels in trainer.labeled_batches()[::every]:
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

    def cut(self, budget: mbp.Budget) -> None:
        """Prune, and forget the scores."""
        bases = self.bases.scores()
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
