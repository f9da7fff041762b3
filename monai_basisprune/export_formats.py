"""The file formats of an export: how each is written, and how it is read back to run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from monai.data.torchscript_utils import METADATA_FILENAME
from torch import nn
from torch.overrides import TorchFunctionMode

from .errors import ExportError

__all__ = ["READERS", "WRITERS", "layer_trail", "refusal", "tensors_of"]

_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return the tensors of an output in order, whatever lists and tuples they are in."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (list, tuple)) and output:
        return [tensor for part in output for tensor in tensors_of(part)]
    raise ExportError(f"The network must give a tensor, or a list or tuple of them; it gives {type(output).__name__}.")


def _to_torchscript(
    network: nn.Module, x: torch.Tensor, metadata: str, name: str, outputs: int
) -> tuple[bytes, list[str]]:
    remarks = []
    with _quiet():
        try:
            script = torch.jit.script(network)
        except Exception as error:  # what cannot be scripted raises many types
            summary = f"{type(network).__name__} can be neither scripted nor traced"
            with layer_trail(network) as layer, refusal(summary, layer), _RecordedData():
                script = torch.jit.trace(network, x, check_trace=False)
            remarks.append(
                f"The network cannot be scripted ({_reason(error)}), so {name} was traced with inputs of shape "
                f"{tuple(x.shape[1:])} and should be used with that shape."
            )
        buffer = io.BytesIO()
        save_net_with_metadata(script, buffer, include_config_vals=False, meta_values=json.loads(metadata))
    return _without_debug_records(buffer), remarks


def _without_debug_records(file: io.BytesIO) -> bytes:
    # These records tell the source file of every operation, with the folders of this machine; nothing needs them.
    result = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(result, "w") as new:
        for record in old.infolist():
            if not record.filename.endswith(".debug_pkl"):
                new.writestr(record, old.read(record))
    return result.getvalue()


def _exported_program(network: nn.Module, x: torch.Tensor) -> Any:
    dynamic = ({0: torch.export.Dim("batch")},)
    summary = f"{type(network).__name__} cannot be exported"
    with _quiet(), layer_trail(network) as layer, refusal(summary, layer), _RecordedData():
        program = torch.export.export(network, (x,), dynamic_shapes=dynamic)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # source files, with the folders of this machine
    return program


def _to_torch_export(
    network: nn.Module, x: torch.Tensor, metadata: str, name: str, outputs: int
) -> tuple[bytes, list[str]]:
    program = _exported_program(network, x)
    buffer = io.BytesIO()
    with _quiet(), refusal(f"{type(network).__name__} cannot be saved"):
        torch.export.save(program, buffer, extra_files={METADATA_FILENAME: metadata})
    return buffer.getvalue(), []


def _to_onnx(network: nn.Module, x: torch.Tensor, metadata: str, name: str, outputs: int) -> tuple[bytes, list[str]]:
    program = _exported_program(network, x)

    def layer(problem: str) -> str:
        named = re.findall(r"translating node %(\w+) ", problem)
        for node in program.run_decompositions().graph.nodes if named else ():
            if node.name == named[0]:
                return str(list(node.meta["nn_module_stack"].values())[-1][0])
        return ""

    with _quiet(), refusal(f"{type(network).__name__} cannot be written as ONNX", layer):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=["pred", *(f"pred_{index}" for index in range(1, outputs))],
            dynamic_shapes=({0: torch.export.Dim("batch")},),  # names the axis
            verbose=False,
        )
        model: Any = exported.model_proto  # type: ignore[union-attr]  # None only where a path is passed
        _strip(model)
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_FILENAME, metadata
        content: bytes = model.SerializeToString(deterministic=True)
    return content, []


def _strip(message: Any) -> None:
    """Clear what the exporter notes about source code in a model, its graphs, nodes and values, in place."""
    names = {field.name for field, _ in message.ListFields()}
    for name in names & {"doc_string", "metadata_props"}:
        message.ClearField(name)
    # "g" and "graphs" are the branches of a condition and the body of a loop
    inner = {"graph", "node", "input", "output", "value_info", "initializer", "functions", "attribute", "g", "graphs"}
    for name in names & inner:
        value = getattr(message, name)
        for part in [value] if hasattr(value, "ListFields") else value:
            if not isinstance(part, str):  # a node's inputs and outputs are names
                _strip(part)


Run = Callable[[torch.Tensor], list[torch.Tensor]]


def _read_torchscript(path: Path) -> Run:
    with _quiet():
        script = torch.jit.load(str(path), map_location="cpu")
    return lambda x: tensors_of(script(x))


def _read_torch_export(path: Path) -> Run:
    with _quiet(), open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda x: tensors_of(module(x))


def _read_onnx(path: Path) -> Run:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(value) for value in session.run(None, {"image": x.numpy()})]


WRITERS = {"torchscript": _to_torchscript, "onnx": _to_onnx, "torch_export": _to_torch_export}
"""Each returns the bytes of the file and the remarks; takes the network, an example batch, the metadata as JSON, the
file's name and the number of outputs."""

READERS = {"torchscript": _read_torchscript, "onnx": _read_onnx, "torch_export": _read_torch_export}
"""Each returns a function that runs the network of a file."""


class _RecordedData(TorchFunctionMode):
    """Makes exporters record ``tensor.data``, which they take for a constant: the zero-padded shortcut of ResNet."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0].detach() if func == torch.Tensor.data.__get__ else func(*args, **(kwargs or {}))  # type: ignore[attr-defined]


@contextlib.contextmanager
def layer_trail(network: nn.Module) -> Iterator[Callable[[str], str]]:
    """Yield a function that tells which layer was running when an exception came."""
    running: list[str] = []

    def leave(*_: Any) -> None:  # what a hook returns would take the place of the output
        running.pop()

    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield lambda problem: running[-1] if running else ""
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def refusal(summary: str, layer: Callable[[str], str] = lambda problem: "") -> Iterator[None]:
    """Turn whatever goes wrong into an :class:`ExportError` with the reason and, where it can be told, the layer."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # exporters and readers raise many types
        name = layer(str(error.__cause__ or error))
        where = f" at layer {name!r}" if name else ""
        raise ExportError(f"{summary}{where}: {_reason(error)}. Nothing was written.") from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if "Constraints violated (batch)" in str(error):
        return "its code fixes the size of the batch, the file could not be used with any other"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    # no folders of this machine, with spaces in them or without: in quotes, from the root on, and any other
    line = re.sub(r"""(["'])[^"']*[/\\]([^"'/\\]+)\1""", r"\1\2\1", line)
    line = re.sub(r"""(?<![^\s(])(?:[A-Za-z]:)?[/\\](?:[^\s/\\:"'](?:[^/\\:"']*[^\s/\\:"'])?[/\\])+""", "", line)
    return re.sub(r"""(?:[A-Za-z]:)?[/\\](?:[^\s/\\:"']+[/\\])+""", "", line).rstrip(".:")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters from the console for a while: what matters is raised or remarked."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
