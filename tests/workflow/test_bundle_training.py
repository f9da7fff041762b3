from __future__ import annotations

import errno
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import nn

from monai_basisprune.data.identifiers import known
from monai_basisprune.errors import CohortError, ConfigurationError, PlanMismatchError
from monai_basisprune.workflow.bundle_training import (
    BundleEvaluation,
    bundle_network,
    importable,
    load_engines,
    read_training,
    shown_problems,
    usable_predictions,
)

from ..bundle_verification import network_of
from ..networks import same_bits, snapshot
from .source_bundles import NETWORK, SIZE, write_data, write_source

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("Smith^John"), (8, 6, 4))  # as a name that must not come out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("source") / "blobs"
    return write_source(folder, data, change=lambda config: config.update(epochs=1))


@pytest.fixture(autouse=True)
def unseeded() -> Iterator[None]:
    yield
    set_determinism(None)


def training(source: Path, data: Path, **changes: Any) -> ConfigParser:
    return read_training(source, {"dataset_dir": str(data), **changes})


# --- what others raise


@pytest.mark.parametrize(
    "text",
    [
        "no file /data/Doe^Jane/a.npy",
        "no file '/data/Doe Jane/Doe 1.npy' here",
        "no files /data/Doe Jane Mary/a.npy and C:\\Doe Ann\\b.npy",
        "Doe_1.npy is damaged",
    ],
)
def test_what_others_raise_is_shown_without_names(text: str) -> None:
    def fail(error: Exception) -> None:
        with shown_problems("It failed"):
            raise RuntimeError("applying a transform") from error

    known.remember_files(["Doe_1.npy"])
    try:
        with pytest.raises(ConfigurationError, match=r"It failed \(OSError: ") as caught:
            fail(OSError(text))
    finally:
        known.forget()
    assert "Doe" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(CohortError, match=r"^ours$"):
        fail(CohortError("ours"))


def test_a_problem_of_the_system_is_explained_and_one_of_ours_is_kept_wherever_it_stands() -> None:
    def fail(error: Exception, behind: Exception, running: bool) -> None:
        with shown_problems("It failed", running):
            try:
                raise behind
            except Exception:
                raise error  # noqa: B904

    missing = FileNotFoundError(errno.ENOENT, "No such file", "/data/Doe^Jane/a")
    for behind, running, words in (
        (OSError(errno.ENOSPC, "No space left", "/data/Doe^Jane/a"), False, "It failed: The disk is full, or a quota"),
        (missing, True, "It failed: A folder or a file is gone that was there when the run started"),
        (missing, False, r"It failed \(FileNotFoundError: \[Errno 2\] No such file: <path>\)$"),  # it never was there
    ):
        with pytest.raises(ConfigurationError, match=f"^{words}") as caught:
            fail(RuntimeError("reading"), behind, running)
        assert "Doe" not in str(caught.value)
    ours = PlanMismatchError("ours, with a / in it")
    with pytest.raises(PlanMismatchError) as kept:
        fail(KeyError("theirs"), ours, False)
    assert kept.value is ours


def test_of_a_long_text_the_start_of_its_first_line_is_shown() -> None:
    for error, shown in (
        (ValueError("first\nsecond"), "It failed (ValueError: first)"),
        (ValueError(""), "It failed (ValueError: )"),
        (ValueError("x" * 5000), f"It failed (ValueError: {'x' * 300})"),
    ):
        with pytest.raises(ConfigurationError) as caught, shown_problems("It failed"):
            raise error
        assert str(caught.value) == shown
    with pytest.raises(KeyboardInterrupt), shown_problems("It failed"):
        raise KeyboardInterrupt


# --- the bundle's own code


def test_the_modules_of_a_bundle_are_those_of_its_own_folder_and_are_forgotten(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("one_more", 2)):
        (tmp_path / name / "own_parts").mkdir(parents=True)
        (tmp_path / name / "own_parts" / "__init__.py").write_text("")
        (tmp_path / name / "own_parts" / "net.py").write_text(f"VALUE = {value}\n")
    (tmp_path / "one_more" / "only_there.py").write_text("VALUE = 3\n")
    before = list(sys.path)
    found = []
    with importable(tmp_path / "one_more"):
        importlib.import_module("only_there")
        with importable(tmp_path / "one"):
            found.append(importlib.import_module("own_parts.net").VALUE)
        assert not {"own_parts", "own_parts.net"} & set(sys.modules)
        assert "only_there" in sys.modules  # its folder has the same beginning, but is another one
        found.append(importlib.import_module("own_parts.net").VALUE)
    assert found == [1, 2]
    with pytest.raises(ModuleNotFoundError), importable(tmp_path / "one"):
        importlib.import_module("own_parts.none")
    assert sys.path == before
    assert not {"own_parts", "own_parts.net", "only_there"} & set(sys.modules)


# --- the configuration


def test_the_training_configuration_takes_values_by_id_and_an_overlay(source: Path, data: Path) -> None:
    parser = read_training(
        source, {"batch_size": 4, "network_def#out_channels": 1, "dataset_dir": str(data)}, "evaluate"
    )
    assert parser["bundle_root"] == str(source)
    assert (parser["batch_size"], parser["network_def#out_channels"], parser["epochs"]) == (4, 1, 1)
    assert parser["validate#dataset#data"] == "$@in_dataset[2]"  # of the overlay
    assert training(source, data)["validate#dataset#data"] == "$@in_dataset[1]"
    assert read_training(source, {}, "of_no_bundle")["validate#dataset#data"] == "$@in_dataset[1]"


def test_overrides_of_nothing_are_named_together(source: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^These overrides cannot be used:\n") as caught:
        read_training(source, {"batchsize": 4, "bundle_root": "/tmp", "train#nothing": 1, "epochs": 3})
    lines = str(caught.value).splitlines()[1:]
    assert lines[0] == "  - batchsize: not in configs/train.json; did you mean ['batch_size']?"
    assert lines[1].startswith("  - bundle_root: not in configs/train.json")
    assert lines[2].startswith("  - train#nothing: not in configs/train.json")
    assert len(lines) == 3


def test_a_bundle_that_does_not_say_how_it_trains_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no configs/train\.json \(or \.yaml\), so it does not say how"):
        read_training(tmp_path, {})
    (tmp_path / "configs").mkdir()
    shutil.copy(source / "configs" / "train.json", tmp_path / "configs")
    (tmp_path / "configs" / "evaluate.json").write_text("{")
    read_training(tmp_path, {})
    with pytest.raises(ConfigurationError, match=r"^configs/evaluate\.json of the bundle cannot be read"):
        read_training(tmp_path, {}, "evaluate")


# --- the network


def test_the_network_has_the_weights_of_the_file_under_whatever_key(source: Path, tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = torch.load(source / "models" / "model.pt", weights_only=True)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "a.pt"
    )
    for path in (source / "models" / "model.pt", tmp_path / "a.pt"):
        network = bundle_network(read_training(source, {}), path)
        assert type(network).__name__ == "DenseNet"
        assert same_bits(snapshot(network), state)


def test_weights_load_wholly_or_not_at_all(source: Path, tmp_path: Path) -> None:
    state = torch.load(source / "models" / "model.pt", weights_only=True)
    first, last = next(iter(state)), list(state)[-1]
    del state[last]
    state |= {first: torch.zeros(3), "strange": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        PlanMismatchError, match=r"^models/a\.pt does not fit the bundle's DenseNet, so nothing"
    ) as caught:
        bundle_network(read_training(source, {}), tmp_path / "a.pt")
    lines = str(caught.value).splitlines()[1:]
    assert lines[:2] == [f"  - {last}: missing", "  - strange: unexpected"]
    assert lines[2].startswith(f"  - {first}: shape (3,), the network has (8, 1, 7, 7)")
    assert len(lines) == 3


def test_what_is_no_network_and_what_are_no_weights_is_refused(source: Path, tmp_path: Path) -> None:
    good = source / "models" / "model.pt"
    for config, words in (
        ({"network": 1}, r"training configuration has no network_def"),
        ({"network_def": {"a": 1}}, r"network_def makes dict, not a network"),
        ({"network_def": "$open('/data/Doe^Jane/x')"}, r"network_def cannot be built.*FileNotFoundError"),
        ({"network_def": {"_target_": "monai.networks.nets.Nothing"}}, r"network_def cannot be built \(\w+: "),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            bundle_network(ConfigParser(config), good)
        assert "Doe" not in str(caught.value)
    (tmp_path / "damaged.pt").write_bytes(b"damaged")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name, words in (
        ("damaged.pt", r"^models/damaged\.pt cannot be read as weights: it is damaged"),
        ("none.pt", r"^models/none\.pt cannot be read as weights: No such file or directory\.$"),
        ("list.pt", r"'list\.pt' holds no state dict"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            bundle_network(ConfigParser({"network_def": dict(NETWORK)}), tmp_path / name)


# --- the engines


def test_the_seed_is_that_of_the_run_and_handlers_are_left_out_wherever_they_stand(source: Path, data: Path) -> None:
    parser = read_training(source, {"dataset_dir": str(data)})
    handlers = parser["train#handlers"]
    parser["of_val"] = handlers[1]  # the bundle's own validation
    parser["train#handlers"] = [handlers[0], "@of_val"]
    parser["train#trainer#train_handlers"] = ["@train#handlers#0", "@of_val", handlers[2]]
    network = network_of(source)
    try:
        trainer, evaluator = load_engines(parser, network, 1, seed=7)
        assert torch.initial_seed() == 7  # the bundle sets 123
        evaluations = []
        evaluator.add_event_handler(Events.STARTED, lambda engine: evaluations.append(engine))
        trainer.run()
    finally:
        set_determinism(None)
    assert not evaluations


def test_the_epochs_stand_where_the_bundle_keeps_them_and_only_what_is_needed_is_made(source: Path, data: Path) -> None:
    network = network_of(source)
    parser = training(source, data)
    parser["lr_scheduler#step_size"] = "@epochs"
    trainer, evaluator = load_engines(parser, network, 3)
    assert trainer is not None
    assert trainer.state.max_epochs == parser["epochs"] == 3
    assert parser.get_parsed_content("lr_scheduler").step_size == 3  # the schedule follows
    assert trainer.network is evaluator.network is network
    parser = training(source, data)
    parser["train#trainer#max_epochs"] = 5
    trainer, _ = load_engines(parser, network, 2)
    assert trainer is not None
    assert (trainer.state.max_epochs, parser["epochs"]) == (2, 1)
    parser = training(source, data)
    parser["train#dataset#data"] = "$1 / 0"  # is not needed for the evaluation
    assert load_engines(parser, network, None)[0] is None


def test_the_evaluator_gives_raw_outputs_and_writes_nothing(source: Path, data: Path) -> None:
    network = network_of(source)
    before = sorted(path.as_posix() for path in source.rglob("*"))
    _, evaluator = load_engines(training(source, data), network, None)
    assert not evaluator.state.metrics
    evaluator.run()
    output = evaluator.state.output
    with torch.no_grad():
        torch.testing.assert_close(output["pred"], network(images_of(data, 1)))  # neither softmax nor classes
    assert output["label"].tolist() == [0, 1] * 3
    assert sorted(path.as_posix() for path in source.rglob("*")) == before  # it has a saver of its own


def images_of(data: Path, part: int) -> torch.Tensor:
    cases = json.loads((data / "datalist.json").read_text())[part]
    return torch.stack([torch.from_numpy(np.load(data / case["image"]))[None] for case in cases])


def test_engines_that_cannot_be_used_are_refused(source: Path, data: Path) -> None:
    network = network_of(source)
    parser = training(source, data)
    for key in ("train", "validate"):
        del parser.config[key]["trainer" if key == "train" else "evaluator"]
    with pytest.raises(ConfigurationError, match=r"configuration lacks train#trainer, validate#evaluator\.$"):
        load_engines(parser, network, 1)
    hint = r"pass --dataset_dir with the folder of its training data; pruning without data is not possible here"
    for key, value, words in (
        ("dataset_dir", "/data/Doe^Jane", rf"data and engines cannot be built; {hint} \("),
        ("validate#dataset#data", [], rf"^The bundle's data are empty; {hint}\.$"),
        ("validate#evaluator#network", dict(NETWORK), r"engines use another network than its network_def"),
    ):
        parser = training(source, data)
        parser[key] = value
        with pytest.raises(ConfigurationError, match=words) as caught:
            load_engines(parser, network, None)
        assert "Doe" not in str(caught.value)


# --- what an evaluation gives


def test_labels_of_one_column_for_each_class_are_read() -> None:
    batch = {"pred": torch.rand(3, 2), "label": torch.tensor([[1, 0], [0, 1], [0, 1]])}
    assert usable_predictions(batch)["label"].tolist() == [0, 1, 1]
    assert usable_predictions({**batch, "label": torch.tensor([[1], [0], [1]])})["label"].tolist() == [1, 0, 1]
    assert usable_predictions({**batch, "pred": torch.rand(3, 1, 1, 1)})["pred"].shape == (3, 1)
    with pytest.raises(ConfigurationError, match="no key 'label'"):
        usable_predictions({"pred": torch.rand(3, 2)})
    with pytest.raises(ConfigurationError, match="hold 3 values for each image"):
        usable_predictions({**batch, "label": torch.zeros(3, 3)})
    with pytest.raises(ConfigurationError, match=r"gives 3 outputs for each image; only networks with two classes"):
        usable_predictions({**batch, "pred": torch.rand(3, 3)})
    kept = usable_predictions({**batch, "image": "x"})
    assert kept["image"] == "x"
    assert kept["pred"] is not batch["pred"]
    assert batch["label"].shape == (3, 2)  # the batch itself is left as it is


class Rounding(nn.Module):
    """Gives classes, not scores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1).mean(dim=1, keepdim=True) > 0).float()


class Failing(nn.Module):
    """Cannot process anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for /data/Doe^Jane/a.npy")


def test_networks_are_evaluated_one_after_another_on_the_same_cases(source: Path, data: Path) -> None:
    first = network_of(source)
    _, evaluator = load_engines(training(source, data), first, None)
    evaluation = BundleEvaluation(evaluator, "patient")
    torch.manual_seed(3)
    second = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 1))
    cases = json.loads((data / "datalist.json").read_text())[1]
    for network in (first, second, first):
        found = evaluation.run(network)
        with torch.no_grad():
            wanted = network.eval()(images_of(data, 1))
        np.testing.assert_allclose(found.outputs, wanted.numpy(), rtol=1e-4, atol=1e-6)
        assert found.labels == [case["label"] for case in cases]
        assert found.patients == [case["patient"] for case in cases]
        assert evaluator.network is first  # the trainer's validation goes on with its own
    with pytest.raises(
        ConfigurationError, match=r"gives nothing but 0 and 1, classes instead of scores.*logits or prob"
    ):
        evaluation.run(Rounding())
    with pytest.raises(
        ConfigurationError, match=r"^The bundle's network cannot be evaluated on its data \(Runt"
    ) as caught:
        evaluation.run(Failing())
    assert "Doe" not in str(caught.value)
    assert evaluator.network is first
