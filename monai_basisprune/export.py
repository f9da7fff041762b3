"""A network as a file that runs without this package: TorchScript, ONNX or a PyTorch exported program."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from .copies import copy_network
from .errors import ExportError
from .export_formats import READERS, WRITERS, layer_trail, refusal, tensors_of
from .files import write_atomically
from .forward import example_input
from .layers import DecomposedLayer
from .recomposition import recompose

__all__ = ["ExportResult", "export_network"]

_SUFFIXES = {".ts": "torchscript", ".onnx": "onnx", ".pt2": "torch_export"}
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_BYTES = 2**31 - 2**20  # what one protocol buffer can hold, less what the graph needs
_BATCHES = (1, 3)  # the exporters see a batch of 2
_RELATIVE, _ABSOLUTE, _TORCHSCRIPT_RELATIVE = 1e-3, 1e-5, 1e-4


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        file: name of the file, without its folder.
        format: ``"torchscript"``, ``"onnx"`` or ``"torch_export"``.
        size: bytes of the file.
        relative_error: largest difference between the file's outputs and the network's, relative to the largest
            output, over all images that were compared.
        remarks: what a user of the file has to know, such as that it was traced with inputs of one shape.
    """

    file: str
    format: str
    size: int
    relative_error: float
    remarks: tuple[str, ...] = ()


def export_network(
    network: nn.Module,
    path: str | os.PathLike[str],
    input_shape: Sequence[int],
    format: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write a network as a file that needs nothing of this package to run, and check what was written.

    A decomposed network is recomposed first. The file is read back and its outputs are compared with those of the
    network for batches of 1 and 3 images that the exporter has not seen; only then does it take the place of an
    earlier file. Every format takes batches of any size, carries ``metadata`` and holds no path of this machine.

    * ``"torchscript"`` (``.ts``): scripted, or traced where it cannot be scripted, which is then a remark;
      ``metadata`` is what :func:`monai.data.load_net_with_metadata` reads.
    * ``"onnx"`` (``.onnx``): one file with input ``image`` and output ``pred`` (``pred_1``, ... for further ones), the
      batch named ``batch``; ``metadata`` is the JSON text of its property ``metadata.json``. Needs the extra
      ``export``.
    * ``"torch_export"`` (``.pt2``): for :func:`torch.export.load`; ``metadata`` is its extra file ``metadata.json``.

    Args:
        network: a decomposed or ordinary network with one image as input; it is left as it is.
        path: the file.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.
        format: the format; by default that of the suffix of ``path``.
        metadata: what the file carries beside the network, as JSON types.

    Returns:
        an :class:`ExportResult`.

    Raises:
        ExportError: if the network cannot be exported, with the reason and the layer where it can be told, or if the
            file does not reproduce it, or if a package is missing; an earlier file stays.
        ValueError: if ``input_shape`` is no shape.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from monai.networks.nets import DenseNet121
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = export_network(DenseNet121(2, 1, 2), f"{folder}/model.ts", (1, 32, 32), metadata={"a": 1})
        >>> result.file, result.format, result.remarks
        ('model.ts', 'torchscript', ())
    """
    path = Path(path)
    kind = _format(path, format)
    carried = _json(metadata)
    _check(network, kind)
    whole = any(isinstance(module, DecomposedLayer) for module in network.modules())
    reference = _copy(network)
    plain = _copy(recompose(network)) if whole else reference
    zeros = example_input(plain, input_shape)
    inputs = [_images(zeros, batch, seed) for seed, batch in enumerate(_BATCHES, start=1)]
    what = type(network).__name__
    with torch.no_grad():
        wanted = []
        for x in inputs:
            with (
                layer_trail(reference) as layer,
                refusal(f"{what} cannot process an input of shape {tuple(x.shape)} (batch first)", layer),
            ):
                wanted.append(tensors_of(reference(x)))
        content, remarks = WRITERS[kind](plain, _images(zeros, 2, 0), carried, path.name, len(wanted[0]))
        errors: list[float] = []

        def write(temporary: Path) -> None:
            temporary.write_bytes(content)
            with refusal(f"{path.name} cannot be read back"):
                run = READERS[kind](temporary)
                found = [run(x) for x in inputs]
            errors.extend(_difference(f, w, kind) for f, w in zip(found, wanted, strict=True))

        write_atomically(path, write)
    return ExportResult(path.name, kind, len(content), max(errors), tuple(remarks))


def _format(path: Path, format: str | None) -> str:
    known = ", ".join(f"{name!r} ({suffix})" for suffix, name in _SUFFIXES.items())
    if format is None:
        if path.suffix not in _SUFFIXES:
            raise ExportError(f"The suffix of {path.name!r} names no format; pass format, one of {known}.")
        return _SUFFIXES[path.suffix]
    if format not in _SUFFIXES.values():
        raise ExportError(f"format must be one of {known}, got {format!r}.")
    if _SUFFIXES.get(path.suffix, format) != format:
        raise ExportError(f"{path.name!r} is the name of a {_SUFFIXES[path.suffix]!r} file, the format is {format!r}.")
    return format


def _json(metadata: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(metadata or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"metadata must hold JSON types only: {error}.") from error


def _check(network: nn.Module, kind: str) -> None:
    if not isinstance(network, nn.Module):
        raise ExportError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
    if kind == "onnx":
        missing = []
        for package in _ONNX_PACKAGES:
            try:
                importlib.import_module(package)
            except ImportError:
                missing.append(package)
        if missing:
            raise ExportError(
                f'ONNX needs {", ".join(missing)}, not installed here: pip install "monai_basisprune[export]".'
            )
    problems = []
    for name, value in network.named_parameters():
        if isinstance(value, UninitializedParameter):
            problems.append(f"{name}: has no shape yet, run the network once")
        elif value.is_meta:
            problems.append(f"{name}: is on the meta device and has no values, load its weights first")
        elif not bool(torch.isfinite(value).all()):
            problems.append(f"{name}: holds NaN or infinite values")
    tensors = [t for t in (*network.parameters(), *network.buffers()) if not isinstance(t, UninitializedParameter)]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if kind == "onnx" and size > _ONNX_BYTES:
        problems.append(f"all layers: {size / 2**30:.1f} GiB of weights, one ONNX file holds 2 GiB; use .ts or .pt2")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ExportError(f"{type(network).__name__} cannot be exported; nothing was written:\n{lines}")


def _copy(network: nn.Module) -> nn.Module:
    return copy_network(network).cpu().eval().requires_grad_(False)


def _images(zeros: torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *zeros.shape[1:]), generator=generator, device="cpu").to(zeros)


def _difference(found: list[torch.Tensor], wanted: list[torch.Tensor], kind: str) -> float:
    """Return the largest relative difference.

    Raises:
        ExportError: if it is too large, or the outputs are not alike.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"The exported network gives outputs of shape {shapes[0]}, the network {shapes[1]}. Nothing was written."
        )
    errors = []
    for ours, theirs in zip(found, wanted, strict=True):
        if not bool(torch.isfinite(theirs).all()):
            raise ExportError("The network gives NaN or infinite outputs, which no export can be compared with.")
        ours, theirs = ours.double(), theirs.double()
        gap = (ours - theirs).abs()
        errors.append(float(gap.max() / theirs.abs().max().clamp_min(1e-12)))
        if kind == "torchscript":
            close = errors[-1] <= _TORCHSCRIPT_RELATIVE
            accepted = f"at most {_TORCHSCRIPT_RELATIVE:.0e} is accepted"
        else:
            close = bool((gap <= _ABSOLUTE + _RELATIVE * theirs.abs()).all())
            accepted = f"accepted is a difference of {_ABSOLUTE:.0e} + {_RELATIVE:.0e} of each value"
        if not close:
            raise ExportError(
                f"The exported network does not reproduce the network: relative difference {errors[-1]:.1e}, "
                f"{accepted}. Nothing was written over an earlier result."
            )
    return max(errors)
