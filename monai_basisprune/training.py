"""What of a decomposed network is trained, and what happens to the statistics of its norms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from .channel_scaling_layer import channel_scalings
from .decomposition import decomposed_layers
from .errors import LayerSelectionError
from .layers import DecomposedLayer
from .selection import linear_layers

__all__ = [
    "NORM_LAYERS",
    "freeze_norm_statistics_",
    "freeze_weights_",
    "parameter_groups",
    "recalibrate_norm_statistics_",
    "recombination_weights",
    "round_schedule",
    "train_recombination_",
    "trainable_parameters",
]

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms of any dimension
    nn.GroupNorm,
    nn.LayerNorm,
)
"""The layer types whose affine parameters are trained."""


def trainable_parameters(network: nn.Module, head: Sequence[str] | str | None = None) -> list[nn.Parameter]:
    """Return what an optimizer gets: scaling factors, the affine parameters of norms, and the head.

    Individual weights are not fine-tuned (Wong et al., arXiv 2108.02893), so bases, ``U · S``, biases of convolutions
    and weights of layers that are not decomposed are left out. Where there is channel scaling, its weights are in it,
    and the weights of norms that it stands behind are not. Nothing is changed: a parameter that does not require
    a gradient is returned all the same, and an optimizer will not move it.

    Args:
        network: a decomposed network.
        head: dotted name or names of the modules that classify; by default the last linear layer.

    Returns:
        the parameters, each once, in the order in which the network holds them.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer, or a name in ``head`` is not in it.
    """
    modules = dict(network.named_modules())
    linear = linear_layers(network)
    heads = linear[-1:] if head is None else [head] if isinstance(head, str) else list(head)
    unknown = [name for name in heads if name not in modules]
    if unknown:
        raise LayerSelectionError(f"head: {unknown} not found; the linear layers of the network are {linear}.")
    chosen = {id(layer.scaling.scaling_factors) for _, layer in decomposed_layers(network)}
    for name in heads:
        # of a head that is decomposed, the basis and U·S stay as they are
        frozen = {id(w) for m in modules[name].modules() if isinstance(m, DecomposedLayer) for w in m.frozen_weights()}
        chosen.update({id(p) for p in modules[name].parameters()} - frozen)
    for module in modules.values():
        if isinstance(module, NORM_LAYERS):
            chosen.update(id(p) for p in module.parameters(recurse=False))
    for _, scaled in channel_scalings(network):
        chosen.update(id(p) for p in scaled.channel_scaling.parameters())
        if isinstance(scaled, NORM_LAYERS):
            chosen.discard(id(scaled.weight))  # it would do the same, without the penalty
    return [p for p in network.parameters() if id(p) in chosen]


def freeze_weights_(network: nn.Module, head: Sequence[str] | str | None = None) -> list[nn.Parameter]:
    """Let exactly the :func:`trainable_parameters` require a gradient, so that backward passes compute no others.

    Args:
        network: a decomposed network.
        head: as for :func:`trainable_parameters`.

    Returns:
        the trainable parameters.
    """
    trainable = trainable_parameters(network, head)
    network.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return trainable


def recombination_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights ``U · S`` of the 1×1 convolutions that transform basis features back, one for each layer."""
    return [layer.scaling.weight for _, layer in decomposed_layers(network)]


def train_recombination_(network: nn.Module, trained: bool = True) -> None:
    """Let the :func:`recombination_weights` require a gradient, or no longer; the basis filters stay frozen."""
    for weight in recombination_weights(network):
        weight.requires_grad_(trained)


def parameter_groups(
    network: nn.Module, recombination_learning_rate: float, head: Sequence[str] | str | None = None
) -> list[dict[str, Any]]:
    """Freeze weights, and return what an optimizer gets that may train the 1×1 convolutions later on.

    They are a group of their own and frozen until :func:`train_recombination_`: an optimizer passes over what has no
    gradient. So its groups, and with them its checkpoints, are the same all along.

    Args:
        network: a decomposed network.
        recombination_learning_rate: learning rate of the :func:`recombination_weights`.
        head: as for :func:`trainable_parameters`.

    Returns:
        two groups: what :func:`freeze_weights_` returns, at the optimizer's own learning rate, and these weights.
    """
    return [
        {"params": freeze_weights_(network, head)},
        {"params": recombination_weights(network), "lr": recombination_learning_rate},
    ]


def round_schedule(
    optimizer: torch.optim.Optimizer, transfer_steps: int, round_steps: int, floor: float = 0.05
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let the learning rate fall by a cosine during the transfer, and anew during each round of pruning.

    A cut needs large steps to recover from, and an evaluation that means something needs small ones before it.

    Args:
        optimizer: the optimizer; its learning rate is where each cosine starts.
        transfer_steps: optimizer steps before the first cut.
        round_steps: optimizer steps of each round.
        floor: where each cosine ends, as a share of the learning rate.

    Returns:
        a scheduler to call ``step()`` on after each step of the optimizer.
    """
    if transfer_steps < 1 or round_steps < 1 or not 0 <= floor <= 1:
        raise ValueError(
            f"transfer_steps and round_steps must be at least 1 and floor in [0, 1], got {transfer_steps}, "
            f"{round_steps} and {floor}."
        )

    def factor(step: int) -> float:
        done = step / transfer_steps if step < transfer_steps else (step - transfer_steps) % round_steps / round_steps
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def freeze_norm_statistics_(network: nn.Module) -> list[RemovableHandle]:
    """Keep every batch norm with running statistics in evaluation mode, whatever ``network.train()`` says.

    Returns:
        handles; call ``remove()`` on each to let the norms train again.
    """

    def evaluate(norm: nn.Module, args: object) -> None:
        norm.eval()

    return [norm.register_forward_pre_hook(evaluate) for norm in _running_norms(network)]


def recalibrate_norm_statistics_(network: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Estimate the running statistics of every batch norm anew, as plain averages over batches of images.

    Args:
        network: the network; its mode and the momentum of its norms stay as they are.
        batches: tensors of shape ``(batch, channels, ...)``.

    Returns:
        the number of batches that were used.

    Raises:
        ValueError: if there are no batches, or the norms are frozen; whatever is raised, the statistics are then
            unchanged.
    """
    norms = _running_norms(network)
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    device = next(network.parameters()).device
    used = 0
    try:
        network.eval()
        with torch.no_grad():
            for batch in batches:
                if used == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # a cumulative average
                        norm.train()
                network(batch.to(device))
                if not all(norm.training for norm in norms):
                    raise ValueError(
                        "recalibrate_norm_statistics_ found norms that are frozen: call remove() on the handles of "
                        "freeze_norm_statistics_ first."
                    )
                used += 1
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(buffers[name])
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    if used == 0:
        raise ValueError("recalibrate_norm_statistics_ needs at least one batch of images, got none.")
    return used


def _running_norms(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
