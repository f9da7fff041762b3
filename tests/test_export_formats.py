"""Each file format is written and read back by itself, and what fails is told without a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.export_formats import READERS, WRITERS, layer_trail, refusal, tensors_of

from .networks import TinyClassifier, tiny_classifier

METADATA = json.dumps({"class_names": ["no", "ja"]})


def test_every_format_is_written_and_read():
    assert WRITERS.keys() == READERS.keys()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_gives_what_its_network_gives(tmp_path, kind):
    network = tiny_classifier().eval().requires_grad_(False)
    content, remarks = WRITERS[kind](network, torch.rand(2, *TinyClassifier.input_shape), METADATA, "model.x", 1)
    assert remarks == []
    assert isinstance(content, bytes)
    (tmp_path / "model.x").write_bytes(content)
    run = READERS[kind](tmp_path / "model.x")
    for batch in (1, 3):
        x = torch.rand(batch, *TinyClassifier.input_shape)
        (found,) = run(x)
        torch.testing.assert_close(found, network(x), rtol=1e-4, atol=1e-5)


class Nested(nn.Module):
    """Gives tensors within a tuple within a tuple."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return x + 1, (x * 2, x.mean(dim=1))


@pytest.mark.parametrize("kind", WRITERS)
def test_outputs_come_back_in_order_whatever_they_are_in(tmp_path, kind):
    content, _ = WRITERS[kind](Nested().eval(), torch.rand(2, 3), METADATA, "model.x", 3)
    (tmp_path / "model.x").write_bytes(content)
    x = torch.rand(5, 3)
    for found, wanted in zip(READERS[kind](tmp_path / "model.x")(x), tensors_of(Nested()(x)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_an_error_of_its_reader(tmp_path, kind):
    (tmp_path / "model.x").write_bytes(b"no network")
    with (
        pytest.raises(mbp.ExportError, match=r"^model cannot be read back: ") as caught,
        refusal("model cannot be read back"),
    ):
        READERS[kind](tmp_path / "model.x")
    assert str(tmp_path) not in str(caught.value)


def test_tensors_of_an_output_are_in_order():
    one, two, three = torch.zeros(1), torch.ones(1), torch.ones(2)
    for output, wanted in ((one, [one]), ([one, (two, [three])], [one, two, three]), (((one,),), [one])):
        found = tensors_of(output)
        assert len(found) == len(wanted)
        assert all(a is b for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("output", "kind"),
    [({"pred": torch.zeros(1)}, "dict"), ([], "list"), ((torch.zeros(1), ()), "tuple"), (None, "NoneType")],
)
def test_an_output_of_something_else_is_refused(output, kind):
    with pytest.raises(mbp.ExportError, match=f"must give a tensor, or a list or tuple of them; it gives {kind}.$"):
        tensors_of(output)


# --- where it went wrong


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("of a layer")


def test_the_trail_ends_at_the_layer_that_failed_and_leaves_no_hook():
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), Fails()), nn.ReLU())
    with layer_trail(network) as layer:
        assert layer("") == ""
        with pytest.raises(RuntimeError, match="of a layer"):
            network(torch.zeros(1, 2))
        assert layer("whatever the problem is") == "1.1"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_trail_is_empty_again_after_a_pass_and_changes_no_output():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = torch.rand(1, 2)
    wanted = network(x)
    with layer_trail(network) as layer:
        assert torch.equal(network(x), wanted)
        assert layer("") == ""
        with pytest.raises(RuntimeError):
            network(torch.rand(1, 3))
        assert layer("") == "0"


def told(error: BaseException, layer: str = "") -> str:
    """Return the words that an error becomes."""
    with pytest.raises(mbp.ExportError) as caught, refusal("A network cannot be saved", lambda problem: layer):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_what_goes_wrong_is_told_with_the_layer_where_it_is_known():
    assert told(ValueError("a reason.\nmore of it")) == "A network cannot be saved: a reason. Nothing was written."
    assert told(RuntimeError("")) == "A network cannot be saved: RuntimeError. Nothing was written."
    assert told(RuntimeError("\n\n  late:"), "inner.odd") == (
        "A network cannot be saved at layer 'inner.odd': late. Nothing was written."
    )


def test_the_reason_is_what_lies_behind_the_error():
    outer, middle = RuntimeError("of an exporter"), ValueError("of its part")
    outer.__cause__, middle.__cause__ = middle, TypeError("of an operation")
    assert "saved: of an operation. Nothing" in told(outer)
    fixed = RuntimeError("Constraints violated (batch)! For more information, run with TORCH_LOGS")
    assert "its code fixes the size of the batch, the file could not be used with any other" in told(fixed)


def test_the_layer_is_looked_up_by_what_the_exporter_said():
    outer = RuntimeError("of an exporter")
    outer.__cause__ = ValueError("translating node %mul ")
    seen: list[str] = []
    with pytest.raises(mbp.ExportError), refusal("It cannot be saved", lambda problem: seen.append(problem) or ""):
        raise outer
    assert seen == ["translating node %mul "]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/scans/mask.nii is missing", "mask.nii is missing"),
        ("'/home/Jane Doe/scans/atlas.nii' is missing", "'atlas.nii' is missing"),
        ('"C:\\Users\\Jane Doe\\x.pt" is missing', '"x.pt" is missing'),
        ("C:\\Users\\jane\\x.pt is missing", "x.pt is missing"),
        ("no file /data/Jane Doe/1961/mask.nii: it is missing", "no file mask.nii: it is missing"),
        ("(C:\\Users\\Jane Doe\\x.pt) and /srv/b c/d.pt or /e/f.pt", "(x.pt) and d.pt or f.pt"),
        ("halves, 1/2 and /data/jane/x.pt", "halves, 1/2 and x.pt"),
        ("File '/home/jane/a.py', line 3, and /srv/b/c.py", "File 'a.py', line 3, and c.py"),
        ("a share of 1/2 and a/b stay", "a share of 1/2 and a/b stay"),
    ],
)
def test_a_reason_names_no_folder(text, shown):
    assert told(OSError(text)) == f"A network cannot be saved: {shown}. Nothing was written."


def test_an_error_of_ours_and_an_interruption_stay_what_they_are():
    own = mbp.ExportError("in our words")
    with pytest.raises(mbp.ExportError) as caught, refusal("not these"):
        raise own
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt), refusal("not these"):
        raise KeyboardInterrupt


def test_a_file_of_torchscript_tells_no_source():
    content, _ = WRITERS["torchscript"](tiny_classifier().eval(), torch.rand(2, 1, 8, 8), METADATA, "model.ts", 1)
    assert b".debug_pkl" not in content
    assert str(Path(__file__).parent).encode() not in content
