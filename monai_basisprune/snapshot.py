"""A decomposed network as it was at one moment, and the way back to it in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .decomposition import decomposed_layers
from .errors import PlanMismatchError
from .factorization import kept_bases_problem

__all__ = ["NetworkSnapshot", "positions_of", "restore_", "take_snapshot"]

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None

_HALVES = (("basis", "weight"), ("scaling", "weight"), ("scaling", "scaling_factors"))


@dataclass(frozen=True)
class NetworkSnapshot:
    """Everything that training and pruning change of a decomposed network and its optimizers, as copies.

    Attributes:
        tensors: parameters and buffers by name.
        kept_bases: for each decomposed layer the bases that were left.
        optimizers: for each optimizer its groups, with their options and the state of each parameter in order.
    """

    tensors: dict[str, torch.Tensor]
    kept_bases: dict[str, list[int]]
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
        kept_bases={name: list(layer.kept_bases) for name, layer in decomposed_layers(network)},
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

    Trainers, evaluators and hooks that hold the network go on with it. Parameters of layers that were pruned are
    replaced by new ones, which take the places of the old ones in the optimizers; all others keep their identity.
    Gradients are cleared. Reset a :class:`~monai_basisprune.TaylorImportance` after the call, and hand the network to
    DDP, ``torch.compile`` and the like again.

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
    for name, layer in decomposed_layers(network):
        for half, part in _HALVES:
            owner = getattr(layer, half)
            old = getattr(owner, part)
            saved = snapshot.tensors[_joined(name, half, part)]
            if old.shape != saved.shape:
                new_of[old] = nn.Parameter(saved.clone().to(old.device), requires_grad=old.requires_grad)
                setattr(owner, part, new_of[old])
        layer.kept_bases = list(snapshot.kept_bases[name])
        layer.tell_rank(len(layer.kept_bases))
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


def positions_of(network: nn.Module, kept_bases: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Return at which positions a network holds the bases that a checkpoint has kept, for ``keep_bases_``.

    Args:
        network: a decomposed network that was pruned less, or not at all.
        kept_bases: for each of its decomposed layers the bases of the checkpoint.

    Raises:
        PlanMismatchError: if the network lacks a layer or a basis of the checkpoint, or the checkpoint a layer.
    """
    layers = dict(decomposed_layers(network))
    positions, problems = {}, []
    for name, bases in kept_bases.items():
        if (
            name not in layers
            or not set(bases) <= set(layers[name].kept_bases)
            or kept_bases_problem(bases, layers[name].max_rank, layers[name].groups) is not None
        ):
            problems.append(name)
        else:
            positions[name] = [layers[name].kept_bases.index(basis) for basis in bases]
    if problems or positions.keys() != layers.keys():
        raise PlanMismatchError(
            f"The checkpoint keeps bases that this network does not have, in {problems or 'other layers'}: start "
            f"from the decomposed network that the run started from."
        )
    return positions


def _check(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], snapshot: NetworkSnapshot) -> None:
    layers = dict(decomposed_layers(network))
    found = dict(_tensors(network))
    shrinking = {_joined(name, half, part) for name in layers for half, part in _HALVES}
    problems = [f"{name}: only in one of the two" for name in sorted(found.keys() ^ snapshot.tensors.keys())]
    problems += [
        f"{name}: decomposed in only one of the two" for name in sorted(layers.keys() ^ snapshot.kept_bases.keys())
    ]
    for name in found.keys() & snapshot.tensors.keys() - shrinking:
        if found[name].shape != snapshot.tensors[name].shape:
            problems.append(f"{name}: {tuple(found[name].shape)} here, {tuple(snapshot.tensors[name].shape)} in it")
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
