from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.errors import BasisPruneError, CohortError, ConfigurationError, PlanMismatchError
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.workflow.bundle import PrunedBundle
from monai_basisprune.workflow.bundle_run import BundleRun
from monai_basisprune.workflow.existing_bundle import prune_bundle

from ..bundle_verification import MODES, network_of, verify_bundle
from .source_bundles import SIZE, evaluate_config, write_data, write_source

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")
QUICK: dict[str, Any] = {"targets": [0.4, 0.6], "transfer_epochs": 2, "epochs_per_round": 1, "margin": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("Smith^John"))  # as a name that must not come out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "blobs", data)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prune(source: Path, output: Path, data: Path, **changes: Any) -> PrunedBundle:
    overrides = {"dataset_dir": str(data), **changes.pop("overrides", {})}
    return prune_bundle(source, output, overrides, **{**QUICK, **changes})


def run_command(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mbp.__file__).parents[1])}
    words = [sys.executable, "-m", "monai_basisprune.cli", *arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, source: Path, data: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The command, as a user gives it, in a process of its own."""
    folder = tmp_path_factory.mktemp("finished")
    before = contents(source)
    options = ["--targets", "0.4", "0.6", "--transfer_epochs", "2", "--epochs_per_round", "1", "--margin", "0.1"]
    options += ["--patient_key", "patient", "--dataset_dir", str(data), "--train#dataloader#batch_size=12"]
    done = run_command(["prune", str(source), str(folder / "new"), *options], folder)
    assert done.returncode == 0, done.stderr
    assert contents(source) == before  # the bundle's own savers would have written into it
    return folder / "new", done


@pytest.mark.parametrize("mode", MODES)
def test_the_new_bundle_passes_each_mode_of_verification(finished, mode: str) -> None:
    assert len(verify_bundle(finished[0], mode)) == {"min": 4, "regular": 7, "full": 9}[mode]


def test_the_figures_are_those_of_the_network_in_the_bundle(finished, source: Path, data: Path) -> None:
    bundle, done = finished
    metrics = json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]
    cases = json.loads((data / "datalist.json").read_text())[2]
    images = torch.stack([torch.from_numpy(np.load(data / case["image"]))[None] for case in cases])
    labels, patients = [case["label"] for case in cases], [case["patient"] for case in cases]
    with torch.no_grad():
        before, after = (network_of(folder)(images).diff(dim=1)[:, 0].double() for folder in (source, bundle))
    auc = auc_interval(labels, after, patients)
    difference = compare_auc(labels, before, after, patients, 0.1)
    assert metrics["AUC"] == pytest.approx(auc.auc, abs=1e-6)
    assert metrics["AUC_low"] == pytest.approx(auc.low, abs=1e-6)
    assert metrics["AUC_unpruned"] == pytest.approx(difference.reference_auc, abs=1e-6)
    assert metrics["AUC_difference"] == pytest.approx(difference.difference, abs=1e-6)
    assert (metrics["cases"], metrics["patients"]) == (48, 24)
    assert "test cases of the bundle (configs/evaluate)" in metrics["measured_on"]
    sizes = [mbp.measure_complexity(network, (1, SIZE, SIZE)) for network in (network_of(source), plain(bundle))]
    assert metrics["parameter_reduction"] == pytest.approx(1 - sizes[1].parameters / sizes[0].parameters)
    assert metrics["mac_reduction"] == pytest.approx(1 - sizes[1].macs / sizes[0].macs)
    assert metrics["parameter_reduction"] >= 0.4
    assert f"{100 * metrics['parameter_reduction']:.1f} % of the parameters" in done.stdout
    assert "by patient (24 patients, 48 images)" in done.stdout


def plain(bundle: Path) -> torch.nn.Module:
    return mbp.recompose(network_of(bundle))


def test_all_networks_are_compared_with_the_bundles_own(finished, source: Path, data: Path) -> None:
    # not with what the training before the first cut made of it, which may be worse
    cases = json.loads((data / "datalist.json").read_text())[1]
    images = torch.stack([torch.from_numpy(np.load(data / case["image"]))[None] for case in cases])
    with torch.no_grad():
        scores = network_of(source)(images).diff(dim=1)[:, 0].double()
    own = auc_interval([case["label"] for case in cases], scores).auc
    record = json.loads((finished[0] / "docs" / "pruning.json").read_text())
    assert record["curve"][0]["difference"] is None
    for point in record["curve"][1:]:
        assert point["difference"]["reference_auc"] == pytest.approx(own, abs=1e-6)
        assert point["difference"]["difference"] == pytest.approx(point["auc"]["auc"] - own, abs=1e-6)


def test_the_test_cases_choose_nothing(finished, source: Path, data: Path, tmp_path: Path) -> None:
    # with all test labels turned round, the same network is chosen, and only its figures turn round
    turned = Path(shutil.copytree(data, tmp_path / "turned"))
    parts = json.loads((turned / "datalist.json").read_text())
    parts[2] = [{**case, "label": 1 - case["label"]} for case in parts[2]]
    (turned / "datalist.json").write_text(json.dumps(parts))
    results = [prune(source, tmp_path / folder.name / "new", folder) for folder in (data, turned)]
    first, second = (torch.load(tmp_path / folder.name / "new" / "models" / "model.pt") for folder in (data, turned))
    assert all(torch.equal(first[name], second[name]) for name in first)
    aucs = [result.evidence.auc["auc"] for result in results]
    assert aucs[0] == pytest.approx(1 - aucs[1])
    assert aucs[0] > 0.7
    assert all("on which this pruning chose nothing" in result.evidence.measured_on for result in results)


def test_it_records_how_the_network_was_made(finished) -> None:
    record = json.loads((finished[0] / "docs" / "pruning.json").read_text())
    assert record["settings"]["targets"] == [0.4, 0.6]
    assert [point["epoch"] for point in record["curve"]] == [2, 3, 4]
    assert record["chosen"] in record["curve"]
    assert record["evidence"]["notes"][0].startswith("The smallest network")


def test_nothing_names_a_patient_or_a_folder(finished, data: Path) -> None:
    bundle, done = finished
    texts = [done.stdout, done.stderr]
    texts += [(bundle / name).read_text() for name in contents(bundle) if not name.endswith((".pt", ".ts"))]
    for text in texts:
        for name in ("Smith", "patient_0", str(bundle.parent), "case_0"):
            assert name not in text


def test_a_bundle_without_test_cases_says_where_the_figures_come_from(source: Path, data: Path, tmp_path: Path) -> None:
    copy = changed(source, tmp_path / "source", lambda config: None)
    (copy / "configs" / "evaluate.json").unlink()
    result = prune(copy, tmp_path / "new", data)
    text = result.summary()
    assert "measured on the validation cases of the bundle, on which the network was also chosen" in text
    assert "by image (48 images), because no patients are named" in text
    assert "no test cases of its own" in text
    assert "could not be checked that none is in both" in text
    assert result.evidence.auc["patients"] is None
    readme = (tmp_path / "new" / "docs" / "README.md").read_text()
    assert "by image (48 images), because no patients are named" in readme
    assert "no test cases of its own" in readme


def test_test_cases_that_are_those_of_validation_are_no_test(source: Path, data: Path, tmp_path: Path) -> None:
    copy = changed(source, tmp_path / "source", lambda config: None)
    content = {**evaluate_config(), "validate#dataset#data": "$@in_dataset[1]"}
    (copy / "configs" / "evaluate.json").write_text(json.dumps(content))
    text = prune(copy, tmp_path / "new", data, patient_key="patient").summary()
    assert "measured on the validation cases" in text
    assert "were not used as test cases: in part or wholly, they are those of training or validation" in text


def test_why_test_cases_cannot_be_read_goes_into_no_file(source: Path, data: Path, tmp_path: Path) -> None:
    copy = changed(source, tmp_path / "source", lambda config: None)
    # as a table of labels does that lacks a patient
    content = {**evaluate_config(), "validate#dataset#data": "${}['Doe^Jane']"}
    (copy / "configs" / "evaluate.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="were not used as test cases: they could not be evaluated. .*KeyError"):
        text = prune(copy, tmp_path / "new", data, targets=[0.4]).summary()
    assert "measured on the validation cases" in text
    assert "were not used as test cases: they could not be evaluated." in text
    for name, written in {"summary": text.encode(), **contents(tmp_path / "new")}.items():
        assert b"Doe" not in written or name == "configs/evaluate.json", name


def test_weights_under_a_key_and_configurations_in_yaml_are_read(data: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", data, in_yaml=True, nested=True)
    prune(source, tmp_path / "new", data)
    verify_bundle(tmp_path / "new", "full")
    assert {path.suffix for path in (tmp_path / "new" / "configs").iterdir()} == {".yaml", ".json"}


NAME = "scripts.small_net.SmallNet"


def test_a_network_of_the_bundles_own_with_one_output_is_pruned(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = shutil.copytree(data, tmp_path / "images")
    parts = json.loads((images / "datalist.json").read_text())
    parts = [[{**case, "label": [float(case["label"])]} for case in part] for part in parts]
    (images / "datalist.json").write_text(json.dumps(parts))
    source = tmp_path / "source"
    (source / "scripts").mkdir(parents=True)
    (source / "scripts" / "__init__.py").write_text("")
    (source / "scripts" / "small_net.py").write_text(
        "from monai.networks.nets import ResNet\n\n\n"
        "class SmallNet(ResNet):\n"
        "    def __init__(self):\n"
        "        super().__init__('basic', [1] * 4, [8, 12, 16, 24], 2, 1, num_classes=1)\n"
    )

    def change(config: dict[str, Any]) -> None:
        config["network_def"] = {"_target_": NAME}
        config["loss"] = {"_target_": "torch.nn.BCEWithLogitsLoss"}
        config["train"]["postprocessing"] = None
        config["train"]["key_metric"] = None

    with monkeypatch.context() as context:
        context.syspath_prepend(source)
        write_source(source, images, change=change)
    for name in ("scripts", "scripts.small_net"):
        sys.modules.pop(name, None)
    words = r"configs/inference\.json has another network_def than the network that is pruned"
    refuse(PlanMismatchError, words, source, tmp_path / "new", images)
    path = source / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "network_def": {"_target_": NAME}}))
    result = prune(source, tmp_path / "new", images, targets=[0.3], patient_key="patient")
    assert result.evidence.parameter_reduction >= 0.3
    assert result.evidence.auc["auc"] > 0.7
    assert (tmp_path / "new" / "scripts" / "small_net.py").is_file()
    with monkeypatch.context() as context:
        context.syspath_prepend(tmp_path / "new")
        network = network_of(tmp_path / "new")
    for name in ("scripts", "scripts.small_net"):
        sys.modules.pop(name, None)
    x = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(network(x), torch.jit.load(tmp_path / "new" / "models" / "model.ts")(x), atol=1e-4)


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(source, target)
    path = target / "configs" / "train.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return target


def refuse(error: type[BasisPruneError], words: str, source: Path, output: Path, data: Path, **changes: Any) -> str:
    with pytest.raises(error, match=words) as caught:
        prune(source, output, data, **changes)
    assert not output.exists()
    assert not output.with_name(f"{output.name}.unfinished").exists()
    assert str(data) not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_no_bundle_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    refuse(ConfigurationError, "BUNDLE is not a folder", tmp_path / "none", tmp_path / "new", data)
    (tmp_path / "empty").mkdir()
    text = refuse(ConfigurationError, "it lacks:", tmp_path / "empty", tmp_path / "new", data)
    assert all(name in text for name in ("configs/train.json", "models/model.pt", "configs/metadata.json"))


def test_options_are_checked_before_anything_is_read(tmp_path: Path, data: Path) -> None:
    for words, changes in (
        ("targets must be a list of rising numbers", {"targets": [0.5, 0.2]}),
        ("selection must be one of", {"selection": "best"}),
        ("margin must be a loss of AUC", {"margin": 1.0}),
    ):
        refuse(ConfigurationError, words, tmp_path / "none", tmp_path / "new", data, **changes)


def test_a_misspelt_override_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    overrides = {"batchsize": 4, "bundle_root": "/tmp"}
    text = refuse(ConfigurationError, "cannot be used", source, tmp_path / "new", data, overrides=overrides)
    assert "batchsize: not in configs/train.json; did you mean ['batch_size']?" in text
    assert "bundle_root" in text


def test_weights_that_do_not_fit_are_refused_with_all_differences(source: Path, data: Path, tmp_path: Path) -> None:
    copy = changed(source, tmp_path / "source", lambda config: config["network_def"].update(out_channels=3))
    text = refuse(PlanMismatchError, "nothing was loaded", copy, tmp_path / "new", data)
    assert "class_layers.out.weight: shape (2, " in text
    assert "class_layers.out.bias: shape (2,)" in text
    (copy / "models" / "model.pt").write_bytes(b"damaged")
    refuse(ConfigurationError, r"models/model\.pt cannot be read as weights", copy, tmp_path / "new", data)


def test_a_network_with_other_than_two_classes_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    copy = changed(source, tmp_path / "source", lambda config: config["network_def"].update(out_channels=3))
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    for name in ("class_layers.out.weight", "class_layers.out.bias"):
        state[name] = torch.cat([state[name], state[name][:1]])
    torch.save(state, copy / "models" / "model.pt")
    (copy / "configs" / "inference.json").unlink()
    refuse(ConfigurationError, "gives 3 outputs for each image; only networks with two", copy, tmp_path / "new", data)


def test_one_image_written_in_two_ways_is_one(source: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", (16, 8, 8))
    parts = json.loads((data / "datalist.json").read_text())
    parts[1].append({**parts[0][0], "image": f"../data/./{parts[0][0]['image']}"})
    (data / "datalist.json").write_text(json.dumps(parts))
    refuse(CohortError, "1 images are in the training and in the validation", source, tmp_path / "new", data)


def test_what_would_fail_at_the_end_is_refused_at_the_start(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BundleRun, "__init__", lambda *arguments: pytest.fail("it went on"))
    copy = changed(source, tmp_path / "source", lambda config: None)
    (copy / "data").symlink_to(tmp_path)
    refuse(ConfigurationError, "links to other folders.* in data: put the folders", copy, tmp_path / "new", data)
    (copy / "data").unlink()
    path = copy / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "first"}))
    refuse(ConfigurationError, "must start with two numbers", copy, tmp_path / "new", data)


def test_missing_training_data_are_refused_in_words(source: Path, data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "Doe^Jane"
    text = refuse(ConfigurationError, "pass --dataset_dir with the folder", source, tmp_path / "new", secret)
    assert "Doe" not in text
    assert "without data is not possible" in text
    empty = write_data(tmp_path / "few", (0, 4, 4))
    refuse(ConfigurationError, "pass --dataset_dir with the folder", source, tmp_path / "new", empty)


def test_an_image_that_cannot_be_read_is_not_named(source: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "Doe^Jane", (16, 8, 8))
    (data / "case_003.npy").write_bytes(b"damaged")
    text = refuse(ConfigurationError, "The bundle's training data cannot be read", source, tmp_path / "new", data)
    assert "Doe" not in text


def test_cases_in_training_and_validation_are_refused(source: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", (16, 8, 8))
    parts = json.loads((data / "datalist.json").read_text())
    parts[1].append({**parts[0][0]})
    (data / "datalist.json").write_text(json.dumps(parts))
    refuse(CohortError, "1 images are in the training and in the validation", source, tmp_path / "new", data)
    parts[1][-1]["image"] = "case_020.npy"
    (data / "datalist.json").write_text(json.dumps(parts))
    words = "1 patients are in the training and in the validation"
    refuse(CohortError, words, source, tmp_path / "new", data, patient_key="patient")


def test_one_class_gives_no_auc(source: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", (16, 8, 8))
    parts = json.loads((data / "datalist.json").read_text())
    parts[1] = [case for case in parts[1] if case["label"] == 1]
    (data / "datalist.json").write_text(json.dumps(parts))
    text = refuse(BasisPruneError, "class", source, tmp_path / "new", data)
    assert "Traceback" not in text


def test_an_unknown_patient_key_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    text = refuse(BasisPruneError, "no key 'person'", source, tmp_path / "new", data, patient_key="person")
    assert "patient" in text


def test_classes_instead_of_scores_are_refused(source: Path, data: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["validate"]["inferer"] = {"_target_": "scripts.hard.HardInferer"}

    copy = changed(source, tmp_path / "source", change)
    (copy / "scripts").mkdir()
    (copy / "scripts" / "__init__.py").write_text("")
    (copy / "scripts" / "hard.py").write_text(
        "from monai.inferers import SimpleInferer\n\n\nclass HardInferer(SimpleInferer):\n"
        "    def __call__(self, inputs, network, *args, **kwargs):\n"
        "        outputs = super().__call__(inputs, network, *args, **kwargs)\n"
        "        return (outputs == outputs.max(dim=1, keepdim=True).values).float()\n"
    )
    refuse(ConfigurationError, "nothing but 0 and 1, classes instead of scores", copy, tmp_path / "new", data)
    assert "scripts.hard" not in sys.modules
    assert not any(".unfinished" in folder for folder in sys.path)


def test_no_bundle_is_written_where_no_pruned_network_is_good_enough(source: Path, data: Path, tmp_path: Path) -> None:
    # a cut that training does not heal, and an interval that 48 cases cannot give
    changes = {"selection": "interval", "margin": 0.0, "targets": [0.8], "overrides": {"learning_rate": 1e-6}}
    text = refuse(BasisPruneError, "No bundle was written", source, tmp_path / "new", data, **changes)
    assert "--targets" in text


def test_an_optimizer_of_other_parameters_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    copy = changed(
        source,
        tmp_path / "source",
        lambda config: config["optimizer"].update(params="$@network.class_layers.parameters()"),
    )
    refuse(ConfigurationError, "optimizer does not hold all trained parameters", copy, tmp_path / "new", data)
