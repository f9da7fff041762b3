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

OTHERS = ("activation", "bases", "channel_scaling", "compensation", "plain_loss", "scaling", "singular_value", "size")
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
    last = SETTINGS["targets"][-1]
    # the margin lets the smallest network be chosen
    study = run(None, tmp_path, margin=0.9, distilled_from=last, recombined_from=last)
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
    late = f"nce {100 * last:g} % of the parameters were gone"
    assert (
        f"O{late}, the network was also trained towards the outputs of the unpruned one, on images without augmentation"
        in page
    )
    assert f"were trained as well, o{late}" in page


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
    learns_late = method not in ("channel_scaling", "plain_loss")
    assert (study["pruning"]["distillation"] is not None) is learns_late
    assert (study["pruning"]["recombined_from"] is not None) is learns_late


@pytest.mark.slow
@pytest.mark.parametrize("transfer", [0, 1])
def test_label_free_pruning_trains_nothing_after_a_cut_and_says_so(transfer: int, tmp_path: Path) -> None:
    study = run("label_free", tmp_path, margin=0.9, transfer_epochs=transfer, epochs_per_round=0)
    assert [point["target"] for point in study["curve"]] == [0.0, *SETTINGS["targets"]]
    assert (study["pruning"]["importance"], study["pruning"]["compensation"]) == ("ActivationImportance", True)
    assert (study["pruning"]["transfer_epochs"], study["pruning"]["epochs_per_round"]) == (transfer, 0)
    assert study["pruning"]["channel_importance"] is None
    assert_files_are_one_network(study, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "nothing was trained after a cut" in page
    assert "The chosen network was not trained after it was cut." in page
    assert "longer training" not in page
    assert ("without any transfer learning" in page) is (transfer == 0)
    networks = tmp_path / "out" / "work" / "networks"
    before = mbp.load_pruned(tiny_densenet(), networks / f"{study['curve'][0]['structure']}.pt")
    after = mbp.load_pruned(tiny_densenet(), tmp_path / "out" / "model.pt")
    for name, module in before.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            kept = after.get_submodule(name)
            assert torch.equal(kept.weight, module.weight)
            assert torch.equal(kept.running_mean, module.running_mean)


@pytest.mark.slow
def test_channels_in_blocks_leave_multiples_and_all_bases(tmp_path: Path) -> None:
    study = run("fast", tmp_path, margin=0.9, channel_multiple=4, targets=[0.2, 0.4])
    for point, target in zip(study["curve"], (0.0, 0.2, 0.4), strict=True):
        assert target <= point["mac_reduction"]
    assert (study["pruning"]["importance"], study["pruning"]["budget"]) == ("ChannelTaylorImportance", "macs")
    cut = [layer for layer in study["layers"] if layer["channels"] < layer["max_channels"]]
    assert cut
    assert not [layer for layer in cut if layer["channels"] % 4]
    assert all(layer["rank"] == layer["max_rank"] for layer in study["layers"])
    assert_files_are_one_network(study, tmp_path / "out")
    assert "in blocks that left multiples of 4" in (tmp_path / "out" / "report.html").read_text()


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
