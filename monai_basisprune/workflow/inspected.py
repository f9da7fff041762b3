"""What a user can point at to look at its layers: a checkpoint, a bundle, a study, or a network by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigurationError
from ..files import archive_problem
from ..inspection import LayerInspection, inspect_network, inspect_weights
from ..network_def import make_network
from ..plan import PruningPlan
from ..reading import read_weights
from .bundle_training import bundle_network, importable, read_training, shown_problems
from .pretrained import _state_dict

__all__ = ["Inspection", "format_inspection", "inspect_source", "show_inspection"]

_BARS = "▁▂▃▄▅▆▇█"
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Inspection:
    """The layers of what was asked for.

    Attributes:
        what: what was inspected, without the name of a folder.
        layers: its layers.
        notes: what a reader has to know.
    """

    what: str
    layers: tuple[LayerInspection, ...]
    notes: tuple[str, ...] = ()


def inspect_source(
    source: str | os.PathLike[str],
    arguments: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Inspection:
    """Inspect the layers of a network, however it is at hand.

    Args:
        source: a checkpoint (a state dict as ``torch.save`` writes it, or TorchScript), the folder of a bundle, the
            folder of a study, or the dotted name of a network, such as ``monai.networks.nets.DenseNet121``. The
            configuration of a bundle and a dotted name are code, which is run.
        arguments: arguments of a network that is named.
        input_shape: shape of one input without the batch, to count operations; of no use for a checkpoint.
        overrides: keys of a bundle's training configuration, by id.

    Raises:
        ConfigurationError: if it is none of these, or cannot be read.
        PlanMismatchError: if weights do not fit a bundle's network.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "model.plan.json").is_file():
            return _study(path)
        if (path / "configs").is_dir():
            return _bundle(path, input_shape, overrides or {})
        raise ConfigurationError(
            "The folder is neither a bundle (it has no folder configs) nor the output_dir of a finished pruning run "
            "(it has no model.plan.json)."
        )
    if path.is_file():
        return Inspection("checkpoint", tuple(inspect_weights(_read(path))), (_SHAPES_ONLY,))
    if not _DOTTED.fullmatch(str(source)):
        raise ConfigurationError(
            "What to inspect was not found: name a checkpoint, the folder of a bundle or of a study, or a network such "
            "as monai.networks.nets.DenseNet121 with --arguments."
        )
    with shown_problems("The network cannot be built from its name and arguments"):
        network = make_network({"_target_": str(source), **(arguments or {})})
    notes = (_NEW,) if input_shape else (_NEW, _NO_INPUT)
    return Inspection(type(network).__name__, _layers(network, input_shape), notes)


_NEW = "The network was built anew, so the spectrum is that of the weights it starts with."
_SHAPES_ONLY = "From the weights alone: operations and groups of convolutions are not known."
_NO_INPUT = "Operations are counted with --input_shape, such as --input_shape 1 224 224."
_NO_WEIGHTS = "The bundle holds no models/model.pt, so the spectrum is that of weights that were not trained."


def _layers(network: nn.Module, input_shape: Sequence[int] | None) -> tuple[LayerInspection, ...]:
    try:
        return tuple(inspect_network(network, input_shape))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _study(folder: Path) -> Inspection:
    plan = PruningPlan.load(folder / "model.plan.json")
    groups = {name: int(settings.get("groups", 1)) for name, settings in plan.modules.items()}
    if not (folder / "model.pt").is_file():
        raise ConfigurationError("The folder of the study lacks model.pt, the weights of the pruned network.")
    shapes = {name: plan.architecture[f"{name}.weight"] for name in plan.layers}
    layers = inspect_weights(_read(folder / "model.pt"), groups, shapes)
    note = "The network as it was pruned, before its layers are put together again; operations are in study.json."
    return Inspection("pruned network of a study", tuple(layers), (note,))


def _bundle(folder: Path, input_shape: Sequence[int] | None, overrides: Mapping[str, Any]) -> Inspection:
    weights = folder / "models" / "model.pt"
    notes = [] if weights.is_file() else [_NO_WEIGHTS]
    if not input_shape:
        notes.append(_NO_INPUT)
    with importable(folder):
        parser = read_training(folder, overrides)
        if weights.is_file():
            network = bundle_network(parser, weights)
        else:
            with shown_problems("The bundle's network_def cannot be built"):
                network = make_network(parser.get_parsed_content("network_def"))
        return Inspection(f"{type(network).__name__} of a bundle", _layers(network, input_shape), tuple(notes))


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if path.suffix == ".ts":
        try:
            problem = archive_problem(path)
            if problem is not None:
                raise ValueError(problem)
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        except (RuntimeError, ValueError):
            raise ConfigurationError("The TorchScript file cannot be read, it is damaged.") from None
    try:
        content = read_weights(path)
    except ValueError as error:
        raise ConfigurationError(f"The checkpoint cannot be read: {error}.") from error
    return _state_dict(content, f"*{path.suffix}")


def format_inspection(found: Inspection) -> str:
    """Return an inspection as a table of text.

    Args:
        found: what :func:`inspect_source` returned.
    """
    parameters = sum(layer.parameters for layer in found.layers)
    head = f"{found.what}: {len(found.layers)} layers, {parameters:,} parameters"
    return "\n".join([head, *_table(found.layers), *found.notes])


def show_inspection(source: str | os.PathLike[str]) -> None:
    """Print the table of a source; see :func:`inspect_source`."""
    print(format_inspection(inspect_source(source)))


def _table(layers: Sequence[LayerInspection]) -> list[str]:
    head = ("layer", "type", "weight", "parameters", "MACs", "bases", "even", "90 %", "99 %", "spectrum", "")
    rows = [
        (
            layer.name,
            layer.type,
            "x".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            "" if layer.macs is None else f"{layer.macs:,}",
            _bases(layer),
            _text(layer.break_even_rank),
            _text(layer.rank_90),
            _text(layer.rank_99),
            "".join(_BARS[min(int(value * len(_BARS)), len(_BARS) - 1)] for value in layer.spectrum),
            layer.skipped or "",
        )
        for layer in layers
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    left = (0, 1, 2, 9, 10)
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]


def _bases(layer: LayerInspection) -> str:
    return _text(layer.max_rank) if layer.rank is None else f"{layer.rank} of {layer.max_rank}"


def _text(value: int | None) -> str:
    return "" if value is None else str(value)
