"""The second half of a decomposed layer: it rescales basis features and transforms them back."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["BasisScalingConv"]


class BasisScalingConv(nn.Module):
    """A 1×1 convolution that rescales basis features and transforms them back to the original output channels.

    Its weight is ``U · S · diag(s)``: ``U · S`` comes from the decomposition and stays frozen, ``s`` are the trainable
    scaling factors, 1 at the start (Wong et al., arXiv 2108.02893). The product is taken on the weights and never on
    a feature map.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3; 0 for a linear layer, whose features come last.
        in_channels: number of bases, all groups together.
        out_channels: number of output channels.
        groups: number of groups.
        bias: whether the convolution that is replaced has a bias; it stays here.
        device: where the parameters are created.
        dtype: their type.
    """

    __constants__ = ("groups", "spatial_dims")

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        shape = (out_channels, in_channels // groups, *[1] * spatial_dims)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)
        self.scaling_factors = nn.Parameter(torch.ones(in_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @classmethod
    def from_weight(cls, weight: torch.Tensor, groups: int, bias: nn.Parameter | None) -> BasisScalingConv:
        """Return a layer with values that are known, which takes a fraction of the time; its scaling factors are 1.

        Args:
            weight: shape ``(out_channels, in_channels / groups, 1, ...)``.
            groups: number of groups.
            bias: shape ``(out_channels,)``, if there is one.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        bases = weight.shape[1] * groups
        vars(layer).update(spatial_dims=weight.ndim - 2, in_channels=bases, out_channels=weight.shape[0], groups=groups)
        layer._parameters.update(
            weight=nn.Parameter(weight, requires_grad=False),
            scaling_factors=nn.Parameter(weight.new_ones(bases)),
            bias=bias,
        )
        return layer

    def reset_parameters(self) -> None:
        """Give the weight the random start of an ordinary convolution, the scaling factors 1 and the bias 0."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.ones_(self.scaling_factors)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def folded_weight(self) -> torch.Tensor:
        """Return the weight with the scaling factors multiplied in, shape ``(out_channels, rank / groups, 1, ...)``."""
        factors = self.scaling_factors.reshape(self.groups, 1, -1)
        return (self.weight.reshape(self.groups, -1, factors.shape[2]) * factors).reshape(self.weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map basis features ``(batch, in_channels, ...)`` to ``(batch, out_channels, ...)``."""
        weight = self.folded_weight()
        if self.spatial_dims == 0:
            return F.linear(x, weight, self.bias)
        if self.spatial_dims == 1:
            return F.conv1d(x, weight, self.bias, groups=self.groups)
        if self.spatial_dims == 2:
            return F.conv2d(x, weight, self.bias, groups=self.groups)
        return F.conv3d(x, weight, self.bias, groups=self.groups)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(network)``."""
        return f"{self.in_channels}, {self.out_channels}, groups={self.groups}, bias={self.bias is not None}"
