"""The two layers that stand for one convolution or linear layer: its basis filters and their scaling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
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
        max_rank = self.groups * min(rows, columns)
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
        )
        self.basis = self._sized(layer, self.in_channels, rank)
        # on the meta device nothing is allocated and no random number is drawn: the values come below
        self.scaling = BasisScalingConv(
            len(self.kernel_size), rank, self.out_channels, self.groups, bias is not None, torch.device("meta")
        )
        device, dtype = weight.device, weight.dtype
        if factors is None:
            self.basis.weight = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
            self.basis.reset_parameters()
            self.scaling.to(dtype).to_empty(device=device).reset_parameters()
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
        for module in (self, self.basis, self.scaling):
            module.training = layer.training

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

    def _sized(self, layer: nn.Module, in_channels: int, out_channels: int) -> nn.Module:
        """Return an ordinary layer with the attributes of another, channels of its own and no parameters yet."""
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
            first = self._sized(self.basis, self.in_channels, self.rank())
            last = self._sized(_example(type(self.basis)), self.rank(), self.out_channels)  # type: ignore[arg-type]
            plain: nn.Module = nn.Sequential(first, last)
            weights = [(first, self.basis.weight.detach().clone()), (last, scaling.to(self.basis.weight))]
        else:
            plain = last = self._sized(self.basis, self.in_channels, self.out_channels)
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


@cache
def _example(kind: type[nn.Module]) -> nn.Module:
    """Return a layer of one of the supported types; a convolution has a kernel of size 1."""
    return kind(1, 1, device="meta", **({} if kind is nn.Linear else {"kernel_size": 1}))


@cache
def _own_attributes(kind: type[nn.Module]) -> dict[str, Any]:
    """Return what a layer of one of the supported types holds beside what any module does, parameters left out."""
    example = _example(kind)  # type: ignore[arg-type]
    return {name: value for name, value in vars(example).items() if name not in vars(nn.Module())}


def _layer_like(layer: nn.Module, **changes: Any) -> nn.Module:
    """Return a layer with the attributes of another and some changes, without parameters and hooks.

    To construct it in the usual way would take several times as long, most of it for random values.
    """
    kind: Any = next(supported for supported in SUPPORTED_LAYERS if isinstance(layer, supported))
    new: nn.Module = kind.__new__(kind)
    nn.Module.__init__(new)
    own = _own_attributes(kind)
    vars(new).update({name: vars(layer).get(name, value) for name, value in own.items()}, **changes)
    new.register_parameter("weight", None)
    new.register_parameter("bias", None)
    return new


_GEOMETRY = (
    *("in_channels", "out_channels", "groups"),
    *("kernel_size", "stride", "dilation", "padding", "padding_mode"),
)


class DecomposedConv(DecomposedLayer):
    """A convolution as basis filters and their scaling; see :class:`DecomposedLayer`."""

    def _take_geometry(self, layer: nn.Module) -> None:
        vars(self).update((name, getattr(layer, name)) for name in _GEOMETRY)

    def _sized(self, layer: nn.Module, in_channels: int, out_channels: int) -> nn.Module:
        return _layer_like(layer, in_channels=in_channels, out_channels=out_channels, groups=self.groups)


class DecomposedLinear(DecomposedLayer):
    """A linear layer as basis vectors and their scaling; see :class:`DecomposedLayer`.

    Its features come last: ``(..., in_channels)`` to ``(..., out_channels)``.
    """

    def _take_geometry(self, layer: nn.Module) -> None:
        self.in_channels, self.out_channels, self.groups = layer.in_features, layer.out_features, 1  # type: ignore[assignment]
        self.kernel_size = self.stride = self.padding = self.dilation = ()
        self.padding_mode = "zeros"

    def _sized(self, layer: nn.Module, in_channels: int, out_channels: int) -> nn.Module:
        return _layer_like(layer, in_features=in_channels, out_features=out_channels)

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
