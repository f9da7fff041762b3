"""Compensation: what removed bases put out, made up for by those that are left, from unlabeled images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .activation import Moments, grouped_features, image_batches, raise_problems
from .decomposition import decomposed_layers
from .forward import forward_pass
from .layers import DecomposedLayer

__all__ = ["CompensationResult", "LayerCompensation", "compensate_"]

_CHECKED = 4  # one image of so many is kept aside to check each layer on


@dataclass(frozen=True)
class LayerCompensation:
    """What compensation did to one layer, as measured on images that it was not solved from.

    Attributes:
        error_before: mean squared difference from the reference's outputs, per position and channel, before.
        error_after: the same with the new values.
        changed: whether the layer took the new values; it keeps its own unless the error falls.
    """

    error_before: float
    error_after: float
    changed: bool


@dataclass(frozen=True)
class CompensationResult:
    """What :func:`compensate_` did.

    Attributes:
        layers: one :class:`LayerCompensation` for each decomposed layer, by name, in the order of the forward pass.
        images: number of images that were used, those to check on included.
        output_error_before: mean squared difference of the network's output from the reference's, on the images that
            are kept aside, before.
        output_error_after: the same afterwards; no larger, as all layers get their values back where it would be.
    """

    layers: dict[str, LayerCompensation]
    images: int
    output_error_before: float
    output_error_after: float


def compensate_(
    network: nn.Module, reference: nn.Module, data: Iterable[Any], ridge: float = 1e-4
) -> CompensationResult:
    """Fit the scaling of every decomposed layer anew so that it puts out what the unpruned network does, in place.

    In closed form and without labels (after Xie et al., arXiv 2108.13728, where channels are compensated): for the
    features ``Z`` of the bases that are left and the outputs ``Y`` of the reference's layer, the scaling becomes
    ``W + (Y - W Z) Zᵀ (Z Zᵀ + λ I)⁻¹``, the least squares solution next to its own value ``W``; a bias follows from
    the means. Layer by layer from input to output: each makes up for what the ones before it left over. One image of
    four is kept aside, and a layer takes its new values only where its error falls on these. Bases, scaling factors and
    norms stay as they are: the outputs are those that the norms had their statistics from, so these need not be
    estimated anew.

    Each layer takes one pass of both networks over the images, which are all kept in memory.

    Args:
        network: a pruned decomposed network.
        reference: the unpruned network, decomposed or not; it is left as it is.
        data: a loader of some 100 unlabeled images, as for :func:`~monai_basisprune.decompose`; read once.
        ridge: ``λ`` as a share of the mean square of the features.

    Returns:
        what became of each layer and of the output.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer.
        ActivationError: if images or networks do not allow it; all problems are listed, and nothing is changed.
        ValueError: if ``ridge`` is not positive.
    """
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be a positive number, got {ridge}.")
    layers = dict(decomposed_layers(network))
    problems = _differences(layers, reference)
    batches = list(image_batches(network, data, problems))
    images = sum(len(batch) for batch in batches)
    if not problems and images < _CHECKED:
        problems.append(f"data: {images} images; at least {_CHECKED} are needed, and some 100 are of use")
    raise_problems(f"{type(network).__name__} cannot be compensated", problems)
    fit, check = _split(batches)
    names = _order(network, layers, fit[0])
    for name in layers.keys() - set(names):
        problems.append(f"{name}: no image reaches it")
    before = _output_error(network, reference, check, problems)
    raise_problems(f"{type(network).__name__} cannot be compensated", problems)
    old = {name: _values(layers[name]) for name in names}
    results: dict[str, LayerCompensation] = {}
    try:
        for name in names:
            target = reference.get_submodule(name)
            results[name] = _compensate_layer(
                layers[name],
                _moments(network, reference, layers[name], target, fit),
                _moments(network, reference, layers[name], target, check),
                ridge,
            )
        after = _output_error(network, reference, check, problems)
        raise_problems(f"{type(network).__name__} cannot be compensated", problems)
    except BaseException:
        _put_back(layers, old)
        raise
    if after > before:
        _put_back(layers, old)
        results = {n: LayerCompensation(r.error_before, r.error_after, False) for n, r in results.items()}
    return CompensationResult(results, images, before, min(before, after))


def _compensate_layer(layer: DecomposedLayer, fit: Moments, check: Moments, ridge: float) -> LayerCompensation:
    rank = layer.rank() // layer.groups
    weight, bias = (None if value is None else value.cpu().double() for value in _values(layer))
    assert weight is not None
    weight = weight.reshape(layer.groups, -1, rank)
    products, mean = fit.second_moment(), fit.mean().unsqueeze(-1)
    if bias is not None:
        bias = bias.reshape(layer.groups, -1, 1)
        products = products - mean @ mean.transpose(1, 2)
    features, targets = products[:, :rank, :rank], products[:, rank:, :rank]
    scale = features.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    damped = features + ridge * scale.reshape(-1, 1, 1) * torch.eye(rank, dtype=torch.float64)
    new = weight + torch.linalg.solve(damped, (targets - weight @ features).transpose(1, 2)).transpose(1, 2)
    new_bias = None if bias is None else mean[:, rank:] - new @ mean[:, :rank]
    before, after = _error(check, weight, bias), _error(check, new, new_bias)
    changed = after < before  # never where either is NaN
    if changed:
        parameter = layer.scaling.weight
        parameter.data.copy_(new.reshape(parameter.shape))
        if new_bias is not None:
            layer.scaling.bias.data.copy_(new_bias.reshape(-1))  # type: ignore[union-attr]
    return LayerCompensation(before, after, changed)


def _error(moments: Moments, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    """Return the mean square of ``Y - W Z - b``, per channel, from the moments of ``(Z, Y)`` together."""
    groups, rows, _ = weight.shape
    both = torch.cat([-weight, torch.eye(rows, dtype=torch.float64).expand(groups, -1, -1)], dim=2)
    squares = (both @ moments.second_moment() * both).sum(dim=2)
    if bias is not None:
        squares = squares - 2 * (bias * (both @ moments.mean().unsqueeze(-1))).squeeze(-1) + bias.squeeze(-1).square()
    return float(squares.mean().clamp_min(0))


def _moments(
    network: nn.Module, reference: nn.Module, layer: DecomposedLayer, target: nn.Module, batches: Sequence[torch.Tensor]
) -> Moments:
    """Return the moments of the scaled features of a layer's bases and of the outputs wanted, in this order."""
    moments = Moments()
    features: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    dims = len(layer.kernel_size)

    def see(into: list[torch.Tensor]) -> Any:
        return lambda module, args, output: into.append(grouped_features(output, layer.groups, dims))

    factors = layer.scaling.scaling_factors.detach().cpu().double().reshape(layer.groups, -1, 1)
    handles = [layer.basis.register_forward_hook(see(features)), target.register_forward_hook(see(wanted))]
    try:
        for batch in batches:
            features.clear()
            wanted.clear()
            forward_pass(network, batch)
            forward_pass(reference, batch)
            for found, outputs in zip(features, wanted, strict=True):
                moments.add(torch.cat([found * factors.to(found.device), outputs.to(found.device)], dim=1))
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _order(network: nn.Module, layers: Mapping[str, DecomposedLayer], batch: torch.Tensor) -> list[str]:
    """Return the names of the layers in the order in which they first come in a forward pass."""
    names: dict[str, None] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, name=name: names.setdefault(name))
        for name, layer in layers.items()
    ]
    try:
        forward_pass(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(names)


def _output_error(
    network: nn.Module, reference: nn.Module, batches: Sequence[torch.Tensor], problems: list[str]
) -> float:
    squares, count = 0.0, 0
    for batch in batches:
        outputs = [tree_leaves(forward_pass(one, batch)) for one in (network, reference)]
        for found, wanted in zip(*outputs, strict=True):
            if isinstance(found, torch.Tensor):
                squares += float((found.cpu().double() - wanted.cpu().double()).square().sum())
                count += found.numel()
    if not math.isfinite(squares):
        problems.append("output: NaN or infinite values in that of the network or the reference")
    return squares / count


def _differences(layers: Mapping[str, DecomposedLayer], reference: nn.Module) -> list[str]:
    modules: dict[str, Any] = dict(reference.named_modules())
    problems = []
    for name, layer in layers.items():
        other = modules.get(name)
        if other is None:
            problems.append(f"{name}: the reference has no such layer")
            continue
        channels = getattr(other, "out_channels", getattr(other, "out_features", None))
        if channels != layer.out_channels:
            problems.append(f"{name}: {layer.out_channels} output channels, {channels} in the reference")
    return problems


def _split(batches: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the images to solve from, and every fourth one to check on."""
    fit, check, seen = [], [], 0
    for batch in batches:
        aside = (torch.arange(len(batch)) + seen) % _CHECKED == _CHECKED - 1
        seen += len(batch)
        fit += [batch[~aside]] if bool((~aside).any()) else []
        check += [batch[aside]] if bool(aside.any()) else []
    return fit, check


def _values(layer: DecomposedLayer) -> tuple[torch.Tensor, torch.Tensor | None]:
    bias = layer.scaling.bias
    return layer.scaling.weight.detach().clone(), None if bias is None else bias.detach().clone()


def _put_back(
    layers: Mapping[str, DecomposedLayer], values: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
) -> None:
    for name, (weight, bias) in values.items():
        layers[name].scaling.weight.data.copy_(weight)
        if bias is not None:
            layers[name].scaling.bias.data.copy_(bias)  # type: ignore[union-attr]
