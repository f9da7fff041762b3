"""The two layers that stand for one convolution or linear layer: its basis filters and their scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .basis_scaling import BasisScalingConv
from .copies import copy_parameter
from .factorization import Factors, factorize, factorize_alike, reconstruct, short_side
from .forward import memory_format
from .plain_layers import SUPPORTED_CONVOLUTIONS, SUPPORTED_LAYERS, layer_like, pointwise

__all__ = ["SUPPORTED_CONVOLUTIONS", "SUPPORTED_LAYERS", "DecomposedConv", "DecomposedLayer", "DecomposedLinear"]

Slicer = Callable[[torch.Tensor], torch.Tensor]
"""Takes the part that is kept of any tensor with the shape of one parameter."""


class DecomposedLayer(nn.Module):
    """A layer in two steps: ``basis`` (filters, frozen) and ``scaling`` (back to its channels).

    Inputs and outputs have the shape of the layer that it replaces, whatever its rank is. What the subclasses
    differ in is the kind of layer that they replace.

    Args:
        layer: the layer to replace, one of :data:`SUPPORTED_LAYERS`; it gives every attribute and the bias.
        factors: the values of both halves; without them they are random, as in any network that is new.
        rank: number of basis filters, all groups together: a multiple of the layer's groups.

    Attributes:
        basis: an ordinary layer with the kernel, stride, padding, dilation and groups of the original.
        scaling: a :class:`BasisScalingConv`.
        kept_bases: which of the bases of the full decomposition are left, in the order in which they are stored.
        max_rank: the number of bases of the full decomposition.
        original_parameters: number of parameters of the layer that was replaced, whatever channels were removed since.
        means: for each basis of the full decomposition the mean of what it puts out over images, which the bias takes
            when it is removed; None where the bases come from the weight or there is no bias. It is no part of the
            state dict: it belongs to the network as it was decomposed.
    """

    def __init__(self, layer: nn.Module, factors: Factors | None = None, rank: int | None = None) -> None:
        super().__init__()
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]  # all supported types have one
        bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]  # and this attribute
        self._take_geometry(layer)
        max_rank = self.groups * short_side(weight, self.groups)[1]
        rank = max_rank if rank is None else rank
        if rank < self.groups or rank > max_rank or rank % self.groups:
            raise ValueError(
                f"rank must be a multiple of groups={self.groups} from {self.groups} to {max_rank}, got {rank}."
            )
        vars(self).update(
            max_rank=max_rank,
            weight_requires_grad=weight.requires_grad,
            original_parameters=weight.numel() + (0 if bias is None else bias.numel()),
            kept_bases=list(range(rank)),
            training=layer.training,
        )
        device, dtype = weight.device, weight.dtype
        if factors is None:
            factors = _random_factors(weight, rank, self.out_channels, self.groups)
        values = factors.basis.to(device, dtype).contiguous(memory_format=memory_format(weight))
        self.basis = layer_like(layer, nn.Parameter(values, requires_grad=False), None, layer.training)
        self.scaling = BasisScalingConv.from_weight(
            factors.scaling.to(device, dtype), self.groups, None if bias is None else copy_parameter(bias)
        )
        self.scaling.training = self.training
        means = None if factors.means is None else factors.means.to(device, dtype)
        self.register_buffer("means", means, persistent=False)

    if TYPE_CHECKING:  # TorchScript would read them as types of its own
        in_channels: int
        out_channels: int
        groups: int
        max_rank: int
        original_parameters: int
        weight_requires_grad: bool
        kept_bases: list[int]
        means: torch.Tensor | None
        kernel_size: tuple[int, ...]
        basis: Any

    def _take_geometry(self, layer: nn.Module) -> None:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer: for a convolution ``(batch, in_channels, ...)`` to ``(batch, out_channels, ...)``."""
        return self.scaling(self.basis(x))

    def rank(self) -> int:
        """Return the number of basis filters that are left, all groups together."""
        return int(self.basis.weight.shape[0])

    def frozen_weights(self) -> list[nn.Parameter]:
        """Return the weights of both halves, which are never trained."""
        return [self.basis.weight, self.scaling.weight]

    def basis_size(self) -> int:
        """Return the number of weights that one basis costs, in both halves of the layer together."""
        return math.prod(self.basis.weight.shape[1:]) + self.out_channels // self.groups

    def whole_shape(self) -> tuple[int, ...]:
        """Return the shape of the weight of one layer in the place of the two, with the same channels."""
        return self.out_channels, *self.basis.weight.shape[1:]

    def whole_weights(self) -> int:
        """Return the number of weights, bias left out, of one layer in the place of the two, with the same channels."""
        return math.prod(self.whole_shape())

    def splits(self) -> bool:
        """Return whether two layers hold fewer weights than the one that they replace."""
        return self.rank() * self.basis_size() < self.whole_weights()

    def recomposed_parameters(self) -> int:
        """Return the number of parameters after recomposition, in the smaller of its two forms."""
        bias = 0 if self.scaling.bias is None else self.out_channels
        return min(self.rank() * self.basis_size(), self.whole_weights()) + bias

    def to_plain(self, split: bool | None = None) -> nn.Module:
        """Return ordinary layers that give the same output.

        Args:
            split: whether to return two layers in an ``nn.Sequential``, or one; by default whatever holds fewer
                weights.
        """
        if not (self.splits() if split is None else split):
            # multiplied in float64, so that each weight is rounded only once
            weight = self.scaling.weight.detach().to("cpu", torch.float64)
            factors = self.scaling.scaling_factors.detach().to("cpu", torch.float64).reshape(self.groups, 1, -1)
            scaling = (weight.reshape(self.groups, -1, factors.shape[2]) * factors).reshape(weight.shape)
            return self.whole(reconstruct(self.basis.weight, scaling, self.groups))
        first_weight = self._new_weight(self.basis.weight.detach().clone())
        first = layer_like(self.basis, first_weight, None, self.training)
        last_weight = self._new_weight(self.scaling.folded_weight().detach())
        pattern = pointwise(type(self.basis), self.groups)  # type: ignore[arg-type]
        last = layer_like(pattern, last_weight, _copied(self.scaling.bias), self.training)
        plain = nn.Sequential(first, last)
        plain.training = self.training
        return plain

    def whole(self, weight: torch.Tensor) -> nn.Module:
        """Return one ordinary layer in the place of the two, with a weight of its own and the same bias."""
        return layer_like(self.basis, self._new_weight(weight), _copied(self.scaling.bias), self.training)

    def _new_weight(self, values: torch.Tensor) -> nn.Parameter:
        values = values.contiguous(memory_format=memory_format(self.basis.weight))
        return nn.Parameter(values, requires_grad=self.weight_requires_grad)

    def keep_bases_(self, keep: list[int], replaced: Callable[[nn.Parameter, nn.Parameter, Slicer], None]) -> None:
        """Remove all bases but some, in place; the bias takes the mean of those that go, where it is known.

        The parameters are replaced by new ones: to shrink a parameter in place would break the next backward pass,
        whose graph holds the old shape.

        Args:
            keep: positions in the current order, rising; equally many in every group.
            replaced: called for each parameter with the old one, the new one and the function that slices any tensor
                of the old one's shape; an optimizer's state is taken along in it.
        """
        per_group = self.rank() // self.groups
        index = torch.tensor(keep, device=self.basis.weight.device)
        columns = (index % per_group).reshape(self.groups, -1)

        def slice_rows(tensor: torch.Tensor) -> torch.Tensor:
            kept = tensor.index_select(0, index.to(tensor.device))
            return kept.contiguous(memory_format=memory_format(tensor))

        def slice_columns(tensor: torch.Tensor) -> torch.Tensor:
            if self.groups == 1:
                return tensor.index_select(1, index.to(tensor.device))
            parts = zip(tensor.chunk(self.groups), columns.to(tensor.device), strict=True)
            return torch.cat([part.index_select(1, column) for part, column in parts])

        self._take_means(keep)
        for owner, name, slicer in (
            (self.basis, "weight", slice_rows),
            (self.scaling, "weight", slice_columns),
            (self.scaling, "scaling_factors", slice_rows),
        ):
            old = getattr(owner, name)
            new = nn.Parameter(slicer(old.detach()), requires_grad=old.requires_grad)
            if old.grad is not None:
                new.grad = slicer(old.grad)
            owner._parameters[name] = new
            replaced(old, new, slicer)
        name = "out_features" if isinstance(self.basis, nn.Linear) else "out_channels"
        vars(self.basis)[name] = self.scaling.in_channels = len(keep)
        self.kept_bases = [self.kept_bases[position] for position in keep]

    def _take_means(self, keep: list[int]) -> None:
        """Add to the bias what the bases that are not kept put out on average."""
        if self.means is not None and self.scaling.bias is not None:
            means = self.means.to("cpu", torch.float64)[self.kept_bases]
            means[keep] = 0.0
            means = means.reshape(self.groups, -1, 1)
            weight = self.scaling.folded_weight().detach().to("cpu", torch.float64)
            removed = weight.reshape(self.groups, -1, means.shape[1]) @ means
            self.scaling.bias.data += removed.reshape(-1).to(self.scaling.bias)


_GEOMETRY = (
    *("in_channels", "out_channels", "groups"),
    *("kernel_size", "stride", "dilation", "padding", "padding_mode"),
)


class DecomposedConv(DecomposedLayer):
    """A convolution as basis filters and their scaling; see :class:`DecomposedLayer`."""

    def _take_geometry(self, layer: nn.Module) -> None:
        vars(self).update((name, getattr(layer, name)) for name in _GEOMETRY)


class DecomposedLinear(DecomposedLayer):
    """A linear layer as basis vectors and their scaling; see :class:`DecomposedLayer`.

    Its features come last: ``(..., in_channels)`` to ``(..., out_channels)``.
    """

    def _take_geometry(self, layer: nn.Module) -> None:
        self.in_channels, self.out_channels, self.groups = layer.in_features, layer.out_features, 1  # type: ignore[assignment]
        self.kernel_size = self.stride = self.padding = self.dilation = ()
        self.padding_mode = "zeros"


def decompose_layer(layer: nn.Module, factors: Factors | None = None) -> DecomposedLayer:
    """Decompose one layer at full rank; equal to it to rounding.

    Args:
        layer: one of :data:`SUPPORTED_LAYERS`; it is left as it is.
        factors: its weight in two factors; by default the singular value decomposition.
    """
    if factors is None:
        factors = factorize(layer.weight, getattr(layer, "groups", 1))  # type: ignore[arg-type]
    return _decomposed_type(layer)(layer, factors)


def decompose_alike(layers: Sequence[nn.Module]) -> list[DecomposedLayer]:
    """Decompose layers of finite weights, equal groups and equal :func:`short_side` at full rank, in one go."""
    weights: list[torch.Tensor] = [layer.weight for layer in layers]  # type: ignore[misc]
    factors = factorize_alike(weights, getattr(layers[0], "groups", 1))
    return [_decomposed_type(layer)(layer, both) for layer, both in zip(layers, factors, strict=True)]


def new_decomposed(layer: nn.Module, rank: int) -> DecomposedLayer:
    """Return a decomposed layer of some rank with random values, in the place of ``layer``.

    Raises:
        ValueError: if the layer cannot have that rank.
    """
    return _decomposed_type(layer)(layer, rank=rank)


def _decomposed_type(layer: nn.Module) -> type[DecomposedLayer]:
    return DecomposedLinear if isinstance(layer, nn.Linear) else DecomposedConv


def _random_factors(weight: torch.Tensor, rank: int, out_channels: int, groups: int) -> Factors:
    """Return two halves with the random start of ordinary layers."""
    basis = weight.new_empty(rank, *weight.shape[1:])
    scaling = weight.new_empty(out_channels, rank // groups, *[1] * (weight.ndim - 2))
    for values in (basis, scaling):
        nn.init.kaiming_uniform_(values, a=math.sqrt(5))
    return Factors(basis, scaling)


def _copied(bias: nn.Parameter | None) -> nn.Parameter | None:
    return None if bias is None else copy_parameter(bias)
