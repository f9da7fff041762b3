"""The two layers that stand for one convolution or linear layer: its basis filters and their scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from .basis_scaling import BasisScalingConv
from .factorization import Factors, factorize, reconstruct
from .forward import memory_format

__all__ = ["SUPPORTED_CONVOLUTIONS", "SUPPORTED_LAYERS", "DecomposedConv", "DecomposedLayer", "DecomposedLinear"]

SUPPORTED_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layer types that are decomposed by default."""

SUPPORTED_LAYERS: tuple[type[nn.Module], ...] = (*SUPPORTED_CONVOLUTIONS, nn.Linear)
"""All layer types that can be decomposed: linear layers only where they are asked for."""

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
        bias: torch.Tensor | None = layer.bias  # type: ignore[assignment]  # and this attribute
        self._take_geometry(layer)
        rows, columns = self.out_channels // self.groups, weight[0].numel()
        self.max_rank = self.groups * min(rows, columns)
        rank = self.max_rank if rank is None else rank
        if rank < self.groups or rank > self.max_rank or rank % self.groups:
            raise ValueError(
                f"rank must be a multiple of groups={self.groups} from {self.groups} to {self.max_rank}, got {rank}."
            )
        self.weight_requires_grad = weight.requires_grad
        self.original_parameters = weight.numel() + (0 if bias is None else bias.numel())
        self.kept_bases = list(range(rank))
        # on the meta device nothing is allocated and no random number is drawn: the values come below
        self.basis = self._basis_layer(rank)
        self.scaling = BasisScalingConv(
            len(self.kernel_size), rank, self.out_channels, self.groups, bias is not None, torch.device("meta")
        )
        device, dtype = weight.device, weight.dtype
        if factors is None:
            self.to(dtype).to_empty(device=device)
            self.basis.reset_parameters()
            self.scaling.reset_parameters()
            values = self.basis.weight.detach()
        else:
            values = factors.basis.to(device, dtype)
            self.scaling.weight = nn.Parameter(factors.scaling.to(device, dtype), requires_grad=False)
            self.scaling.scaling_factors = nn.Parameter(torch.ones(rank, device=device, dtype=dtype))
        means = None if factors is None or factors.means is None else factors.means.to(device, dtype)
        self.register_buffer("means", means, persistent=False)
        self.basis.weight = nn.Parameter(values.contiguous(memory_format=memory_format(weight)), requires_grad=False)
        if bias is not None:
            self.scaling.bias = nn.Parameter(bias.detach().to(device, dtype).clone(), requires_grad=bias.requires_grad)
        self.train(layer.training)

    if TYPE_CHECKING:  # TorchScript would read them as types of its own
        in_channels: int
        out_channels: int
        groups: int
        means: torch.Tensor | None
        kernel_size: tuple[int, ...]
        basis: Any

    def _take_geometry(self, layer: nn.Module) -> None:
        raise NotImplementedError

    def _basis_layer(self, rank: int) -> nn.Module:
        """Return the first of the two layers, on the meta device."""
        raise NotImplementedError

    def _scaling_layer(self, rank: int, bias: bool) -> nn.Module:
        """Return the ordinary layer that stands for the second of the two, on the meta device."""
        raise NotImplementedError

    def _whole_layer(self, bias: bool) -> nn.Module:
        """Return a layer like the one that was replaced, on the meta device."""
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
        return int(self.basis.weight[0].numel()) + self.out_channels // self.groups

    def whole_weights(self) -> int:
        """Return the number of weights, bias left out, of one layer in the place of the two, with the same channels."""
        return self.out_channels * int(self.basis.weight[0].numel())

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
        bias = self.scaling.bias
        # the scaling factors are multiplied in float64, so that each weight is rounded only once
        grouped = (
            self.scaling.weight.detach().to("cpu", torch.float64).reshape(self.groups, -1, self.rank() // self.groups)
        )
        factors = self.scaling.scaling_factors.detach().to("cpu", torch.float64).reshape(self.groups, 1, -1)
        scaling = (grouped * factors).reshape(self.scaling.weight.shape)
        if self.splits() if split is None else split:
            first, last = self._basis_layer(self.rank()), self._scaling_layer(self.rank(), bias is not None)
            plain: nn.Module = nn.Sequential(first, last)
            weights = [(first, self.basis.weight.detach().clone()), (last, scaling.to(self.basis.weight))]
        else:
            plain = last = self._whole_layer(bias is not None)
            weights = [(last, reconstruct(self.basis.weight, scaling, self.groups))]
        for layer, weight in weights:
            values = weight.contiguous(memory_format=memory_format(self.basis.weight))
            layer.weight = nn.Parameter(values, requires_grad=self.weight_requires_grad)
        if bias is not None:
            last.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return plain.train(self.training)

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
        column = (index % per_group).reshape(self.groups, 1, -1)

        def slice_rows(tensor: torch.Tensor) -> torch.Tensor:
            kept = tensor.index_select(0, index.to(tensor.device))
            return kept.contiguous(memory_format=memory_format(tensor))

        def slice_columns(tensor: torch.Tensor) -> torch.Tensor:
            grouped = tensor.reshape(self.groups, -1, per_group)
            chosen = grouped.gather(2, column.to(tensor.device).expand(-1, grouped.shape[1], -1))
            return chosen.reshape(tensor.shape[0], -1, *tensor.shape[2:])

        self._take_means(keep)
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
        self.tell_rank(len(keep))
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

    def tell_rank(self, rank: int) -> None:
        """Note the number of bases where the two halves tell it; the tensors are the caller's matter."""
        self.basis.out_channels = self.scaling.in_channels = rank


def _bare(kind: type[nn.Module]) -> Any:
    """Return a type of layer that starts without values: to draw those that nothing holds takes most of the time."""
    return type(f"Bare{kind.__name__}", (kind,), {"reset_parameters": lambda self: None})


_BARE = {dims: _bare(kind) for dims, kind in enumerate(SUPPORTED_CONVOLUTIONS, start=1)}


class DecomposedConv(DecomposedLayer):
    """A convolution as basis filters and their scaling; see :class:`DecomposedLayer`."""

    def _take_geometry(self, layer: nn.Module) -> None:
        conv: nn.Conv2d = layer  # type: ignore[assignment]  # any of the supported types has these attributes
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode

    def _new(self, in_channels: int, out_channels: int, bias: bool, whole_kernel: bool) -> nn.Module:
        geometry: dict[str, Any] = {"kernel_size": 1}
        if whole_kernel:
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            geometry = {name: getattr(self, name) for name in names}
        kind = _BARE[len(self.kernel_size)]
        layer = kind(in_channels, out_channels, groups=self.groups, bias=bias, device="meta", **geometry)
        layer.__class__ = Conv[Conv.CONV, len(self.kernel_size)]
        return layer

    def _basis_layer(self, rank: int) -> nn.Module:
        return self._new(self.in_channels, rank, bias=False, whole_kernel=True)

    def _scaling_layer(self, rank: int, bias: bool) -> nn.Module:
        return self._new(rank, self.out_channels, bias, whole_kernel=False)

    def _whole_layer(self, bias: bool) -> nn.Module:
        return self._new(self.in_channels, self.out_channels, bias, whole_kernel=True)


class DecomposedLinear(DecomposedLayer):
    """A linear layer as basis vectors and their scaling; see :class:`DecomposedLayer`.

    Its features come last: ``(..., in_channels)`` to ``(..., out_channels)``.
    """

    def _take_geometry(self, layer: nn.Module) -> None:
        self.in_channels, self.out_channels, self.groups = layer.in_features, layer.out_features, 1  # type: ignore[assignment]
        self.kernel_size = self.stride = self.padding = self.dilation = ()
        self.padding_mode = "zeros"

    def _basis_layer(self, rank: int) -> nn.Module:
        return nn.Linear(self.in_channels, rank, bias=False, device="meta")

    def _scaling_layer(self, rank: int, bias: bool) -> nn.Module:
        return nn.Linear(rank, self.out_channels, bias=bias, device="meta")

    def _whole_layer(self, bias: bool) -> nn.Module:
        return nn.Linear(self.in_channels, self.out_channels, bias=bias, device="meta")

    def tell_rank(self, rank: int) -> None:
        """Note the number of bases where the two halves tell it; the tensors are the caller's matter."""
        self.basis.out_features = self.scaling.in_channels = rank


def decompose_layer(layer: nn.Module, factors: Factors | None = None) -> DecomposedLayer:
    """Decompose one layer at full rank; equal to it to rounding.

    Args:
        layer: one of :data:`SUPPORTED_LAYERS`; it is left as it is.
        factors: its weight in two factors; by default the singular value decomposition.
    """
    if factors is None:
        factors = factorize(layer.weight, getattr(layer, "groups", 1))  # type: ignore[arg-type]
    return _decomposed_type(layer)(layer, factors)


def new_decomposed(layer: nn.Module, rank: int) -> DecomposedLayer:
    """Return a decomposed layer of some rank with random values, in the place of ``layer``.

    Raises:
        ValueError: if the layer cannot have that rank.
    """
    return _decomposed_type(layer)(layer, rank=rank)


def _decomposed_type(layer: nn.Module) -> type[DecomposedLayer]:
    return DecomposedLinear if isinstance(layer, nn.Linear) else DecomposedConv
