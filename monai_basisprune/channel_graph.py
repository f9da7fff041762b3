"""Which channels of a network can only go together: Torch-Pruning's dependency graph, its gaps filled and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .channel_scaling_layer import detach_scalings_
from .channel_slices import channel_count, group_count, has_one_side, slice_problem
from .channel_trial import Side, cut_difference, removed_slots
from .copies import copy_network
from .decomposition import decomposed_layers
from .errors import LayerSelectionError
from .forward import example_input, forward_pass
from .layers import DecomposedLayer

__all__ = ["BASES_ALONE", "ChannelGroup", "channel_groups", "probe_network"]

BASES_ALONE = "Its bases can be removed alone: use prune_, or, in a bundle, lay configs/bases.json over prune.json."
"""What to do with a network whose channels have to stay."""

_TOLERANCE = 1e-6
_BATCH = 2
# each with what stands for it while the graph is traced: Torch-Pruning reads what it does with its weights as steps of
# the network. Both do the same to every channel by itself.
_INSTANCE_NORMS = {
    nn.InstanceNorm1d: nn.BatchNorm1d,
    nn.InstanceNorm2d: nn.BatchNorm2d,
    nn.InstanceNorm3d: nn.BatchNorm3d,
}
_OUTPUT = ("", "output")
_UNSEEN = (
    "without some of them the network does not run or computes something else, so something depends on them that the "
    "graph does not show, such as a shortcut that is padded with zeros"
)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one or more layers that can be removed one by one, each in all of these layers together.

    Attributes:
        name: the first layer that makes them.
        units: for each channel the positions that it takes in each module, ``{(module, "in" or "out"): positions}``.
        kept_because: why all of them stay, or None.
    """

    name: str
    units: list[dict[Side, list[int]]]
    kept_because: str | None = None

    def sides(self) -> list[Side]:
        """Return the modules, with the side, that lose something when one of the channels goes."""
        return list(self.units[0])

    def readers(self) -> list[str]:
        """Return the layers that read these channels."""
        return [name for name, side in self.units[0] if side == "in"]


def channel_groups(network: nn.Module, input_shape: Sequence[int]) -> list[ChannelGroup]:
    """Find the channels of a decomposed network that can only be removed together; changes nothing.

    Torch-Pruning's dependency graph finds them, on a copy with whole layers and random weights. Each group is then
    tried on that copy: without half of its channels, the output has to be what it is when all layers that read these
    channels ignore them. So a group that the graph gets wrong keeps its channels, whatever the reason is.

    Args:
        network: a decomposed network.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Returns:
        all groups, in the order of the network, those that keep their channels included.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer, or cannot be traced.
        ValueError: if the network cannot process the input.
    """
    decomposed_layers(network)
    probe = probe_network(network)
    shape = (_BATCH, *example_input(probe, input_shape).shape[1:])
    device = next(probe.parameters()).device
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    if not _calibrate_(probe, x):
        forward_pass(probe, x)  # which says what is wrong
    groups = _group(probe, _coupled(probe, x))
    if not groups:
        raise LayerSelectionError(
            f"Torch-Pruning cannot trace {type(network).__name__}, so none of its channels can be removed: no gradient "
            f"leads from its output to a layer. {BASES_ALONE}"
        )
    return _checked(probe, x, groups)


def probe_network(network: nn.Module) -> nn.Module:
    """Return a copy with whole layers in place of decomposed ones, no scaling, and random weights in float64."""
    stand_ins: dict[nn.Module, nn.Module] = {}
    for module in network.modules():
        if isinstance(module, DecomposedLayer):
            # the product of the two halves takes most of the time, and these values are never read
            stand_ins[module] = module.whole(module.basis.weight.new_empty(module.whole_shape()))
        elif type(module) in _INSTANCE_NORMS:
            features: int = module.num_features  # type: ignore[assignment]
            stand_ins[module] = _INSTANCE_NORMS[type(module)](features)  # type: ignore[index]
        elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
            stand_ins[module] = nn.LeakyReLU()
    probe = copy_network(network, stand_ins).double()
    detach_scalings_(probe)
    device = next(probe.parameters()).device
    probe.to(device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
            if parameter.ndim > 1:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                values *= (2 / max(parameter[0].numel(), 1)) ** 0.5
            parameter.copy_(values)
    return probe.requires_grad_(True).eval()


def _calibrate_(probe: nn.Module, x: torch.Tensor) -> bool:
    """Give batch norms the statistics of their inputs: no activation then saturates, so no difference is hidden.

    Returns:
        whether the network ran.
    """
    norms = [m for m in probe.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    ran = True
    try:
        with torch.no_grad():
            probe(x)
    except (RuntimeError, ValueError, TypeError):
        ran = False  # as where one value per channel is left, or it does not run at all
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    return ran


def _coupled(probe: nn.Module, x: torch.Tensor) -> Iterator[list[tuple[str, str, int]]]:
    """Yield, for each channel that a layer makes, all places that the graph finds it in."""
    # it takes a second to import, and only this needs it
    from torch_pruning import DependencyGraph, ops

    names: dict[Any, str] = {module: name for name, module in probe.named_modules()}
    try:
        graph = DependencyGraph().build_dependency(probe, [x], verbose=False)
        for module in probe.modules():
            if module not in graph.module2node or not isinstance(module, (_ConvNd, nn.Linear)) or has_one_side(module):
                continue
            pruner = graph.get_pruner_of_module(module)
            everything = list(range(channel_count(module, "out")))
            found: list[list[tuple[str, str, int]]] = [[] for _ in everything]
            for item in graph.get_pruning_group(module, pruner.prune_out_channels, everything):
                target = item.dep.target.module
                if isinstance(target, ops._OutputOp):
                    name, side = _OUTPUT
                elif isinstance(target, nn.Parameter):
                    name, side = graph._param_to_name[target], "parameter"
                elif target in names:
                    name, side = names[target], "out"
                    if item.dep.handler.__name__ == "prune_in_channels" and not has_one_side(target):
                        side = "in"
                else:
                    continue
                for position, root in zip(item.idxs, item.root_idxs, strict=True):
                    if root is not None and 0 <= root < len(everything):
                        found[root].append((name, side, int(position)))
            yield from found
    except Exception as error:  # it raises many types, where an operation is unknown to it
        raise LayerSelectionError(
            f"Torch-Pruning cannot trace {type(probe).__name__}, so none of its channels can be removed "
            f"({type(error).__name__}: {error}). {BASES_ALONE}"
        ) from error


def _group(probe: nn.Module, coupled: Iterable[list[tuple[str, str, int]]]) -> list[ChannelGroup]:
    """Join places that belong to one channel, and channels that take places in the same modules."""
    modules = dict(probe.named_modules())
    parent: dict[tuple[str, str, int], tuple[str, str, int]] = {}

    def root(place: tuple[str, str, int]) -> tuple[str, str, int]:
        parent.setdefault(place, place)
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for places in coupled:
        for place in places:
            parent[root(place)] = root(places[0])
    for name, side, position in list(parent):
        # all groups of a convolution lose the same positions
        groups = group_count(modules[name]) if side in ("in", "out") and name in modules else 1
        if groups > 1:
            size = channel_count(modules[name], side) // groups
            for number in range(groups):
                parent[root((name, side, position % size + number * size))] = root((name, side, position))
    units: dict[tuple[str, str, int], dict[Side, list[int]]] = {}
    for place in parent:
        units.setdefault(root(place), {}).setdefault(place[:2], []).append(place[2])
    families: dict[frozenset[tuple[Side, int]], list[dict[Side, list[int]]]] = {}
    for unit in units.values():
        ordered = {side: sorted(positions) for side, positions in sorted(unit.items())}
        families.setdefault(frozenset((side, len(p)) for side, p in ordered.items()), []).append(ordered)
    order = {name: number for number, name in enumerate(modules)}
    taken: Counter[str] = Counter()
    found = []
    for family in families.values():
        makers = [
            n
            for n, side in family[0]
            if side == "out" and n in modules and isinstance(modules[n], (_ConvNd, nn.Linear))
        ]
        name = min(makers, key=order.__getitem__)
        family.sort(key=lambda unit: next(unit[side] for side in unit if side == (name, "out")))
        found.append(ChannelGroup(name, family))
    found.sort(key=lambda group: (order[group.name], group.units[0][(group.name, "out")]))
    named = []
    for group in found:
        taken[group.name] += 1
        name = group.name if taken[group.name] == 1 else f"{group.name} ({taken[group.name]})"
        named.append(replace(group, name=name))
    return named


def _checked(probe: nn.Module, x: torch.Tensor, groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Tell which groups keep their channels, and why."""
    modules = dict(probe.named_modules())
    owners = Counter(id(p) for module in probe.modules() for p in module.parameters(recurse=False))

    def reason(group: ChannelGroup) -> str | None:
        for name, side in group.sides():
            if (name, side) == _OUTPUT:
                return "they are outputs of the network"
            if side == "parameter":
                return f"{name} is a parameter of no layer"
            if any(owners[id(p)] > 1 for p in modules[name].parameters(recurse=False)):
                return f"{name}: its parameters are tied to those of another layer"
            problem = slice_problem(modules[name])
            if problem is not None:
                return f"{name}: {problem}"
        if len(group.units) == 1:
            return "there is only one"
        return None if group.readers() else "no layer reads them: they are outputs of the network"

    groups = [replace(group, kept_because=reason(group)) for group in groups]
    free = [group for group in groups if group.kept_because is None]
    if not _can_go(probe, x, free):
        groups = [
            replace(g, kept_because=_UNSEEN) if g.kept_because is None and not _can_go(probe, x, [g]) else g
            for g in groups
        ]
        if not _can_go(probe, x, [group for group in groups if group.kept_because is None]):
            groups = [replace(group, kept_because=group.kept_because or _UNSEEN) for group in groups]
    return groups


def _can_go(probe: nn.Module, x: torch.Tensor, groups: Sequence[ChannelGroup]) -> bool:
    """Return whether half of the channels of these groups can be removed with the effect that it should have."""
    kept = {group.name: list(range(0, len(group.units), 2)) for group in groups}
    try:
        return (
            cut_difference(probe, x, removed_slots({group.name: group.units for group in groups}, kept)) <= _TOLERANCE
        )
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
