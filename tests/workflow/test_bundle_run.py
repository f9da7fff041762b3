from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.utils import set_determinism
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.curve import PruningCurve
from monai_basisprune.errors import BasisPruneError, CohortError, ConfigurationError, PlanMismatchError
from monai_basisprune.evidence import auc_interval, compare_auc
from monai_basisprune.workflow.bundle_run import BundleRun, PruningOptions
from monai_basisprune.workflow.unfinished import UnfinishedRun

from ..bundle_verification import network_of
from ..networks import same_bits, snapshot
from .source_bundles import SIZE, write_data, write_source

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")
OPTIONS = PruningOptions([0.4], "parameters", 1, 1, 0.05, "point", "patient", 3, False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"), (48, 24, 24))
    rng = np.random.default_rng(0)
    for file in sorted(folder.glob("*.npy")):  # so that no network is without a fault
        np.save(file, np.load(file) + rng.normal(0, 1.5, (SIZE, SIZE)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "blobs", data)


@pytest.fixture(autouse=True)
def unseeded() -> Iterator[None]:
    yield
    set_determinism(None)


def work_of(source: Path, folder: Path) -> UnfinishedRun:
    work = UnfinishedRun(folder / "new")
    shutil.copytree(source, work.bundle)
    return work


def start(work: UnfinishedRun, data: Path, options: PruningOptions = OPTIONS, **overrides: Any) -> BundleRun:
    return BundleRun(work, {"dataset_dir": str(data), **overrides}, options)


Finished = tuple[BundleRun, PruningCurve, nn.Module]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, source: Path, data: Path) -> Finished:
    """A run to its end, its curve, and the network that it cut."""
    run = start(work_of(source, tmp_path_factory.mktemp("work")), data)
    curve, _, saver = run.prune()
    return run, curve, mbp.load_pruned(run.original, saver.path(curve.points[-1].structure)).eval()


def scores_of(network: nn.Module, data: Path, part: int) -> tuple[list[int], list[str], torch.Tensor]:
    """Return labels, patients and scores of a part of the cases."""
    cases = json.loads((data / "datalist.json").read_text())[part]
    images = torch.stack([torch.from_numpy(np.load(data / case["image"]))[None] for case in cases])
    with torch.no_grad():
        scores = network.eval()(images).diff(dim=1)[:, 0].double()
    return [case["label"] for case in cases], [case["patient"] for case in cases], scores


# --- options


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"targets": [0.5, 0.2]}, ConfigurationError, "targets must be a list of rising numbers"),
        ({"targets": []}, ConfigurationError, "targets must be a list of rising numbers"),
        ({"targets": [1.5]}, ConfigurationError, "share to remove, at least 0 and below 1, got 1.5"),
        (
            {"budget": "size"},
            ConfigurationError,
            "budget must be .* bases or threshold, got 'size'",
        ),
        ({"margin": 1.0}, ValueError, "margin must be a loss of AUC"),
        ({"selection": "best"}, ValueError, "selection must be one of"),
        ({"channels": True, "budget": "bases"}, ConfigurationError, "With channels, budget must be .*, got 'bases'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(changes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        replace(OPTIONS, **changes)
    for budget in ("parameters", "macs", "parameters and macs"):
        assert replace(OPTIONS, channels=True, budget=budget).channels


# --- the start


def test_a_run_starts_from_the_bundles_own_network_with_all_its_bases(source: Path, data: Path, tmp_path: Path) -> None:
    run = start(work_of(source, tmp_path), data)
    own = network_of(source)
    assert same_bits(snapshot(run.original), snapshot(own))
    statuses = [status for status in mbp.layer_status(run.network) if status.rank is not None]
    assert len(statuses) > 3
    assert all(status.rank == status.max_rank for status in statuses)
    x = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(run.network.eval()(x), own(x), rtol=1e-3, atol=1e-5)
    trained = {name for name, parameter in run.network.named_parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in run.trainable} == {
        id(parameter) for name, parameter in run.network.named_parameters() if name in trained
    }
    assert not any(name.endswith(("basis.weight", "scaling.weight")) for name in trained)
    assert any(name.endswith("scaling_factors") for name in trained)
    assert {"class_layers.out.weight", "class_layers.out.bias"} <= trained
    assert set(run.files) == {"configs/metadata.json", "models", "other files"} | {
        f"configs/{name}.json" for name in ("train", "inference", "evaluate")
    }


def test_what_would_fail_when_the_bundle_is_written_is_found_before_the_training(
    source: Path, data: Path, tmp_path: Path
) -> None:
    work = work_of(source, tmp_path)
    path = work.bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "network_def": {**config["network_def"], "growth_rate": 4}}))
    with pytest.raises(PlanMismatchError, match=r"configs/inference\.json has another network_def than the network"):
        start(work, data)
    with pytest.raises(PlanMismatchError, match=r"models/model\.pt does not fit the bundle's DenseNet"):
        start(work, data, **{"network_def#growth_rate": 4})
    (work.bundle / "configs" / "train.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no configs/train\.json"):
        start(work, data)


def test_data_that_give_no_auc_stop_the_run_before_the_training(source: Path, data: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(data, tmp_path / "data"))
    parts = json.loads((own / "datalist.json").read_text())
    one_class = [parts[0], [case for case in parts[1] if case["label"] == 1], parts[2]]
    (own / "datalist.json").write_text(json.dumps(one_class))
    run = start(work_of(source, tmp_path), own)
    before = snapshot(run.network)
    with pytest.raises(CohortError, match=r"^No AUC can be computed from the bundle's evaluation data: "):
        run.prune()
    (own / "datalist.json").write_text(json.dumps([parts[0], [parts[0][0], *parts[1]], parts[2]]))
    with pytest.raises(CohortError, match=r"^1 patients are in the training and in the validation data"):
        start(run.work, own).prune()
    run = start(run.work, data, **{"optimizer#params": "$@network.class_layers.parameters()"})
    with pytest.raises(ConfigurationError, match=r"does not hold all trained parameters.*let train#optimizer take n"):
        run.prune()
    assert same_bits(snapshot(run.network), before)
    assert not run.work.networks.exists() or not list(run.work.networks.glob("*.pt"))


# --- the run


def test_each_round_is_a_point_of_the_curve_and_compared_with_the_bundles_own(finished: Finished, data: Path) -> None:
    run, curve, network = finished
    assert [point.epoch for point in curve.points] == [1, 2]
    assert curve.points[0].difference is None
    point = curve.points[1]
    plain = mbp.recompose(network)
    costs = [mbp.measure_complexity(one, (1, SIZE, SIZE)) for one in (run.original, plain)]
    assert point.parameter_reduction == pytest.approx(1 - costs[1].parameters / costs[0].parameters)
    assert point.mac_reduction == pytest.approx(1 - costs[1].macs / costs[0].macs)
    assert 0.4 <= point.parameter_reduction < 0.55
    labels, patients, after = scores_of(network, data, 1)
    before = scores_of(run.original, data, 1)[2]
    assert point.difference is not None
    wanted = compare_auc(labels, before, after, patients, OPTIONS.margin)
    assert point.difference["difference"] == pytest.approx(wanted.difference, abs=1e-6)
    assert not (run.work.networks / "rehearsal.ts").exists()  # of the export that was tried first


def test_the_evidence_is_of_the_test_cases_and_says_how_good_it_is(finished: Finished, data: Path) -> None:
    run, curve, network = finished
    chosen = curve.points[-1]
    found = run.evidence(network, chosen, "A reason.")
    labels, patients, after = scores_of(network, data, 2)
    before = scores_of(run.original, data, 2)[2]
    assert found.auc["auc"] == pytest.approx(auc_interval(labels, after, patients).auc, abs=1e-6)
    assert (found.auc["cases"], found.auc["patients"]) == (24, 12)
    wanted = compare_auc(labels, before, after, patients, OPTIONS.margin)
    assert found.difference["low"] == pytest.approx(wanted.low, abs=1e-6)
    assert found.measured_on == "test cases of the bundle (configs/evaluate), on which this pruning chose nothing"
    assert (found.parameter_reduction, found.mac_reduction) == (chosen.parameter_reduction, chosen.mac_reduction)
    assert found.notes[0] == "A reason."


def test_a_loss_and_too_few_cases_are_told_apart(finished: Finished) -> None:
    run, curve, _ = finished
    chosen = curve.points[-1]
    same, turned = mbp.decompose(run.original), mbp.decompose(run.original)
    assert run.evidence(same, chosen, "A reason.").notes == ("A reason.",)
    turned.class_layers.out.weight.data.neg_()
    turned.class_layers.out.bias.data.neg_()
    worse = run.evidence(turned, chosen, "A reason.")
    loss = -worse.difference["difference"]
    assert OPTIONS.margin < loss < 0.98
    words = f"On these cases the pruned network loses {loss:.3f} AUC against the bundle's own, more than the margin"
    assert worse.notes == ("A reason.", f"{words} of 0.05: look at the figures before you use it.")
    margin = round(loss + 0.01, 3)
    run.options = replace(OPTIONS, margin=margin)
    unsure = run.evidence(turned, chosen, "A reason.")
    run.options = OPTIONS
    words = "The cases are too few to show with confidence that the pruned network is not worse by more than"
    assert unsure.notes == ("A reason.", f"{words} {margin:g} AUC.")


def test_cases_in_another_order_cannot_be_compared(finished: Finished) -> None:
    run, curve, network = finished
    before = run.before
    for part in ("labels", "patients"):
        run.before = replace(before, **{part: [*getattr(before, part)[1:], getattr(before, part)[0]]})
        with pytest.raises(BasisPruneError, match=r"come in another order each time.*do not shuffle them"):
            run.evidence(network, curve.points[-1], "A reason.")
    run.before = before
