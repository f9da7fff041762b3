"""The contestants that use monai_basisprune."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

from race_training import Loss, Step, Trainer, cross_entropy
from torch import nn

import monai_basisprune as mbp


@dataclass(frozen=True)
class Recipe:
    """One way to prune bases, alone or together with channels; scaling factors, norms and head are trained.

    Attributes:
        criterion: ``"taylor"``, ``"scaling"`` or ``"singular_value"``.
        channels: whether channels are pruned together with bases, under one budget.
        operations: whether each round removes its share of the operations as well, with the same scores.
        per_parameter: whether the scores of bases are divided by what one costs, as joint pruning does by itself.
        compensation: whether the scaling is fitted to the unpruned network's outputs after each cut, from 100 images.
        distillation: whether the outputs of the unpruned network are learned from as well.
    """

    criterion: str = "taylor"
    channels: bool = False
    operations: bool = False
    per_parameter: bool = False
    compensation: bool = False
    distillation: bool = False

    def __call__(self, network: nn.Module, trainer: Trainer) -> Iterator[Step]:
        """Prune a transferred, decomposed network in rounds."""
        settings = trainer.settings
        unpruned = copy.deepcopy(network) if self.compensation else None
        loss: Loss = cross_entropy
        if self.distillation:
            loss = distillation = mbp.DistillationLoss()
            distillation.start(network)
        scores = _Scores(network, trainer, self)
        with contextlib.closing(scores):
            if scores.collecting:
                scores.score_pass(trainer, loss)
            for ratio in settings.ratios:
                try:
                    scores.cut(ratio)
                except mbp.BudgetError:
                    return  # not even one basis in every layer is that small
                if unpruned is not None:
                    mbp.compensate_(network, unpruned, trainer.plain_batches(100))
                parameters = mbp.freeze_weights_(network)
                # the scores come from the second half of a round, when the network has recovered from the cut
                trainer.train(network, parameters, settings.round_epochs, settings.learning_rate, loss, scores.add)
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
        self.settled = False

    def score_pass(self, trainer: Trainer, loss: Loss) -> None:
        """Collect gradients over the training images once, without training."""
        network = self.network.train()
        for x, labels in trainer.labeled_batches():
            network.zero_grad()
            loss(network(x), labels).backward()
            self.add(1.0)

    def add(self, done: float) -> None:
        """Add the gradients of one batch; those of the first half of a round are forgotten when it is over."""
        if done >= 0.5 and not self.settled:
            self.reset()
            self.settled = True
            return  # new gates have no gradient yet
        for one in self.collecting:
            one.accumulate()

    def reset(self) -> None:
        """Start anew."""
        self.settled = False
        for one in self.collecting:
            one.reset()

    def cut(self, ratio: float) -> None:
        """Prune, and forget the scores."""
        budget, bases = mbp.Budget(parameters=ratio), self.bases.scores()
        if self.channels is None:
            mbp.prune_(self.network, bases, budget)
        else:
            channels = self.channels.scores()
            result = mbp.prune_jointly_(self.network, bases, channels, budget, self.input_shape)
            if self.operations and result.mac_reduction < ratio:
                bases = {name: bases[name][kept] for name, kept in result.kept_bases.items()}
                channels = {name: channels[name][kept] for name, kept in result.kept_channels.items()}
                self.channels.reset()  # its gates are those of the channels before the cut
                budget = mbp.Budget(macs=ratio, input_shape=self.input_shape)
                mbp.prune_jointly_(self.network, bases, channels, budget, self.input_shape)
        self.reset()

    def close(self) -> None:
        """Take the gates off the network."""
        if self.channels is not None:
            self.channels.close()
