"""Bases and channels pruned while a trainer runs: rounds, checkpoints, a search, and what is refused."""

from __future__ import annotations

import copy
import itertools
import logging
import re
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.budgets import network_cost
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.errors import BudgetError, PlanMismatchError
from monai_basisprune.handlers import (
    MetricSearchRounds,
    PrunedNetworkSaver,
    PruningCurveHandler,
    PruningHandler,
)
from monai_basisprune.structure import structure_of

from ..networks import same_bits, snapshot
from .engines import SHAPE, Session, cases, distillation, evaluator, loader, residual_classifier, trainer


def reduction(network: nn.Module) -> float:
    cost = network_cost(network, mbp.Budget(parameters=0.0))
    return cost.reduction(cost.total)


def test_rounds_cut_bases_and_channels_to_the_budgets_and_training_goes_on(caplog):
    session, seen = Session(), []
    engine = session.engine()
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append((e.state.epoch, reduction(session.network))))
    with caplog.at_level(logging.INFO, logger="monai_basisprune.handlers.pruning"):
        engine.run()
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5]
    reached = [share for _, share in seen]
    assert reached[0] == 0.0
    for share, target in zip(reached[1:4], (0.3, 0.6, 0.8), strict=True):
        assert target <= share < target + 0.15
    assert [result.parameter_reduction for result in session.pruning.results] == reached[1:4]
    assert sum(result.removed_channels for result in session.pruning.results) > 0
    assert sum(result.removed_bases for result in session.pruning.results) > 0
    status = mbp.layer_status(session.network)
    assert any(layer.channels < layer.max_channels for layer in status)
    assert {id(p) for group in session.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in mbp.trainable_parameters(session.network)
    }
    plain = mbp.recompose(session.network).eval()
    assert sum(p.numel() for p in plain.parameters()) == session.pruning.results[-1].parameters
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(plain(x), session.network.eval()(x), rtol=1e-4, atol=1e-5)
    lines = [r.getMessage() for r in caplog.records if r.name == "monai_basisprune.handlers.pruning"]
    channels = sum(layer.channels for layer in status)
    assert f"bases and {channels} output channels left, {100 * reached[3]:.1f} % of the parameters removed." in lines[2]


def test_a_round_removes_what_prune_jointly_removes_with_the_same_scores():
    session, twins = Session(), []
    engine = session.engine()

    def remember(_: Any) -> None:
        session.channels.close()  # copies need no gates
        twins.append((copy.deepcopy(session.network), session.bases.scores(), session.channels.scores()))

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), remember)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda e: e.terminate())
    engine.run()
    ((twin, bases, channels),) = twins
    wanted = mbp.prune_jointly_(twin, bases, channels, mbp.Budget(parameters=0.3), SHAPE)
    assert session.pruning.results == [wanted]
    assert same_bits(snapshot(session.network), snapshot(twin))


def test_channels_can_have_budgets_of_their_own():
    session = Session([{"bases": 0.2}, {"bases": 0.5}], channel_budgets=[{"parameters": 0.5}, {"parameters": 0.75}])
    session.engine().run()
    first, second = session.pruning.results
    total = sum(layer.max_rank for _, layer in decomposed_layers(session.network))
    assert first.removed_bases >= 0.2 * total
    assert first.removed_channels > 0
    assert first.parameter_reduction >= 0.5
    assert second.parameter_reduction >= 0.75
    assert sum(layer.rank() for _, layer in decomposed_layers(session.network)) <= 0.5 * total


@pytest.mark.parametrize(
    ("at", "more"),
    [*((at, ()) for at in (1, 2, 3, 4)), (1, ("distillation",)), (3, ("distillation",)),
     *((at, ("recombined_from",)) for at in (1, 2, 3, 4))],
)  # fmt: skip
def test_a_run_that_was_interrupted_and_resumed_is_the_run_that_was_not(tmp_path, at, more):
    def made() -> dict[str, Any]:
        every = {"distillation": distillation(), "recombined_from": 0.5}
        return {name: every[name] for name in more}

    distilled = "distillation" in more
    session = Session(per_round=1, transfer=2, **made())
    engine = session.engine()
    CheckpointSaver(str(tmp_path), {**session.parts(), "trainer": engine}, save_interval=1).attach(engine)
    engine.run()
    file = tmp_path / f"checkpoint_epoch={at}.pt"
    torch.load(file, weights_only=True)  # tensors and plain types only
    fresh = Session(per_round=1, transfer=2, **made())
    again = fresh.engine()
    CheckpointLoader(str(file), {**fresh.parts(), "trainer": again}).attach(again)
    again.run()
    assert same_bits(snapshot(fresh.network), snapshot(session.network))
    for name in ("network", "optimizer", "taylor"):
        found, wanted = (run.parts()[name].state_dict() for run in (fresh, session))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    found, wanted = (run.pruning.state_dict() for run in (fresh, session))
    assert ("distillation" in wanted) is distilled
    torch.testing.assert_close(found.pop("distillation", {}), wanted.pop("distillation", {}), rtol=0, atol=0)
    assert found == wanted
    assert len(set(session.pruning.structures)) == 3
    assert mbp.PruningPlan.from_network(fresh.network) == mbp.PruningPlan.from_network(session.network)


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"inner": {"out": [0, 12]}}, "['inner']"),
        ({"elsewhere": {"out": [0]}}, "['elsewhere']"),
        ({"inner_norm": {"in": [0]}}, "['inner_norm']"),
        ({"inner": {"out": []}, "outer": {"in": [3, 1]}}, "['inner', 'outer']"),
    ],
)
def test_a_checkpoint_with_channels_that_are_not_there_is_refused_and_nothing_is_cut(channels, words):
    session = Session()
    before = snapshot(session.network)
    state = {**session.pruning.state_dict(), "rounds": 1, "kept_channels": channels}
    with pytest.raises(
        PlanMismatchError, match=re.escape(f"keeps channels that this network does not have, in {words}")
    ):
        session.pruning.load_state_dict(state)
    assert same_bits(snapshot(session.network), before)
    assert session.pruning.rounds == 0


def test_both_importances_see_the_same_steps_with_accumulated_gradients():
    session = Session()
    trainer(session.network, session.optimizer, [session.taylor], 1, loader(cases(16)), accumulation_steps=2).run()
    assert session.bases.batches == session.channels.batches == 2
    state = session.taylor.state_dict()
    assert set(state) == {"bases", "channels"}
    other = Session()
    other.taylor.load_state_dict(state)
    torch.testing.assert_close(other.channels.scores(), session.channels.scores(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*torch.cuda.amp.GradScaler.*")
def test_the_scale_of_a_gradient_scaler_is_divided_out_of_both():
    found = []
    for scale in (1.0, 2.0**10):
        session = Session(lr=0.0)
        engine = trainer(session.network, session.optimizer, [session.taylor], 1, amp=scale > 1)
        if scale > 1:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            engine.add_event_handler(Events.STARTED, lambda e, scaler=scaler: setattr(e, "scaler", scaler))
        engine.run()
        found.append((session.bases.scores(), session.channels.scores()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-9)


def test_a_compensation_follows_each_cut_with_the_network_before_it():
    calls = []

    def compensation(network: nn.Module, before: nn.Module) -> None:
        calls.append((structure_of(before), structure_of(network)))

    session = Session(compensation=compensation)
    session.engine().run()
    unpruned = structure_of(mbp.decompose(residual_classifier()))
    chain = [unpruned, *session.pruning.structures]
    assert calls == list(itertools.pairwise(chain))


@pytest.mark.parametrize("of_channels", [None, [{"parameters": 0.3}, {"parameters": 0.5}]])
def test_channels_go_in_blocks_where_that_is_asked_for(of_channels):
    budgets = [{"parameters": 0.2}, {"parameters": 0.4}] if of_channels is None else []
    session = Session(budgets, channel_multiple=4, channel_budgets=of_channels)
    session.engine().run()
    status = mbp.layer_status(session.network)
    assert sum(layer.channels < layer.max_channels for layer in status) > 0
    assert all(layer.channels % 4 == 0 for layer in status if layer.name != "head")
    assert session.pruning.describe()["channel_multiple"] == 4


def test_what_blocks_do_not_allow_is_refused_before_any_training():
    session = Session([], channel_multiple=4, channel_budgets=[{"parameters": 0.9}])
    engine = session.engine()
    with pytest.raises(BudgetError, match="with one block of 4 channels left in every group") as caught:
        engine.run()
    assert engine.state.iteration == 0
    largest = float(re.search(r"parameters=(0\.\d+);", str(caught.value)).group(1))
    session = Session([], channel_multiple=4, channel_budgets=[{"parameters": largest}])
    session.engine().run()
    assert session.pruning.results[0].parameter_reduction >= largest
    with pytest.raises(ValueError, match="multiple must be a whole number of at least 1"):
        Session(channel_multiple=0)


# --- a search


@pytest.mark.parametrize("share", [None, 0.3])
def test_a_search_goes_back_to_the_channels_that_were_accepted(tmp_path, share):
    data = loader(cases(24))
    more = {"recombined_from": share}
    session = Session([{"parameters": target} for target in (0.2, 0.5, 0.8)], transfer=1, lr=0.02, **more)
    curve = PruningCurveHandler(session.network, SHAPE, margin=0.02)
    rounds = MetricSearchRounds(curve, {"auc_margin": 0.02}, rule="point", bisections=2)
    session.pruning = PruningHandler(
        session.network, session.bases, [{"parameters": target} for target in (0.2, 0.5, 0.8)], session.optimizer,
        1, 1, search=rounds, channel_importance=session.channels, **more,
    )  # fmt: skip
    saver = PrunedNetworkSaver(session.network, tmp_path)
    outcomes = iter([0.0, 0.0, -0.4, -0.4, -0.4, -0.4, -0.4])

    def judged(_: Any) -> None:  # the first cut is good enough, all others are not
        point = curve.curve.points[-1]
        if point.difference is not None:
            change = next(outcomes) if not seen else -0.4
            seen.append(point.structure)
            curve.curve.points[-1] = type(point)(
                **{**vars(point), "difference": {**point.difference, "difference": change, "high": 1.0}}
            )

    seen: list[str] = []
    validator = evaluator(session.network, [curve], data)
    validator.add_event_handler(Events.EPOCH_COMPLETED, judged)
    session.engine(ValidationHandler(1, validator), saver).run()
    steps = rounds.search.steps
    assert [step.accepted for step in steps] == [True] + [False] * (len(steps) - 1)
    assert len(steps) >= 3
    assert len(set(seen)) == len(seen) == len(steps)  # no network was tried twice
    chosen, _ = rounds.search.choose(curve.curve)
    assert structure_of(session.network) == chosen.structure == session.pruning.structures[0]
    assert any(layer.channels < layer.max_channels for layer in mbp.layer_status(session.network))
    assert same_bits(
        snapshot(mbp.load_pruned(residual_classifier(), saver.path(chosen.structure))), snapshot(session.network)
    )
    state = session.pruning.state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert set(torch.load(tmp_path / "state.pt", weights_only=True)["search"]["scores"]) == {"bases", "channels"}


# --- what is refused


@pytest.mark.parametrize("budgets", [[{"parameters": 0.3}, {"parameters": 0.999}], [{"bases": 0.3}]])
def test_a_budget_that_bases_and_channels_do_not_allow_stops_the_run_before_any_training(budgets):
    session = Session(budgets)
    before = snapshot(session.network)
    engine = session.engine()
    words = "is not one of bases and channels together" if "bases" in budgets[-1] else "The largest that can be met is"
    with pytest.raises(BudgetError, match=words) as caught:
        engine.run()
    assert engine.state.iteration == 0
    assert same_bits(snapshot(session.network), before)
    if "parameters" in budgets[-1]:
        largest = float(re.search(r"parameters=(0\.\d+);", str(caught.value)).group(1))
        bases = {name: torch.ones(layer.rank()) for name, layer in decomposed_layers(session.network)}
        free = [group for group in mbp.channel_status(session.network, SHAPE) if group.skipped is None]
        channels = {group.name: torch.ones(group.channels) for group in free}
        result = mbp.prune_jointly_(session.network, bases, channels, mbp.Budget(parameters=largest), SHAPE)
        assert result.parameter_reduction >= largest
