from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.errors import ConfigurationError, PlanMismatchError
from monai_basisprune.inspection import LayerInspection, inspect_network, inspect_weights
from monai_basisprune.workflow.inspected import Inspection, format_inspection, inspect_source, show_inspection

from ..networks import cut, tiny_classifier

NETWORK_DEF = {"_target_": "tests.networks.TinyClassifier"}


def bundle_of(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor] | None) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(config))
    if state is not None:
        (folder / "models").mkdir()
        torch.save(state, folder / "models" / "model.pt")
    return folder


# --- what can be inspected


def test_a_checkpoint_is_inspected_by_its_weights_whatever_wraps_them(tmp_path: Path) -> None:
    network = tiny_classifier()
    state = network.state_dict()
    wanted = tuple(inspect_weights(state))
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": state, "epoch": 3}, tmp_path / "nested.pt")
    torch.jit.script(network).save(str(tmp_path / "script.ts"))
    for name in ("plain.pt", "nested.pt", "script.ts"):
        found = inspect_source(tmp_path / name)
        assert found.layers == wanted, name
        assert found.what == "checkpoint"
        assert found.notes == ("From the weights alone: operations and groups of convolutions are not known.",)
    assert [layer.name for layer in wanted] == ["stem", "grouped", "head"]


def test_a_network_of_a_dotted_name_is_built(tmp_path: Path) -> None:
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_features": 4, "block_config": [1]}
    source = "monai.networks.nets.DenseNet"
    found = inspect_source(source, arguments, (1, 16, 16))
    torch.manual_seed(0)
    wanted = inspect_network(mbp.network_def.make_network({"_target_": source, **arguments}), (1, 16, 16))
    assert found.what == "DenseNet"
    assert [(layer.name, layer.shape, layer.macs) for layer in found.layers] == [
        (layer.name, layer.shape, layer.macs) for layer in wanted
    ]
    assert found.notes == ("The network was built anew, so the spectrum is that of the weights it starts with.",)
    without = inspect_source(source, arguments)
    assert {layer.macs for layer in without.layers} == {None}
    assert "Operations are counted with --input_shape" in without.notes[1]
    with pytest.raises(ConfigurationError, match=r"cannot process an input of shape \(1, 2, 16, 16\)"):
        inspect_source(source, arguments, (2, 16, 16))
    with pytest.raises(ConfigurationError, match=r"cannot be built from its name and arguments \(\w+"):
        inspect_source(source, {"depth": 3})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bundle_is_inspected_with_its_weights_where_it_has_them(tmp_path: Path) -> None:
    network = tiny_classifier(5)
    bundle = bundle_of(tmp_path / "a", {"network_def": NETWORK_DEF}, network.state_dict())
    found = inspect_source(bundle, input_shape=(1, 8, 8))
    assert found == Inspection("TinyClassifier of a bundle", tuple(inspect_network(network, (1, 8, 8))), ())
    (note,) = inspect_source(bundle).notes
    assert note.startswith("Operations are counted with --input_shape")
    empty = bundle_of(tmp_path / "b", {"network_def": NETWORK_DEF}, None)
    found = inspect_source(empty, input_shape=(1, 8, 8))
    assert [layer.name for layer in found.layers] == ["stem", "grouped", "head"]
    assert found.notes == (
        "The bundle holds no models/model.pt, so the spectrum is that of weights that were not trained.",
    )
    dense = {"_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [1]}
    with pytest.raises(PlanMismatchError, match="does not fit the bundle's DenseNet"):
        inspect_source(bundle, overrides={"network_def": dense})
    assert inspect_source(empty, overrides={"network_def": dense}).what == "DenseNet of a bundle"
    with pytest.raises(ConfigurationError, match=r"nothing: not in configs/train\.json"):
        inspect_source(bundle, overrides={"nothing": 1})


def test_a_study_is_inspected_with_what_was_pruned(tmp_path: Path) -> None:
    network = cut(tiny_classifier())[1]
    mbp.save_pruned(network, tmp_path / "model.pt")
    found = inspect_source(tmp_path)
    assert found.what == "pruned network of a study"
    statuses = {status.name: status for status in mbp.layer_status(network)}
    for layer in found.layers:
        status = statuses[layer.name]
        assert layer.rank == status.rank
        assert layer.parameters == sum(p.numel() for p in network.get_submodule(layer.name).parameters())
        assert layer.max_rank == status.max_rank or layer.name == "head"
    assert statuses["grouped"].rank < statuses["grouped"].max_rank
    shapes = {layer.name: layer.shape for layer in found.layers}
    assert shapes["grouped"] == tuple(tiny_classifier().grouped.weight.shape)
    # the weights alone do not tell the groups of a layer that was left as it is, but the plan does
    whole = mbp.decompose(tiny_classifier(), exclude_modules=["grouped"])
    (tmp_path / "other").mkdir()
    mbp.save_pruned(whole, tmp_path / "other" / "model.pt")
    (own,) = [layer for layer in inspect_source(tmp_path / "other").layers if layer.name == "grouped"]
    (wanted,) = [layer for layer in inspect_network(tiny_classifier()) if layer.name == "grouped"]
    assert (own.rank, own.break_even_rank, own.spectrum) == (None, wanted.break_even_rank, wanted.spectrum)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(ConfigurationError, match=r"The folder of the study lacks model\.pt, the weights of the pruned"):
        inspect_source(tmp_path)


def test_what_is_none_of_these_is_refused_without_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "Doe^Jane"
    folder.mkdir()
    for name in ("damaged.pt", "damaged.ts"):
        (folder / name).write_bytes(b"x")
    torch.save([1, 2], folder / "list.pt")
    for source, words in (
        (folder, r"neither a bundle \(it has no folder configs\) nor the output_dir of a finished pruning run"),
        (folder / "none.pt", r"was not found: name a checkpoint, the folder of a bundle or of a study, or a network"),
        ("one word", r"was not found: name a checkpoint"),
        (folder / "damaged.pt", r"^The checkpoint cannot be read: it is damaged"),
        (folder / "damaged.ts", r"^The TorchScript file cannot be read, it is damaged\.$"),
        (folder / "list.pt", r"'\*\.pt' holds no state dict"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            inspect_source(source)
        assert "Doe" not in str(caught.value)
    shutil.rmtree(folder)


# --- the table


def layer(name: str, **changes: Any) -> LayerInspection:
    values: dict[str, Any] = {"type": "Conv2d", "shape": (8, 4, 3, 3), "parameters": 1296, "macs": None, "rank": None}
    values |= {"max_rank": 8, "break_even_rank": 6, "rank_90": 3, "rank_99": 0, "spectrum": (), "skipped": None}
    return LayerInspection(name=name, **{**values, **changes})


def test_the_table_has_a_row_for_each_layer_and_aligned_columns() -> None:
    found = Inspection(
        "checkpoint",
        (
            layer("conv", macs=1_234_567, spectrum=(1.0, 0.99, 0.5, 0.124, 0.0)),
            layer("longer.name", parameters=12, rank=5),
            layer("head", type="Linear", shape=(2, 8), max_rank=None, break_even_rank=None, skipped="a linear layer"),
        ),
        ("A note.", "Another."),
    )
    lines = format_inspection(found).splitlines()
    assert lines[0] == "checkpoint: 3 layers, 2,604 parameters"
    assert " ".join(lines[1].split()) == "layer type weight parameters MACs bases even 90 % 99 % spectrum"
    assert lines[2].split() == ["conv", "Conv2d", "8x4x3x3", "1,296", "1,234,567", "8", "6", "3", "0", "██▅▁▁"]
    assert lines[3].split() == ["longer.name", "Conv2d", "8x4x3x3", "12", "5", "of", "8", "6", "3", "0"]
    assert lines[4].split() == ["head", "Linear", "2x8", "1,296", "3", "0", "a", "linear", "layer"]
    assert lines[5:] == ["A note.", "Another."]
    place = lines[1].index("parameters") + len("parameters")
    assert [line[place - 5 : place].strip() for line in lines[2:5]] == ["1,296", "12", "1,296"]
    assert len({line.index("Conv2d") for line in lines[2:4]}) == 1
    assert not any(line.endswith(" ") for line in lines)


def test_a_network_without_layers_has_a_head_only() -> None:
    lines = format_inspection(Inspection("checkpoint", ())).splitlines()
    assert lines[0] == "checkpoint: 0 layers, 0 parameters"
    assert len(lines) == 2


def test_what_is_shown_is_the_table_of_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tiny_classifier().state_dict(), tmp_path / "model.pt")
    show_inspection(tmp_path / "model.pt")
    assert capsys.readouterr().out == format_inspection(inspect_source(tmp_path / "model.pt")) + "\n"
