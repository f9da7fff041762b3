"""What the main job tells MLflow and TensorBoard, by MONAI's own handlers, read back from local stores."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from .bundle_runs import (
    CONFIGS,
    TINY_PRUNE,
    config_files,
    own_error,
    run_command,
    run_in_python,
    tiny_densenet,
    unchanged_process,
    write_cohort,
    write_overlay,
)

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")

CURVE = ("auc", "auc_low", "auc_high", "parameter_reduction")
Curves = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Tracked:
    output: Path
    images: Path
    terminal: str

    @property
    def evaluations(self) -> Curves:
        """The points of ``evaluations.json`` as curves over epochs."""
        points = json.loads((self.output / "evaluations.json").read_text())
        curves: Curves = {name: {} for name in CURVE}
        for point in points:
            interval = point["auc"]
            values = (interval["auc"], interval["low"], interval["high"], point["parameter_reduction"])
            for name, value in zip(CURVE, values, strict=True):
                if value is not None:
                    curves[name][point["epoch"]] = value
        return curves


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    folder = tmp_path_factory.mktemp("tracked")
    images = write_cohort(folder / "ZQXPHI_Doe" / "study", patients=30)
    weights = images / "ZQXPHI.pt"
    torch.save(tiny_densenet(1).state_dict(), weights)
    overlay = write_overlay(folder, TINY_PRUNE)
    arguments = ["prune", "--config_file", str(config_files(("train", "prune"), overlay)), "--tracking", "mlflow"]
    arguments += ["--tensorboard", "true", "--save_execute_config", "True", "--output_dir", str(folder / "output")]
    arguments += ["--dataset_dir", str(images), "--labels_file", str(images / "labels.csv")]
    done = run_command([*arguments, "--pretrained", str(weights)])
    assert done.returncode == 0, done.stderr[-3000:]
    return Tracked(folder / "output", images, done.stdout + done.stderr)


def store(tracked: Tracked) -> tuple[mlflow.MlflowClient, mlflow.entities.Run]:
    client = mlflow.MlflowClient(f"sqlite:///{tracked.output / 'mlruns.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def test_mlflow_holds_the_curve(tracked: Tracked) -> None:
    client, run = store(tracked)
    wanted = tracked.evaluations
    assert len(wanted["auc"]) == 3
    for name in CURVE:
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert history == pytest.approx(wanted[name], abs=1e-12)
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert len(losses) == int(run.data.params["max_epochs"]) * int(run.data.params["epoch_length"])
    with open(tracked.output / "curve.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert float(row["parameter_reduction"]) in wanted["parameter_reduction"].values()


def test_tensorboard_holds_the_curve(tracked: Tracked) -> None:
    events = event_accumulator.EventAccumulator(str(tracked.output / "tensorboard"))
    events.Reload()
    wanted = tracked.evaluations
    for name in CURVE:
        assert {e.step: e.value for e in events.Scalars(name)} == pytest.approx(wanted[name], abs=1e-6)  # float32
    assert len(events.Scalars("train_loss")) >= 3


def test_mlflow_holds_no_user_no_command_and_no_folder_of_images(tracked: Tracked) -> None:
    _, run = store(tracked)
    assert run.data.tags == {"mlflow.runName": run.info.run_name}
    assert re.fullmatch(r"run_\d{8}_\d{6}", run.info.run_name)
    assert run.info.user_id == "unknown"
    for path in (path for path in tracked.output.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for text in ("ZQXPHI", str(tracked.images)):
            assert text.encode() not in content, path
            assert text not in str(path.relative_to(tracked.output))


def test_the_configuration_is_tracked_without_the_users_folders(tracked: Tracked) -> None:
    _, run = store(tracked)
    (written,) = tracked.output.glob("config_*.json")
    (artifact,) = (tracked.output / "mlruns" / run.info.run_id / "artifacts").iterdir()
    assert artifact.read_bytes() == written.read_bytes()
    config = json.loads(written.read_text())
    assert config["dataset_dir"] == "<dataset_dir>"
    assert config["labels_file"] == "<labels_file>"
    assert config["pretrained"] == "<pretrained>"
    assert config["output_dir"] == "<output_dir>"
    assert config["targets"] == TINY_PRUNE["targets"]
    assert config["network_def"] == TINY_PRUNE["network_def"]
    assert config["cohort"]["dataset_dir"] == "@dataset_dir"
    assert str(tracked.output) not in written.read_text()


def test_no_configuration_is_written_unless_asked(tmp_path: Path) -> None:
    files = [str(CONFIGS / "train.json"), str(CONFIGS / "prune.json")]
    with unchanged_process():
        workflow = ConfigWorkflow(
            files, run_id="prune", logging_file=False, tracking="mlflow", output_dir=str(tmp_path), dataset_dir="/x"
        )
        workflow.initialize()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert workflow.parser["save_execute_config"] is None


def test_a_misspelt_key_leaves_no_configuration_with_folders(tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        run_in_python(
            "prune",
            ("train", "prune"),
            tracking="mlflow",
            save_execute_config=True,
            output_dir=str(tmp_path),
            dataset_dir="/patients/Doe",
            marign=1,
        )
    assert "- marign: nothing in this configuration uses it" in str(own_error(caught.value))
    (written,) = tmp_path.glob("config_*.json")
    assert "Doe" not in written.read_text()


@pytest.mark.parametrize(("word", "on"), [("true", True), ("True", True), ("false", False), (False, False)])
def test_tensorboard_is_written_only_if_asked(word: object, on: bool, tmp_path: Path) -> None:
    files = [str(CONFIGS / "train.json"), str(CONFIGS / "prune.json")]
    with unchanged_process():
        workflow = ConfigWorkflow(
            files,
            run_id="prune",
            logging_file=False,
            tensorboard=word,
            output_dir=str(tmp_path),
            synthetic_patients=20,
            **{"validate#handlers": workflow_handlers(files)},
        )
        handlers = workflow.parser.get_parsed_content("validate#handlers")
    for handler in handlers:
        handler.close()
    assert len(handlers) == int(on)
    assert (tmp_path / "tensorboard").is_dir() == on


def workflow_handlers(files: list[str]) -> list[object]:
    """Return what the shipped configuration says about TensorBoard, without the handlers that need a cohort."""
    handlers = json.loads(Path(files[1]).read_text())["validate#handlers"]
    return [one for one in handlers if isinstance(one, dict) and "TensorBoard" in one["_target_"]]
