"""Runs of the bundle of small picture sets that take minutes: repeats, comparisons, a search, a real file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet

from monai_basisprune.evidence import compare_auc
from monai_basisprune.report import load_study

from .bundle_runs import ROOT, TINY, own_error
from .test_small_dataset_bundle import run, write_findings, write_pictures

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files"),
    pytest.mark.filterwarnings("ignore:No column and no pattern names the patients"),
]
NPZ = ROOT.parent / "shared" / "data" / "pneumoniamnist_28.npz"
CLASSES_RUN = {
    "image_size": 32,
    "batch_size": 8,
    "transfer_epochs": 1,
    "epochs_per_round": 1,
    "targets": [0.4],
    "fractions": [0.4, 0.3, 0.3],
    "audit_cases": 0,
}


def tiny_weights(folder: Path, outputs: int) -> dict[str, Any]:
    network_def = {**TINY["network_def"], "out_channels": outputs}
    arguments = {key: value for key, value in network_def.items() if key != "_target_"}
    torch.save(DenseNet(**arguments).state_dict(), folder / "net.pt")
    return {"pretrained": str(folder / "net.pt"), "network_def": network_def}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_repeats_of_several_classes_are_pooled_over_their_folds(tmp_path: Path, kind: str) -> None:
    several = kind == "multi"
    images = write_findings(tmp_path / "images") if several else write_pictures(tmp_path / "images")
    run(
        "repeat",
        ("train", "prune", "repeat"),
        dataset_dir=str(images),
        output_dir=str(tmp_path / "output"),
        repeats=3,
        folds=3,
        parallel=1,
        label_kind=kind,
        margin=0.9,  # the pruned network is chosen, so that there are two to compare
        **CLASSES_RUN,
        **tiny_weights(tmp_path, 2 if several else 3),
    )
    stability = json.loads((tmp_path / "output" / "stability.json").read_text())
    assert stability["failed"] == []
    assert stability["pooled"]["pruned"]["cases"] == 60
    assert stability["pooled"]["pruned"]["patients"] is None
    assert stability["pooled"]["difference"]["method"].startswith(
        "paired mean of " + ("2 AUCs" if several else "3 AUCs")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [("label_free", {"epochs_per_round": 0}), ("fast", {"channel_multiple": 4, "targets": [0.2]})],
)
def test_several_findings_are_pruned_without_labels_and_for_speed(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    run(
        "prune",
        ("train", "prune", method),
        dataset_dir=str(write_findings(tmp_path / "images")),
        output_dir=str(tmp_path / "output"),
        label_kind="multi",
        margin=0.9,
        **{**CLASSES_RUN, **settings},
        **tiny_weights(tmp_path, 2),
    )
    study = load_study(tmp_path / "output" / "study.json")
    assert study["chosen"]["round"] == 1
    assert study["pruning"]["compensation"] is (method == "label_free")
    multiple = study["pruning"]["channel_multiple"]
    cut = [layer for layer in study["layers"] if layer["channels"] < layer["max_channels"]]
    assert bool(cut) is (method == "fast")
    assert all(layer["channels"] % multiple == 0 for layer in cut)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_methods_are_compared_by_the_mean_auc_of_several_classes(tmp_path: Path, kind: str) -> None:
    several = kind == "multi"
    images = write_findings(tmp_path / "images") if several else write_pictures(tmp_path / "images", step=10)
    output = tmp_path / "output"
    run(
        "compare",
        ("train", "prune", "compare"),
        dataset_dir=str(images),
        output_dir=str(output),
        methods=["bases", "unpruned"],
        parallel=1,
        label_kind=kind,
        margin=0.9,
        **CLASSES_RUN,
        **tiny_weights(tmp_path, 2 if several else 3),
    )
    record = json.loads((output / "comparison.json").read_text())
    assert record["failed"] == []
    assert [entry["name"] for entry in record["methods"]] == ["bases", "unpruned"]
    unpruned, bases = (
        json.loads((output / "methods" / name / "work" / "test_predictions.json").read_text())
        for name in ("unpruned", "bases")
    )
    assert unpruned["labels"] == bases["labels"]
    wanted = compare_auc(unpruned["labels"], unpruned["pruned"], bases["pruned"], None, 0.9)
    assert wanted.method.startswith(f"paired mean of {2 if several else 3} AUCs")
    found = record["methods"][0]["difference_to_reference"]
    assert found["difference"] == pytest.approx(wanted.difference, abs=1e-9)
    assert found["low"] == pytest.approx(wanted.low, abs=1e-9)
    for name in ("bases", "unpruned"):
        study = load_study(output / "methods" / name / "study.json")
        assert len(study["test"]["classes"]) == (2 if several else 3)
    assert "Change against study 2" in (output / "comparison.html").read_text()


@pytest.mark.slow
def test_the_mean_auc_of_classes_bounds_a_search(tmp_path: Path) -> None:
    run(
        "prune",
        ("train", "prune"),
        dataset_dir=str(write_pictures(tmp_path / "images", step=5)),  # an AUC of 1 would need no more patients
        output_dir=str(tmp_path / "output"),
        auc_margin=0.05,
        bisections=1,
        **CLASSES_RUN,
        **tiny_weights(tmp_path, 3),
    )
    study = load_study(tmp_path / "output" / "study.json")
    assert study["search"]["margin"] == 0.05
    assert len(study["search"]["steps"]) >= 1
    assert any("Of several classes, these are the numbers of one" in warning for warning in study["warnings"])


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not NPZ.is_file(), reason="no shared data beside the checkout")
def test_a_real_medmnist_file(tmp_path: Path) -> None:
    settings = {
        "dataset_dir": str(NPZ),
        "output_dir": str(tmp_path / "output"),
        **CLASSES_RUN,
        **tiny_weights(tmp_path, 2),
        "batch_size": 64,
    }
    with pytest.raises(Exception) as error:
        run("prune", ("train", "prune"), **settings)
    assert "hold the same image for several patients or sections" in str(own_error(error.value))
    run("prune", ("train", "prune"), on_problem="skip", **settings)
    study = load_study(tmp_path / "output" / "study.json")
    cases = {name: study["data"]["splits"][name]["cases"] for name in ("training", "validation", "test")}
    assert (3882 + 524 + 624) - sum(cases.values()) == 36  # 18 in groups that span sections, 18 plain copies
    run("run", ("inference", "evaluate"), dataset_dir=str(NPZ), output_dir=str(tmp_path / "output"))
    evaluation = json.loads((tmp_path / "output" / "evaluation.json").read_text())
    assert evaluation["auc"]["cases"] == cases["test"]
    assert evaluation["auc"]["auc"] == pytest.approx(study["test"]["pruned"]["auc"], abs=1e-6)
