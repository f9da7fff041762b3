"""Distillation: a network that is pruned learns from what it was before, besides the labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .activation import image_batches
from .forward import forward_pass

__all__ = ["DistillationLoss"]


class DistillationLoss(nn.Module):
    """A loss that draws the outputs of a network, while it is pruned, to those that it had before.

    Labels are few and may be noisy; what the unpruned network says about an image is free and says more than a label.
    :meth:`start` notes it for every training image as it is, so nothing but these outputs has to be kept, and no image
    passes the unpruned network again. Until then, this is the plain loss. Afterwards it is
    ``(1 - weight) · loss + weight · T² · KL(p ‖ q)``, with ``p`` and ``q`` the softmax of what was noted and of the
    network's outputs, both divided by the temperature ``T`` (Hinton et al., arXiv 1503.02531, section 2), and the mean
    over the images of the batch. For findings that can occur together it is the same with two classes, present and
    absent, for each finding, and the mean over images and findings.

    Args:
        data: a loader of the training images without augmentation, in the order in which ``cases`` counts them; batches
            are as for :func:`~monai_basisprune.decompose`.
        loss: the plain loss, of outputs and labels; by default cross entropy.
        weight: share of what was noted in the loss, from 0 to 1.
        temperature: what outputs are divided by, above 0.
        exclusive: whether one class excludes the others; otherwise each output is a finding of its own.

    Attributes:
        wanted: what the unpruned network put out, of shape ``(images, classes)``; None before :meth:`start`. To go on
            from a checkpoint, set it.
        cases: the positions in ``data`` of the images in the next batch, for a trainer that calls
            ``loss(outputs, labels)``; each call takes them.
        resting: whether this is the plain loss for the time being.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from monai_basisprune import Budget, SingularValueImportance, decompose, prune_
        >>> network = decompose(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(32, 2)))
        >>> images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1, 0])
        >>> loss = DistillationLoss(images.split(2))
        >>> loss.start(network)
        >>> result = prune_(network, SingularValueImportance(network).scores(), Budget(bases=0.5))
        >>> batch = torch.tensor([4, 0, 1])
        >>> loss(network(images[batch]), labels[batch], batch).backward()
    """

    def __init__(
        self,
        data: Iterable[Any],
        loss: nn.Module | None = None,
        weight: float = 0.9,
        temperature: float = 2.0,
        exclusive: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is a share from 0 to 1, got {weight}.")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a number above 0, got {temperature}.")
        self.data = data
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.weight = weight
        self.temperature = temperature
        self.exclusive = exclusive
        self.wanted: torch.Tensor | None = None
        self.cases: torch.Tensor | Sequence[int] | None = None
        self.resting = False

    @property
    def active(self) -> bool:
        """Whether it learns from what was noted, at this time."""
        return self.wanted is not None and not self.resting

    def start(self, network: nn.Module) -> None:
        """Note what a network puts out for every training image; call it before the first cut.

        Args:
            network: the network, which runs in evaluation mode and is left as it is.

        Raises:
            ValueError: if there is no image, one cannot be used, or the outputs are not finite logits of classes or
                findings.
        """
        problems: list[str] = []
        outputs = [forward_pass(network, images) for images in image_batches(network, self.data, problems)]
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise ValueError(f"DistillationLoss cannot use its data:\n{lines}")
        for values in outputs:
            if not isinstance(values, torch.Tensor) or values.ndim != 2 or values.shape[1] < 1 + self.exclusive:
                found = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
                raise ValueError(
                    f"DistillationLoss takes logits of shape (batch, classes), of at least two classes where one "
                    f"excludes the others (exclusive={self.exclusive}), got {found}."
                )
        wanted = torch.cat(outputs)  # type: ignore[arg-type]
        if not bool(torch.isfinite(wanted).all()):
            raise ValueError(
                "DistillationLoss would have the network learn NaN or infinite outputs of the unpruned one: lower the "
                "learning rate of its training."
            )
        self.wanted = wanted

    def forward(
        self, outputs: torch.Tensor, labels: torch.Tensor, cases: torch.Tensor | Sequence[int] | None = None
    ) -> torch.Tensor:
        """Return the loss.

        Args:
            outputs: what the network put out for a batch: logits of shape ``(batch, classes)``, or findings.
            labels: as the plain loss takes them.
            cases: position of each image of the batch in the data, of shape ``(batch,)``; by default the attribute.

        Raises:
            ValueError: if it is not known which images these are, or the outputs are not those of as many images.
        """
        cases, self.cases = self.cases if cases is None else cases, None
        plain: torch.Tensor = self.loss(outputs, labels)
        if not self.active:
            return plain
        pair = outputs, self._wanted(outputs, cases)
        found, wanted = (self._log_probabilities(values) for values in pair)
        distance = functional.kl_div(found, wanted, reduction="sum", log_target=True) / found[..., 0].numel()
        return (1 - self.weight) * plain + self.weight * self.temperature**2 * distance

    def _log_probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        values = outputs.float() / self.temperature
        if not self.exclusive:
            values = torch.stack([values, torch.zeros_like(values)], dim=-1)
        return functional.log_softmax(values, dim=-1)

    def _wanted(self, outputs: torch.Tensor, cases: torch.Tensor | Sequence[int] | None) -> torch.Tensor:
        """Return what the unpruned network put out for the images of a batch."""
        assert self.wanted is not None
        if cases is None:
            raise ValueError(
                "DistillationLoss does not know which training images these outputs are of: call it with their "
                "positions, or set its cases before each batch."
            )
        positions = torch.as_tensor(cases, dtype=torch.long).reshape(-1)
        outside = [position for position in positions.tolist() if not 0 <= position < len(self.wanted)]
        if outside:
            raise ValueError(f"Positions of training images go from 0 to {len(self.wanted) - 1}, got {outside}.")
        wanted = self.wanted[positions.to(self.wanted.device)]
        if wanted.shape != outputs.shape:
            raise ValueError(
                f"Outputs of shape {tuple(outputs.shape)} are not those of the {len(positions)} images named, for "
                f"which the unpruned network gave {tuple(wanted.shape)}."
            )
        return wanted.to(outputs.device)
