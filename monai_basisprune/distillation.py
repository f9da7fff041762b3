"""Distillation: a network that is pruned learns from what it was before, besides the labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from .recomposition import recompose

__all__ = ["DistillationLoss"]


class DistillationLoss(nn.Module):
    """A loss that draws the outputs of a network, while it is pruned, to those that it had before.

    Labels are few and may be noisy; what the unpruned network says about an image, augmented or not, is free and says
    more than a label. Until :meth:`start`, this is the plain loss. Then it is
    ``(1 - weight) · loss + weight · T² · KL(p ‖ q)``, with ``p`` and ``q`` the softmax of the unpruned network's and of
    the network's outputs, both divided by the temperature ``T`` (Hinton et al., arXiv 1503.02531, section 2), and the
    mean over the images of the batch. For findings that can occur together it is the same with two classes, present
    and absent, for each finding, and the mean over images and findings. Both networks see the same images, so any
    trainer can use it that calls ``loss(outputs, labels)`` after each forward pass.

    Args:
        loss: the plain loss, of outputs and labels; by default cross entropy.
        weight: share of the outputs of the unpruned network in the loss, from 0 to 1.
        temperature: what outputs are divided by, above 0.
        exclusive: whether one class excludes the others; otherwise each output is a finding of its own.

    Attributes:
        reference: the unpruned network in evaluation mode, an ordinary network that is never trained; None before
            :meth:`start`. It is part of the state dict: to go on from one, :meth:`start` with the unpruned network and
            load it then.
        resting: whether this is the plain loss for the time being, which saves a pass of the unpruned network.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from monai_basisprune import Budget, SingularValueImportance, decompose, prune_
        >>> network = decompose(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(32, 2)))
        >>> loss = DistillationLoss()
        >>> loss.start(network)
        >>> result = prune_(network, SingularValueImportance(network).scores(), Budget(bases=0.5))
        >>> loss(network(torch.rand(4, 1, 4, 4)), torch.tensor([0, 1, 0, 1])).backward()
    """

    def __init__(
        self, loss: nn.Module | None = None, weight: float = 0.9, temperature: float = 2.0, exclusive: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is a share from 0 to 1, got {weight}.")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a number above 0, got {temperature}.")
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.weight = weight
        self.temperature = temperature
        self.exclusive = exclusive
        self.reference: nn.Module | None = None
        self.resting = False
        self._inputs = _LastInputs()
        self._handle: RemovableHandle | None = None

    def start(self, network: nn.Module) -> None:
        """Learn from what a network puts out now; call it before the first cut.

        Args:
            network: the decomposed network that is trained, and pruned from now on. A hook on it keeps the images of
                the last batch for this loss, and changes nothing; copies of the network have none that acts.

        Raises:
            LayerSelectionError: if the network holds no decomposed layer.
        """
        reference = recompose(network).eval().requires_grad_(False)
        self.stop()
        self.reference = reference
        self._handle = network.register_forward_pre_hook(self._inputs)

    def stop(self) -> None:
        """Be the plain loss again, and take the hook off the network; TorchScript accepts no network that has one."""
        if self._handle is not None:
            self._handle.remove()
        self.reference = self._handle = self._inputs.values = None

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss.

        Args:
            outputs: what the network put out for its last batch: logits of shape ``(batch, classes)``, or findings.
            labels: as the plain loss takes them.

        Raises:
            ValueError: if the outputs are not logits of classes or findings, or not those of the last batch.
        """
        plain: torch.Tensor = self.loss(outputs, labels)
        if self.reference is None or self.resting:
            self._inputs.values = None
            return plain
        wanted = self._wanted(outputs)
        found, wanted = (self._log_probabilities(values) for values in (outputs, wanted))
        distance = functional.kl_div(found, wanted, reduction="sum", log_target=True) / found[..., 0].numel()
        return (1 - self.weight) * plain + self.weight * self.temperature**2 * distance

    def _log_probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        values = outputs.float() / self.temperature
        if not self.exclusive:
            values = torch.stack([values, torch.zeros_like(values)], dim=-1)
        return functional.log_softmax(values, dim=-1)

    def _wanted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return what the unpruned network puts out for the last batch."""
        assert self.reference is not None
        if outputs.ndim != 2 or outputs.shape[1] < 1 + self.exclusive:
            raise ValueError(
                f"DistillationLoss takes logits of shape (batch, classes), of at least two classes where one excludes "
                f"the others (exclusive={self.exclusive}), got {tuple(outputs.shape)}."
            )
        inputs, self._inputs.values = self._inputs.values, None
        if inputs is None:
            raise ValueError(
                "DistillationLoss found no images: call it once after each forward pass, with gradients, of the "
                "network that start() was given."
            )
        with torch.no_grad():
            wanted: torch.Tensor = self.reference.eval()(*inputs)
        if wanted.shape != outputs.shape:
            raise ValueError(
                f"Outputs of shape {tuple(outputs.shape)} are not those of the last batch of the network, for which "
                f"the unpruned one gives {tuple(wanted.shape)}."
            )
        return wanted


class _LastInputs:
    """A hook that keeps what a network is given when it is trained."""

    def __init__(self) -> None:
        self.values: tuple[Any, ...] | None = None

    def __call__(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        if network.training and torch.is_grad_enabled():
            self.values = args

    def __deepcopy__(self, memo: object) -> _LastInputs:
        return _LastInputs()
