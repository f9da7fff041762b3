"""A decomposed network as it was at one moment, and the way back to it in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .channel_slices import SLICEABLE_MODULES, channel_count, kept_channels, note_groups_, original_channels
from .decomposition import decomposed_layers
from .errors import PlanMismatchError
from .factorization import kept_bases_problem
from .fingerprint import architecture_of
from .structure import kept_parts

__all__ = ["NetworkSnapshot", "restore_", "take_snapshot"]

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None

_SIZES = (
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
    "num_features",
    "num_parameters",
    "groups",
)
"""Where a module tells how large it is: what a cut changes besides tensors."""


@dataclass(frozen=True)
class NetworkSnapshot:
    """Everything that training and pruning change of a decomposed network and its optimizers, as copies.

    Attributes:
        tensors: parameters and buffers by name.
        kept_bases: for each decomposed layer the bases that were left.
        kept_channels: for each module of which channels were removed those that were left, on each side.
        sizes: what each module told of its size.
        architecture: the shapes of the original network's state dict.
        optimizers: for each optimizer its groups, with their options and the state of each parameter in order.
    """

    tensors: dict[str, torch.Tensor]
    kept_bases: dict[str, list[int]]
    kept_channels: dict[str, dict[str, list[int]]]
    sizes: dict[str, dict[str, int]]
    architecture: dict[str, list[int]]
    optimizers: list[list[dict[str, Any]]]

    def to_dict(self) -> dict[str, Any]:
        """Return the content as tensors and plain types, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> NetworkSnapshot:
        """Read what :meth:`to_dict` returned."""
        return cls(**content)


def take_snapshot(network: nn.Module, optimizer: Optimizers = None) -> NetworkSnapshot:
    """Copy a decomposed network and the state of its optimizers, to come back to by :func:`restore_`.

    The copies stay on the devices of the originals. Random generators and learning rate schedulers are not part of
    it: take a schedule that counts steps and starts anew in each round, such as
    :func:`~monai_basisprune.round_schedule`.

    Args:
        network: a decomposed network.
        optimizer: the optimizer, or optimizers, that train it.
    """
    return NetworkSnapshot(
        tensors={name: tensor.detach().clone() for name, tensor in _tensors(network)},
        **kept_parts(network),
        sizes={name: _sizes(module) for name, module in network.named_modules()},
        architecture=architecture_of(network),
        optimizers=[
            [
                {
                    "options": {key: copy.deepcopy(value) for key, value in group.items() if key != "params"},
                    "state": [_copied(one.state.get(parameter)) for parameter in group["params"]],
                }
                for group in one.param_groups
            ]
            for one in _listed(optimizer)
        ],
    )


def restore_(network: nn.Module, optimizer: Optimizers, snapshot: NetworkSnapshot) -> None:
    """Bring a network back to a snapshot, in place and bit by bit, whatever was pruned or trained since.

    Trainers, evaluators and hooks that hold the network go on with it. Parameters of layers of which bases or channels
    were removed are replaced by new ones, which take the places of the old ones in the optimizers; all others keep
    their identity. Gradients are cleared. Reset what collects importance after the call, and hand the network to DDP,
    ``torch.compile`` and the like again.

    Args:
        network: the network that the snapshot was taken of, or one of the same architecture.
        optimizer: the optimizer, or optimizers, in the order in which the snapshot was taken.
        snapshot: what :func:`take_snapshot` returned; it can be restored again.

    Raises:
        PlanMismatchError: if the snapshot is of another network or of other optimizers; all problems are listed, and
            nothing is changed.
    """
    optimizers = _listed(optimizer)
    _check(network, optimizers, snapshot)
    new_of: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in network.named_modules():
        for part, old in _own_tensors(module):
            saved = snapshot.tensors[_joined(name, part)]
            if old.shape == saved.shape:
                continue
            new = saved.clone().to(old.device)
            if isinstance(old, nn.Parameter):
                new = new_of.setdefault(old, nn.Parameter(new, requires_grad=old.requires_grad))
            setattr(module, part, new)
        _tell_channels(module, snapshot.kept_channels.get(name, {}))
        for size, value in snapshot.sizes[name].items():
            setattr(module, size, value)
    for name, layer in decomposed_layers(network):
        layer.kept_bases = list(snapshot.kept_bases[name])
        means = snapshot.tensors.get(_joined(name, "means"))
        layer.means = None if means is None else means.clone().to(layer.basis.weight.device)
    with torch.no_grad():
        for name, tensor in _tensors(network):
            tensor.copy_(snapshot.tensors[name])
    for parameter in network.parameters():
        parameter.grad = None
    for one, groups in zip(optimizers, snapshot.optimizers, strict=True):
        for group, saved_group in zip(one.param_groups, groups, strict=True):
            for old in group["params"]:
                one.state.pop(old, None)
            group["params"] = [new_of.get(parameter, parameter) for parameter in group["params"]]
            group.update(copy.deepcopy(saved_group["options"]))
            for parameter, state in zip(group["params"], saved_group["state"], strict=True):
                if state is not None:
                    # a checkpoint may have been read onto another device; counts of steps stay where they are
                    one.state[parameter] = {
                        key: value.to(parameter.device) if isinstance(value, torch.Tensor) and value.ndim else value
                        for key, value in (_copied(state) or {}).items()
                    }


def _check(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], snapshot: NetworkSnapshot) -> None:
    layers = dict(decomposed_layers(network))
    found = dict(_tensors(network))
    # whose tensors can shrink: decomposed layers with both halves, and what loses channels
    sliced = {m for module in network.modules() if isinstance(module, SLICEABLE_MODULES) for m in module.modules()}
    shrinking = {
        _joined(name, part)
        for name, module in network.named_modules()
        if module in sliced
        for part, _ in _own_tensors(module)
    }
    # a layer that lost inputs has no means any more
    means = {_joined(name, "means") for name in layers}
    only = (found.keys() ^ snapshot.tensors.keys()) - means
    problems = [f"{name}: only in one of the two" for name in sorted(only)]
    problems += [
        f"{name}: decomposed in only one of the two" for name in sorted(layers.keys() ^ snapshot.kept_bases.keys())
    ]
    shapes = {name: list(tensor.shape) for name, tensor in found.items() if name not in shrinking}
    saved_shapes = {name: list(tensor.shape) for name, tensor in snapshot.tensors.items() if name not in shrinking}
    shapes, saved_shapes = shapes | architecture_of(network), saved_shapes | snapshot.architecture
    for name in shapes.keys() & saved_shapes.keys():
        if shapes[name] != saved_shapes[name]:
            problems.append(f"{name}: {tuple(shapes[name])} here, {tuple(saved_shapes[name])} in it")
    for name in layers.keys() & snapshot.kept_bases.keys():
        problem = kept_bases_problem(snapshot.kept_bases[name], layers[name].max_rank, layers[name].groups)
        if problem is not None:
            problems.append(f"{name}: {problem}")
    counts = [[len(group["params"]) for group in one.param_groups] for one in optimizers]
    saved = [[len(group["state"]) for group in groups] for groups in snapshot.optimizers]
    if counts != saved:
        problems.append(f"optimizers: groups of {counts} parameters here, of {saved} in it")
    if problems:
        raise PlanMismatchError(
            "The snapshot is not of this network and its optimizers; restore it where it was taken:\n"
            + "\n".join(f"  - {line}" for line in problems)
        )


def _sizes(module: nn.Module) -> dict[str, int]:
    return {name: vars(module)[name] for name in _SIZES if type(vars(module).get(name)) is int}


def _tell_channels(module: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Note which of the original channels are left, before the sizes are told anew."""
    if kept == kept_channels(module):
        return
    before = original_channels(module)
    if not kept:
        del module.kept_channels, module.original_channels
        return
    note_groups_(module)
    module.kept_channels = {side: list(channels) for side, channels in kept.items()}  # type: ignore[assignment]
    module.original_channels = {  # type: ignore[assignment]
        side: before[side] if side in before else channel_count(module, side) for side in kept
    }


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    # not the state dict: that leaves out buffers that are not persistent
    yield from network.named_parameters()
    yield from network.named_buffers()


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _listed(optimizer: Optimizers) -> list[torch.optim.Optimizer]:
    return [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())


def _copied(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value) for key, value in state.items()
    }
