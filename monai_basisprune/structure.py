"""Which bases and channels of a decomposed network are left: its name, and the way to what a checkpoint has left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .channel_slices import (
    SLICEABLE_MODULES,
    channel_count,
    cut_modules,
    has_one_side,
    kept_channels,
    kept_channels_problem,
)
from .channel_trial import Side
from .decomposition import decomposed_layers
from .errors import PlanMismatchError
from .factorization import kept_bases_problem

__all__ = ["kept_parts", "positions_of", "removed_of", "structure_of"]


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


def removed_of(network: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[Side, list[int]]:
    """Return the positions that each side of each module loses to come to the channels of a checkpoint.

    Args:
        network: a decomposed network of which fewer channels were removed, or none.
        kept: for each module of the checkpoint of which channels were removed those that are left, on each side.

    Raises:
        PlanMismatchError: if the network lacks a module or a channel of the checkpoint.
    """
    modules = dict(network.named_modules())
    removed: dict[Side, list[int]] = {}
    problems = []
    for name in {**kept_parts(network)["kept_channels"], **kept}:
        module, wanted = modules.get(name), kept.get(name, {})
        for side in {**({} if module is None else kept_channels(module)), **wanted}:
            if not isinstance(module, SLICEABLE_MODULES) or side not in ("in", "out")[has_one_side(module) :]:
                problems.append(name)
                continue
            now = kept_channels(module).get(side, list(range(channel_count(module, side))))
            keep = [now.index(channel) for channel in wanted.get(side, ()) if channel in now]
            if len(keep) < len(wanted.get(side, ())) or kept_channels_problem(module, side, keep) is not None:
                problems.append(name)
            elif len(keep) < len(now):
                removed[name, side] = sorted({*range(len(now))} - {*keep})
    if problems:
        raise PlanMismatchError(
            f"The checkpoint keeps channels that this network does not have, in {sorted(set(problems))}: start from "
            f"the decomposed network that the run started from."
        )
    return removed


def kept_parts(network: nn.Module) -> dict[str, Any]:
    """Return which bases and channels of a decomposed network are left, as plain types.

    Returns:
        ``kept_bases`` for each decomposed layer, ``kept_channels`` for each module of which some were removed.
    """
    return {
        "kept_bases": {name: list(layer.kept_bases) for name, layer in decomposed_layers(network)},
        "kept_channels": {name: kept_channels(module) for name, module in cut_modules(network)},
    }


def structure_of(network: nn.Module) -> str:
    """Return a name for what is left of a decomposed network: the same for the same bases and channels, else another.

    It starts with the number of bases, so that names sort by it, and can be the name of a file.
    """
    kept = kept_parts(network)
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
    return f"bases_{sum(map(len, kept['kept_bases'].values())):06d}_{digest}"
