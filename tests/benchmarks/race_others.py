"""The contestants that monai_basisprune is measured against."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch_pruning
from monai.networks.nets import ResNet
from race_training import Step, Trainer
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.training import NORM_LAYERS


def norms_and_head(network: nn.Module) -> list[nn.Parameter]:
    """Let only the affine parameters of norms and the last linear layer of a plain network be trained."""
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    chosen = [p for m in network.modules() if isinstance(m, (*NORM_LAYERS,)) or m is head for p in m.parameters()]
    network.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def all_weights(network: nn.Module) -> list[nn.Parameter]:
    """Let all parameters of a network be trained."""
    return list(network.requires_grad_(True).parameters())


class TorchPruning:
    """Channels by Torch-Pruning, all groups ranked together.

    No layer loses so many channels in a round that fewer are left than half of what an equal cut in all layers would
    leave: without such a limit, it takes all but one channel of the first layer.

    Args:
        criterion: ``"taylor"``, from the gradients of one epoch without augmentation, or ``"bn_scale"``.
        finetune: whether all weights are trained, or norms and head only.
    """

    def __init__(self, criterion: str, finetune: bool) -> None:
        self.criterion, self.finetune = criterion, finetune

    def __call__(self, network: nn.Module, trainer: Trainer) -> Iterator[Step]:
        """Prune a transferred network in rounds."""
        settings = trainer.settings
        original = _parameters(network)
        for ratio in settings.ratios:
            smaller = self._smallest_cut(network, trainer, (1 - ratio) * original)
            if smaller is None:
                return
            network = smaller
            if self.finetune:
                trainer.train(network, all_weights(network), settings.round_epochs, settings.weight_learning_rate)
            else:
                trainer.train(network, norms_and_head(network), settings.round_epochs, settings.learning_rate)
            yield ratio, network

    def _smallest_cut(self, network: nn.Module, trainer: Trainer, allowed: float) -> nn.Module | None:
        """Return the network with as few channels removed as leave the allowed parameters, or None.

        How many go is found by bisection; None means that so many cannot go.
        """
        network.train().requires_grad_(True)  # its graph follows the gradients
        network.zero_grad()
        if self.criterion == "taylor":
            for x, labels in trainer.labeled_batches():
                nn.functional.cross_entropy(network(x), labels).backward()
        least = 1 - 0.5 * math.sqrt(allowed / _parameters(network))
        low, high = 0.0, least
        best = self._cut(network, trainer, high, least)
        if _parameters(best) > allowed:
            return None
        while high - low > 0.002:
            middle = (low + high) / 2
            cut = self._cut(network, trainer, middle, least)
            if _parameters(cut) <= allowed:
                high, best = middle, cut
            else:
                low = middle
        return best

    def _cut(self, network: nn.Module, trainer: Trainer, share: float, most: float) -> nn.Module:
        smaller = copy.deepcopy(network).eval()
        for one, other in zip(smaller.parameters(), network.parameters(), strict=True):
            one.grad = None if other.grad is None else other.grad.clone()
        kinds = {"taylor": torch_pruning.importance.GroupTaylorImportance}
        kinds["bn_scale"] = torch_pruning.importance.BNScaleImportance
        torch_pruning.pruner.BasePruner(
            smaller,
            torch.zeros(1, *trainer.input_shape),
            importance=kinds[self.criterion](),
            global_pruning=True,
            pruning_ratio=share,
            max_pruning_ratio=most,
            ignored_layers=[module for module in smaller.modules() if isinstance(module, nn.Linear)],
        ).step()
        return smaller


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def truncated_svd(network: nn.Module, trainer: Trainer) -> Iterator[Step]:
    """Cut a transferred network to each ratio at once, then train norms and head as long as the others until then.

    Each layer keeps the same share of the energy of its singular values.
    """
    settings = trainer.settings
    for number, ratio in enumerate(settings.ratios, start=1):
        split = mbp.decompose(network)
        scores = {}
        for name, singular in mbp.SingularValueImportance(split).scores().items():
            energy = singular.square()
            order = energy.argsort(descending=True)
            before = torch.zeros_like(energy)
            before[order[1:]] = energy[order].cumsum(0)[:-1]
            scores[name] = 1 - before / energy.sum()
        try:
            mbp.prune_(split, scores, mbp.Budget(parameters=ratio))
        except mbp.BudgetError:
            return
        factors = {id(layer.scaling.scaling_factors) for _, layer in decomposed_layers(split)}
        trained = [p for p in mbp.freeze_weights_(split) if id(p) not in factors]
        for _ in range(number):
            trainer.train(split, trained, settings.round_epochs, settings.learning_rate)
        yield ratio, split


def unpruned(parameters: str) -> object:
    """Return the contestant that is trained as long as the others, and never cut.

    Args:
        parameters: ``"factors"``, ``"norms"`` or ``"all"``: what is trained.
    """

    def run(network: nn.Module, trainer: Trainer) -> Iterator[Step]:
        settings = trainer.settings
        choose = {"factors": mbp.freeze_weights_, "norms": norms_and_head, "all": all_weights}[parameters]
        rate = settings.weight_learning_rate if parameters == "all" else settings.learning_rate
        for ratio in settings.ratios:
            trainer.train(network, choose(network), settings.round_epochs, rate)
            yield ratio, network

    return run


def small_from_scratch(network: nn.Module, trainer: Trainer) -> Iterator[Step]:
    """Train, for each ratio, a ResNet-18 with narrower layers from random weights, as long as the others."""
    settings = trainer.settings
    original = _parameters(network)
    for number, ratio in enumerate(settings.ratios, start=1):
        small = _narrow((1 - ratio) * original).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer.train(small, small.parameters(), settings.transfer_epochs, settings.weight_learning_rate)
        for _ in range(number):
            trainer.train(small, small.parameters(), settings.round_epochs, settings.weight_learning_rate)
        yield ratio, small


def _narrow(parameters: float) -> nn.Module:
    """Return the widest ResNet-18 with at most so many parameters."""
    for width in range(64, 0, -1):
        planes = [width, width * 2, width * 4, width * 8]
        small = ResNet("basic", [2, 2, 2, 2], planes, 2, 3, conv1_t_stride=2, num_classes=2)
        if _parameters(small) <= parameters:
            return small
    raise ValueError(f"No ResNet-18 has at most {parameters:,.0f} parameters.")
