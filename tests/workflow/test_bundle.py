from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

import monai_basisprune as mbp
from monai_basisprune.errors import BasisPruneError, ConfigurationError
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.workflow.bundle import BundleEvidence, PrunedBundle, write_pruned_bundle

from ..bundle_verification import MODES, SCHEMA, BundleVerificationError, network_of, verify_bundle
from .source_bundles import NETWORK, SIZE, metadata, write_data, write_source

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")
LABELS = [0, 1] * 20


def tiny_evidence(patients: bool = False, **changes: Any) -> BundleEvidence:
    scores = [label + 0.9 * ((7 * i) % 5 - 2) / 2 for i, label in enumerate(LABELS)]
    named = [f"p{i // 2}" for i in range(len(LABELS))] if patients else None
    arguments: dict[str, Any] = {
        "measured_on": "test cases",
        "auc": auc_interval(LABELS, scores, named).to_dict(),
        "difference": compare_auc(LABELS, LABELS, scores, named).to_dict(),
        "parameter_reduction": 0.5,
        "mac_reduction": 0.25,
        "notes": ("A note.",),
    }
    return BundleEvidence(**{**arguments, **changes})


def pruned(source: Path) -> torch.nn.Module:
    network = mbp.decompose(network_of(source))
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(parameters=0.5))
    return network.eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def command(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mbp.__file__).parents[1])}
    words = [sys.executable, "-m", "monai.bundle", *arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "blobs", data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, source: Path) -> tuple[Path, PrunedBundle, torch.nn.Module]:
    network = pruned(source)
    target = tmp_path_factory.mktemp("written") / "blobs_pruned"
    before = contents(source)
    result = write_pruned_bundle(source, target, network, tiny_evidence(), (1, SIZE, SIZE), {"a": 1})
    assert contents(source) == before
    return target, result, network


@pytest.mark.parametrize("mode", MODES)
def test_a_pruned_bundle_passes_each_mode_of_verification(written, data: Path, mode: str) -> None:
    made = verify_bundle(written[0], mode, data)
    assert made[:4] == ["files", "sizes", "versions", "metadata"]
    assert len(made) == {"min": 4, "regular": 7, "full": 9}[mode]


def test_the_source_passes_and_verification_finds_what_is_wrong(source: Path, written, tmp_path: Path) -> None:
    assert "properties" in verify_bundle(source, "full")
    bundle = tmp_path / "bundle"
    for name, content in contents(written[0]).items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    model = bundle / "models" / "model.pt"
    sound = model.read_bytes()
    model.write_bytes((source / "models" / "model.pt").read_bytes())
    with pytest.raises(BundleVerificationError, match="does not fit network_def of configs/train"):
        verify_bundle(bundle, "regular")
    model.write_bytes(sound)
    network = mbp.build_pruned(NETWORK, bundle / "models" / "model.plan.json").eval()
    torch.jit.script(network).save(bundle / "models" / "model.ts")
    with pytest.raises(BundleVerificationError, match=r"models/model\.ts gives other outputs"):
        verify_bundle(bundle, "full")
    path = bundle / "configs" / "train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "device"}))
    with pytest.raises(BundleVerificationError, match=r"configs/train lacks the properties \['device'\]"):
        verify_bundle(bundle, "regular")
    path = bundle / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": "9.9.9"}))
    with pytest.raises(BundleVerificationError, match="not the changelog's newest"):
        verify_bundle(bundle, "min")
    (bundle / "LICENSE").unlink()
    with pytest.raises(BundleVerificationError, match=r"missing: \['LICENSE'\]"):
        verify_bundle(bundle, "min")


def test_load_gives_the_pruned_network_from_any_folder(written, tmp_path: Path, monkeypatch) -> None:
    bundle, _, network = written
    monkeypatch.chdir(tmp_path)  # the bundle_root of its configurations is "."
    x = torch.rand(3, 1, SIZE, SIZE)
    with torch.no_grad():
        wanted = network(x)
        for kind in ("train", "inference"):
            torch.manual_seed(1)
            loaded = monai.bundle.load(bundle.name, bundle_dir=bundle.parent, workflow_type=kind, device="cpu").eval()
            assert torch.equal(loaded(x), wanted)
        script = monai.bundle.load(bundle.name, bundle_dir=bundle.parent, load_ts_module=True, device="cpu")[0]
        assert torch.allclose(script(x), wanted, atol=1e-4)


def test_load_into_the_unpruned_network_would_be_random_in_silence(source: Path, written, tmp_path: Path) -> None:
    # why configurations and weights belong together; if MONAI refuses it one day, the sentence in the README can go
    bundle, _, network = written
    target = tmp_path / "mixed"
    (target / "models").mkdir(parents=True)
    (target / "configs").mkdir()
    (target / "models" / "model.pt").write_bytes((bundle / "models" / "model.pt").read_bytes())
    (target / "configs" / "train.json").write_bytes((source / "configs" / "train.json").read_bytes())
    x = torch.rand(3, 1, SIZE, SIZE)
    loaded = monai.bundle.load("mixed", bundle_dir=tmp_path, workflow_type="train", device="cpu").eval()
    with torch.no_grad():
        assert not torch.allclose(loaded(x), network(x), atol=1e-2)


@pytest.mark.slow  # each command is a process of its own
def test_the_commands_of_monai_work_on_it(written, tmp_path: Path) -> None:
    bundle, _, network = written
    meta, config = str(bundle / "configs" / "metadata.json"), str(bundle / "configs" / "inference.json")
    common = ["--meta_file", meta, "--config_file", config]
    weights = ["--ckpt_file", str(bundle / "models" / "model.pt")]
    steps = [["verify_net_in_out", "network_def", *common, "--device", "cpu"]]
    steps += [["ckpt_export", "network_def", "--filepath", str(tmp_path / "net.ts"), *weights, *common]]
    for step in steps:
        done = command(step, tmp_path)
        assert done.returncode == 0, done.stderr
    x = torch.rand(3, 1, SIZE, SIZE)
    with torch.no_grad():
        wanted = network(x)
        assert torch.allclose(torch.jit.load(tmp_path / "net.ts")(x), wanted, atol=1e-5)


def test_monai_exports_it_to_onnx(written, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    bundle, _, network = written
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(tmp_path / "net.onnx"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        input_shape=[1, 1, SIZE, SIZE],
    )
    x = torch.rand(1, 1, SIZE, SIZE)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-3, atol=1e-5)


def test_inference_runs_by_the_bundles_own_configuration(written, data: Path, tmp_path: Path) -> None:
    bundle, _, network = written
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"], parser["dataset_dir"] = str(bundle), str(data)
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    state = network.state_dict()
    loaded = evaluator.network.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)


def test_metadata_and_readme_say_what_was_done(written, source: Path) -> None:
    bundle, result, _ = written
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert result.version == content["version"] == "0.4.0"
    assert list(content["changelog"]) == ["0.4.0", "0.3.1", "0.3.0"]
    assert content["changelog"]["0.4.0"].startswith("Pruned by monai_basisprune. 50.0 % of the parameters")
    metrics = content["eval_metrics"]
    evidence = tiny_evidence()
    assert metrics["AUC"] == evidence.auc["auc"]
    assert metrics["AUC_low"] < metrics["AUC"] < metrics["AUC_high"]
    assert metrics["AUC_difference"] == evidence.difference["difference"]
    assert (metrics["parameter_reduction"], metrics["mac_reduction"]) == (0.5, 0.25)
    assert metrics["before_pruning"] == {"accuracy": 0.9}
    assert "by image (40 images), because no patients are named" in metrics["counted"]
    assert content["required_packages_version"] == {"pytorch-ignite": "0.5.5", "monai_basisprune": mbp.__version__}
    assert content["network_data_format"] == metadata()["network_data_format"]
    assert content["intended_use"] == "Tests."
    readme = (bundle / "docs" / "README.md").read_text()
    assert readme.startswith((source / "docs" / "README.md").read_text().rstrip())
    for words in ("version 0.4.0", "50.0 % of the parameters", "measured on the test cases", "- A note."):
        assert words in readme
    assert json.loads((bundle / "docs" / "pruning.json").read_text()) == {"a": 1}


def test_what_belongs_to_the_unpruned_network_is_not_carried_over(written, source: Path) -> None:
    bundle, result, _ = written
    assert result.left_out == ("large_files.yml", "models")
    assert not (bundle / "large_files.yml").exists()  # it could fetch the unpruned weights again
    assert sorted(contents(bundle)) == list(result.files)
    assert result.large_files == ()
    for name in ("LICENSE", "docs/data_license.txt", "configs/evaluate.json"):
        assert (bundle / name).read_bytes() == (source / name).read_bytes()
    assert "Not carried over: large_files.yml, models." in result.summary()
    assert str(bundle.parent) not in result.summary()


def test_patients_are_named_where_they_are_known() -> None:
    assert "by patient (20 patients, 40 images)" in tiny_evidence(patients=True).sentence()


def test_large_files_are_reported(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("monai_basisprune.workflow.bundle.MOST_BYTES", 30_000)
    result = write_pruned_bundle(source, tmp_path / "new", pruned(source), tiny_evidence(), (1, SIZE, SIZE), {})
    assert "models/model.ts" in result.large_files
    assert "Above 25 MB" in result.summary()


def test_a_folder_that_is_in_use_is_refused(source: Path, tmp_path: Path) -> None:
    network = pruned(source)
    arguments: tuple[Any, ...] = (network, tiny_evidence(), (1, SIZE, SIZE), {})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        write_pruned_bundle(source, tmp_path / "used", *arguments)
    assert contents(tmp_path) == {"used/a": b"mine"}
    with pytest.raises(ConfigurationError, match="must not lie inside the source"):
        write_pruned_bundle(source, source / "new", *arguments)
    (tmp_path / "empty").mkdir()
    write_pruned_bundle(source, tmp_path / "empty", *arguments)
    verify_bundle(tmp_path / "empty", "min")


def test_images_inside_of_a_bundle_and_links_are_not_carried_over(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    for name in ("data/Doe^Jane.npy", "labels.csv", ".git/config", "scripts/models/net.py", "own/__init__.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    (copy / "docs" / "README.md").write_bytes("# Übersicht\n".encode("latin-1"))
    (tmp_path / "shared.txt").write_text("a text")
    (copy / "docs" / "linked.txt").symlink_to(tmp_path / "shared.txt")
    (copy / "data" / "more").symlink_to(tmp_path)  # a circle, in what is not carried over
    arguments: tuple[Any, ...] = (pruned(source), tiny_evidence(), (1, SIZE, SIZE), {})
    result = write_pruned_bundle(copy, tmp_path / "new", *arguments)
    assert result.left_out == ("large_files.yml", "models", "3 other files or folders at its top")
    assert not any("Doe" in name or "labels" in name or ".git" in name for name in result.files)
    assert {"scripts/models/net.py", "own/__init__.py"} <= set(result.files)
    assert (tmp_path / "new" / "docs" / "README.md").read_bytes().startswith("# Übersicht\n".encode("latin-1"))
    assert not (tmp_path / "new" / "docs" / "linked.txt").is_symlink()
    (copy / "scripts" / "all").symlink_to(tmp_path)
    (copy / "docs" / "nothing").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="links to nothing, or what is no file, in docs, scripts: put"):
        write_pruned_bundle(copy, tmp_path / "newer", *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "new", "shared.txt"}


def test_a_pruned_bundle_is_not_pruned_again(written, tmp_path: Path) -> None:
    arguments: tuple[Any, ...] = (written[2], tiny_evidence(), (1, SIZE, SIZE), {})
    with pytest.raises(ConfigurationError, match="holds a pruned network already"):
        write_pruned_bundle(written[0], tmp_path / "new", *arguments)


def test_a_bundle_that_cannot_be_written_leaves_nothing(source: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **others: object) -> None:
        raise BasisPruneError("the exported network differs")

    monkeypatch.setattr("monai_basisprune.workflow.bundle.export_network", fail)
    with pytest.raises(BasisPruneError, match="the exported network differs"):
        write_pruned_bundle(source, tmp_path / "new", pruned(source), tiny_evidence(), (1, SIZE, SIZE), {})
    assert list(tmp_path.iterdir()) == []


def test_configurations_in_yaml_stay_yaml(data: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", data, in_yaml=True)
    network = pruned(source)
    write_pruned_bundle(source, tmp_path / "new", network, tiny_evidence(), (1, SIZE, SIZE), {})
    names = {path.name for path in (tmp_path / "new" / "configs").iterdir()}
    assert names == {"metadata.json", "train.yaml", "inference.yaml", "evaluate.yaml"}
    content = yaml.safe_load((tmp_path / "new" / "configs" / "inference.yaml").read_text())
    assert list(content)[:3] == ["imports", "bundle_root", "dataset_dir"]
    verify_bundle(tmp_path / "new", "full")


def test_a_bundle_without_a_network_or_metadata_is_refused(source: Path, tmp_path: Path) -> None:
    for name in ("configs", "docs"):
        (tmp_path / "bundle" / name).mkdir(parents=True)
    path = tmp_path / "bundle" / "configs" / "metadata.json"
    path.write_text(json.dumps(metadata()))
    arguments: tuple[Any, ...] = (pruned(source), tiny_evidence(), (1, SIZE, SIZE), {})
    with pytest.raises(ConfigurationError, match="No configuration of the bundle has a network_def"):
        write_pruned_bundle(tmp_path / "bundle", tmp_path / "new", *arguments)
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="is no JSON"):
        write_pruned_bundle(tmp_path / "bundle", tmp_path / "new", *arguments)
    path.unlink()
    with pytest.raises(ConfigurationError, match=r"There is no configs/metadata\.json"):
        write_pruned_bundle(tmp_path / "bundle", tmp_path / "new", *arguments)
    assert {p.name for p in tmp_path.iterdir()} == {"bundle"}


def test_the_schema_of_monai_is_used_where_it_is_at_hand(written, tmp_path: Path) -> None:
    if not SCHEMA.is_file():
        pytest.skip("no shared data beside the checkout")
    bundle = tmp_path / "bundle"
    for name, content in contents(written[0]).items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eval_metrics": "good"}))
    with pytest.raises(BundleVerificationError, match="do not satisfy the schema"):
        verify_bundle(bundle, "min")
