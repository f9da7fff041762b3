"""A pruned network on disk: an ordinary state dict with its plan beside it; and back to a network."""

from __future__ import annotations

import contextlib
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from .channel_scaling_layer import fold_channel_scaling
from .channel_slices import keep_channels_, kept_channels_problem
from .copies import copy_network
from .errors import BasisPruneError, PlanMismatchError
from .factorization import kept_bases_problem
from .files import archive_problem, move_into_place, sha256_of, write_atomically
from .fingerprint import architecture_of, module_differences, module_settings, shape_differences
from .layers import SUPPORTED_LAYERS, new_decomposed
from .network_def import make_network
from .plan import PruningPlan
from .reading import is_ordinary_tensor
from .selection import skip_reasons

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
        plan: the plan, as an object, a dictionary or the path of its file. Nothing in it is ever executed.

    Returns:
        a new network.

    Raises:
        FileNotFoundError: if there is no such plan.
        PlanMismatchError: if it is no plan, or belongs to another network; every difference is listed.
    """
    network = make_network(network_def)
    if isinstance(plan, (str, os.PathLike)):
        plan = _load_plan(Path(plan))
    elif isinstance(plan, Mapping):
        plan = PruningPlan.from_dict(plan)
    modules = dict(network.named_modules())
    reasons = skip_reasons(network)
    problems = shape_differences(architecture_of(network), plan.architecture)
    problems += module_differences(module_settings(network), plan.modules)
    pruned: dict[nn.Module, nn.Module] = {}
    for name, layer in plan.layers.items():
        if not isinstance(modules.get(name), SUPPORTED_LAYERS):
            problems.append(f"{name}: the network has no such layer")
        elif name in reasons:
            problems.append(f"{name}: cannot be decomposed, {reasons[name]}")
        else:
            try:
                new = new_decomposed(modules[name], rank=len(layer.kept_bases))
            except ValueError as error:
                problems.append(f"{name}: {error}")
                continue
            problem = kept_bases_problem(layer.kept_bases, new.max_rank, new.groups)
            if problem is not None:
                problems.append(f"{name}: {problem}")
            new.kept_bases = list(layer.kept_bases)
            pruned[modules[name]] = new
    network = copy_network(network, pruned)
    now = dict(network.named_modules())
    problems += _keep_channels_({name: now[name] for name in modules if name in now}, plan)
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems)
        raise PlanMismatchError(
            f"The plan does not belong to this {type(network).__name__}; build the network with the arguments that it "
            f"had when it was pruned:\n{lines}"
        )
    return network


def _keep_channels_(modules: Mapping[str, nn.Module], plan: PruningPlan) -> list[str]:
    """Remove the channels that a plan does not keep from the modules of a network, and return what is wrong with it."""
    problems = []
    for name, channels in plan.channels.items():
        for side, kept in (("in", channels.kept_inputs), ("out", channels.kept_outputs)):
            if kept is None:
                continue
            if name not in modules:
                problems.append(f"{name}: the network has no such module")
                continue
            problem = kept_channels_problem(modules[name], side, kept)
            if problem is not None:
                problems.append(f"{name}: {problem}")
            else:
                keep_channels_(modules[name], side, kept)
    return problems


def save_pruned(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a pruned network: its state dict, and beside it the plan that belongs to it.

    Both files are written beside their final place, flushed to disk and then renamed: the plan to a second name, then
    the weights, then the plan. Killed at any moment, this leaves the earlier network or the new one for
    :func:`load_pruned` and :func:`build_pruned`, which look at both names, and the next call goes on from there. One
    process at a time may save under one name.

    Args:
        network: a decomposed network.
        path: where the state dict goes, such as ``model.pt``; the plan goes to ``model.plan.json``.

    Raises:
        LayerSelectionError: if the network holds no decomposed layer.
        BasisPruneError: if a weight is NaN or infinite; what was saved before is left as it is.
        OSError: if the files cannot be written; what was saved before is left as it is.
    """
    network = fold_channel_scaling(network)
    plan = PruningPlan.from_network(network)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    problems = _value_problems(network, state)
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems)
        raise BasisPruneError(f"{type(network).__name__} is not saved, its weights are no numbers:\n{lines}")
    following = _second_name(plan_path(path))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # of a file, torch writes the name into it: equal networks, other bytes
            torch.save(state, stream)
        replace(plan, weights_sha256=sha256_of(temporary)).save(following)

    _finish_save(path)
    try:
        write_atomically(path, write)
        move_into_place(following, plan_path(path))
    except BaseException:
        with contextlib.suppress(OSError):
            _finish_save(path)
        raise


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
        PlanMismatchError: if weights, plan and network do not belong together, or a weight is NaN or infinite; every
            difference is listed.
    """
    path, place = Path(path), plan_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path.name} to go with the plan {place.name}.")
    with open(path, "rb") as file:  # what was checked is what is read, even if another file takes its name meanwhile
        digest = sha256_of(file)
        following = _load_second(place)
        plan = following if following and following.weights_sha256 == digest else PruningPlan.load(place)
        if plan.weights_sha256 not in (None, digest):
            second = f", and {_second_name(place).name} has {following.weights_sha256}" if following else ""
            raise PlanMismatchError(
                f"The weights {path.name} are not those that {place.name} was written for: SHA-256 {digest}, the plan "
                f"has {plan.weights_sha256}{second}. The file was changed or damaged, or the plan belongs to another "
                f"one."
            )
        network = build_pruned(network_def, plan)
        state = _read_state_dict(file, path.name)
    wanted = network.state_dict()
    unusual = [name for name, tensor in state.items() if not is_ordinary_tensor(tensor)]
    odd = "no ordinary tensor, but sparse, quantized, nested, without values or with too few"
    problems = [f"{name}: {odd}" for name in unusual]
    problems += shape_differences(
        {name: list(tensor.shape) for name, tensor in state.items() if name not in unusual},
        {name: list(tensor.shape) for name, tensor in wanted.items() if name not in unusual},
    )
    problems += [
        f"{name}: type {state[name].dtype}, expected {tensor.dtype}"
        for name, tensor in wanted.items()
        if name in state and state[name].dtype != tensor.dtype
    ]
    if not problems:
        problems = _value_problems(network, state)
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems)
        raise PlanMismatchError(f"{path.name} does not fit the pruned {type(network).__name__}:\n{lines}")
    network.load_state_dict(state, strict=True)
    return network


def plan_path(path: str | os.PathLike[str]) -> Path:
    """Return where the plan of a weights file lies: ``model.plan.json`` for ``model.pt``."""
    path = Path(path)
    # "pruned_0.75" has no ending: to cut it off would give "pruned_0.85" the same plan
    return path.with_name((path.stem if path.suffix in (".pt", ".pth") else path.name) + ".plan.json")


def _second_name(place: Path) -> Path:
    """Return where a plan lies while its weights take their place: ``model.plan.next.json``."""
    return place.with_name(place.name.removesuffix(".json") + ".next.json")


def _load_second(place: Path) -> PruningPlan | None:
    try:
        return PruningPlan.load(_second_name(place))
    except (FileNotFoundError, PlanMismatchError):
        return None


def _load_plan(place: Path) -> PruningPlan:
    """Load a plan; after a save that was interrupted before its last step, the one of the weights beside it."""
    following = _load_second(place)
    if following is not None:
        stem = place.name.removesuffix(".plan.json")
        weights = [place.with_name(stem + ending) for ending in (".pt", ".pth", "")]
        if any(file.is_file() and sha256_of(file) == following.weights_sha256 for file in weights):
            return following
    return PruningPlan.load(place)


def _finish_save(path: str | os.PathLike[str]) -> None:
    """Do the last step of a save that was interrupted before it, or remove the plan of one that came not so far."""
    place = plan_path(path)
    following = _load_second(place)
    if following is not None and Path(path).is_file() and sha256_of(path) == following.weights_sha256:
        move_into_place(_second_name(place), place)
    else:
        _second_name(place).unlink(missing_ok=True)


def _read_state_dict(file: BinaryIO, name: str) -> Mapping[str, torch.Tensor]:
    problem = archive_problem(file)
    if problem is not None:
        raise PlanMismatchError(f"{name} is no state dict that can be read: {problem}")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is TorchScript; it is refused
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PlanMismatchError(
            f"{name} is no state dict that can be read: it holds other things than tensors, which could run code. "
            f"Nothing of it was run; save it again with save_pruned."
        ) from error
    except Exception as error:  # the reader raises many types, and says how to read the file all the same
        raise PlanMismatchError(
            f"{name} is no state dict that can be read: {type(error).__name__} while PyTorch {torch.__version__} read "
            f"it. Save it again with save_pruned."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and key.isprintable() and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise PlanMismatchError(f"{name} holds {type(state).__name__}, not the tensors of a state dict.")
    return state


def _value_problems(network: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    parameters = dict(network.named_parameters(remove_duplicate=False))
    problems = []
    for name, tensor in state.items():
        if bool(tensor.isnan().any()):
            problems.append(f"{name}: holds NaN")
        elif name in parameters and bool(tensor.isinf().any()):  # a buffer may, such as the mask of attention
            problems.append(f"{name}: holds infinite values")
    return problems
