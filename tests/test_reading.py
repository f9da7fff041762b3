"""Files from outside, read within limits or refused in words, which name no file."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_basisprune.reading import is_ordinary_tensor, read_bytes, read_json, read_weights, structure_problem

from .hostile.network_targets import RunsCode, saved
from .networks import same_bits, snapshot, tiny_classifier


def refused(read: Callable[[Path], object], path: Path) -> str:
    """Return the reason why a file is refused, which does not tell where it is."""
    with pytest.raises(ValueError) as caught:
        read(path)
    text = str(caught.value)
    assert path.name not in text
    assert str(path.parent) not in text
    return text


def test_the_limits_of_json(tmp_path):
    path = tmp_path / "x.json"
    for text, words in (
        ("[" * 100_000, "nested deeper"),
        ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ("NaN", "NaN is no number"),
        ("[1e999]", "a number is too large"),
        ("[" + "9" * 30 + "]", "more than 64 bits"),
        ("[" + "9" * 5000 + "]", "digits"),
        ('["\\ud800"]', "half a character"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_json(path)
    path.write_bytes(b"[" + b"0," * 50 + b"0]")
    with pytest.raises(ValueError, match="larger than 0 MiB"):
        read_json(path, most=100)
    assert read_json(path, most=103) == [0] * 51


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "x").write_bytes(bytes(10))
    assert read_bytes(tmp_path / "x", 10) == bytes(10)
    with pytest.raises(ValueError, match="larger than"):
        read_bytes(tmp_path / "x", 9)
    # what is asked for is not reserved
    assert read_bytes(tmp_path / "x", 1 << 60) == bytes(10)
    (tmp_path / "x").write_bytes(b"")
    assert read_bytes(tmp_path / "x", 0) == b""
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "y", 10)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="these files are those of Linux")
def test_a_file_that_does_not_tell_its_size_is_read_up_to_its_limit():
    content = Path("/proc/version").read_bytes()
    assert read_bytes("/proc/version", len(content)) == content
    for path, most in (("/proc/version", len(content) - 1), ("/proc/version", 0), ("/dev/zero", 1000)):
        with pytest.raises(ValueError, match="larger than 0 MiB, which is the most that is read"):
            read_bytes(path, most)


def test_parts_that_are_shared_count_for_each_place():
    bomb: list = ["x"] * 10
    for _ in range(20):
        bomb = [bomb] * 10
    assert structure_problem(bomb, 10**5) == "it holds more than 100000 values"
    endless: list = []
    endless.append(endless)
    assert structure_problem(endless) == "it is nested deeper than 64 levels"


def read_text(folder: Path, text: str) -> Any:
    path = folder / "x.json"
    path.write_text(text, encoding="utf-8")
    return read_json(path)


def test_what_json_can_hold_comes_back(tmp_path):
    value = {"é😀": [None, True, False, 0, -1.5e-300, "", "\n"], "limits": [2**64 - 1, -(2**63)], "": {}}
    assert read_text(tmp_path, json.dumps(value, ensure_ascii=False)) == value
    assert read_text(tmp_path, json.dumps(value)) == value
    assert read_text(tmp_path, " 7 ") == 7
    deepest = "[" * 64 + "]" * 64
    assert json.dumps(read_text(tmp_path, deepest)) == deepest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'"\xff"', "can't decode"),
        ("{}".encode("utf-16"), "can't decode"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "a key stands twice in one object"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (str(2**64).encode(), "a whole number of more than 64 bits"),
        (str(-(2**63) - 1).encode(), "a whole number of more than 64 bits"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(tmp_path, content, words):
    path = tmp_path / "some study.json"
    path.write_bytes(content)
    assert words in refused(read_json, path)


def test_keys_count_as_values_and_leaves_of_other_types_are_not_looked_at():
    assert structure_problem([0] * 9, 10) is None
    assert structure_problem([0] * 10, 10) == "it holds more than 10 values"
    assert structure_problem({str(i): 0 for i in range(10)}, 10) == "it holds more than 10 values"
    assert structure_problem([[0, 0], [0, 0]], 6) == "it holds more than 6 values"
    assert structure_problem([[0, 0], [0, 0]], 7) is None
    assert structure_problem([None, True, 1e308, object()]) is None


# --- weights


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_weights_come_back_with_the_same_bits(tmp_path, options):
    state = snapshot(tiny_classifier())
    (tmp_path / "net.pt").write_bytes(saved({"state": state, "epoch": 3}, **options))
    found = read_weights(tmp_path / "net.pt")
    assert found["epoch"] == 3
    assert same_bits(found["state"], state)


class Noted:
    """Tells whether code of a file was run."""

    def __init__(self, mark: str) -> None:
        sys.modules[mark] = sys.modules[__name__]


@pytest.mark.parametrize("pickled", [False, True])
def test_code_in_a_file_of_weights_is_not_run(tmp_path, pickled):
    path = tmp_path / "net.pt"
    hostile = {"weight": RunsCode(Noted, "of a hostile file")}
    path.write_bytes(pickle.dumps(hostile) if pickled else saved(hostile))
    assert "holds other things than tensors, which could run code; nothing of it was run" in refused(read_weights, path)
    assert "of a hostile file" not in sys.modules
    pickle.loads(pickle.dumps(hostile))  # as it would have been
    assert sys.modules.pop("of a hostile file") is not None


def test_a_whole_network_and_a_script_are_refused_without_a_warning(tmp_path):
    script, network = tmp_path / "net.ts", tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(script))
    network.write_bytes(saved(tiny_classifier()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert "Save the state dict alone: torch.save(network.state_dict(), path)" in refused(read_weights, network)
        assert "it is damaged, or" in refused(read_weights, script)
    assert seen == []


@pytest.mark.parametrize("change", [lambda content: b"", lambda content: b"text", lambda content: content[:200]])
def test_what_torch_did_not_write_is_refused(tmp_path, change):
    path = tmp_path / "net.pt"
    path.write_bytes(change(saved(snapshot(tiny_classifier()))))
    assert refused(read_weights, path).startswith("it is damaged, or ")


def test_a_changed_byte_of_an_archive_is_found(tmp_path):
    path = tmp_path / "net.pt"
    state = snapshot(tiny_classifier())
    content, values = saved(state), state["grouped.weight"].numpy().tobytes()
    place = content.index(values)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert "the check sum of" in refused(read_weights, path)


def test_a_file_of_weights_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "net.pt")


class Marked(torch.Tensor):
    """A tensor of somebody else."""


@pytest.mark.parametrize(
    ("tensor", "ordinary"),
    [
        (torch.zeros(3, 4), True),
        (nn.Parameter(torch.zeros(2)), True),
        (torch.zeros(()), True),
        (torch.zeros(0, 5), True),
        (torch.arange(10)[2:5], True),
        (torch.zeros(4, 3).t(), True),
        (torch.zeros(2).expand(2, 2), False),
        (torch.zeros(1).expand(10**9, 10**6), False),
        (torch.zeros(2, device="meta"), False),
        (torch.eye(3).to_sparse(), False),
        (torch.zeros(2).as_subclass(Marked), False),
    ],
)
def test_an_ordinary_tensor_holds_a_value_for_each_element(tensor, ordinary):
    assert is_ordinary_tensor(tensor) is ordinary


@pytest.mark.filterwarnings("ignore")  # PyTorch's own remarks on tensors of these kinds
def test_quantized_and_nested_tensors_are_not_ordinary():
    assert not is_ordinary_tensor(torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8))
    assert not is_ordinary_tensor(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))
