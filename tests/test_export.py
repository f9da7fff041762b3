from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.data import load_net_with_metadata
from torch import nn

import monai_basisprune as mbp

from .networks import MONAI_NETWORKS, TinyClassifier, relative_error, same_bits, snapshot, tiny_classifier

SUFFIXES = ("ts", "onnx", "pt2")
FORMATS = {"ts": "torchscript", "onnx": "onnx", "pt2": "torch_export"}
SHAPE = TinyClassifier.input_shape
PATHS = [str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[1]), str(Path.home()) + os.sep]


def pruned(network: nn.Module, share: float = 0.5) -> nn.Module:
    network = mbp.decompose(network)
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=share))
    return network


def run_file(path: Path, x: torch.Tensor) -> list[torch.Tensor]:
    """Run a file by what its format is made for, without this package."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(value) for value in session.run(None, {"image": x.numpy()})]
    with torch.no_grad():
        found = torch.jit.load(str(path))(x) if path.suffix == ".ts" else torch.export.load(path).module()(x)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def check_no_paths(path: Path) -> None:
    contents = [path.read_bytes()]
    if path.suffix != ".onnx":  # some records are compressed
        with zipfile.ZipFile(path) as archive:
            contents += [archive.read(name) for name in archive.namelist()]
    for content in contents:
        for text in [*PATHS, "site-packages", str(path.parent), path.name]:
            assert text.encode() not in content, text


class Named(nn.Module):
    """A classifier whose second layer does something that is under test."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.ModuleDict({"odd": inner})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["odd"](self.stem(x)).mean((2, 3))


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 0) else -x


class Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(-1, -2)).unsqueeze(-1)


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 6, 8, 8)


class FixedTwo(nn.Module):
    """Adds what depends on the number of images, so a trace of two images is wrong for others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + sum(1 for _ in range(int(x.shape[0])))


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(1)


class Dictionary(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pred": x}


class Talkative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise OSError("'/home/Jane Doe/scans/atlas.nii' and /home/jane/scans/mask.nii are missing")


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan")


class TwoOutputs(TinyClassifier):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.pool(torch.relu(self.grouped(x))).flatten(1)), x


class Dynamic(TinyClassifier):
    """Cannot be scripted: TorchScript knows no generator expressions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(sum(self.pool(part).flatten(1) for part in (self.grouped(x), self.grouped(x))))


CHOSEN = ["DenseNet", "ResNet 3D with shortcut A"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name", [n if n in CHOSEN else pytest.param(n, marks=pytest.mark.slow) for n in MONAI_NETWORKS]
)
def test_networks_of_monai_give_the_same_outputs_from_their_files(tmp_path, name, suffix):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network = pruned(make()).eval()
    path = tmp_path / f"model.{suffix}"
    result = mbp.export_network(network, path, shape)
    assert (result.file, result.format, result.size) == (path.name, FORMATS[suffix], path.stat().st_size)
    assert result.relative_error <= 1e-4
    assert os.listdir(tmp_path) == [path.name]
    for batch in (1, 2, 5):
        x = torch.rand(batch, *shape)
        with torch.no_grad():
            wanted = network(x)
        (found,) = run_file(path, x)
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-3, atol=1e-5)
    check_no_paths(path)


def test_a_trace_of_a_shortcut_that_is_padded_with_zeros_depends_on_the_image(tmp_path):
    make, shape = MONAI_NETWORKS["ResNet 3D with shortcut A"]
    torch.manual_seed(0)
    network = make().eval()
    (remark,) = mbp.export_network(network, tmp_path / "model.ts", shape).remarks
    assert "was traced with inputs of shape (1, 16, 16, 16)" in remark
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert relative_error(torch.jit.load(str(tmp_path / "model.ts"))(x), network(x)) < 1e-5
        # MONAI reads Tensor.data there, which a tracer of PyTorch takes for a constant: that would be wrong
        plain = torch.jit.trace(network, torch.rand(2, *shape), check_trace=False)
        assert relative_error(plain(x), network(x)) > 1e-3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_plain_network_and_a_decomposed_one_stay_as_they_are(tmp_path, suffix):
    for network in (tiny_classifier(), pruned(tiny_classifier())):
        network.train()
        network.norm.eval()
        network(torch.rand(2, *SHAPE)).sum().backward()
        modes = [module.training for module in network.modules()]
        before, state = snapshot(network), torch.get_rng_state()
        needed = [p.requires_grad for p in network.parameters()]
        gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
        mbp.export_network(network, tmp_path / f"model.{suffix}", SHAPE)
        assert same_bits(snapshot(network), before)
        assert [module.training for module in network.modules()] == modes
        assert [p.requires_grad for p in network.parameters()] == needed
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
        assert torch.equal(torch.get_rng_state(), state)
        for p, gradient in zip(network.parameters(), gradients, strict=True):
            assert (p.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(p.grad, gradient)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_travels_in_the_file(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    metadata = {"class_names": ["normal", "Lungenentzündung"], "image_size": 8}
    mbp.export_network(pruned(tiny_classifier()), path, SHAPE, metadata=metadata)
    if suffix == "ts":
        found = load_net_with_metadata(str(path))[1]
    elif suffix == "pt2":
        carried = {"metadata.json": ""}
        torch.export.load(path, extra_files=carried)
        found = json.loads(carried["metadata.json"])
    else:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"])
    assert found == metadata


def test_an_onnx_file_has_the_names_of_monai_and_a_free_batch(tmp_path):
    path = tmp_path / "model.onnx"
    mbp.export_network(pruned(tiny_classifier()), path, SHAPE)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    shapes = [
        (value.name, [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim])
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [("image", ["batch", 1, 8, 8]), ("pred", ["batch", 2])]
    assert [prop.key for prop in model.metadata_props] == ["metadata.json"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert {node.domain for node in model.graph.node} == {""}  # standard operators only
    mbp.export_network(pruned(tiny_classifier()), tmp_path / "again.onnx", SHAPE)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_outputs(tmp_path, suffix):
    torch.manual_seed(0)
    network = TwoOutputs().eval()
    path = tmp_path / f"model.{suffix}"
    mbp.export_network(network, path, SHAPE)
    x = torch.rand(4, *SHAPE)
    with torch.no_grad():
        for found, wanted in zip(run_file(path, x), network(x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    if suffix == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_outputs()] == ["pred", "pred_1"]


def test_torchscript_is_a_script_of_the_plain_network(tmp_path):
    network = pruned(tiny_classifier()).eval()
    assert mbp.export_network(network, tmp_path / "model.ts", SHAPE).remarks == ()
    larger = torch.randn(2, 1, 17, 11)  # a script is not bound to a shape
    with torch.no_grad():
        assert relative_error(torch.jit.load(str(tmp_path / "model.ts"))(larger), network(larger)) < 1e-5


def test_what_cannot_be_scripted_is_traced_with_a_remark(tmp_path):
    torch.manual_seed(0)
    network = pruned(Dynamic())
    (remark,) = mbp.export_network(network, tmp_path / "model.ts", SHAPE).remarks
    assert remark.startswith("The network cannot be scripted (")
    assert remark.endswith("so model.ts was traced with inputs of shape (1, 8, 8) and should be used with that shape.")
    assert "\n" not in remark
    x = torch.randn(7, *SHAPE)
    with torch.no_grad():
        assert relative_error(torch.jit.load(str(tmp_path / "model.ts"))(x), network.eval()(x)) < 1e-5


def test_double_precision(tmp_path):
    network = pruned(tiny_classifier()).double()
    mbp.export_network(network, tmp_path / "model.ts", SHAPE)
    mbp.export_network(network, tmp_path / "model.pt2", SHAPE)
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    assert run_file(tmp_path / "model.ts", x)[0].dtype == run_file(tmp_path / "model.pt2", x)[0].dtype == torch.float64


def refused(network, path: Path, shape=SHAPE, **settings) -> str:
    """Return the words of the refusal, after checking that it changed nothing."""
    path.write_bytes(b"earlier")
    with pytest.raises(mbp.ExportError) as caught:
        mbp.export_network(network, path, shape, **settings)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(path.parent) == [path.name]
    text = str(caught.value)
    assert not any(part in text for part in [*PATHS, str(path.parent)])
    return text


@pytest.mark.parametrize(
    ("inner", "suffix", "words"),
    [
        (DataDependent, "onnx", r"^Named cannot be exported at layer 'inner.odd': Could not guard on data-dependent"),
        (DataDependent, "pt2", r"^Named cannot be exported at layer 'inner.odd': Could not guard on data-dependent"),
        (Eigenvalues, "onnx", r"^Named cannot be written as ONNX at layer 'inner.odd': No ONNX function .*eigh"),
        (Noisy, "onnx", "does not reproduce the network: relative difference .*Nothing was written over an earlier"),
        (Noisy, "pt2", r"does not reproduce the network: relative difference .* accepted is a difference of 1e-05 \+"),
        (Noisy, "ts", "does not reproduce the network: relative difference .*, at most 1e-04 is accepted"),
        (Broken, "ts", "The network gives NaN or infinite outputs"),
    ],
)
def test_layers_that_cannot_be_exported(tmp_path, inner, suffix, words):
    torch.manual_seed(0)
    assert re.search(words, refused(Named(inner()), tmp_path / f"model.{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_network_for_one_size_of_the_batch(tmp_path, suffix):
    text = refused(Named(FixedBatch()), tmp_path / f"model.{suffix}")
    assert text.startswith("Named cannot process an input of shape (1, 1, 8, 8) (batch first) at layer 'inner.odd':")


def test_code_that_depends_on_the_size_of_the_batch(tmp_path):
    for suffix in ("onnx", "pt2"):
        text = refused(Named(FixedTwo()), tmp_path / f"model.{suffix}")
        assert "its code fixes the size of the batch, the file could not be used with any other" in text
        (tmp_path / f"model.{suffix}").unlink()


def test_a_reason_names_no_folder(tmp_path):
    text = refused(Named(Talkative()), tmp_path / "model.ts")
    assert text.endswith("at layer 'inner.odd': 'atlas.nii' and mask.nii are missing. Nothing was written.")


def test_a_network_that_gives_a_dictionary(tmp_path):
    text = refused(nn.Sequential(nn.Conv2d(1, 2, 3), Dictionary()), tmp_path / "model.onnx")
    assert text == "The network must give a tensor, or a list or tuple of them; it gives dict."


def test_an_input_that_does_not_fit(tmp_path):
    text = refused(tiny_classifier(), tmp_path / "model.ts", (3, 8, 8))
    assert text.startswith(
        "TinyClassifier cannot process an input of shape (1, 3, 8, 8) (batch first) at layer 'stem':"
    )
    with pytest.raises(ValueError, match="input_shape must hold positive whole numbers"):
        mbp.export_network(tiny_classifier(), tmp_path / "model.ts", (1, 0, 8))


def test_weights_that_are_no_numbers_or_not_there(tmp_path):
    network = tiny_classifier()
    network.stem.weight.data[0] = float("nan")
    network.head.bias.data[0] = float("inf")
    text = refused(network, tmp_path / "model.ts")
    assert "  - stem.weight: holds NaN or infinite values\n  - head.bias: holds NaN or infinite values" in text
    assert "0.weight: has no shape yet" in refused(nn.Sequential(nn.LazyConv2d(3, 3)), tmp_path / "model.ts")
    meta = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(40000, 20000, device="meta"))
    (tmp_path / "model.ts").unlink()
    text = refused(meta, tmp_path / "model.onnx")
    assert "1.weight: is on the meta device and has no values" in text
    assert "all layers: 3.0 GiB of weights, one ONNX file holds 2 GiB; use .ts or .pt2" in text


def test_the_format_is_that_of_the_suffix_or_is_named(tmp_path):
    assert mbp.export_network(tiny_classifier(), tmp_path / "model", SHAPE, "torchscript").file == "model"
    with pytest.raises(mbp.ExportError, match=r"suffix of 'model.bin' names no format; pass format, one of 'torchscr"):
        mbp.export_network(tiny_classifier(), tmp_path / "model.bin", SHAPE)
    with pytest.raises(mbp.ExportError, match=r"format must be one of .* got 'tflite'"):
        mbp.export_network(tiny_classifier(), tmp_path / "model.ts", SHAPE, "tflite")
    with pytest.raises(mbp.ExportError, match=r"'model.ts' is the name of a 'torchscript' file, the format is 'onnx'"):
        mbp.export_network(tiny_classifier(), tmp_path / "model.ts", SHAPE, "onnx")
    with pytest.raises(mbp.ExportError, match=r"network must be a torch.nn.Module, got dict"):
        mbp.export_network({}, tmp_path / "model.ts", SHAPE)
    for metadata in ({"a": torch.zeros(1)}, {"a": float("nan")}):
        with pytest.raises(mbp.ExportError, match="metadata must hold JSON types only"):
            mbp.export_network(tiny_classifier(), tmp_path / "model.ts", SHAPE, metadata=metadata)
    assert os.listdir(tmp_path) == ["model"]


def test_packages_that_are_missing_are_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = refused(tiny_classifier(), tmp_path / "model.onnx")
    expected = 'ONNX needs onnxscript, onnxruntime, not installed here: pip install "monai_basisprune[export]".'
    assert text == expected
    mbp.export_network(tiny_classifier(), tmp_path / "model.pt2", SHAPE)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_console_stays_quiet_and_all_filters_come_back(tmp_path, capfd, recwarn, suffix):
    filters = list(warnings.filters)
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")}
    mbp.export_network(pruned(Dynamic()), tmp_path / f"model.{suffix}", SHAPE)
    if suffix != "ts":
        refused(Named(DataDependent()), tmp_path / f"model.{suffix}")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert warnings.filters == filters
    assert {name: logging.getLogger(name).level for name in levels} == levels
