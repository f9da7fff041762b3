"""Compensation: what removed bases and channels did, made up for by those that are left, from unlabeled images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from .activation import Moments, image_batches, raise_problems
from .channel_compensation import lost_inputs, positions_in, refit_inputs_
from .channel_slices import channel_count, has_one_side
from .decomposition import decomposed_layers
from .elimination import damped_solution
from .forward import forward_pass
from .layers import DecomposedLayer
from .paired_passes import input_pair_moments, output_difference, output_pair_moments
from .selection import decomposable_layers

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
        layers: one :class:`LayerCompensation` for each decomposed layer, and each other one that lost inputs, by name,
            in the order of the forward pass.
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
    """Fit what is left of a pruned network anew so that it puts out what the unpruned one does, in place.

    In closed form and without labels (Xie et al., arXiv 2108.13728). A layer that lost inputs, decomposed or not, reads
    what they told off those that are left: its basis filters, or its weights, become
    ``W · C[:, keep] · (C[keep, keep] + λ I)⁻¹`` with ``W`` those of the reference and ``C`` the moments of what the
    reference reads with what is read now. Then the scaling of every decomposed layer becomes
    ``W + (Y - W Z) Zᵀ (Z Zᵀ + λ I)⁻¹`` for the features ``Z`` of its bases and the outputs ``Y`` of the reference's
    layer: the least squares solution next to its own value ``W``. A bias follows from the means. Layer by layer from
    input to output: each makes up for what the ones before it left over. One image of four is kept aside, and a layer
    takes its new values only where its error falls on these. Scaling factors and norms stay as they are: the outputs
    are those that the norms had their statistics from, so these need not be estimated anew.

    Each layer takes one or two passes of both networks over the images, which are all kept in memory.

    Args:
        network: a pruned decomposed network.
        reference: the unpruned network; it is left as it is. Where channels were removed, the network as it was before
            that, such as a ``copy.deepcopy``: decomposed, with the same bases or more.
        data: a loader of some 100 unlabeled images, as for :func:`~monai_basisprune.decompose`; read once.
        ridge: ``λ`` as a share of the mean square of the features.

    Returns:
        what became of each layer and of the output.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer.
        ActivationError: if images or networks do not allow it, or there are fewer positions in all images than a layer
            has bases; all problems are listed, and nothing is changed.
        ValueError: if ``ridge`` is not positive.
    """
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be a positive number, got {ridge}.")
    decomposed_layers(network)
    problems: list[str] = []
    layers = _chosen(network, reference, problems)
    batches = list(image_batches(network, data, problems))
    images = sum(len(batch) for batch in batches)
    if not problems and images < _CHECKED:
        problems.append(f"data: {images} images; at least {_CHECKED} are needed, and some 100 are of use")
    raise_problems(f"{type(network).__name__} cannot be compensated", problems)
    fit, check = _split(batches)
    names = _order(network, layers, fit, images, problems)
    before = _output_error(network, reference, check, problems)
    raise_problems(f"{type(network).__name__} cannot be compensated", problems)
    old = {name: _values(layers[name]) for name in names}
    results: dict[str, LayerCompensation] = {}
    try:
        for name in names:
            pair = network, reference, layers[name], reference.get_submodule(name)
            results[name] = _compensate_layer(*pair, fit, check, ridge)
        after = _output_error(network, reference, check, problems)
        raise_problems(f"{type(network).__name__} cannot be compensated", problems)
    except BaseException:
        _put_back(layers, old)
        raise
    if after > before:
        _put_back(layers, old)
        results = {n: LayerCompensation(r.error_before, r.error_after, False) for n, r in results.items()}
    return CompensationResult(results, images, before, min(before, after))


def _compensate_layer(
    network: nn.Module,
    reference: nn.Module,
    layer: nn.Module,
    twin: nn.Module,
    fit: Sequence[torch.Tensor],
    check: Sequence[torch.Tensor],
    ridge: float,
) -> LayerCompensation:
    def moments(batches: Sequence[torch.Tensor]) -> Moments:
        return output_pair_moments(network, reference, layer, twin, batches)

    if not lost_inputs(layer, twin):
        assert isinstance(layer, DecomposedLayer)
        return _fit_scaling(layer, moments(fit), moments(check), ridge)
    old, before = _values(layer), output_difference(network, reference, layer, twin, check)
    refit_inputs_(layer, twin, input_pair_moments(network, reference, layer, twin, fit), ridge)
    if isinstance(layer, DecomposedLayer):
        _fit_scaling(layer, moments(fit), moments(check), ridge)
    after = output_difference(network, reference, layer, twin, check)
    if not after < before:
        _put_back({"": layer}, {"": old})
    return LayerCompensation(before, after, after < before)


def _fit_scaling(layer: DecomposedLayer, fit: Moments, check: Moments, ridge: float) -> LayerCompensation:
    rank = layer.rank() // layer.groups
    weight = layer.scaling.weight.detach().to("cpu", torch.float64).reshape(layer.groups, -1, rank)
    bias = None if layer.scaling.bias is None else layer.scaling.bias.detach().to("cpu", torch.float64)
    products, mean = fit.second_moment(), fit.mean().unsqueeze(-1)
    if bias is not None:
        bias = bias.reshape(layer.groups, -1, 1)
        products = products - mean @ mean.transpose(1, 2)
    features, targets = products[:, :rank, :rank], products[:, rank:, :rank]
    new = damped_solution(weight, features, targets, ridge)
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


def _order(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[torch.Tensor],
    images: int,
    problems: list[str],
) -> list[str]:
    """Return the names of the layers in the order in which they first come in a forward pass, if images suffice."""
    samples: dict[str, int] = {}

    def see(name: str, layer: nn.Module) -> Any:
        def count(module: nn.Module, args: object, output: torch.Tensor) -> None:
            samples[name] = samples.get(name, 0) + output.numel() // channel_count(layer, "out")

        return layer.register_forward_hook(count)

    handles = [see(name, layer) for name, layer in layers.items()]
    try:
        forward_pass(network, batches[0])
    finally:
        for handle in handles:
            handle.remove()
    used = sum(len(batch) for batch in batches)
    for name, layer in layers.items():
        if name not in samples:
            problems.append(f"{name}: no image reaches it")
            continue
        needed = layer.rank() // layer.groups if isinstance(layer, DecomposedLayer) else 1
        positions = samples[name] / len(batches[0])
        if positions * used < needed:
            problems.append(
                f"{name}: {positions * used:.0f} samples ({used} of {images} images, {positions:.3g} positions each; "
                f"the others are kept aside) for {needed} bases; at least "
                f"{math.ceil(needed / positions * _CHECKED / (_CHECKED - 1))} images are needed, or larger ones"
            )
    return list(samples)


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


def _chosen(network: nn.Module, reference: nn.Module, problems: list[str]) -> dict[str, nn.Module]:
    """Return the layers to fit, and what keeps the reference from telling what they should put out."""
    twins = dict(reference.named_modules())
    chosen = {}
    for name, layer in decomposable_layers(network):
        twin, decomposed = twins.get(name), isinstance(layer, DecomposedLayer)
        if has_one_side(layer) or not (decomposed or (isinstance(twin, type(layer)) and lost_inputs(layer, twin))):
            continue
        chosen[name] = layer
        if not isinstance(twin, (DecomposedLayer, _ConvNd, nn.Linear)):
            problems.append(f"{name}: the reference has no such layer")
        elif positions_in(layer, twin, "out") is None:
            found, wanted = (channel_count(one, "out") for one in (layer, twin))
            problems.append(f"{name}: {found} output channels, {wanted} in the reference")
        elif channel_count(layer, "in") != channel_count(twin, "in") and not _comparable(layer, twin):
            problems.append(
                f"{name}: has lost channels, and this layer of the reference has not the same bases with all channels: "
                f"give the network as it was before they were removed, a copy.deepcopy"
            )
    return chosen


def _comparable(layer: nn.Module, twin: nn.Module) -> bool:
    if positions_in(layer, twin, "in") is None:
        return False
    if isinstance(layer, DecomposedLayer):
        return isinstance(twin, DecomposedLayer) and set(twin.kept_bases) >= set(layer.kept_bases)
    return not isinstance(twin, DecomposedLayer)


def _split(batches: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the images to solve from, and every fourth one to check on."""
    fit, check, seen = [], [], 0
    for batch in batches:
        aside = (torch.arange(len(batch)) + seen) % _CHECKED == _CHECKED - 1
        seen += len(batch)
        fit += [batch[~aside]] if bool((~aside).any()) else []
        check += [batch[aside]] if bool(aside.any()) else []
    return fit, check


def _values(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def _put_back(layers: Mapping[str, nn.Module], values: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for name, tensors in values.items():
        for part, parameter in layers[name].named_parameters():
            parameter.data.copy_(tensors[part])
