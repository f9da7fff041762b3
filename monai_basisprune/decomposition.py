"""Decompose the layers of a network, and tell what stands in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from .activation import activation_factors
from .channel_slices import channel_count, kept_channels, lost_parameters, original_channels
from .copies import copy_network
from .errors import LayerSelectionError
from .factorization import is_finite, short_side
from .layers import DecomposedLayer, decompose_alike, decompose_layer
from .selection import decomposable_layers, is_lazy, select_layers, skip_reasons
from .threads import one_thread

__all__ = ["LayerStatus", "decompose", "decomposed_layers", "layer_status"]

# weights, above which a layer is decomposed with nothing beside it
_LARGE = 2**20

# weights of the layers that are decomposed in one go: few enough for all threads to have something to do
_BATCH = 2**18

_NOT_SELECTED = {
    False: "not selected by target_modules and exclude_modules",
    True: "linear layer: decomposed only where target_modules names it",
}


@dataclass(frozen=True)
class LayerStatus:
    """What has become of one convolution or linear layer.

    Attributes:
        name: its dotted name in the network.
        type: the type of the layer, such as ``"Conv2d"``.
        rank: bases that are left, all groups together; None where the layer is not decomposed.
        max_rank: bases of the full decomposition; None where the layer is not decomposed.
        parameters: number of parameters, bias included, after :func:`recompose`.
        original_parameters: number of parameters of the layer in the original network.
        skipped: why the layer is not decomposed, or None where it is.
        channels: output channels that are left.
        max_channels: output channels of the layer in the original network.
    """

    name: str
    type: str
    rank: int | None
    max_rank: int | None
    parameters: int
    original_parameters: int
    skipped: str | None
    channels: int
    max_channels: int


def decompose(
    network: nn.Module,
    basis: str = "weight",
    target_modules: Sequence[str] | str | None = None,
    exclude_modules: Sequence[str] | str | None = None,
    data: Iterable[Any] | None = None,
) -> nn.Module:
    """Replace every convolution by basis filters and a :class:`~monai_basisprune.BasisScalingConv`.

    The result equals the network to rounding (a relative error of some 1e-6). Layers that cannot be decomposed are
    left alone; :func:`layer_status` says why. Linear layers, as in a transformer, are decomposed where
    ``target_modules`` names them. After Wong, Kashyap and Moradi, arXiv 2108.02893.

    Args:
        network: any network with 1D, 2D or 3D convolutions, or linear layers; it is left as it is.
        basis: where the bases come from: ``"weight"``, the singular value decomposition of the weights, which gives
            orthonormal filters; or ``"activation"``, the principal directions of what each layer puts out over the
            images of ``data``: the filters with which few bases keep these outputs best. With few images the weights
            have a say in it: they count for as many images as the layer has bases. These filters are not orthonormal,
            the columns of the scaling are. The bias of a layer takes the mean of each basis that is removed later,
            until the network is saved and loaded again; a layer without one has none to give, as its bases carry it.
        target_modules: which layers to decompose; by default all convolutions that can be. A list of dotted names,
            where a name also stands for every layer inside that module and for every layer whose name ends with it
            (``"conv1"`` for ``"layer1.0.conv1"``), or one regular expression that matches whole names. The last
            linear layer, the head, stays whole unless a list names it in full.
        exclude_modules: which of them to leave alone, given in the same way.
        data: for ``"activation"``, a loader of some 100 unlabeled images or more, whose batches are tensors,
            dictionaries with the key ``"image"``, or pairs of which the images come first. It is read once, and what is
            kept in memory does not depend on the number of images.

    Returns:
        a new network. Bases and ``U · S`` are frozen, the scaling factors require a gradient.

    Raises:
        LayerSelectionError: if nothing is left to decompose, or a weight holds NaN or infinite values; all problems
            are listed.
        ActivationError: if there are too few images for a layer, an image is NaN, or images do not reach a layer; all
            problems are listed.
        ValueError: if ``basis`` is unknown, or ``data`` is missing or not of use.

    Example:
        >>> from monai.networks.nets import DenseNet121
        >>> network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2).eval()
        >>> decomposed = decompose(network)
        >>> x = torch.rand(1, 1, 64, 64)
        >>> torch.allclose(decomposed(x), network(x), atol=1e-4)
        True
    """
    if basis not in ("weight", "activation"):
        raise ValueError(f"basis must be 'weight' or 'activation', got {basis!r}.")
    if (data is not None) != (basis == "activation"):
        found = "no data" if data is None else "data"
        raise ValueError(
            f"basis={basis!r} was asked for with {found}: 'activation' needs a loader of unlabeled images, 'weight' "
            f"reads none."
        )
    chosen = select_layers(network, target_modules, exclude_modules)
    with one_thread():
        broken = [name for name, layer in chosen.items() if not is_finite(layer.weight)]  # type: ignore[arg-type]
    if broken:
        lines = "\n".join(f"  - {name}: the weight holds NaN or infinite values" for name in sorted(broken))
        raise LayerSelectionError(f"{type(network).__name__} cannot be decomposed; load sound weights first:\n{lines}")
    if data is None:
        return copy_network(network, dict(_decomposed_by_weight(chosen.values())))
    factors = activation_factors(network, chosen, data)
    return copy_network(network, {layer: decompose_layer(layer, factors[name]) for name, layer in chosen.items()})


def _decomposed_by_weight(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, DecomposedLayer]]:
    """Yield each layer with what replaces it.

    The largest come first, one at a time, as long as there is little beside them: what one layer needs meanwhile is
    several times its size. The others go side by side, each on one thread, so that its bits do not depend on how many
    there are.
    """
    falling = sorted(layers, key=lambda layer: -layer.weight.numel())  # type: ignore[operator]
    large = [layer for layer in falling if layer.weight.numel() > _LARGE]  # type: ignore[operator]
    for layer in large:
        yield layer, decompose_layer(layer)
    threads = torch.get_num_threads()
    waiting = iter(_batches(falling[len(large) :]))

    def take(_: int) -> list[tuple[nn.Module, DecomposedLayer]]:
        # one batch after the other, whichever is next; to tell the main thread of each would hold all up
        return [pair for batch in waiting for pair in zip(batch, decompose_alike(batch), strict=True)]

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from chain.from_iterable(pool.map(take, range(threads)))
        finally:
            list(waiting)  # where one thread fails, the others find nothing more to take
            # PyTorch gives the last number that any thread asked for to threads that are to come
            torch.set_num_threads(threads)


def _batches(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Return layers that can be decomposed in one go side by side, those that take longest first."""
    alike: dict[tuple[int, bool, int], list[list[nn.Module]]] = {}
    sizes: dict[tuple[int, bool, int], int] = {}
    for layer in layers:
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        groups = getattr(layer, "groups", 1)
        key = (groups, *short_side(weight, groups))
        sizes[key] = sizes.get(key, _BATCH) + weight.numel()
        if sizes[key] > _BATCH:
            alike.setdefault(key, []).append([])
            sizes[key] = weight.numel()
        alike[key][-1].append(layer)
    return [batch for key in sorted(alike, key=lambda key: -key[2]) for batch in alike[key]]


def layer_status(network: nn.Module) -> list[LayerStatus]:
    """List every convolution and linear layer of a network, decomposed or not, in the order of the network.

    Args:
        network: any network, before or after :func:`decompose`.

    Returns:
        one :class:`LayerStatus` for each, with the reason where it is not decomposed.
    """
    reasons = skip_reasons(network)
    status = []
    for name, module in decomposable_layers(network):
        if isinstance(module, DecomposedLayer):
            kind, rank, max_rank = type(module.basis).__name__, module.rank(), module.max_rank
            now, before, skipped = module.recomposed_parameters(), module.original_parameters, None
        else:
            kind, rank, max_rank = type(module).__name__, None, None
            own = [p for n, p in module.named_parameters() if not n.startswith("channel_scaling.")]
            now = before = sum(p.numel() for p in own if not is_lazy(p))
            before += lost_parameters(module) if kept_channels(module) else 0
            skipped = reasons.get(name, _NOT_SELECTED[isinstance(module, nn.Linear)])
        channels = channel_count(module, "out")
        most = original_channels(module).get("out", channels)
        status.append(LayerStatus(name, kind, rank, max_rank, now, before, skipped, channels, most))
    return status


def decomposed_layers(network: nn.Module) -> list[tuple[str, DecomposedLayer]]:
    """Return the decomposed layers of a network by name.

    Raises:
        LayerSelectionError: if there is none.
    """
    layers = [(name, module) for name, module in decomposable_layers(network) if isinstance(module, DecomposedLayer)]
    if not layers:
        raise LayerSelectionError(
            f"{type(network).__name__} holds no decomposed layer: call monai_basisprune.decompose(network) first."
        )
    return layers
