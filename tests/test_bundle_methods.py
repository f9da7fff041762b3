"""Each method of the bundle, from its configuration to the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.report import load_study
from monai_basisprune.structure import structure_of

from .bundle_runs import TINY_PRUNE, own_error, run_in_python, tiny_densenet, write_overlay
from .networks import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")

OTHERS = ("activation", "bases", "channel_scaling", "compensation", "distillation", "scaling", "singular_value", "size")
SETTINGS = {**TINY_PRUNE, "synthetic_patients": 40, "audit_cases": 2}


def run(method: str | None, folder: Path, **overrides: Any) -> dict[str, Any]:
    """Run one method from a checkpoint; returns its study."""
    torch.save(tiny_densenet(1).state_dict(), folder / "net.pt")
    overlay = write_overlay(folder, {**SETTINGS, "pretrained": str(folder / "net.pt")})
    run_in_python(
        "prune", ("train", "prune", *([method] if method else [])), overlay, output_dir=str(folder / "out"), **overrides
    )
    return load_study(folder / "out" / "study.json")


def assert_files_are_one_network(study: dict[str, Any], output: Path) -> None:
    network = mbp.load_pruned(tiny_densenet(), output / "model.pt").eval()
    chosen = study["curve"][study["chosen"]["round"]]
    assert structure_of(network) == chosen["structure"]
    parts = [(layer.name, layer.rank, layer.channels, layer.max_channels) for layer in mbp.layer_status(network)]
    assert parts == [
        tuple(layer[key] for key in ("name", "rank", "channels", "max_channels")) for layer in study["layers"]
    ]
    script = torch.jit.load(str(output / "model.ts"))
    assert sum(p.numel() for p in script.parameters()) == study["chosen"]["parameters"]
    plain = mbp.recompose(network)
    assert mbp.measure_complexity(plain, (1, 32, 32)).macs == study["chosen"]["macs"]
    x = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(script(x), network(x)) < 1e-4
    files = {path.name for path in (output / "work" / "networks").iterdir()}
    names = {point["structure"] for point in study["curve"]}
    assert len(names) == len(study["curve"])
    assert files == {f"{name}.pt" for name in names} | {f"{name}.plan.json" for name in names}


def test_double_pruning_cuts_bases_and_channels_and_says_so_everywhere(tmp_path: Path) -> None:
    study = run(None, tmp_path, margin=0.9)  # so that the smallest network is chosen
    total = sum(p.numel() for p in tiny_densenet().parameters())
    assert [point["target"] for point in study["curve"]] == [0.0, *SETTINGS["targets"]]
    for point in study["curve"]:
        assert point["parameter_reduction"] == pytest.approx(1 - point["parameters"] / total)
        assert point["target"] <= point["parameter_reduction"] < point["target"] + 0.1
    assert study["chosen"]["round"] == 2
    pruning = study["pruning"]
    assert (pruning["importance"], pruning["channel_importance"]) == ("TaylorImportance", "ChannelTaylorImportance")
    assert pruning["method"].startswith("bases and channels jointly")
    assert any(layer["channels"] < layer["max_channels"] for layer in study["layers"])
    assert any((layer["rank"] or 0) < (layer["max_rank"] or 0) for layer in study["layers"])
    assert_files_are_one_network(study, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    layer = next(layer for layer in study["layers"] if layer["channels"] < layer["max_channels"])
    assert f"{layer['channels']} of {layer['max_channels']}" in page
    assert "the bases and channels of least importance" in page


def test_a_budget_that_channels_do_not_allow_ends_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        run(None, tmp_path, targets=[0.5, 0.9999])
    message = str(own_error(caught.value))
    assert "Budget(parameters=0.9999" in message
    assert "one basis left in every layer and one channel in every group" in message
    assert "The largest that can be met is parameters=0.9" in message
    assert not (tmp_path / "out" / "work" / "networks").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_the_other_methods_run_to_their_end(method: str, tmp_path: Path) -> None:
    study = run(method, tmp_path, margin=0.9)
    assert [point["target"] for point in study["curve"]] == [0.0, *SETTINGS["targets"]]
    for point in study["curve"]:
        assert point["target"] <= point["parameter_reduction"] < point["target"] + 0.1
    assert_files_are_one_network(study, tmp_path / "out")
    names = {"scaling": "ScalingImportance", "singular_value": "SingularValueImportance"}
    wanted = names.get(method, "ChannelScalingImportance" if method == "channel_scaling" else "TaylorImportance")
    assert study["pruning"]["importance"] == wanted
    assert study["pruning"]["basis"] == ("activation" if method == "activation" else "weight")
    assert study["pruning"]["compensation"] is (method == "compensation")
    assert (study["pruning"]["distillation"] is not None) is (method == "distillation")


@pytest.mark.slow
def test_double_pruning_searches_and_its_curve_agrees(tmp_path: Path) -> None:
    study = run(None, tmp_path, auc_margin=0.3, selection="point", bisections=1, targets=[0.3, 0.6, 0.85])
    search, curve = study["search"], study["curve"]
    assert [point["target"] for point in curve[1:]] == [step["target"] for step in search["steps"]]
    accepted = [index for index, step in enumerate(search["steps"], 1) if step["accepted"]]
    assert study["chosen"]["round"] == (accepted[-1] if accepted else 0)
    network = mbp.load_pruned(tiny_densenet(), tmp_path / "out" / "model.pt")
    assert structure_of(network) == curve[study["chosen"]["round"]]["structure"]


@pytest.mark.slow
def test_the_network_that_is_never_cut_is_trained_as_long(tmp_path: Path) -> None:
    study = run("unpruned", tmp_path)
    (point,) = study["curve"]
    epochs = SETTINGS["transfer_epochs"] + len(SETTINGS["targets"]) * SETTINGS["epochs_per_round"]
    assert point["epoch"] == epochs == len(json.loads((tmp_path / "out" / "evaluations.json").read_text()))
    assert (study["pruning"]["targets"], study["chosen"]["round"]) == ([], 0)
    assert "It was trained for 3 epochs and never cut" in (tmp_path / "out" / "report.html").read_text()
