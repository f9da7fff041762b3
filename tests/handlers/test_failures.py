"""A run that cannot go on ends early, with a reason that says what to change."""

from __future__ import annotations

import errno
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

import monai_basisprune as mbp
from monai_basisprune.errors import BasisPruneError, ConfigurationError
from monai_basisprune.handlers import FailureHandler, NormStatisticsHandler, ProgressHandler, PrunedNetworkSaver

from ..networks import same_bits, snapshot
from .engines import network_and_optimizer, networks_in, trainer, watched_run


def test_without_trouble_it_changes_nothing(tmp_path: Path) -> None:
    engine = watched_run(tmp_path / "output")
    assert engine.state.epoch == 3
    assert len(networks_in(tmp_path / "output")) == 1
    assert not (tmp_path / "output" / ".writable").exists()


def test_a_file_in_the_place_of_the_folder_is_an_error_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    with pytest.raises(ConfigurationError, match="The folder of the results cannot be written to"):
        watched_run(tmp_path / "output")


def test_a_folder_that_vanishes_ends_the_training_and_nothing_is_written_in_its_place(tmp_path: Path) -> None:
    folder, away = tmp_path / "output", tmp_path / "away"
    with pytest.raises(BasisPruneError, match="The folder of the results is gone, or another one"):
        watched_run(folder, lambda: shutil.move(folder, away))
    assert not folder.exists()
    assert len(networks_in(away)) == 1


def test_a_loss_that_diverges_ends_the_training_at_once(tmp_path: Path) -> None:
    network, _ = network_and_optimizer()
    optimizer = torch.optim.SGD(mbp.trainable_parameters(network), lr=1e30)
    handlers = [FailureHandler(tmp_path, network, 2), PrunedNetworkSaver(network, tmp_path)]
    engine = trainer(network, optimizer, handlers, epochs=50)
    with pytest.raises(
        BasisPruneError, match=r"loss is NaN or infinite in epoch 1, batch \d: .* smaller --learning_rate"
    ):
        engine.run()
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_ends_the_training(tmp_path: Path) -> None:
    def greedy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**55).sum()

    with pytest.raises(BasisPruneError, match=r"memory of the device or of the computer is used up.*--batch_size"):
        watched_run(tmp_path, loss_function=greedy)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("event", [Events.EPOCH_STARTED, Events.ITERATION_STARTED])
def test_what_failed_is_explained_after_all_handlers_tidied_up(tmp_path: Path, first: bool, event: Events) -> None:
    network, optimizer = network_and_optimizer()
    progress, norms = ProgressHandler(), NormStatisticsHandler(network, "frozen")

    def fail() -> None:
        assert progress._bar is not None
        raise MemoryError

    handlers = [FailureHandler(tmp_path, network), progress, norms]
    engine = trainer(network, optimizer, handlers if first else handlers[::-1])
    engine.add_event_handler(event, fail)
    with pytest.raises(BasisPruneError, match="memory of the device or of the computer is used up"):
        engine.run()
    assert progress._bar is None
    network.train()
    network(torch.rand(2, 1, 8, 8))
    assert all(module.training for module in network.modules())


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    def wrong(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise KeyError("nothing of the system")

    with pytest.raises(KeyError, match="nothing of the system"):
        watched_run(tmp_path, loss_function=wrong)


def test_a_folder_without_room_is_an_error_before_the_training_with_what_is_needed(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer()
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    files = 10**15 // size
    engine = trainer(network, optimizer, [FailureHandler(str(tmp_path), network, files)])
    with pytest.raises(ConfigurationError, match="make room, or name a folder on another disk") as caught:
        engine.run()
    free, needed = map(int, re.findall(r"(\d+) MiB", str(caught.value)))
    assert needed == math.ceil(files * size / 2**20) > free
    assert engine.state.iteration == 0
    assert list(tmp_path.iterdir()) == []


def test_another_folder_of_the_same_name_ends_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "output"

    def replace() -> None:
        shutil.move(folder, tmp_path / "away")
        folder.mkdir()

    with pytest.raises(BasisPruneError, match="is gone, or another one than when the run started"):
        watched_run(folder, replace)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_trained_with_a_loss_that_is_no_number(tmp_path: Path, wrong: float) -> None:
    network, optimizer = network_and_optimizer()
    states = []

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        states.append(snapshot(network))
        return outputs.square().mean() * (wrong if len(states) == 5 else 1.0)

    engine = trainer(network, optimizer, [FailureHandler(tmp_path, network)], epochs=3, loss_function=loss)
    with pytest.raises(BasisPruneError, match="loss is NaN or infinite in epoch 2, batch 5: the training has diverged"):
        engine.run()
    assert same_bits(snapshot(network), states[4])
    assert not same_bits(states[3], states[4])


def test_what_ended_a_training_is_told_with_its_epoch_and_stays_behind_the_error(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "x")

    def fail() -> None:
        raise full

    with pytest.raises(BasisPruneError, match=r"^The training ended in epoch 2\. The disk is full") as caught:
        watched_run(tmp_path, fail)
    assert caught.value.__cause__ is full


def test_an_error_in_our_words_stays_as_it_is(tmp_path: Path) -> None:
    own = mbp.BudgetError("cannot be met")
    own.__cause__ = OSError(errno.ENOSPC, "x")

    def fail() -> None:
        raise own

    with pytest.raises(mbp.BudgetError) as caught:
        watched_run(tmp_path, fail)
    assert caught.value is own
