from __future__ import annotations

import json
from pathlib import Path

import torch

from monai_basisprune import cli

from .networks import tiny_classifier


def test_inspect_shows_each_layer(tmp_path: Path, capsys) -> None:
    network = tiny_classifier()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert cli.main(["inspect", str(tmp_path / "model.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "checkpoint"
    weights = [name.removesuffix(".weight") for name, p in network.named_parameters() if p.ndim > 1]
    assert [layer["name"] for layer in found["layers"]] == weights
    words = ["inspect", "monai.networks.nets.DenseNet", "--arguments"]
    words += ['{"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [2, 2]}']
    assert cli.main([*words, "--input_shape", "1", "32", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DenseNet: 11 layers, ")
    assert lines[1].split()[:4] == ["layer", "type", "weight", "parameters"]
    (conv0,) = [line for line in lines if line.startswith("features.conv0 ")]
    assert conv0.split()[1:7] == ["Conv2d", "64x1x7x7", "3,136", "802,816", "49", "27"]
    assert any("linear layer" in line for line in lines)
    for wrong, message in (
        (["inspect", "monai.networks.nets.Nothing"], "The network cannot be built from its name and arguments"),
        (["inspect", str(tmp_path / "none.pt")], "What to inspect was not found"),
        (["inspect", str(tmp_path)], "The folder is neither a bundle"),
        ([*words, "--input_shape", "3", "32", "32"], "cannot process an input of shape (1, 3, 32, 32)"),
        (["inspect", "a.b", "--arguments", "[1]"], "--arguments must be JSON"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "model.pt").write_bytes(b"x")
    assert cli.main(["inspect", str(tmp_path / "model.pt")]) == 2
    assert "The checkpoint cannot be read" in capsys.readouterr().err
