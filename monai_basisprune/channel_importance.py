"""What the channels of a network matter: the Taylor estimate at gates in front of the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .channel_graph import BASES_ALONE, ChannelGroup
from .channel_slices import channel_count
from .channel_tracking import TrackedGroups
from .distributed import average_over_processes
from .errors import LayerSelectionError
from .importance import NORMALIZATIONS, all_finite

__all__ = ["ChannelTaylorImportance"]


class ChannelTaylorImportance:
    """First-order Taylor estimate of what the loss changes by when a channel is removed.

    A gate of 1 stands in front of every layer that reads channels which can be removed. The score of a channel is the
    mean over mini-batches of ``(Σ ∂L/∂g)²``, the sum being over the gates of all layers that read it: with all of them
    at 0, the channel is gone. At a gate, ``∂L/∂g`` is the activation times its gradient, summed over images and
    positions (Molchanov et al., CVPR 2019, section 3.2). So no weight needs a gradient, and there need be no norm.

    The gates are hooks on the network, which change no output. They stay until :meth:`close`, or the end of a ``with``
    block; copies of the network have none that act.

    Args:
        network: a decomposed network.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.
        reduction: ``"square"`` (default) for the mean of squares or ``"abs"`` for the mean of magnitudes.
        normalization: ``"none"`` (default), ``"l2"``, ``"mean"`` or ``"max"`` of the group.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer, cannot be traced, or none of its channels can be
            removed.
        ValueError: if the network cannot process the input, or an option is unknown.

    Example:
        >>> from monai_basisprune import decompose
        >>> network = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
        >>> with ChannelTaylorImportance(network, (1, 8, 8)) as importance:
        ...     network(torch.rand(2, 1, 8, 8)).square().mean().backward()
        ...     added = importance.accumulate()
        >>> importance.scores()["0"].shape
        torch.Size([4])
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        reduction: str = "square",
        normalization: str = "none",
    ) -> None:
        if reduction not in ("square", "abs"):
            raise ValueError(f"reduction must be 'square' or 'abs', got {reduction!r}.")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {sorted(NORMALIZATIONS)}, got {normalization!r}.")
        self.network = network
        self.input_shape = tuple(input_shape)
        self.reduction = reduction
        self.normalization = normalization
        self._handles: list[RemovableHandle] = []
        self._tracked = TrackedGroups(network, input_shape)
        self.reset()
        if not self._groups:
            lines = "\n".join(f"  - {group.name}: {group.kept_because}" for group in self._tracked.kept)
            raise LayerSelectionError(
                f"No channel of {type(self.network).__name__} can be removed:\n{lines}\n{BASES_ALONE}"
            )

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups whose channels are ranked."""
        return list(self._groups.values())

    def __enter__(self) -> ChannelTaylorImportance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the gates off the network; the scores stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forget everything that was accumulated, and set the gates anew; needed after channels were removed."""
        self.close()
        self._groups: dict[str, ChannelGroup] = {group.name: group for group in self._tracked.current()}
        self.batches = 0
        self._sums: dict[str, torch.Tensor] = {}
        modules = dict(self.network.named_modules())
        readers = dict.fromkeys(name for group in self._groups.values() for name in group.readers())
        self._gates = {name: _Gate(modules[name]) for name in readers}
        self._handles = [modules[name].register_forward_pre_hook(gate) for name, gate in self._gates.items()]

    def accumulate(self, gradient_scale: float = 1.0, skip_nonfinite: bool = False) -> bool:
        """Add what the last backward pass left at the gates; call it after ``backward()``.

        Args:
            gradient_scale: what the loss was multiplied by before ``backward()``, as by an AMP gradient scaler.
            skip_nonfinite: leave a batch with infinite or NaN gradients out, as a gradient scaler does, instead of
                raising.

        Returns:
            whether the batch was added.

        Raises:
            ValueError: if a gate has no gradient, or a gradient is not finite.
        """
        missing = [name for name, gate in self._gates.items() if gate.values is None or gate.values.grad is None]
        if missing:
            raise ValueError(
                f"accumulate() found no gradient at the inputs of {missing}: call it once after each backward(), and "
                f"before close(), and make sure that these layers take part in the loss."
            )
        taken = {name: gate.take() / gradient_scale for name, gate in self._gates.items()}
        gradients = {name: average_over_processes(gradient).cpu() for name, gradient in taken.items()}
        if not all_finite(gradients.values(), skip_nonfinite):
            return False
        for name, group in self._groups.items():
            total = torch.zeros(len(group.units), dtype=torch.float64)
            for reader in group.readers():
                places = torch.tensor([unit[reader, "in"] for unit in group.units])
                total += gradients[reader][places].sum(dim=1)
            contribution = total.square() if self.reduction == "square" else total.abs()
            self._sums[name] = self._sums.get(name, 0.0) + contribution
        self.batches += 1
        return True

    def scores(self) -> dict[str, torch.Tensor]:
        """Return one score for each channel: ``{group: tensor of shape (channels,)}``, on the host, in float64.

        Raises:
            ValueError: if nothing was accumulated.
        """
        if not self.batches:
            raise ValueError("No scores yet: call accumulate() after the backward pass of at least one mini-batch.")
        normalize = NORMALIZATIONS[self.normalization]
        return {name: normalize(total / self.batches) for name, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as tensors and plain numbers, for a checkpoint."""
        channels = {name: len(group.units) for name, group in self._groups.items()}
        return {"batches": self.batches, "channels": channels, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a network with other channels.
        """
        channels = {name: len(group.units) for name, group in self._groups.items()}
        saved = dict(state["channels"])
        if saved != channels:
            differing = sorted(name for name in {*saved, *channels} if saved.get(name) != channels.get(name))
            raise ValueError(f"The saved Taylor sums belong to a network with other channels: {differing} differ.")
        self.batches = int(state["batches"])
        self._sums = {name: total.detach().cpu().double() for name, total in state["sums"].items()}


class _Gated(torch.autograd.Function):
    """Hands a tensor on as it is, and to one 1 for each channel the gradient that it would have as their factor.

    The product itself, in both passes, would take as long as all else that a gate does.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ones: torch.Tensor, dim: int) -> torch.Tensor:
        ctx.save_for_backward(x, ones)
        ctx.dim = dim
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, ones = ctx.saved_tensors
        others = [dim for dim in range(x.ndim) if dim != ctx.dim]
        return gradient, (gradient * x).sum(others, dtype=ones.dtype), None


class _Gate:
    """Hands the inputs of one layer on, and takes the gradient that a factor of 1 for each channel would have."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.channels = channel_count(module, "in")
        # in a linear layer, the features come last
        self.last = isinstance(module, nn.Linear) or isinstance(getattr(module, "basis", None), nn.Linear)
        self.values: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if module is not self.module or not torch.is_grad_enabled():
            return None
        x = args[0]
        dim = x.ndim - 1 if self.last else 1
        if x.shape[dim] != self.channels:
            raise ValueError("Channels of the network were removed since the last reset(): call reset() after a cut.")
        if self.values is None or self.values.device != x.device:
            # never in half precision, even where autocast runs the layer in it
            dtype = torch.promote_types(x.dtype, torch.float32)
            self.values = torch.ones(self.channels, dtype=dtype, device=x.device, requires_grad=True)
        return (_Gated.apply(x, self.values, dim), *args[1:])

    def __deepcopy__(self, memo: object) -> _Gate:
        """Return the gate itself, so that it does not act in copies of the network."""
        return self

    def take(self) -> torch.Tensor:
        """Return the gradient in float64, and forget it."""
        assert self.values is not None
        assert self.values.grad is not None
        gradient, self.values.grad = self.values.grad, None
        return gradient.detach().double()
