from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Compose, RandAffined, RandScaleIntensityd

import monai_basisprune as mbp
from monai_basisprune.errors import PlanMismatchError
from monai_basisprune.handlers import (
    EpochSeedHandler,
    MetricSearchRounds,
    PrunedNetworkSaver,
    PruningCurveHandler,
    PruningHandler,
    RunCheckpointHandler,
    TaylorImportanceHandler,
)

from ..networks import same_bits, snapshot, tiny_classifier
from .engines import cases, evaluator, loader, trainer

SHAPE = (1, 8, 8)
TARGETS = [0.2, 0.4, 0.6]
SETTINGS = {"targets": TARGETS}


class Stopped(BaseException):
    """What a test stops a run with; no handler expects it."""


class Run:
    """A pruning run as the bundle builds it, with what is random and has a state."""

    def __init__(self, folder: Path, search: bool = False, stop_at: int | None = None, **arguments: Any):
        data = cases(24)
        augmented = CacheDataset(
            data,
            Compose(
                [RandAffined(keys="image", prob=0.8, rotate_range=0.2), RandScaleIntensityd("image", 0.2, prob=0.5)]
            ),
            progress=False,
        )
        batches = DataLoader(augmented, batch_size=5, shuffle=True)
        self.network = mbp.decompose(tiny_classifier())
        self.optimizer = torch.optim.Adam(mbp.freeze_weights_(self.network), lr=0.02)
        self.importance = mbp.TaylorImportance(self.network)
        self.curve = PruningCurveHandler(self.network, SHAPE, margin=0.05)
        self.rounds = MetricSearchRounds(self.curve, {"auc_margin": 0.05}, rule="point") if search else None
        budgets = [mbp.Budget(bases=target) for target in TARGETS]
        self.pruning = PruningHandler(self.network, self.importance, budgets, self.optimizer, 2, 2, search=self.rounds)
        schedule = mbp.round_schedule(self.optimizer, 2 * len(batches), 2 * len(batches))
        taylor = TaylorImportanceHandler(self.importance)
        self.saver = PrunedNetworkSaver(self.network, folder / "networks")
        parts = {
            "pruning": self.pruning,
            "network": self.network,
            "optimizer": self.optimizer,
            "schedule": schedule,
            "curve": self.curve,
            "taylor": taylor,
        }
        self.checkpoint = RunCheckpointHandler(folder / "checkpoints", parts, **{"settings": SETTINGS, **arguments})
        handlers = [
            EpochSeedHandler(3),
            taylor,
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(1, evaluator(self.network, [self.curve], loader(data))),
            self.saver,
            self.pruning,
            self.checkpoint,
        ]
        self.engine = trainer(self.network, self.optimizer, handlers, self.pruning.max_epochs, batches)
        if stop_at is not None:
            self.engine.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), self._stop)

    def _stop(self) -> None:
        raise Stopped

    def run(self) -> Run:
        self.engine.run()
        return self

    def result(self) -> dict[str, Any]:
        """Return everything that a run leaves."""
        search = None if self.rounds is None else self.rounds.search.to_record()
        files = {path.name: path.read_bytes() for path in sorted(self.saver.folder.glob("*.json"))}
        return {"curve": self.curve.curve.to_list(), "search": search, "rounds": self.pruning.rounds, "plans": files}


def optimizer_tensors(run: Run) -> dict[str, torch.Tensor]:
    states = run.optimizer.state_dict()["state"]
    return {f"{index} {key}": value for index, state in states.items() for key, value in state.items()}


@pytest.mark.parametrize("search", [False, True], ids=["rounds", "search"])
def test_a_run_that_was_stopped_in_any_epoch_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, search: bool):
    whole = Run(tmp_path / "whole", search).run()
    iterations = whole.engine.state.iteration
    assert whole.engine.state.epoch >= 6
    for stop_at in range(8, iterations, 10):  # in every second epoch, before its last step
        folder = tmp_path / str(stop_at)
        with pytest.raises(Stopped):
            Run(folder, search, stop_at).run()
        resumed = Run(folder, search).run()
        assert resumed.checkpoint.resumed_epoch == ((stop_at - 1) // 5 or None)
        assert same_bits(snapshot(resumed.network), snapshot(whole.network))
        assert same_bits(optimizer_tensors(resumed), optimizer_tensors(whole))
        assert resumed.result() == whole.result()


def test_a_run_that_is_stopped_again_and_again_ends_like_one_that_was_not(tmp_path: Path):
    whole = Run(tmp_path / "whole").run()
    for stop_at in (4, 9, 13, 24):
        with pytest.raises(Stopped):
            Run(tmp_path / "run", stop_at=stop_at).run()
    resumed = Run(tmp_path / "run").run()
    assert same_bits(snapshot(resumed.network), snapshot(whole.network))
    assert resumed.result() == whole.result()
    again = Run(tmp_path / "run").run()  # stopped between its last epoch and its results: nothing is trained
    assert again.checkpoint.resumed_epoch == whole.engine.state.epoch
    assert same_bits(snapshot(again.network), snapshot(whole.network))
    assert again.result()["curve"] == whole.result()["curve"]
    again.checkpoint.remove()
    assert Run(tmp_path / "run").run().checkpoint.resumed_epoch is None


def test_other_settings_are_refused_and_a_new_start_can_be_asked_for(tmp_path: Path):
    with pytest.raises(Stopped):
        Run(tmp_path, stop_at=12).run()
    with pytest.raises(PlanMismatchError, match=r"settings are not those(.|\n)*- targets\n"):
        Run(tmp_path, settings={"targets": [0.3]}).run()
    anew = Run(tmp_path, resume=False, settings={"targets": [0.3]}).run()
    assert anew.checkpoint.resumed_epoch is None


def test_a_checkpoint_with_other_parts_is_refused_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(Stopped):
        Run(tmp_path, stop_at=12).run()
    other = Run(tmp_path)
    del other.checkpoint.objects["schedule"]
    with pytest.raises(PlanMismatchError, match=r"'schedule'.*this one has \['curve'"):
        other.run()
    assert other.pruning.rounds == 0


def test_a_damaged_checkpoint_costs_one_epoch_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = Run(tmp_path / "whole").run()
    with pytest.raises(Stopped):
        Run(tmp_path / "run", stop_at=18).run()
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "monai_basisprune.handlers.checkpoint"):
        resumed = Run(tmp_path / "run").run()
    assert "checkpoint_000003.pt" in caplog.text
    assert resumed.checkpoint.resumed_epoch == 2
    assert same_bits(snapshot(resumed.network), snapshot(whole.network))


def test_another_number_of_threads_is_told_and_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    threads = torch.get_num_threads()
    with pytest.raises(Stopped):
        Run(tmp_path, stop_at=12).run()
    with caplog.at_level(logging.WARNING, "monai_basisprune.handlers.checkpoint"):
        assert Run(tmp_path).run().checkpoint.resumed_epoch == 2
        assert "number of threads" not in caplog.text
        try:
            torch.set_num_threads(threads + 1)
            resumed = Run(tmp_path).run()
        finally:
            torch.set_num_threads(threads)
    assert resumed.checkpoint.resumed_epoch == resumed.engine.state.epoch
    assert f"threads is not that of the run that was stopped, {threads + 1} instead of {threads}: it" in caplog.text
    assert f"may end with other bits than a run that was never stopped. Set OMP_NUM_THREADS={threads}" in caplog.text
