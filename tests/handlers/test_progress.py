from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

import monai_basisprune as mbp
from monai_basisprune.curve import CurvePoint
from monai_basisprune.evidence import auc_interval
from monai_basisprune.handlers import ProgressHandler, PruningCurveHandler

from ..networks import tiny_classifier


def engine_with(handler: ProgressHandler) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    return engine


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.replace("\r", "\n").rstrip("\n").splitlines()[-1]


def test_one_bar_for_all_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    handler = ProgressHandler(description="Transfer")
    engine_with(handler).run([0] * 5, max_epochs=4)
    line = last_line(capsys)
    assert line.startswith("Transfer: 100%")
    assert "20/20" in line
    assert "epoch=4/4" in line
    assert "AUC" not in line
    assert handler._bar is None


def test_the_name_of_the_engine_stands_for_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    engine_with(ProgressHandler()).run([0], max_epochs=1)
    assert last_line(capsys).startswith("Engine: 100%")


def test_a_run_that_goes_on_starts_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_with(ProgressHandler(description="Resumed"))
    engine.load_state_dict({"iteration": 6, "epoch_length": 2, "max_epochs": 5})
    engine.run([0, 0], max_epochs=5)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert any("6/10" in line for line in lines)
    assert "10/10" in lines[-1]
    assert not any(" 0/10" in line for line in lines)


def test_each_run_has_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_with(ProgressHandler(description="Evaluating"))
    for _ in range(2):
        engine.run([0] * 3, max_epochs=1)
        assert "3/3" in last_line(capsys)


@pytest.mark.parametrize("way", ["terminate", "interrupt"])
def test_a_run_that_is_stopped_closes_the_bar(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    handler = ProgressHandler(description="Stopped")
    engine = engine_with(handler)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda e: getattr(e, way)())
    engine.run([0] * 5, max_epochs=1)
    assert handler._bar is None
    assert "2/5" in capsys.readouterr().err
    if way == "interrupt":  # it can go on
        engine.run([0] * 5, max_epochs=1)
        assert engine.state.iteration == 5


def test_an_error_closes_the_bar_and_is_not_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    class OddError(Exception):
        pass

    def fail(engine: Engine, batch: int) -> None:
        if engine.state.iteration == 3:
            raise OddError("in the third step")

    engine = Engine(fail)
    handler = ProgressHandler()
    handler.attach(engine)
    with pytest.raises(OddError, match="in the third step"):
        engine.run([0] * 5, max_epochs=1)
    assert handler._bar is None
    assert "2/5" in last_line(capsys)


def test_an_error_at_the_start_is_not_swallowed() -> None:
    def refuse(engine: Engine) -> None:
        raise ValueError("cannot be met")

    handler = ProgressHandler()
    engine = engine_with(handler)
    engine.add_event_handler(Events.STARTED, refuse)
    with pytest.raises(ValueError, match="cannot be met"):
        engine.run([0], max_epochs=1)
    assert handler._bar is None


def test_the_last_point_of_the_curve_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    curve = PruningCurveHandler(mbp.decompose(tiny_classifier()), (1, 8, 8))
    handler = ProgressHandler(curve, "Pruning")
    engine = engine_with(handler)
    auc = asdict(auc_interval([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9]))
    engine.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda: curve.curve.points.append(CurvePoint(1, 5, 60, 50, 0.4567, 0.5, auc))
    )
    engine.run([0, 0], max_epochs=1)
    assert "removed" not in last_line(capsys)
    engine.run([0, 0], max_epochs=2)
    line = last_line(capsys)
    assert "removed=45.7 %" in line
    assert "AUC=0.750" in line


def test_in_a_trainer_with_validation(capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    data = Dataset(
        [{"image": torch.randn(1, 8, 8, generator=generator), "label": i % 2, "patient_id": f"p{i}"} for i in range(8)]
    )
    network = mbp.decompose(tiny_classifier())
    curve = PruningCurveHandler(network, (1, 8, 8))
    device = torch.device("cpu")
    evaluator = SupervisedEvaluator(
        device, val_data_loader=DataLoader(data, batch_size=4), network=network, val_handlers=[curve], decollate=False
    )
    trainer = SupervisedTrainer(
        device,
        max_epochs=2,
        train_data_loader=DataLoader(data, batch_size=4),
        network=network,
        optimizer=torch.optim.Adam(mbp.freeze_weights_(network)),
        loss_function=torch.nn.CrossEntropyLoss(),
        train_handlers=[ValidationHandler(1, evaluator), ProgressHandler(curve, "Training")],
        decollate=False,
    )
    trainer.run()
    line = last_line(capsys)
    assert line.startswith("Training: 100%")
    assert "epoch=2/2, removed=0.0 %" in line
    assert f"AUC={curve.curve.points[-1].auc['auc']:.3f}" in line
