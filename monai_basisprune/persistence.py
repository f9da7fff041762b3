"""A pruned network on disk: an ordinary state dict with its plan beside it; and back to a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from .decomposition import replace_modules, skip_reasons
from .errors import PlanMismatchError
from .files import sha256_of, write_atomically
from .layers import SUPPORTED_CONVOLUTIONS, DecomposedConv, kept_bases_problem
from .plan import PruningPlan, architecture_of, convolution_geometry

__all__ = ["build_pruned", "load_pruned", "plan_path", "save_pruned"]


def build_pruned(
    network_def: nn.Module | Callable[[], nn.Module] | Mapping[str, Any],
    plan: PruningPlan | Mapping[str, Any] | str | os.PathLike[str],
) -> nn.Module:
    """Build the pruned architecture from the original one and a plan.

    The values of the pruned layers are random, as in any new network: load a state dict with ``strict=True`` next,
    or use :func:`load_pruned`. In a bundle, this is the ``_target_`` of ``network_def``.

    Args:
        network_def: the original network, which is left as it is; or a function or a bundle component (a dictionary
            with ``_target_``) that makes it.
        plan: the plan, as an object, a dictionary or the path of its file.

    Returns:
        a new network.

    Raises:
        PlanMismatchError: if the plan belongs to another network; every difference is listed.
    """
    network = _instantiate(network_def)
    if isinstance(plan, (str, os.PathLike)):
        plan = PruningPlan.load(plan)
    elif isinstance(plan, Mapping):
        plan = PruningPlan.from_dict(plan)
    modules = dict(network.named_modules())
    reasons = skip_reasons(network)
    problems = _differences(architecture_of(network), plan.architecture)
    pruned: dict[nn.Module, nn.Module] = {}
    for name, layer in plan.layers.items():
        if not isinstance(modules.get(name), SUPPORTED_CONVOLUTIONS):
            problems.append(f"{name}: the network has no such convolution")
        elif name in reasons:
            problems.append(f"{name}: cannot be decomposed, {reasons[name]}")
        elif (found := convolution_geometry(modules[name])) != layer.geometry:
            differing = {key: found.get(key) for key in layer.geometry if found.get(key) != layer.geometry[key]}
            problems.append(
                f"{name}: differs in {differing}, the plan has { {k: layer.geometry[k] for k in differing} }"
            )
        else:
            try:
                new = DecomposedConv(modules[name], rank=len(layer.kept_bases))
            except ValueError as error:
                problems.append(f"{name}: {error}")
                continue
            problem = kept_bases_problem(layer.kept_bases, new.max_rank, new.groups)
            if problem is not None:
                problems.append(f"{name}: {problem}")
            new.kept_bases = list(layer.kept_bases)
            pruned[modules[name]] = new
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems)
        raise PlanMismatchError(
            f"The plan does not belong to this {type(network).__name__}; build the network with the arguments that it "
            f"had when it was pruned:\n{lines}"
        )
    return replace_modules(network, pruned)


def save_pruned(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a pruned network: its state dict, and beside it the plan that belongs to it.

    Both files are written beside their final place, flushed to disk and then renamed.

    Args:
        network: a decomposed network.
        path: where the state dict goes, such as ``model.pt``; the plan goes to ``model.plan.json``.
    """
    plan = PruningPlan.from_network(network)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}

    def write(temporary: Path) -> None:
        torch.save(state, temporary)
        # the plan takes its place first: where it cannot be written, the earlier weights stay as well
        replace(plan, weights_sha256=sha256_of(temporary)).save(plan_path(path))

    write_atomically(path, write)


def load_pruned(
    network_def: nn.Module | Callable[[], nn.Module] | Mapping[str, Any], path: str | os.PathLike[str]
) -> nn.Module:
    """Load what :func:`save_pruned` saved, completely or not at all.

    Args:
        network_def: the original network, or a function or a bundle component that makes it.
        path: the state dict, such as ``model.pt``, with its plan ``model.plan.json`` beside it.

    Returns:
        the pruned network, with its weights, on the host.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        PlanMismatchError: if weights, plan and network do not belong together; every difference is listed.
    """
    plan = PruningPlan.load(plan_path(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no weights file {path} beside the plan {plan_path(path)}.")
    if plan.weights_sha256 is not None and sha256_of(path) != plan.weights_sha256:
        raise PlanMismatchError(
            f"The weights {path} are not those that {plan_path(path).name} was written for: SHA-256 {sha256_of(path)}, "
            f"the plan has {plan.weights_sha256}. The file was changed or damaged, or the plan belongs to another one."
        )
    network = build_pruned(network_def, plan)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types for a damaged file
        raise PlanMismatchError(f"{path} is no state dict that can be read: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PlanMismatchError(f"{path} holds {type(state).__name__}, not the tensors of a state dict.")
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = _differences(found, wanted)
    problems += [
        f"{name}: type {state[name].dtype}, expected {tensor.dtype}"
        for name, tensor in network.state_dict().items()
        if name in state and state[name].dtype != tensor.dtype
    ]
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems)
        raise PlanMismatchError(f"{path} does not fit the pruned {type(network).__name__}:\n{lines}")
    network.load_state_dict(state, strict=True)
    return network


def plan_path(path: str | os.PathLike[str]) -> Path:
    """Return where the plan of a weights file lies: ``model.plan.json`` for ``model.pt``."""
    path = Path(path)
    # "pruned_0.75" has no ending: to cut it off would give "pruned_0.85" the same plan
    return path.with_name((path.stem if path.suffix in (".pt", ".pth") else path.name) + ".plan.json")


def _instantiate(network_def: nn.Module | Callable[[], nn.Module] | Mapping[str, Any]) -> nn.Module:
    network: Any = network_def
    if isinstance(network_def, Mapping):
        network = ConfigParser({"network_def": dict(network_def)}).get_parsed_content("network_def")
    elif not isinstance(network_def, nn.Module) and callable(network_def):
        network = network_def()
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network_def must be a torch.nn.Module, or a function or a dictionary with _target_ that makes one; "
            f"got {type(network).__name__}."
        )
    return network


def _differences(found: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> list[str]:
    lines = [f"{key}: missing, expected with shape {wanted[key]}" for key in wanted if key not in found]
    lines += [f"{key}: unexpected, shape {found[key]}" for key in found if key not in wanted]
    lines += [
        f"{key}: shape {found[key]}, expected {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    return lines
