from __future__ import annotations

import copy
import itertools
import logging
import re

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.handlers import PruningHandler, TaylorImportanceHandler

from ..networks import same_bits, snapshot
from .engines import cases, evaluator, loader, network_and_optimizer, trainer

BUDGETS = [mbp.Budget(bases=0.3), {"bases": 0.5}, {"bases": 0.7}]


def ranks(network: nn.Module) -> list[int]:
    return [layer.rank() for _, layer in decomposed_layers(network)]


def session(seed: int = 0, **arguments):
    """Return a network, its optimizer, and the two handlers of a study."""
    network, optimizer = network_and_optimizer(seed)
    importance = mbp.TaylorImportance(network)
    arguments = {"transfer_epochs": 2, "epochs_per_round": 2, **arguments}
    return (
        network,
        optimizer,
        TaylorImportanceHandler(importance),
        PruningHandler(network, importance, BUDGETS, optimizer, **arguments),
    )


@pytest.mark.parametrize(
    ("transfer", "per_round", "cuts"), [(2, 2, [2, 4, 6]), (1, 1, [1, 2, 3]), (3, 1, [3, 4, 5]), (1, 3, [1, 4, 7])]
)
def test_the_network_is_pruned_at_the_end_of_the_right_epochs(transfer, per_round, cuts):
    network, optimizer, taylor, pruning = session(transfer_epochs=transfer, epochs_per_round=per_round)
    seen = []
    engine = trainer(network, optimizer, [taylor, pruning], pruning.max_epochs)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append((e.state.epoch, sum(ranks(network)))))
    before = snapshot(network)
    engine.run()
    assert pruning.max_epochs == transfer + 3 * per_round == engine.state.epoch
    assert [epoch for epoch, _ in seen] == list(range(1, pruning.max_epochs + 1))
    bases = dict(seen)
    drops = [epoch for epoch in bases if bases[epoch] < bases.get(epoch - 1, 14)]
    assert drops == cuts
    for epoch, allowed in zip(cuts, (9.8, 7.0, 4.2), strict=True):
        assert allowed - 2 < bases[epoch] <= allowed
    assert [result.bases for result in pruning.results] == [bases[epoch] for epoch in cuts]
    assert pruning.rounds == 3
    after = snapshot(network)
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert all(torch.isfinite(value).all() for value in after.values())


def test_training_goes_on_after_each_cut_with_the_parameters_that_are_left():
    network, optimizer, taylor, pruning = session()
    engine = trainer(network, optimizer, [taylor, pruning], pruning.max_epochs)
    factors = []
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: factors.append(network.stem.scaling.scaling_factors.detach().clone())
    )
    engine.run()
    for first, second in itertools.pairwise(factors):
        if first.shape == second.shape:
            assert not torch.equal(first, second)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in mbp.trainable_parameters(network)}
    assert set(optimizer.state) == set(mbp.trainable_parameters(network))
    moment = optimizer.state[network.stem.scaling.scaling_factors]
    assert moment["exp_avg"].shape == network.stem.scaling.scaling_factors.shape
    assert int(moment["step"]) == 3 * pruning.max_epochs  # the optimizer has not started anew


def test_a_round_removes_what_prune_removes_with_the_same_scores():
    network, optimizer, taylor, pruning = session()
    engine = trainer(network, optimizer, [taylor, pruning], 2)
    twins = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=6), lambda e: twins.append((copy.deepcopy(network), taylor.importance.scores()))
    )
    engine.run()
    (twin, scores) = twins[0]
    wanted = mbp.prune_(twin, scores, mbp.Budget(bases=0.3))
    assert pruning.results == [wanted]
    assert same_bits(snapshot(network), snapshot(twin))


def test_taylor_sums_start_anew_after_a_cut():
    network, optimizer, taylor, pruning = session()
    engine = trainer(network, optimizer, [taylor, pruning], 3)
    counts = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: counts.append(taylor.importance.batches))
    engine.run()
    assert counts == [3, 0, 3]


@pytest.mark.parametrize("kind", [mbp.SingularValueImportance, mbp.ScalingImportance])
def test_other_importances_prune_as_well(kind):
    network, optimizer = network_and_optimizer()
    pruning = PruningHandler(network, kind(network), BUDGETS, optimizer, 1, 1)
    trainer(network, optimizer, [pruning], pruning.max_epochs).run()
    assert pruning.rounds == 3
    assert sum(ranks(network)) <= 4.2


def test_a_validation_before_the_handler_sees_the_network_before_the_cut():
    network, optimizer, taylor, pruning = session(transfer_epochs=1, epochs_per_round=1)
    validation = evaluator(network, [], loader(cases()))
    seen = []
    validation.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(sum(ranks(network))))
    trainer(network, optimizer, [ValidationHandler(1, validation), taylor, pruning], pruning.max_epochs).run()
    assert seen[0] == 14
    assert seen[1:] == [result.bases for result in pruning.results]


def test_each_round_is_logged_in_words(caplog):
    network, optimizer, taylor, pruning = session(transfer_epochs=1, epochs_per_round=1)
    with caplog.at_level(logging.INFO, logger="monai_basisprune.handlers.pruning"):
        trainer(network, optimizer, [taylor, pruning], pruning.max_epochs).run()
    lines = [r.getMessage() for r in caplog.records if r.name == "monai_basisprune.handlers.pruning"]
    assert len(lines) == 3
    result = pruning.results[1]
    assert lines[1] == (
        f"Round 2 of 3: {result.bases} bases left, {100 * result.parameter_reduction:.1f} % of the parameters removed."
    )


def test_nothing_is_printed(capsys):
    network, optimizer, taylor, pruning = session(transfer_epochs=1, epochs_per_round=1)
    trainer(network, optimizer, [taylor, pruning], pruning.max_epochs).run()
    assert capsys.readouterr().out == ""


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_a_run_that_was_interrupted_and_resumed_is_the_run_that_was_not(tmp_path, at):
    network, optimizer, taylor, pruning = session()
    # the order in which they are loaded: the handler cuts the fresh network to the size of the checkpoint
    saved = {"pruning": pruning, "network": network, "optimizer": optimizer, "taylor": taylor}
    engine = trainer(network, optimizer, [taylor, pruning], pruning.max_epochs)
    saved["trainer"] = engine
    CheckpointSaver(str(tmp_path), saved, save_interval=1).attach(engine)
    seen = {}
    engine.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda e: seen.update(
            {e.state.epoch: copy.deepcopy((network.state_dict(), optimizer.state_dict(), taylor.state_dict()))}
        ),
    )
    engine.run()

    fresh, fresh_optimizer, fresh_taylor, fresh_pruning = session(seed=0)
    again = trainer(fresh, fresh_optimizer, [fresh_taylor, fresh_pruning], pruning.max_epochs)
    loading = {
        "pruning": fresh_pruning,
        "network": fresh,
        "optimizer": fresh_optimizer,
        "taylor": fresh_taylor,
        "trainer": again,
    }
    CheckpointLoader(str(tmp_path / f"checkpoint_epoch={at}.pt"), loading).attach(again)
    found = {}
    again.add_event_handler(
        Events.STARTED,
        lambda e: found.update(
            start=copy.deepcopy((fresh.state_dict(), fresh_optimizer.state_dict(), fresh_taylor.state_dict()))
        ),
    )
    again.run()
    assert same_bits(found["start"][0], seen[at][0])
    for one, other in zip(found["start"][1:], seen[at][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(fresh.eval()(x), network.eval()(x))
    assert same_bits(snapshot(fresh), snapshot(network))
    torch.testing.assert_close(fresh_optimizer.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(fresh_taylor.state_dict(), taylor.state_dict(), rtol=0, atol=0)
    assert fresh_pruning.rounds == pruning.rounds == 3
    assert mbp.layer_status(fresh) == mbp.layer_status(network)
    assert [layer.kept_bases for _, layer in decomposed_layers(fresh)] == [
        layer.kept_bases for _, layer in decomposed_layers(network)
    ]


def test_a_checkpoint_of_another_network_is_refused_by_name_and_nothing_is_cut():
    network, _, _, pruning = session()
    before = ranks(network)
    state = {"rounds": 1, "kept_bases": {"stem": [0, 6], "grouped": [0, 4]}}
    with pytest.raises(mbp.PlanMismatchError, match=re.escape("bases that this network does not have, in ['stem']")):
        pruning.load_state_dict(state)
    with pytest.raises(mbp.PlanMismatchError, match=re.escape("in ['other']")):
        pruning.load_state_dict({"rounds": 1, "kept_bases": {"stem": [0], "other": [0]}})
    with pytest.raises(mbp.PlanMismatchError, match="in other layers: start from the decomposed network"):
        pruning.load_state_dict({"rounds": 1, "kept_bases": {"stem": [0]}})
    assert ranks(network) == before
    assert pruning.rounds == 0


@pytest.mark.parametrize("grouped", [[0, 1], [0, 4, 5], [4, 0], []])
def test_a_checkpoint_whose_groups_are_not_equally_large_is_refused(grouped):
    network, _, _, pruning = session()
    with pytest.raises(mbp.PlanMismatchError, match="grouped"):
        pruning.load_state_dict({"rounds": 1, "kept_bases": {"stem": [0], "grouped": grouped}})
    assert ranks(network) == [6, 8]


def test_a_network_that_is_pruned_further_than_the_checkpoint_is_refused():
    network, _, _, pruning = session()
    state = pruning.state_dict()
    mbp.prune_(network, mbp.ScalingImportance(network).scores(), mbp.Budget(bases=0.5))
    with pytest.raises(mbp.PlanMismatchError, match=re.escape("['stem', 'grouped']")):
        pruning.load_state_dict(state)


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"transfer_epochs": -1}, {"epochs_per_round": -1}])
def test_epochs_below_zero_are_refused(arguments):
    with pytest.raises(ValueError, match="transfer_epochs and epochs_per_round must be at least 0, got"):
        session(**arguments)


def test_a_budget_that_is_none_is_refused_before_the_training():
    network, optimizer = network_and_optimizer()
    with pytest.raises(ValueError, match="exactly one of parameters, macs, latency, bases, threshold and auc_margin"):
        PruningHandler(network, mbp.ScalingImportance(network), [{"bases": 0.5, "parameters": 0.5}], optimizer)


def test_a_margin_of_auc_is_no_target_of_a_round():
    network, optimizer = network_and_optimizer()
    handler = PruningHandler(network, mbp.ScalingImportance(network), [{"auc_margin": 0.01}], optimizer)
    engine = trainer(network, optimizer, [handler], 3)
    with pytest.raises(mbp.BudgetError, match="search for the network with a MetricSearchRounds"):
        engine.run()
    assert engine.state.iteration == 0


def test_defaults_are_those_of_the_study():
    network, optimizer = network_and_optimizer()
    handler = PruningHandler(
        network, mbp.ScalingImportance(network), [{"parameters": 0.5}, {"parameters": 0.7}], optimizer
    )
    assert (handler.transfer_epochs, handler.epochs_per_round, handler.max_epochs) == (6, 2, 10)
    assert handler.budgets == [mbp.Budget(parameters=0.5), mbp.Budget(parameters=0.7)]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"parameters": 0.99}, "The largest that can be met is parameters=0.6307"),
        ({"macs": 0.5, "input_shape": (3, 8, 8)}, "cannot process an input of shape (1, 3, 8, 8)"),
    ],
)
def test_a_budget_that_cannot_be_met_stops_the_run_before_any_training(budget, words):
    network, optimizer = network_and_optimizer()
    before = snapshot(network)
    handler = PruningHandler(network, mbp.ScalingImportance(network), [{"bases": 0.3}, budget], optimizer, 1, 1)
    engine = trainer(network, optimizer, [handler], 3)
    with pytest.raises(ValueError, match=re.escape(words)):
        engine.run()
    assert engine.state.iteration == 0
    assert handler.rounds == 0
    assert same_bits(snapshot(network), before)
