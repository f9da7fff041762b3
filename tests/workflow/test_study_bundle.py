from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.data import write_synthetic_cohort
from monai_basisprune.errors import ConfigurationError, PlanMismatchError
from monai_basisprune.report import load_study
from monai_basisprune.workflow import read_deployment
from monai_basisprune.workflow.study_bundle import export_study_bundle

from ..bundle_runs import BUNDLE, CONFIGS, TINY, TINY_PRUNE, run_in_python, unchanged_process, write_overlay
from ..bundle_verification import MODES, network_of, verify_bundle

pytestmark = pytest.mark.filterwarnings(
    "ignore:parsing config_file", "ignore:Not all config files", "ignore::UserWarning"
)
NETWORK = {"network_def": TINY["network_def"]}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    torch.save(monai.bundle.ConfigParser(NETWORK).get_parsed_content("network_def").state_dict(), folder / "net.pt")
    overlay = write_overlay(folder, {**TINY_PRUNE, "pretrained": str(folder / "net.pt"), "targets": [0.5]})
    run_in_python("prune", ("train", "prune"), overlay, output_dir=str(folder / "output"))
    return folder / "output"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, study: Path) -> Path:
    target = tmp_path_factory.mktemp("exported") / "chest_pruned"
    before = contents(BUNDLE)
    export_study_bundle(BUNDLE, study, target, NETWORK)
    assert contents(BUNDLE) == before
    return target


def test_our_bundle_passes_verification_as_far_as_it_has_what_is_asked() -> None:
    assert verify_bundle(BUNDLE, "min") == ["files", "sizes", "versions", "metadata"]


@pytest.mark.parametrize("mode", MODES)
def test_the_bundle_of_a_study_passes_each_mode_of_verification(exported: Path, mode: str) -> None:
    assert len(verify_bundle(exported, mode)) == {"min": 4, "regular": 7, "full": 9}[mode]


def test_its_figures_are_those_of_the_studys_test_cases(exported: Path, study: Path) -> None:
    record = load_study(study / "study.json")
    metrics = json.loads((exported / "configs" / "metadata.json").read_text())["eval_metrics"]
    assert metrics["AUC"] == record["test"]["pruned"]["auc"]
    assert metrics["AUC_difference_low"] == record["test"]["difference"]["low"]
    assert metrics["parameter_reduction"] == record["chosen"]["parameter_reduction"]
    assert "test cases of the study" in metrics["measured_on"]
    assert f"by patient ({record['test']['pruned']['patients']} patients" in metrics["counted"]
    assert json.loads((exported / "docs" / "pruning.json").read_text()) == record


def test_its_network_is_that_of_the_study_wherever_it_is_loaded(
    exported: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = torch.load(study / "model.pt", weights_only=True)
    monkeypatch.chdir(tmp_path)
    for kind in ("train", "inference"):
        with unchanged_process():
            loaded = monai.bundle.load(exported.name, bundle_dir=exported.parent, workflow_type=kind, device="cpu")
        assert loaded.state_dict().keys() == wanted.keys()
        assert all(torch.equal(loaded.state_dict()[name], wanted[name]) for name in wanted)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        script = torch.jit.load(study / "model.ts")
        assert torch.allclose(network_of(exported)(x), script(x), atol=1e-4)
    assert read_deployment(exported / "models") == read_deployment(study)


def test_inference_predicts_with_the_bundles_own_network(exported: Path, study: Path, tmp_path: Path) -> None:
    write_synthetic_cohort(tmp_path / "images", patients=6, image_size=32)
    tables = []
    for root, configs, output in ((BUNDLE, CONFIGS, study), (exported, exported / "configs", tmp_path)):
        with unchanged_process():
            monai.bundle.run(
                config_file=str(configs / "inference.json"),
                bundle_root=str(root),
                logging_file=False,
                dataset_dir=str(tmp_path / "images"),
                output_dir=str(output),
                predictions_file=str(tmp_path / f"{len(tables)}.csv"),
            )
        tables.append([line.split(",") for line in (tmp_path / f"{len(tables)}.csv").read_text().split()])
    assert len(tables[0]) > 6
    for one, other in zip(*tables, strict=True):
        assert one[0] == other[0]
        if "SOP" not in one[0]:
            assert float(one[1]) == pytest.approx(float(other[1]), abs=1e-4)


def test_the_network_of_the_study_is_found_among_those_that_an_expression_names(study: Path, tmp_path: Path) -> None:
    # another one than the bundle's two, so it has to be named
    with pytest.raises(PlanMismatchError, match="pass the network_def of the study") as caught:
        export_study_bundle(BUNDLE, study, tmp_path / "new")
    assert "networks#resnet18" in str(caught.value)
    source = tmp_path / "source"
    for name, content in contents(BUNDLE).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    path = source / "configs" / "train.json"
    config = json.loads(path.read_text())
    config["networks"]["tiny"] = {**TINY["network_def"], "in_channels": "@image_channels"}
    config["network_def"] = "$@networks#resnet18 if @dataset_dir is None else @networks#tiny"
    path.write_text(json.dumps(config))
    export_study_bundle(source, study, tmp_path / "new")
    new = json.loads((tmp_path / "new" / "configs" / "inference.json").read_text())
    assert new["unpruned_network_def"] == TINY["network_def"]
    assert verify_bundle(tmp_path / "new", "regular")


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"lacks study\.json, model\.pt, model\.plan\.json, model\.ts"):
        export_study_bundle(BUNDLE, tmp_path, tmp_path / "new")


def test_a_record_of_another_network_is_refused(study: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("work")))
    record = json.loads((copy / "study.json").read_text())
    next(layer for layer in record["layers"] if layer["rank"] > 1)["rank"] -= 1
    (copy / "study.json").write_text(json.dumps(record))
    with pytest.raises(PlanMismatchError, match=r"study\.json is not of the network in model\.pt"):
        export_study_bundle(BUNDLE, copy, tmp_path / "new", NETWORK)
    assert not (tmp_path / "new").exists()


def test_other_weights_than_the_plans_are_refused(study: Path, tmp_path: Path) -> None:
    for name, content in contents(study).items():
        if "/" not in name:
            (tmp_path / "study").mkdir(exist_ok=True)
            (tmp_path / "study" / name).write_bytes(content)
    state: dict[str, Any] = torch.load(study / "model.pt", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "study" / "model.pt")
    with pytest.raises(mbp.PlanMismatchError, match="SHA-256"):
        export_study_bundle(BUNDLE, tmp_path / "study", tmp_path / "new", NETWORK)
    assert not (tmp_path / "new").exists()
