from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune import cli
from monai_basisprune.workflow.shipped_bundles import shipped_bundle, shipped_bundles

from .bundle_runs import contents, unchanged_process
from .bundle_verification import network_of, verify_bundle
from .noted_calls import Calls, note_calls
from .workflow.source_bundles import SIZE, write_data, write_source


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the functions of the library are called with; they are tested by themselves."""
    return note_calls(monkeypatch, "prune_bundle", "export_study_bundle", "run_shipped_bundle")


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "a" / "configs").mkdir(parents=True)
    return str(tmp_path / "a")


def test_prune_hands_its_options_on(calls, bundle: str, capsys) -> None:
    assert cli.main(["prune", bundle, "b"]) == 0
    assert calls == [((bundle, "b"), {"overrides": {}})]
    assert capsys.readouterr().out == "made\n"
    words = ["prune", bundle, "b", "--targets", "0.4", "0.6", "--margin", "0.02", "--patient_key", "patient"]
    words += ["--dataset_dir", "/data/x", "--train#dataloader#batch_size=4", "--amp", "true", "--seed", "0"]
    words += ["--network_def", '{"a": 1}', "--budget", "macs", "--selection", "interval", "--channels"]
    assert cli.main(words) == 0
    assert calls[-1][1] == {
        "overrides": {
            "dataset_dir": "/data/x",
            "train#dataloader#batch_size": 4,
            "amp": True,
            "network_def": {"a": 1},
        },
        "targets": [0.4, 0.6],
        "budget": "macs",
        "margin": 0.02,
        "selection": "interval",
        "patient_key": "patient",
        "channels": True,
        "seed": 0,
    }


def test_prune_of_images_runs_a_bundle_of_the_package(calls, tmp_path: Path, capsys) -> None:
    images = str(tmp_path)
    assert cli.main(["prune", images, "out", "--targets", "0.5", "--label_column", "pneumonia", "--seed", "3"]) == 0
    overrides = {"label_column": "pneumonia", "targets": [0.5], "seed": 3, "dataset_dir": images}
    assert calls == [(("chest_xray_classification", "prune", ("train", "prune"), "out", overrides), {})]
    assert cli.main(["prune", images, "out", "--bundle", "volume_classification"]) == 0
    assert calls[-1][0][0] == "volume_classification"
    (tmp_path / "blood.npz").write_bytes(b"x")
    assert cli.main(["prune", str(tmp_path / "blood.npz"), "out", "--image_size", "64"]) == 0
    overrides = {"image_size": 64, "dataset_dir": str(tmp_path / "blood.npz")}
    assert calls[-1][0] == ("small_dataset_classification", "prune", ("train", "prune"), "out", overrides)
    assert cli.main(["prune", images, "out", "--patient_key", "p"]) == 2
    assert "the patients of images are set by --patient_column" in capsys.readouterr().err
    assert cli.main(["prune", images, "out", "--channels"]) == 2
    assert "of images, channels are removed with the bases anyway" in capsys.readouterr().err


def test_bundle_and_images_are_not_mixed_up(calls, bundle: str, tmp_path: Path, capsys) -> None:
    assert cli.main(["prune", bundle, "b", "--bundle", "chest_xray_classification"]) == 2
    assert "SOURCE is the folder of a bundle; --bundle is for a folder of images" in capsys.readouterr().err
    assert cli.main(["prune", str(tmp_path / "none"), "b"]) == 2
    assert "SOURCE is not a folder" in capsys.readouterr().err
    assert calls == []


def test_export_bundle_hands_its_options_on(calls) -> None:
    assert cli.main(["export-bundle", "a", "b", "c", "--network_def", '{"_target_": "X"}']) == 0
    assert calls == [(("a", "b", "c"), {"overrides": {"network_def": {"_target_": "X"}}})]


def test_bundles_are_listed_and_copied(tmp_path: Path, capsys) -> None:
    assert cli.main(["bundle"]) == 0
    listed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(shipped_bundles())
    assert "chest_xray_classification" in listed
    assert cli.main(["bundle", "chest_xray_classification", str(tmp_path / "copy")]) == 0
    assert "its configurations: " in capsys.readouterr().out
    source = shipped_bundle("chest_xray_classification")
    wanted = {name: (source / name).read_bytes() for name in contents(tmp_path / "copy")}
    assert contents(tmp_path / "copy") == wanted
    assert {"LICENSE", "configs/train.json", "docs/README.md"} <= set(wanted)
    assert not any(name.startswith(("output/", "models/", ".")) for name in wanted)
    for words, message in (
        (["chest_xray_classification", str(tmp_path / "copy")], "is not empty"),
        (["chest_xray_classification"], "Name the folder of the copy as well"),
        (["nothing", str(tmp_path / "b")], "There is no bundle of that name"),
    ):
        assert cli.main(["bundle", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")
def test_prune_removes_channels_of_a_bundle_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command to a bundle that loads, with fewer channels between its layers, and says so."""
    data = write_data(tmp_path / "data")
    source, new = write_source(tmp_path / "source", data), tmp_path / "new"
    before = contents(source)
    words = ["prune", str(source), str(new), "--channels", "--targets", "0.4", "0.7", "--margin", "0.9"]
    words += ["--transfer_epochs", "1", "--epochs_per_round", "1", "--patient_key", "patient"]
    with unchanged_process():
        code = cli.main([*words, "--dataset_dir", str(data)])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert contents(source) == before
    record = json.loads((new / "docs" / "pruning.json").read_text())
    fewer = [layer for layer in record["layers"] if layer["channels"] < layer["max_channels"]]
    assert fewer
    assert any((layer["rank"] or 0) < (layer["max_rank"] or 0) for layer in record["layers"])
    for point, target in zip(record["curve"], [0.0, 0.4, 0.7], strict=True):
        assert target <= point["parameter_reduction"] < target + 0.15
    original, network = network_of(source), network_of(new)
    sizes = [mbp.measure_complexity(one, (1, SIZE, SIZE)) for one in (original, mbp.recompose(network))]
    assert 0.7 <= 1 - sizes[1].parameters / sizes[0].parameters < 0.85
    assert sizes[1].peak_activation_bytes < sizes[0].peak_activation_bytes  # bases alone cannot do that
    metrics = json.loads((new / "configs" / "metadata.json").read_text())["eval_metrics"]
    assert metrics["parameter_reduction"] == pytest.approx(1 - sizes[1].parameters / sizes[0].parameters)
    assert f"{100 * metrics['parameter_reduction']:.1f} % of the parameters" in shown.out
    for layer in fewer:
        own = dict(network.named_modules())[layer["name"]]
        assert own.out_channels == layer["channels"]
    x = torch.randn(3, 1, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.jit.load(str(new / "models" / "model.ts"))(x), network(x), rtol=1e-4, atol=1e-5
        )
    verify_bundle(new, "min")
    assert str(tmp_path) not in shown.out + shown.err
