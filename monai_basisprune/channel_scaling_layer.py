"""The trainable factors of output channels, on the convolution or the norm that holds them, and their way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .copies import copy_network
from .layers import DecomposedLayer
from .traversal import walk

__all__ = ["ChannelScaling", "attach_scaling_", "channel_scalings", "detach_scalings_", "fold_channel_scaling"]


class ChannelScaling(nn.Module):
    """Multiplies every channel by a trainable weight of its own, 1 at the start (Wong et al., arXiv 2103.12228).

    Args:
        channels: number of channels.
        device: where the weights are created.
        dtype: their type.
    """

    def __init__(self, channels: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale features of shape ``(batch, channels, ...)``."""
        return x * self.weight.reshape(-1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        """Describe the layer in ``print(network)``."""
        return f"{self.weight.numel()}"


def channel_scalings(network: nn.Module) -> list[tuple[str, Any]]:
    """Return the convolutions and norms whose outputs are scaled, by name; each holds it as ``channel_scaling``."""
    return [
        (name, module)
        for name, module in walk(network)
        if isinstance(module._modules.get("channel_scaling"), ChannelScaling)
    ]


def attach_scaling_(module: nn.Module, channels: int) -> None:
    """Put a :class:`ChannelScaling` behind a convolution or a norm, in place; its name in the network stays."""
    like = next(p for p in module.parameters() if p.is_floating_point())
    module.channel_scaling = ChannelScaling(channels, like.device, like.dtype)
    module.register_forward_hook(_scale)


def detach_scalings_(network: nn.Module) -> None:
    """Take every :class:`ChannelScaling` off, in place, with what its weights say."""
    for _, module in channel_scalings(network):
        del module.channel_scaling
        for key, hook in list(module._forward_hooks.items()):
            if hook is _scale:
                del module._forward_hooks[key]


def fold_channel_scaling(network: nn.Module) -> nn.Module:
    """Multiply all channel scaling weights into the convolutions and norms that they stand behind.

    Args:
        network: a network, with channel scaling or without; it is left as it is.

    Returns:
        a new network without channel scaling, equal in output to rounding; ``network`` itself where there is none.
    """
    if not channel_scalings(network):
        return network
    folded = copy_network(network)
    for _, module in channel_scalings(folded):
        factors = module.channel_scaling.weight.detach()
        owner: Any = module.scaling if isinstance(module, DecomposedLayer) else module
        shape = [1] * owner.weight.ndim
        shape[1 if getattr(owner, "transposed", False) else 0] = -1
        with torch.no_grad():
            owner.weight.mul_(factors.reshape(shape))
            if owner.bias is not None:
                owner.bias.mul_(factors)
    detach_scalings_(folded)
    return folded


def _scale(module: Any, args: object, output: torch.Tensor) -> torch.Tensor:
    scaled: torch.Tensor = module.channel_scaling(output)
    return scaled
