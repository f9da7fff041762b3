from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, load_net_with_metadata
from monai.transforms import Compose, NormalizeIntensityd, Resized, ToTensord
from sklearn.metrics import roc_auc_score
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import Budget, network_cost
from monai_basisprune.curve import CurvePoint, PruningCurve
from monai_basisprune.data import LoadRadiographd
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.errors import BasisPruneError, ConfigurationError
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.handlers import PrunedNetworkSaver, PruningHandler
from monai_basisprune.report import load_study
from monai_basisprune.structure import structure_of
from monai_basisprune.workflow import PreparedCohort, finish_study, prepare_cohort
from monai_basisprune.workflow.start import RunStart

from ..bundle_runs import contents
from ..networks import TinyClassifier, relative_error

PREPROCESSING = {"image_size": 8, "image_channels": 1, "intensity_mean": 0.449, "intensity_std": 0.226}
FILES = {
    "model.pt", "model.plan.json", "model.ts", "datalist.json", "study.json", "report.html", "curve.csv",
    "evaluations.json", "curve.svg", "curve.png",
    "roc.csv", "reliability.csv", "subgroups.csv",
}  # fmt: skip

# Made by hand: the reference ranks 13 of 16 pairs rightly, the first cut 15, the second 6.
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
SCORES = [
    [0.1, 0.3, 0.2, 0.6, 0.25, 0.5, 0.7, 0.8],
    [0.1, 0.3, 0.2, 0.6, 0.5, 0.65, 0.7, 0.8],
    [0.7, 0.3, 0.5, 0.6, 0.4, 0.45, 0.2, 0.8],
]
BY_HAND = [13 / 16, 15 / 16, 6 / 16]


class NoisyClassifier(TinyClassifier):
    """Gives another output at each call, so no export can reproduce it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.grouped(torch.relu(self.norm(self.stem(x)))))
        return self.head(self.pool(x).flatten(1)) + torch.rand(1)


class DynamicClassifier(TinyClassifier):
    """Cannot be scripted: TorchScript knows no generator expressions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(sum(self.pool(part).flatten(1) for part in (self.grouped(x), self.grouped(x))))


class BrokenClassifier(TinyClassifier):
    """Gives NaN, as weights do that have diverged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.grouped(torch.relu(self.norm(self.stem(x)))))
        return self.head(self.pool(x).flatten(1)) * float("nan")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    return prepare_cohort(None, tmp_path_factory.mktemp("study"), synthetic_patients=40, progress=False)


@pytest.fixture(scope="module")
def test_data(cohort: PreparedCohort) -> Dataset:
    steps = [
        LoadRadiographd("image"),
        Resized("image", [8, 8], mode="area"),
        NormalizeIntensityd("image", subtrahend=0.449, divisor=0.226),
        ToTensord("image", track_meta=False),
    ]
    return Dataset([Compose(steps)(item) for item in cohort.split("test")])


def pruned_run(folder: Path, make: Callable[[], nn.Module] = TinyClassifier) -> dict[str, Any]:
    """Prune a network in two rounds, with a curve that is made by hand; returns what the end of a run is given."""
    torch.manual_seed(2)
    original = make()
    original.norm.running_mean.normal_(std=0.1)
    network = mbp.decompose(original)
    importance = mbp.SingularValueImportance(network)
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network))
    budgets = [Budget(parameters=0.2), Budget(parameters=0.4)]
    pruning = PruningHandler(network, importance, budgets, optimizer, transfer_epochs=1, epochs_per_round=1)
    saver = PrunedNetworkSaver(network, folder / "networks")
    curve = PruningCurve()

    def evaluate(engine: Engine) -> None:
        scores = SCORES[engine.state.epoch - 1]
        parameters = network_cost(network, Budget(parameters=0.0))
        macs = network_cost(network, Budget(macs=0.0, input_shape=TinyClassifier.input_shape))
        compared = asdict(compare_auc(LABELS, SCORES[0], scores)) if engine.state.epoch > 1 else None
        curve.points.append(
            CurvePoint(
                epoch=engine.state.epoch,
                bases=sum(layer.rank() for _, layer in decomposed_layers(network)),
                parameters=parameters.total,
                macs=macs.total,
                parameter_reduction=parameters.reduction(parameters.total),
                mac_reduction=macs.reduction(macs.total),
                auc=asdict(auc_interval(LABELS, scores)),
                difference=compared,
                structure=structure_of(network),
            )
        )

    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, evaluate)
    saver.attach(engine)
    pruning.attach(engine)
    engine.run([0], max_epochs=3)
    return {"original": original, "curve": curve, "pruning": pruning, "saver": saver}


@pytest.fixture(scope="module")
def arguments(cohort: PreparedCohort, test_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        **pruned_run(tmp_path_factory.mktemp("networks")),
        "cohort": cohort,
        "test_data": test_data,
        "input_shape": list(TinyClassifier.input_shape),
        "preprocessing": PREPROCESSING,
        "start": RunStart(),
        "title": "A study by hand",
        "settings": {"batch_size": 16},
    }


@pytest.fixture(scope="module")
def finished(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("finished") / "new" / "output"
    return output, finish_study(**arguments, output_dir=output)


def test_everything_is_written_and_nothing_is_left_over(finished: tuple[Path, dict[str, Any]]) -> None:
    output, study = finished
    assert {path.name for path in output.iterdir()} == FILES | {"work"}
    assert load_study(output / "study.json") == json.loads(json.dumps(study))
    assert set(study["files"].values()) <= FILES
    assert study["title"] == "A study by hand"
    assert study["pruning"]["batch_size"] == 16
    assert study["pruning"]["targets"] == [0.2, 0.4]


def test_the_smallest_network_that_is_good_enough_is_chosen(finished: tuple[Path, dict[str, Any]]) -> None:
    output, study = finished
    assert [point["auc"]["auc"] for point in study["curve"]] == pytest.approx(BY_HAND)
    assert [point["target"] for point in study["curve"]] == [0.0, 0.2, 0.4]
    assert [point["epoch"] for point in study["curve"]] == [1, 2, 3]
    assert study["chosen"]["round"] == 1
    assert study["chosen"]["parameters"] == study["curve"][1]["parameters"]
    assert study["chosen"]["supported_by_interval"] is False
    assert "whose AUC on validation cases is not lower by more than 0.01" in study["chosen"]["reason"]
    assert any("chosen by its AUC alone" in warning for warning in study["warnings"])
    with open(output / "curve.csv", newline="") as file:
        assert [row["chosen"] for row in csv.DictReader(file)] == ["false", "true", "false"]


def test_the_test_is_that_of_the_file_that_is_shipped(
    finished: tuple[Path, dict[str, Any]], test_data: Dataset, arguments: dict[str, Any]
) -> None:
    output, study = finished
    images = torch.stack([item["image"] for item in test_data])
    labels = [item["label"] for item in test_data]
    with torch.no_grad():
        shipped = torch.jit.load(str(output / "model.ts"))(images)
        before = arguments["original"].eval()(images)
    for outputs, key in ((shipped, "pruned"), (before, "original")):
        probability = torch.softmax(outputs.double(), dim=1)[:, 1].numpy()
        assert study["test"][key]["auc"] == pytest.approx(roc_auc_score(labels, probability), abs=1e-9)
        roc = study["test"]["roc"][key]
        assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(study["test"][key]["auc"], abs=1e-9)
        assert study["test"][key]["patients"] == len({item["patient_id"] for item in test_data})
    change = study["test"]["pruned"]["auc"] - study["test"]["original"]["auc"]
    assert study["test"]["difference"]["difference"] == pytest.approx(change, abs=1e-9)


def test_all_files_are_of_one_network(finished: tuple[Path, dict[str, Any]], arguments: dict[str, Any]) -> None:
    output, study = finished
    script, metadata, _ = load_net_with_metadata(str(output / "model.ts"))
    assert sum(p.numel() for p in script.parameters()) == study["chosen"]["parameters"]
    assert metadata == {**PREPROCESSING, "class_names": ["negative", "positive"]}
    network = mbp.load_pruned(arguments["original"], output / "model.pt")
    ranks = {layer.name: layer.rank for layer in mbp.layer_status(network)}
    assert ranks == {layer["name"]: layer["rank"] for layer in study["layers"]}
    plan = mbp.PruningPlan.load(output / "model.plan.json")
    assert sum(len(layer.kept_bases) for layer in plan.layers.values()) == study["curve"][1]["bases"]
    x = torch.randn(4, *TinyClassifier.input_shape)
    with torch.no_grad():
        assert relative_error(script(x), network.eval()(x)) < 1e-5
        assert relative_error(mbp.recompose(network)(x), script(x)) < 1e-5
    plain = mbp.measure_complexity(mbp.recompose(network), TinyClassifier.input_shape)
    assert plain.macs == study["chosen"]["macs"]


def test_the_rest_agrees_with_where_it_comes_from(
    finished: tuple[Path, dict[str, Any]], arguments: dict[str, Any], cohort: PreparedCohort
) -> None:
    output, study = finished
    assert (output / "datalist.json").read_bytes() == cohort.datalist_file.read_bytes()
    assert json.loads((output / "evaluations.json").read_text()) == json.loads(json.dumps(arguments["curve"].to_list()))
    assert study["data"] == cohort.summary()
    assert study["network"]["parameters"] == sum(p.numel() for p in arguments["original"].parameters())
    assert study["network"]["name"] == "TinyClassifier"
    assert study["versions"]["monai_basisprune"] == mbp.__version__
    assert study["versions"]["torch"] == torch.__version__
    assert study["peak_memory_bytes"] is None or study["peak_memory_bytes"] > 10_000_000


def test_the_audit_reaches_the_study_and_its_images_only_the_page(finished: tuple[Path, dict[str, Any]]) -> None:
    output, study = finished
    audit = study["audit"]
    assert {group["attribute"] for group in audit["subgroups"]} == {
        "sex", "age band", "scanner manufacturer", "view position",
    }  # fmt: skip
    assert all(group["patients"] >= 5 for group in audit["subgroups"])
    assert [case["reason"] for case in audit["changed_cases"]] == [None] * 6
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 * 6
    assert all(case["case_id"] in page for case in audit["changed_cases"])
    assert "base64" not in (output / "study.json").read_text(encoding="utf-8")
    assert study["test"]["calibration"]["pruned"]["points"]["cases"]
    assert study["test"]["operating_point"]["specificity"] == 0.9
    assert [point["adjusted_p_value"] is None for point in study["curve"]] == [True, False, False]


def test_without_audit_cases_no_image_is_in_the_page(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="audit_cases must be the number of test cases"):
        finish_study(**arguments, output_dir=tmp_path, audit_cases=-1)
    assert not list(tmp_path.iterdir())
    study = finish_study(**arguments, output_dir=tmp_path, audit_cases=0)
    assert study["audit"]["changed_cases"] == []
    assert "no image of a patient is shown" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_table_is_printed(arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = finish_study(**arguments, output_dir=tmp_path)
    printed = capsys.readouterr().out
    for words in ("A study by hand", "parameters", "AUC, validation", "AUC, test", "model.ts", "report.html"):
        assert words in printed
    assert f"{study['test']['pruned']['auc']:.3f} (" in printed
    assert str(tmp_path) not in printed


@pytest.mark.parametrize(("changes", "round_"), [({"margin": 0.6}, 2), ({"selection": "interval"}, 0)])
def test_margin_and_selection_decide(
    changes: dict[str, Any], round_: int, arguments: dict[str, Any], tmp_path: Path
) -> None:
    study = finish_study(**{**arguments, **changes}, output_dir=tmp_path)
    assert study["chosen"]["round"] == round_
    assert (
        sum(p.numel() for p in torch.jit.load(str(tmp_path / "model.ts")).parameters())
        == (study["curve"][round_]["parameters"])
    )
    if round_ == 0:
        assert study["chosen"]["reason"].startswith("No pruned network has a validation interval within 0.01")
        assert study["test"]["difference"]["difference"] == pytest.approx(0.0, abs=0.2)


def test_rounds_that_changed_nothing_are_noted(arguments: dict[str, Any], tmp_path: Path) -> None:
    curve = PruningCurve(arguments["curve"].points[:2])
    study = finish_study(**{**arguments, "curve": curve}, output_dir=tmp_path)
    assert "1 of 2 rounds changed nothing or were not reached." in study["warnings"]
    assert len(study["curve"]) == 2


# --- a failure leaves an earlier result as it was


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    for name in FILES:
        (tmp_path / name).write_text(f"an earlier {name}")
    return tmp_path, contents(tmp_path)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"title": ""}, ConfigurationError, r"\$\.title"),
        ({"settings": {"x": {1, 2}}}, ConfigurationError, r"\$\.pruning\.x"),
        ({"selection": "points"}, ConfigurationError, "selection must be one of"),
        ({"curve": PruningCurve()}, ConfigurationError, "The pruning curve is empty"),
        ({"preprocessing": {"x": object()}}, mbp.ExportError, "metadata must hold JSON types only: .* not JSON"),
    ],
)
def test_a_study_that_cannot_be_written(
    changes: dict[str, Any],
    kind: type[Exception],
    words: str,
    arguments: dict[str, Any],
    earlier: tuple[Path, dict[str, bytes]],
) -> None:
    output, before = earlier
    with pytest.raises(kind, match=words):
        finish_study(**{**arguments, **changes}, output_dir=output)
    assert contents(output) == before


def test_a_datalist_that_is_gone(
    arguments: dict[str, Any], earlier: tuple[Path, dict[str, bytes]], cohort: PreparedCohort
) -> None:
    output, before = earlier
    gone = PreparedCohort(cohort.dataset_dir, output / "work" / "nowhere.json", cohort.datalist, True)
    with pytest.raises(FileNotFoundError):
        finish_study(**{**arguments, "cohort": gone}, output_dir=output)
    assert contents(output) == before


def test_a_network_of_a_ratio_that_is_damaged(
    arguments: dict[str, Any], earlier: tuple[Path, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    output, before = earlier
    run = pruned_run(tmp_path_factory.mktemp("damaged"))
    path = run["saver"].path(run["curve"].rounds()[1].structure)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BasisPruneError, match="was changed or damaged"):
        finish_study(**{**arguments, **run}, output_dir=output)
    assert contents(output) == before


@pytest.mark.parametrize(
    ("classifier", "words"),
    [
        (NoisyClassifier, r"does not reproduce the network: relative difference .* Nothing was"),
        (BrokenClassifier, "The network gives NaN or infinite outputs, which no export can be compared with"),
    ],
    ids=["other outputs", "no numbers"],
)
def test_an_export_that_does_not_reproduce_the_network(
    classifier: type[nn.Module],
    words: str,
    arguments: dict[str, Any],
    earlier: tuple[Path, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    output, before = earlier
    run = pruned_run(tmp_path_factory.mktemp("run"), classifier)
    with pytest.raises(BasisPruneError, match=words):
        finish_study(**{**arguments, **run}, output_dir=output)
    assert contents(output) == before


def test_test_cases_of_one_class(
    arguments: dict[str, Any], earlier: tuple[Path, dict[str, bytes]], test_data: Dataset
) -> None:
    output, before = earlier
    negative = Dataset([item for item in test_data if item["label"] == 0])
    with pytest.raises(ValueError, match="class"):
        finish_study(**{**arguments, "test_data": negative}, output_dir=output)
    assert contents(output) == before


def test_a_file_that_cannot_be_replaced(arguments: dict[str, Any], earlier: tuple[Path, dict[str, bytes]]) -> None:
    output, _ = earlier
    (output / "study.json").unlink()
    (output / "study.json").mkdir()  # as a file is that another program holds open on Windows
    (output / "study.json" / "x").write_text("x")
    before = contents(output)
    with pytest.raises(OSError):
        finish_study(**arguments, output_dir=output)
    assert contents(output) == before


def test_at_no_moment_does_a_record_stand_beside_files_of_another_run(
    arguments: dict[str, Any], earlier: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, before = earlier
    move, moments = os.replace, []

    def watched(source: Any, target: Any) -> None:
        move(source, target)
        if Path(source).parent == output or Path(target).parent == output:  # a kill could come now
            now = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
            old = {name for name, content in now.items() if before.get(name) == content}
            moments.append(("study.json" in now, len(old), len(now) - len(old)))

    monkeypatch.setattr(os, "replace", watched)
    finish_study(**arguments, output_dir=output)
    assert len(moments) == 2 * len(FILES)
    assert [moment for moment in moments if moment[0]] == [(True, 0, len(FILES))]


def test_the_remark_reaches_the_study(arguments: dict[str, Any], tmp_path: Path) -> None:
    run = pruned_run(tmp_path / "run", DynamicClassifier)
    study = finish_study(**{**arguments, **run}, output_dir=tmp_path / "out")
    assert any(warning.startswith("The network cannot be scripted (") for warning in study["warnings"])


WITHOUT_US = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("monai", "monai_basisprune", "ignite"):
            raise ImportError(name + " is blocked")


sys.meta_path.insert(0, Blocked())
import torch

try:
    import monai_basisprune
except ImportError:
    x, wanted = torch.load(sys.argv[2], weights_only=True)
    found = torch.jit.load(sys.argv[1])(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # the number of threads may differ
    print("equal without", sorted({"monai", "monai_basisprune"} - set(sys.modules)))
"""


def test_the_shipped_file_needs_nothing_but_torch(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, _ = finished
    x = torch.randn(3, *TinyClassifier.input_shape)
    with torch.no_grad():
        torch.save([x, torch.jit.load(str(output / "model.ts"))(x)], tmp_path / "x.pt")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_US, str(output / "model.ts"), str(tmp_path / "x.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal without ['monai', 'monai_basisprune']"
