"""What the layers of a network put out over unlabeled images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import ActivationError
from .factorization import Factors, factorize_by_outputs
from .forward import forward_pass

__all__ = ["Moments", "activation_factors", "grouped_features", "image_batches", "output_moments", "raise_problems"]

_MAX_LINES = 50


@dataclass
class Moments:
    """Sums over all positions of all images, from which means and second moments follow; of a size of its own.

    Attributes:
        sums: of the features, shape ``(groups, features)``, float64.
        products: of features by features, shape ``(groups, features, features)``, float64.
        samples: number of positions that were added.
        images: number of images that they are of.
    """

    sums: torch.Tensor | None = None
    products: torch.Tensor | None = None
    samples: int = 0
    images: int = 0

    def add(self, features: torch.Tensor) -> None:
        """Add features of shape ``(groups, features, samples)``, as from :func:`grouped_features`."""
        sums, products = features.sum(dim=2), features @ features.transpose(1, 2)
        self.sums = sums if self.sums is None else self.sums + sums
        self.products = products if self.products is None else self.products + products
        self.samples += features.shape[2]

    def is_finite(self) -> bool:
        """Return whether all values that were added are numbers."""
        return bool(torch.isfinite(self.second_moment()).all())

    def mean(self) -> torch.Tensor:
        """Return the mean, shape ``(groups, features)``, on the host."""
        assert self.sums is not None
        return self.sums.cpu() / self.samples

    def second_moment(self) -> torch.Tensor:
        """Return the mean of the products, shape ``(groups, features, features)``, on the host."""
        assert self.products is not None
        return self.products.cpu() / self.samples

    def covariance(self) -> torch.Tensor:
        """Return the covariance, shape ``(groups, features, features)``, on the host."""
        mean = self.mean().unsqueeze(-1)
        return self.second_moment() - mean @ mean.transpose(1, 2)


def grouped_features(output: torch.Tensor, groups: int, spatial_dims: int) -> torch.Tensor:
    """Return what a layer puts out as ``(groups, features, samples)`` in float64: each position is one sample.

    Args:
        output: shape ``(batch, channels, ...)``, with or without the batch; ``(..., channels)`` for 0 spatial dims.
        groups: the groups of the layer.
        spatial_dims: its spatial dimensions, 0 for a linear layer.
    """
    # float64 does not exist on every accelerator, the host always has it
    device = output.device if output.device.type in ("cpu", "cuda") else torch.device("cpu")
    channels = output.detach().movedim(-1 - spatial_dims, 0)
    return channels.reshape(groups, channels.shape[0] // groups, -1).to(device, torch.float64)


def image_batches(network: nn.Module, data: Iterable[Any], problems: list[str]) -> Iterator[torch.Tensor]:
    """Yield the images of a loader batch by batch, of the type and on the device of a network.

    Args:
        network: the network that they are for.
        data: a loader whose batches are tensors, dictionaries with the key ``"image"``, or pairs of which the images
            come first.
        problems: what is wrong with a batch goes here, and the batch is left out.
    """
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(data, (torch.Tensor, Mapping, str)) or not isinstance(data, Iterable):
        problems.append(f"data: {type(data).__name__} instead of a loader; give a list of batches where there is none")
        return
    empty = True
    for number, batch in enumerate(data, 1):
        empty = False
        images = batch
        if isinstance(batch, Mapping):
            images = batch.get("image")
        elif isinstance(batch, (list, tuple)):
            images = batch[0] if batch else None
        if not isinstance(images, torch.Tensor):
            found = f"a dictionary with {list(batch)[:9]}" if isinstance(batch, Mapping) else type(batch).__name__
            problems.append(
                f"batch {number}: {found}, where a tensor, a dictionary with 'image' or a pair (image, label) is needed"
            )
        elif images.ndim < 2 or images.numel() == 0:
            problems.append(f"batch {number}: shape {tuple(images.shape)} holds no images with a batch dimension")
        else:
            # no MetaTensor: every function would copy its metadata
            images = images.detach().as_subclass(torch.Tensor)
            broken = (~torch.isfinite(images)).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if broken:
                shown = f"{broken[:9]}{' and more' if len(broken) > 9 else ''}"
                problems.append(f"batch {number}: NaN or infinite values in the images at {shown}")
            else:
                yield images.to(like.device, like.dtype)
    if empty:
        problems.append("data: the loader is empty; some 100 unlabeled images are needed")


def activation_factors(network: nn.Module, layers: Mapping[str, nn.Module], data: Iterable[Any]) -> dict[str, Factors]:
    """Decompose layers by what they put out over unlabeled images; see :func:`factorize_by_outputs`.

    A layer with a bias takes the covariance of its outputs: the bias takes the mean of bases that are removed later. A
    layer without one takes the second moment, for which the mean is a part of what the bases have to carry. Either is
    shrunk towards what the weight would put out over inputs that all vary alike, which counts for as many images as
    there are bases.

    Args:
        network: the network, which runs in evaluation mode and is left as it is.
        layers: the convolutions and linear layers to decompose, by name.
        data: unlabeled images, as for :func:`image_batches`; read once, and no two batches are held at once.

    Returns:
        the factors of each layer.

    Raises:
        ActivationError: if images or layers do not allow it; all problems are listed.
    """
    problems: list[str] = []
    moments = output_moments(network, layers, data, problems)
    passed = any(one.samples for one in moments.values())
    for name, one in moments.items():
        layer: Any = layers[name]
        groups = getattr(layer, "groups", 1)
        needed = min(layer.weight.shape[0] // groups, layer.weight[0].numel())
        if one.samples == 0:
            # where no batch was fit to run, that is the problem
            if passed or not problems:
                problems.append(f"{name}: no image reaches it; name it in exclude_modules")
        elif not one.is_finite():
            problems.append(f"{name}: its outputs are NaN or infinite")
        elif one.samples < needed:
            problems.append(
                f"{name}: {one.samples} samples ({one.images} images, {one.samples / one.images:.3g} positions each) "
                f"for {needed} bases; at least {math.ceil(needed * one.images / one.samples)} images are needed, or "
                f"larger ones, or name it in exclude_modules"
            )
    raise_problems(f"{type(network).__name__} cannot be decomposed by its activations", problems)
    return {name: _factors(layers[name], one) for name, one in moments.items()}


def raise_problems(summary: str, problems: list[str]) -> None:
    """Raise one error with all problems, if there are any.

    Raises:
        ActivationError: with the first fifty.
    """
    if problems:
        lines = problems[:_MAX_LINES]
        if len(problems) > _MAX_LINES:
            lines = [*lines, f"and {len(problems) - _MAX_LINES} more"]
        raise ActivationError(f"{summary}:\n" + "\n".join(f"  - {line}" for line in lines))


def output_moments(
    network: nn.Module, layers: Mapping[str, nn.Module], data: Iterable[Any], problems: list[str]
) -> dict[str, Moments]:
    """Return the moments of what convolutions and linear layers put out over images.

    Args:
        network: the network, which runs in evaluation mode and is left as it is.
        layers: layers of it, by name.
        data: images, as for :func:`image_batches`.
        problems: what keeps images from being used goes here.
    """
    moments = {name: Moments() for name in layers}
    handles = []
    for name, layer in layers.items():

        def add(module: Any, args: object, output: torch.Tensor, into: Moments = moments[name]) -> None:
            into.add(grouped_features(output, getattr(module, "groups", 1), module.weight.ndim - 2))

        handles.append(layer.register_forward_hook(add))
    try:
        for images in image_batches(network, data, problems):
            before = {name: one.samples for name, one in moments.items()}
            try:
                forward_pass(network, images)
            except ValueError as error:
                problems.append(str(error))
                break  # others have the same shape
            for name, one in moments.items():
                one.images += len(images) if one.samples > before[name] else 0
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _factors(layer: Any, moments: Moments) -> Factors:
    groups = getattr(layer, "groups", 1)
    moment, mean = moments.second_moment(), None
    if layer.bias is not None:
        moment = moments.covariance()
        # of the outputs without the bias, which stays as it is
        mean = moments.mean() - layer.bias.detach().to("cpu", torch.float64).reshape(groups, -1)
    weight = layer.weight.detach().to("cpu", torch.float64).reshape(groups, moment.shape[1], -1)
    # positions of one image are alike, so few images tell little of many directions: the weight counts for as many
    # images as there are bases, with what it would put out if all inputs varied alike
    own = weight @ weight.transpose(1, 2)
    own = own * (_trace(moment) / _trace(own).clamp_min(torch.finfo(own.dtype).tiny))
    share = min(weight.shape[1:]) / (min(weight.shape[1:]) + moments.images)
    return factorize_by_outputs(layer.weight, (1 - share) * moment + share * own, mean, groups)


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(dim=1).reshape(-1, 1, 1)
