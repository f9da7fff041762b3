"""Channel scaling: trainable weights on the outputs of frozen convolutions, which tell what channels can go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from .channel_graph import ChannelGroup, channel_groups, probe_network
from .channel_scaling_layer import attach_scaling_, channel_scalings
from .channel_slices import channel_count, has_one_side
from .copies import copy_network
from .errors import LayerSelectionError
from .forward import evaluation_mode, example_input
from .layers import DecomposedConv

__all__ = ["ChannelScalingImportance", "ChannelScalingLoss", "add_channel_scaling", "channel_scaling_penalty"]

_BATCH = 4  # of two images with one position each, a batch norm leaves nothing but signs
_TAKEN_BACK = 1e-6


def add_channel_scaling(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Put a trainable weight on every channel that convolutions make and that can be removed.

    After Wong, Kashyap and Moradi, arXiv 2103.12228: the convolutions stay frozen, the weights are 1 at the start and
    trained under an L1 penalty (:func:`channel_scaling_penalty`), and channels whose weights are small are removed step
    by step (:class:`ChannelScalingImportance`, :func:`~monai_basisprune.prune_channels_`). They stand behind the norm
    where one follows, before the activation, else behind the convolution. A norm takes back any scaling in front of it,
    so weights stand only where none does: which it is, is found out by the gradient of a random copy. So in a
    DenseNet they stand behind the norms that read the concatenated channels.

    :func:`~monai_basisprune.trainable_parameters` holds them, and leaves out the weight of a norm that they stand
    behind, which would do the same without the penalty. The network is saved, planned, counted and recomposed as if
    they were multiplied in, which :func:`fold_channel_scaling` does for good. After loading, add them anew.

    Args:
        network: a decomposed network; at full rank it costs what the original one does, so that channel scaling alone
            is compared with any other method under the same budgets. It is left as it is.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Returns:
        a new network, equal in output. A module that is scaled holds a :class:`ChannelScaling` as ``channel_scaling``.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer, cannot be traced, has channel scaling already,
            or there is no channel to scale; the reason of each group is listed.
        ValueError: if the network cannot process the input.

    Example:
        >>> import monai_basisprune as mbp
        >>> plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> network = add_channel_scaling(mbp.decompose(plain), (1, 8, 8))
        >>> network[1].channel_scaling
        ChannelScaling(8)
        >>> loss = network(torch.rand(2, 1, 8, 8)).square().mean() + 1e-3 * channel_scaling_penalty(network)
        >>> scores = ChannelScalingImportance(network, (1, 8, 8)).scores()
        >>> result = mbp.prune_channels_(network, scores, mbp.Budget(parameters=0.5), (1, 8, 8))
        >>> plain = mbp.recompose(network)
    """
    if channel_scalings(network):
        raise LayerSelectionError(
            f"{type(network).__name__} has channel scaling already: call fold_channel_scaling(network) first."
        )
    groups = channel_groups(network, input_shape)
    free = [group for group in groups if group.kept_because is None]
    modules = dict(network.named_modules())
    names = dict.fromkeys(n for g in free for n, side in g.sides() if side == "out" and _is_place(modules[n]))
    lasting = set(_lasting(network, input_shape, list(names))) if names else set()
    # a norm without weights has nothing to fold a scaling into, and all paths of a channel are scaled or none
    hollow = {name for name in lasting if not getattr(modules[name], "affine", True)}
    whole = [{name for name, side in group.sides() if side == "out"} for group in free]
    chosen = [name for name in names if any(name in one and not one & hollow for one in whole) and name in lasting]
    if not chosen:
        reasons = [
            f"{group.name}: {group.kept_because or 'norms take its scaling back, and have no weights to hold it'}"
            for group in groups
        ]
        raise LayerSelectionError(
            f"No channel of {type(network).__name__} can be scaled and removed; its bases can be, with prune_:\n"
            + "\n".join(f"  - {line}" for line in reasons)
        )
    scaled = copy_network(network)
    for name in chosen:
        module = scaled.get_submodule(name)
        attach_scaling_(module, channel_count(module, "out"))
    return scaled


def channel_scaling_penalty(network: nn.Module) -> torch.Tensor:
    """Return the sum of the magnitudes of all channel scaling weights, to be added to a loss with some factor.

    Raises:
        LayerSelectionError: if the network has no channel scaling.
    """
    return torch.stack([weight.abs().sum() for weight in _weights(network).values()]).sum()


class ChannelScalingLoss:
    """A loss with the L1 penalty of channel scaling, for a trainer that takes a loss function.

    Args:
        loss: the loss of predictions and labels.
        network: the network with channel scaling; it may be pruned in place later.
        weight: factor of the penalty, such as 1e-4; 0 or more.

    Raises:
        LayerSelectionError: if the network has no channel scaling.
        ValueError: if ``weight`` is negative or no number.
    """

    def __init__(self, loss: Callable[[Any, Any], torch.Tensor], network: nn.Module, weight: float = 1e-4) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be a number of at least 0, got {weight!r}.")
        _weights(network)
        self.loss, self.network, self.weight = loss, network, weight

    def __call__(self, predictions: Any, labels: Any) -> torch.Tensor:
        """Return the loss of one batch with the penalty."""
        return self.loss(predictions, labels) + self.weight * channel_scaling_penalty(self.network)


class ChannelScalingImportance:
    """The magnitude of the scaling weights of each channel, relative to the largest of the whole network.

    Channels that are coupled by a sum go together, so that the largest of their weights is their score. With
    ``Budget(threshold=0.05)``, :func:`~monai_basisprune.prune_channels_` removes the channels whose weights are below
    a twentieth of the network's largest; a share of parameters or of operations removes the lowest until it is met.

    Args:
        network: a network from :func:`add_channel_scaling`.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Raises:
        LayerSelectionError: if the network has no channel scaling, or cannot be traced.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int]) -> None:
        _weights(network)
        self.network = network
        self.input_shape = tuple(input_shape)
        self.reset()

    def reset(self) -> None:
        """Find the groups of channels anew; needed after channels were removed."""
        self._groups: list[ChannelGroup] = channel_groups(self.network, self.input_shape)

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups whose channels are ranked: those with scaling."""
        scaled = {name for name, _ in channel_scalings(self.network)}
        free = [group for group in self._groups if group.kept_because is None]
        return [g for g in free if any(side == "out" and name in scaled for name, side in g.sides())]

    def scores(self) -> dict[str, torch.Tensor]:
        """Return one score in [0, 1] for each channel: ``{group: tensor of shape (channels,)}``, on the host.

        Groups without scaling are left out, so they keep their channels.

        Raises:
            ValueError: if a weight is NaN or infinite, all are 0, or channels were removed since the last reset.
        """
        weights = {name: weight.detach().abs().cpu().double() for name, weight in _weights(self.network).items()}
        largest = max(float(weight.max()) for weight in weights.values())
        broken = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
        if broken:
            raise ValueError(f"The channel scaling of {broken} holds NaN or infinite weights: lower the learning rate.")
        if largest == 0:
            raise ValueError("All channel scaling weights are 0, so none is above another: lower the penalty.")
        scores = {}
        for group in self.groups:
            sides = [(name, side) for name, side in group.sides() if side == "out" and name in weights]
            try:
                found = [weights[side[0]][torch.tensor([u[side] for u in group.units])].amax(dim=1) for side in sides]
            except IndexError as error:
                raise ValueError("Channels were removed since the last reset(): call reset() after a cut.") from error
            scores[group.name] = torch.stack(found).amax(dim=0) / largest
        return scores


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    weights = {name: module.channel_scaling.weight for name, module in channel_scalings(network)}
    if not weights:
        raise LayerSelectionError(
            f"{type(network).__name__} has no channel scaling: call add_channel_scaling(network, input_shape) first."
        )
    return weights


def _is_place(module: nn.Module) -> bool:
    if isinstance(module, (_BatchNorm, _InstanceNorm, DecomposedConv)):
        return True
    return isinstance(module, _ConvNd) and not has_one_side(module)


def _lasting(network: nn.Module, input_shape: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return the modules behind which a scaling has an effect that no norm takes back."""
    probe = probe_network(network).requires_grad_(False)
    gates: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def gate(into: list[torch.Tensor]) -> Any:
        def multiply(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
            into.append(torch.ones_like(output, requires_grad=True))
            return output * into[-1]

        return multiply

    modules = dict(probe.named_modules())
    for name in names:
        modules[name].register_forward_hook(gate(gates[name]))
    like = example_input(probe, input_shape, _BATCH)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    with evaluation_mode(probe), torch.enable_grad():
        for module in probe.modules():
            if isinstance(module, _BatchNorm):
                module.eps = 1e-30  # which would let a little of the scaling pass
                module.train()
        outputs = [leaf for leaf in tree_leaves(probe(x)) if isinstance(leaf, torch.Tensor)]
        weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
        torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum().backward()
    return [name for name in names if _effect(gates[name]) > _TAKEN_BACK]


def _effect(gates: Sequence[torch.Tensor]) -> float:
    """Return what scaling a channel changes, as a share of what changing its values one by one does."""
    found = [gate.grad.transpose(0, 1).flatten(1) for gate in gates if gate.grad is not None]
    if not found:
        return 0.0
    total, magnitude = sum(f.sum(dim=1) for f in found), sum(f.abs().sum(dim=1) for f in found)
    return float((torch.as_tensor(total).abs() / torch.as_tensor(magnitude).clamp_min(1e-200)).max())
