"""The two layers that stand for one convolution: its orthonormal basis filters and their scaling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .factorization import Factors, factorize, reconstruct

__all__ = ["SUPPORTED_CONVOLUTIONS", "BasisScalingConv", "DecomposedConv"]

SUPPORTED_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layer types that can be decomposed."""


def kept_bases_problem(kept: Sequence[int], max_rank: int, groups: int) -> str | None:
    """Return what keeps a list of bases from being what is left of a layer, or None."""
    if not kept:
        return "keeps no basis"
    if max(kept) >= max_rank:
        return f"keeps basis {max(kept)}, there are {max_rank}"
    if list(kept) != sorted(set(kept)):
        return f"its bases {list(kept)} are not in rising order"
    counts = Counter(basis // (max_rank // groups) for basis in kept)
    if len(counts) != groups or len(set(counts.values())) != 1:
        return f"its {groups} groups keep different numbers of bases in {list(kept)}"
    return None


Slicer = Callable[[torch.Tensor], torch.Tensor]
"""Takes the part that is kept of any tensor with the shape of one parameter."""


class BasisScalingConv(nn.Module):
    """A 1×1 convolution that rescales basis features and transforms them back to the original output channels.

    Its weight is ``U · S · diag(s)``: ``U · S`` comes from the decomposition and stays frozen, ``s`` are the trainable
    scaling factors, 1 at the start (Wong et al., arXiv 2108.02893). The product is taken on the weights and never on
    a feature map.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
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
        if self.spatial_dims == 1:
            return F.conv1d(x, weight, self.bias, groups=self.groups)
        if self.spatial_dims == 2:
            return F.conv2d(x, weight, self.bias, groups=self.groups)
        return F.conv3d(x, weight, self.bias, groups=self.groups)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(network)``."""
        return f"{self.in_channels}, {self.out_channels}, groups={self.groups}, bias={self.bias is not None}"


class DecomposedConv(nn.Module):
    """A convolution in two steps: ``basis`` (orthonormal filters, frozen) and ``scaling`` (back to its channels).

    Inputs and outputs have the shape of the convolution that it replaces, whatever its rank is.

    Args:
        convolution: the layer to replace, one of :data:`SUPPORTED_CONVOLUTIONS`; it gives every attribute and the
            bias.
        factors: the values of both halves; without them they are random, as in any network that is new.
        rank: number of basis filters, all groups together: a multiple of ``convolution.groups``.

    Attributes:
        basis: an ordinary convolution with the kernel, stride, padding, dilation and groups of the original.
        scaling: a :class:`BasisScalingConv`.
        kept_bases: which of the bases of the full decomposition are left, in the order in which they are stored.
        max_rank: the number of bases of the full decomposition.
        original_parameters: number of parameters of the convolution that was replaced.
    """

    def __init__(self, convolution: nn.Module, factors: Factors | None = None, rank: int | None = None) -> None:
        super().__init__()
        conv: nn.Conv2d = convolution  # type: ignore[assignment]  # any of the supported types has these attributes
        spatial_dims = len(conv.kernel_size)
        rows, columns = conv.out_channels // conv.groups, conv.weight[0].numel()
        self.max_rank = conv.groups * min(rows, columns)
        rank = self.max_rank if rank is None else rank
        if rank < conv.groups or rank > self.max_rank or rank % conv.groups:
            raise ValueError(
                f"rank must be a multiple of groups={conv.groups} from {conv.groups} to {self.max_rank}, got {rank}."
            )
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self.weight_requires_grad = conv.weight.requires_grad
        self.original_parameters = conv.weight.numel() + (0 if conv.bias is None else conv.bias.numel())
        self.kept_bases = list(range(rank))
        # on the meta device nothing is allocated and no random number is drawn: the values come below
        self.basis = Conv[Conv.CONV, spatial_dims](
            conv.in_channels, rank, conv.kernel_size, groups=conv.groups, bias=False, device="meta", **self._geometry()
        )
        self.scaling = BasisScalingConv(
            spatial_dims, rank, conv.out_channels, conv.groups, conv.bias is not None, torch.device("meta")
        )
        device, dtype = conv.weight.device, conv.weight.dtype
        self.to(dtype).to_empty(device=device)
        if factors is None:
            self.basis.reset_parameters()
            self.scaling.reset_parameters()
        else:
            self.basis.weight = nn.Parameter(factors.basis.to(device, dtype))
            self.scaling.weight = nn.Parameter(factors.scaling.to(device, dtype), requires_grad=False)
            nn.init.ones_(self.scaling.scaling_factors)
        self.basis.weight.requires_grad_(False)
        if self.scaling.bias is not None and conv.bias is not None:
            self.scaling.bias.data.copy_(conv.bias.detach())
            self.scaling.bias.requires_grad_(conv.bias.requires_grad)
        self.train(conv.training)

    @classmethod
    def from_convolution(cls, convolution: nn.Module) -> DecomposedConv:
        """Decompose a convolution at full rank; equal to it to rounding.

        Args:
            convolution: one of :data:`SUPPORTED_CONVOLUTIONS`; it is left as it is.
        """
        return cls(convolution, factorize(convolution.weight, convolution.groups))  # type: ignore[arg-type]

    def _geometry(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "padding_mode")}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the convolution: ``(batch, in_channels, ...)`` to ``(batch, out_channels, ...)``."""
        return self.scaling(self.basis(x))

    def rank(self) -> int:
        """Return the number of basis filters that are left, all groups together."""
        return int(self.basis.weight.shape[0])

    def basis_size(self) -> int:
        """Return the number of weights that one basis costs, in both halves of the layer together."""
        return self.basis.weight[0].numel() + self.out_channels // self.groups

    def original_weights(self) -> int:
        """Return the number of weights, bias left out, of the convolution that was replaced."""
        return self.out_channels * self.basis.weight[0].numel()

    def recomposed_parameters(self) -> int:
        """Return the number of parameters after recomposition, in the cheaper of its two forms."""
        bias = 0 if self.scaling.bias is None else self.out_channels
        return min(self.rank() * self.basis_size(), self.original_weights()) + bias

    def to_convolution(self) -> nn.Module:
        """Return one ordinary convolution, or two in an ``nn.Sequential`` where they hold fewer weights."""
        conv_type, bias = type(self.basis), self.scaling.bias
        ends = {"groups": self.groups, "device": "meta"}
        # the scaling factors are multiplied in float64, so that each weight is rounded only once
        grouped = (
            self.scaling.weight.detach().to("cpu", torch.float64).reshape(self.groups, -1, self.rank() // self.groups)
        )
        factors = self.scaling.scaling_factors.detach().to("cpu", torch.float64).reshape(self.groups, 1, -1)
        scaling = (grouped * factors).reshape(self.scaling.weight.shape)
        if self.rank() * self.basis_size() < self.original_weights():
            first = conv_type(self.in_channels, self.rank(), self.kernel_size, bias=False, **ends, **self._geometry())
            last = conv_type(self.rank(), self.out_channels, 1, bias=bias is not None, **ends)
            plain: nn.Module = nn.Sequential(first, last)
            weights = [(first, self.basis.weight.detach().clone()), (last, scaling.to(self.basis.weight))]
        else:
            plain = last = conv_type(
                self.in_channels, self.out_channels, self.kernel_size, bias=bias is not None, **ends, **self._geometry()
            )
            weights = [(last, reconstruct(self.basis.weight, scaling, self.groups))]
        for convolution, weight in weights:
            convolution.weight = nn.Parameter(weight, requires_grad=self.weight_requires_grad)
        if bias is not None:
            last.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return plain.train(self.training)

    def keep_bases_(self, keep: list[int], replaced: Callable[[nn.Parameter, nn.Parameter, Slicer], None]) -> None:
        """Remove all bases but some, in place.

        The parameters are replaced by new ones: to shrink a parameter in place would break the next backward pass,
        whose graph holds the old shape.

        Args:
            keep: positions in the current order, rising; equally many in every group.
            replaced: called for each parameter with the old one, the new one and the function that slices any tensor
                of the old one's shape; an optimizer's state is taken along in it.
        """
        per_group = self.rank() // self.groups
        index = torch.tensor(keep, device=self.basis.weight.device)
        column = (index % per_group).reshape(self.groups, 1, -1)

        def slice_rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.index_select(0, index.to(tensor.device))

        def slice_columns(tensor: torch.Tensor) -> torch.Tensor:
            grouped = tensor.reshape(self.groups, -1, per_group)
            chosen = grouped.gather(2, column.to(tensor.device).expand(-1, grouped.shape[1], -1))
            return chosen.reshape(tensor.shape[0], -1, *tensor.shape[2:])

        for owner, name, slicer in (
            (self.basis, "weight", slice_rows),
            (self.scaling, "weight", slice_columns),
            (self.scaling, "scaling_factors", slice_rows),
        ):
            old = getattr(owner, name)
            new = nn.Parameter(slicer(old.detach()).clone(), requires_grad=old.requires_grad)
            if old.grad is not None:
                new.grad = slicer(old.grad)
            setattr(owner, name, new)
            replaced(old, new, slicer)
        self.basis.out_channels = self.scaling.in_channels = len(keep)
        self.kept_bases = [self.kept_bases[position] for position in keep]
