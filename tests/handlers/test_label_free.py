"""Rounds in which nothing is trained: cut, fitted and evaluated, one after the other."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import ValidationHandler

import monai_basisprune as mbp
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.handlers import PruningCurveHandler, PruningHandler, RunCheckpointHandler, TaylorImportanceHandler
from monai_basisprune.structure import structure_of

from ..networks import same_bits, snapshot, tiny_classifier
from .engines import cases, evaluator, loader, trainer

BUDGETS = [{"bases": 0.2}, {"bases": 0.4}, {"bases": 0.6}]
IMAGES = [torch.stack([case["image"] for case in cases(24)])]


class StopError(Exception):
    """Stands for a kill."""


class Session:
    """What a bundle builds to prune without labels."""

    def __init__(self, transfer: int, per_round: int = 0, **more: Any) -> None:
        self.network = mbp.decompose(tiny_classifier(), "activation", data=IMAGES)
        self.optimizer = torch.optim.Adam(mbp.freeze_weights_(self.network), lr=0.01)
        importance = mbp.ActivationImportance(self.network, IMAGES)
        compensation = functools.partial(mbp.compensate_, data=IMAGES)
        self.pruning = PruningHandler(
            self.network, importance, BUDGETS, self.optimizer, transfer, per_round, compensation=compensation, **more
        )
        self.curve = PruningCurveHandler(self.network, (1, 8, 8), margin=0.1)
        self.trained: list[int] = []

    def engine(self, *handlers: Any) -> Any:
        validation = ValidationHandler(1, evaluator(self.network, [self.curve], loader(cases())))
        engine = trainer(self.network, self.optimizer, [validation, self.pruning, *handlers], self.pruning.max_epochs)
        self.curve.trainer = engine
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.trained.append(e.state.epoch))
        return engine


@pytest.mark.parametrize("transfer", [0, 2])
def test_the_network_is_cut_fitted_and_evaluated_without_any_training(transfer: int) -> None:
    session = Session(transfer)
    twins = []
    engine = session.engine()
    engine.add_event_handler(
        Events.GET_BATCH_STARTED(event_filter=lambda e, _: e.state.epoch == max(transfer, 1) + 1),
        lambda e: twins.append(copy.deepcopy(session.network)),
    )
    engine.run()
    assert sorted(set(session.trained)) == list(range(1, transfer + 1))
    assert engine.state.epoch == session.pruning.max_epochs == max(transfer, 1) + 3
    points = session.curve.curve.points
    assert [point.structure for point in points[-3:]] == session.pruning.structures
    assert [point.epoch for point in points] == list(range(1, max(transfer, 1) + 4))
    assert [session.pruning.trained_epochs(point.epoch) for point in points[-4:]] == [transfer] * 4
    bases = [point.bases for point in points[-4:]]
    assert all(bases[n + 1] <= (1 - budget["bases"]) * bases[0] for n, budget in enumerate(BUDGETS))
    assert sorted(bases, reverse=True) == bases
    # the first cut was left as it is until the second: what follows a round is the next cut, and nothing else
    (twin,) = twins
    assert structure_of(twin) == session.pruning.structures[0]
    for budget in BUDGETS[1:]:
        before = copy.deepcopy(twin)
        mbp.prune_(twin, mbp.ActivationImportance(twin, IMAGES).scores(), mbp.Budget(**budget))
        mbp.compensate_(twin, before, IMAGES)
    assert same_bits(snapshot(twin), snapshot(session.network))


def test_a_network_that_is_cut_as_it_is_can_be_trained_afterwards() -> None:
    session = Session(0, per_round=1)
    session.engine().run()
    assert sorted(set(session.trained)) == [2, 3, 4]
    assert [session.pruning.trained_epochs(epoch) for epoch in (1, 2, 4)] == [0, 1, 3]


def test_a_run_that_was_stopped_between_two_cuts_goes_on(tmp_path: Path) -> None:
    whole = Session(1)
    whole.engine().run()

    def run(stop: bool) -> Session:
        session = Session(1)
        parts = {name: getattr(session, name) for name in ("pruning", "network", "optimizer", "curve")}
        engine = session.engine(RunCheckpointHandler(tmp_path, parts, {}))

        def kill(_: Any) -> None:
            raise StopError

        if stop:
            engine.add_event_handler(Events.EPOCH_STARTED(once=3), kill)
        engine.run()
        return session

    with pytest.raises(StopError):
        run(stop=True)
    resumed = run(stop=False)
    assert resumed.trained == []
    assert same_bits(snapshot(resumed.network), snapshot(whole.network))
    assert resumed.curve.curve.to_list() == whole.curve.curve.to_list()


@pytest.mark.parametrize("epochs", [{"transfer_epochs": 0}, {"epochs_per_round": 0}])
def test_what_learns_from_training_is_refused_without_any(epochs: dict[str, int]) -> None:
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    taylor = mbp.TaylorImportance(network)
    with pytest.raises(ConfigurationError, match="TaylorImportance needs training: rank bases by an Activation"):
        PruningHandler(network, taylor, BUDGETS, optimizer, **epochs)
    values = mbp.SingularValueImportance(network)
    with pytest.raises(ConfigurationError, match="DistillationLoss needs training"):
        PruningHandler(network, values, BUDGETS, optimizer, distillation=mbp.DistillationLoss([]), **epochs)
    never = PruningHandler(network, taylor, [], optimizer, **epochs)  # never cut, so there is nothing to rank
    trainer(network, optimizer, [TaylorImportanceHandler(taylor), never], 1).run()
