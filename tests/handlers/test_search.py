from __future__ import annotations

import copy
import dataclasses
import logging
import re
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader, CheckpointSaver, LrScheduleHandler, ValidationHandler
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.handlers import (
    MetricSearchRounds,
    PrunedNetworkSaver,
    PruningCurveHandler,
    PruningHandler,
    TaylorImportanceHandler,
)

from ..networks import same_bits, snapshot, tiny_classifier
from .engines import cases, evaluator, loader, trainer

SHAPE = (1, 8, 8)
TARGETS = [0.2, 0.4, 0.7]
LOGGER = "monai_basisprune.handlers.search"


def labeled(count: int = 24) -> list[dict[str, Any]]:
    """Return cases that the unpruned network ranks without any error."""
    data = cases(count)
    network = tiny_classifier().eval()
    with torch.no_grad():
        scores = network(torch.stack([case["image"] for case in data])).diff(dim=1)[:, 0]
    order = scores.argsort()
    for place, index in enumerate(order.tolist()):
        data[index] |= {"label": int(place >= count // 2), "patient_id": f"patient {index}"}
    return data


class Session:
    """A trainer that searches, as the bundle builds it."""

    def __init__(self, margin: float = 0.05, lr: float = 0.0, transfer: int = 1, per_round: int = 1, **arguments: Any):
        data = labeled()
        self.network = mbp.decompose(tiny_classifier())
        self.network.norm.momentum = 0.0 if lr == 0 else 0.1  # with a rate of 0 nothing but the cuts changes it
        self.optimizer = torch.optim.Adam(mbp.freeze_weights_(self.network), lr=lr)
        self.importance = mbp.TaylorImportance(self.network)
        self.taylor = TaylorImportanceHandler(self.importance)
        self.curve = PruningCurveHandler(self.network, SHAPE, margin=margin)
        self.rounds = MetricSearchRounds(self.curve, {"auc_margin": margin}, **{"rule": "point", **arguments})
        budgets = [mbp.Budget(bases=target) for target in TARGETS]
        self.pruning = PruningHandler(
            self.network, self.importance, budgets, self.optimizer, transfer, per_round, search=self.rounds
        )
        steps = len(loader(data))
        self.schedule = mbp.round_schedule(self.optimizer, transfer * steps, per_round * steps)
        self.validator = evaluator(self.network, [self.curve], loader(data))
        self.before: dict[int, tuple[nn.Module, dict[str, torch.Tensor]]] = {}
        self.after: dict[int, dict[str, torch.Tensor]] = {}
        handlers = [
            self.taylor,
            LrScheduleHandler(self.schedule, print_lr=False, epoch_level=False),
            ValidationHandler(1, self.validator),
        ]
        self.engine = trainer(self.network, self.optimizer, handlers, self.pruning.max_epochs, loader(data))
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, self._before)
        self.pruning.attach(self.engine)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, self._after)

    def _before(self, engine: Any) -> None:
        self.before[engine.state.epoch] = (copy.deepcopy(self.network), self.importance.scores())

    def _after(self, engine: Any) -> None:
        self.after[engine.state.epoch] = snapshot(self.network)

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds, in the order in which it is loaded."""
        return {
            "pruning": self.pruning,
            "network": self.network,
            "optimizer": self.optimizer,
            "taylor": self.taylor,
            "curve": self.curve,
            "schedule": self.schedule,
            "trainer": self.engine,
        }

    def run(self) -> Session:
        self.engine.run()
        return self

    @property
    def steps(self):
        return self.rounds.search.steps


def bases(network: nn.Module) -> int:
    return sum(layer.rank() for _, layer in decomposed_layers(network))


@pytest.fixture(
    scope="module",
    params=[(0.0, 1, 0.37), (0.02, 1, 0.2), (0.02, 2, 0.12), (0.02, 1, 0.02)],
    ids=["still", "training", "two epochs", "none accepted"],
)
def session(request) -> Session:
    lr, per_round, margin = request.param
    return Session(lr=lr, per_round=per_round, transfer=2, margin=margin).run()


def test_the_search_closes_in_on_a_network(session):
    outcomes = [step.accepted for step in session.steps]
    assert False in outcomes  # otherwise nothing below was tested
    for step in session.steps:
        assert step.accepted == (step.difference >= -session.curve.margin)
    assert session.rounds.search.target is None
    assert session.pruning.rounds == len(session.steps) == len(session.pruning.results)
    assert session.engine.state.epoch == 2 + len(session.steps) * session.pruning.epochs_per_round
    assert session.engine.state.epoch <= session.pruning.max_epochs == 2 + 6 * session.pruning.epochs_per_round


def test_a_network_that_fails_goes_back_bit_by_bit_and_is_cut_less(session):
    """What is trained after a failure is what would have been, had the smaller target come first."""
    accepted = 2
    for index, step in enumerate(session.steps[:-1]):
        accepted = step.epoch if step.accepted else accepted
        # a larger target after a miss goes on from there, a smaller one goes back
        onwards = session.steps[index + 1].target > step.target
        twin, scores = copy.deepcopy(session.before[step.epoch if onwards else accepted])
        mbp.prune_(twin, scores, mbp.Budget(bases=session.steps[index + 1].target))
        assert same_bits(snapshot(twin), session.after[step.epoch])
    assert not all(step.accepted for step in session.steps[:-1])


def scripted(session: Session, differences: list[tuple[float, float]]) -> None:
    """Let the curve report these differences and upper ends, whatever was measured."""
    script = iter(differences)
    judge = session.rounds.search.judge

    def told(point: Any) -> bool:
        difference, high = next(script)
        return judge(dataclasses.replace(point, difference={"difference": difference, "low": -1.0, "high": high}))

    session.rounds.search.judge = told  # type: ignore[method-assign]


def test_a_network_that_is_only_missed_is_pruned_on_and_gone_back_to_from_behind():
    session = Session(lr=0.02, transfer=2, margin=0.05, bisections=1)
    missed, accepted, failed = (-0.1, 0.1), (0.0, 0.1), (-0.5, -0.4)
    scripted(session, [missed, accepted, failed, missed])
    session.run()
    assert session.rounds.search.outcomes == ["missed", "accepted", "failed", "missed"]
    assert [step.target for step in session.steps] == pytest.approx([0.2, 0.4, 0.7, 0.55])
    # epoch 2 is the transfer; 3 was missed and pruned on; 5 failed, so 6 goes back to epoch 4
    for cut, came_from, target in ((3, 3, 0.4), (4, 4, 0.7), (5, 4, 0.55)):
        twin, scores = copy.deepcopy(session.before[came_from])
        mbp.prune_(twin, scores, mbp.Budget(bases=target))
        assert same_bits(snapshot(twin), session.after[cut])
    assert same_bits(snapshot(session.network), snapshot(session.before[4][0]))


def test_where_the_last_target_is_missed_the_network_goes_back():
    session = Session(lr=0.02, transfer=2, margin=0.05, bisections=0)
    missed, accepted = (-0.1, 0.1), (0.0, 0.1)
    scripted(session, [accepted, missed, missed])
    session.run()
    assert [step.target for step in session.steps] == TARGETS
    assert same_bits(snapshot(session.network), snapshot(session.before[3][0]))


def test_in_the_end_the_network_is_the_smallest_that_was_accepted(session):
    epochs = [step.epoch for step in session.steps if step.accepted]
    network, _ = session.before[epochs[-1] if epochs else 2]
    assert same_bits(snapshot(session.network), snapshot(network))
    chosen, _ = session.rounds.search.choose(session.curve.curve)
    assert chosen.bases == bases(session.network)
    assert {id(p) for group in session.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in mbp.trainable_parameters(session.network)
    }
    session.validator.run()
    assert session.curve.curve.points[-1].auc == chosen.auc
    session.curve.curve.points.pop()


def test_each_step_is_a_round_of_the_curve(session):
    rounds = session.curve.curve.rounds()
    assert [point.epoch for point in rounds] == [2, *[step.epoch for step in session.steps]]
    for point, step, result in zip(rounds[1:], session.steps, session.pruning.results, strict=True):
        assert point.parameter_reduction == step.parameter_reduction
        assert point.bases == result.bases
        assert point.auc["auc"] == step.auc
        assert 1 - point.bases / 14 >= step.target - 1e-9


def test_every_round_begins_with_the_whole_learning_rate():
    session = Session(lr=0.02, per_round=2, transfer=2)
    rates = {}
    session.engine.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: rates.setdefault(engine.state.epoch, session.optimizer.param_groups[0]["lr"]),
    )
    session.run()
    assert not all(step.accepted for step in session.steps)
    starts = range(1, session.engine.state.epoch + 1, 2)
    assert [rates[epoch] for epoch in starts] == pytest.approx([0.02] * len(starts))
    assert all(rates[epoch + 1] < 0.02 for epoch in starts)


def test_a_margin_that_everything_meets_takes_the_last_target():
    session = Session(margin=0.99).run()
    assert [step.target for step in session.steps] == TARGETS
    assert all(step.accepted for step in session.steps)
    assert session.engine.state.epoch == 4 < session.pruning.max_epochs
    assert bases(session.network) == session.pruning.results[-1].bases


def test_the_files_of_all_ratios_stay_those_of_their_networks(tmp_path):
    session = Session(lr=0.02)
    saver = PrunedNetworkSaver(session.network, tmp_path)
    handlers = session.engine._event_handlers[Events.EPOCH_COMPLETED]
    saver.attach(session.engine)
    handlers.insert(0, handlers.pop())  # before the cut
    session.run()
    chosen, _ = session.rounds.search.choose(session.curve.curve)
    loaded = mbp.load_pruned(tiny_classifier(), saver.path(chosen.structure))
    assert same_bits(snapshot(loaded), snapshot(session.network))


def test_targets_that_name_a_network_twice_cost_no_round():
    session = Session(bisections=6).run()  # 14 bases have no more than 13 smaller sizes
    failed = [step for step in session.steps if not step.accepted]
    assert len(session.rounds.search.outcomes) > len(session.steps)
    assert len(session.rounds.search.outcomes) - 6 in range(1, len(TARGETS) + 1)
    assert failed
    sizes = [result.bases for result in session.pruning.results]
    assert len(set(sizes)) == len(sizes)


def test_each_decision_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        session = Session().run()
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(lines) == len(session.steps)
    for line, step in zip(lines, session.steps, strict=True):
        said = "accepted" if step.accepted else "not accepted"
        assert line == f"Target {step.target:g}: AUC {step.auc:.3f}, {said} by the rule 'point' with a margin of 0.05."
    rounds = [record.getMessage() for record in caplog.records if record.name.endswith(".pruning")]
    assert rounds[0].startswith("Round 1 of at most 6: ")


# --- checkpoints


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_search_that_was_interrupted_and_resumed_is_the_one_that_was_not(tmp_path, at):
    session = Session(lr=0.02)
    CheckpointSaver(str(tmp_path), session.parts(), save_interval=1).attach(session.engine)
    session.run()
    assert session.engine.state.epoch > 4
    again = Session(lr=0.02)
    CheckpointLoader(str(tmp_path / f"checkpoint_epoch={at}.pt"), again.parts()).attach(again.engine)
    again.run()
    assert again.rounds.search.to_record() == session.rounds.search.to_record()
    assert same_bits(snapshot(again.network), snapshot(session.network))
    torch.testing.assert_close(again.optimizer.state_dict(), session.optimizer.state_dict(), rtol=0, atol=0)
    assert again.curve.curve == session.curve.curve


def test_a_search_that_has_ended_trains_no_further_when_it_is_resumed(tmp_path):
    session = Session(lr=0.02, margin=0.99)  # ends before max_epochs
    CheckpointSaver(str(tmp_path), session.parts(), save_interval=1).attach(session.engine)
    session.run()
    last = session.engine.state.epoch
    assert last < session.pruning.max_epochs
    again = Session(lr=0.02, margin=0.99)
    CheckpointLoader(str(tmp_path / f"checkpoint_epoch={last}.pt"), again.parts()).attach(again.engine)
    again.run()
    assert same_bits(snapshot(again.network), snapshot(session.network))
    assert again.curve.curve == session.curve.curve
    assert again.rounds.search.choose(again.curve.curve) == session.rounds.search.choose(session.curve.curve)


def test_a_checkpoint_with_and_one_without_a_search_do_not_mix():
    searching = Session()
    fixed = PruningHandler(
        searching.network, searching.importance, searching.pruning.budgets, searching.optimizer, 1, 1
    )
    with pytest.raises(mbp.PlanMismatchError, match="The checkpoint is of a run with a search for the smallest"):
        fixed.load_state_dict(searching.pruning.state_dict())
    with pytest.raises(mbp.PlanMismatchError, match="The checkpoint is of a run without a search for the smallest"):
        searching.pruning.load_state_dict(fixed.state_dict())
    assert bases(searching.network) == 14


# --- too few validation cases


def test_before_any_training_too_few_cases_are_a_warning(caplog):
    session = Session(margin=0.01, rule="interval", validation=labeled())
    seen = []
    session.engine.add_event_handler(Events.EPOCH_STARTED(once=1), lambda: seen.extend(caplog.records))
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        session.run()
    (early,) = [record.getMessage() for record in seen if record.name == LOGGER]
    assert "with 12 positive and 12 negative patients" in early
    assert "(AUC 0.900, assumed; correlation 0.95, assumed)" in early
    assert early.endswith("It is checked again with the AUC that is reached.")
    _, late = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert "(AUC 1.000, reached before the first cut; correlation 0.95, assumed)" in late
    assert session.rounds.search.warnings == [late]
    record = session.rounds.search.to_record()
    assert record["rule"] == "point"
    assert record["remarks"][0] == late
    assert record["required_positive_patients"] > 12
    assert session.steps
    assert all(step.accepted == (step.difference >= -0.01) for step in session.steps)


def test_too_few_cases_can_stop_the_run_before_any_training():
    session = Session(margin=0.01, rule="interval", validation=labeled(), on_small_validation="raise")
    words = "Add patients to the validation set, take a larger auc_margin, or set on_small_validation to 'point'"
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        session.run()
    assert session.engine.state.iteration == 0


def test_too_few_cases_can_stop_the_run_before_the_first_cut():
    session = Session(margin=0.01, rule="interval", on_small_validation="raise")
    with pytest.raises(mbp.ConfigurationError, match="reached before the first cut"):
        session.run()
    assert session.engine.state.epoch == 1
    assert bases(session.network) == 14


def test_enough_cases_go_by_the_interval():
    session = Session(margin=0.6, rule="interval", validation=labeled()).run()
    assert session.rounds.search.warnings == []
    assert session.rounds.search.rule == "interval"
    assert session.steps[0].accepted == (session.steps[0].low > -0.6)


# --- configuration


def test_a_search_without_evaluations_is_an_error_that_says_what_is_missing():
    session = Session()
    engine = trainer(session.network, session.optimizer, [session.taylor, session.pruning], 3, loader(labeled()))
    words = (
        "no evaluation of the network in epoch 1: run the evaluator of its curve in every epoch, by a ValidationHandler"
    )
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        engine.run()


def test_a_search_that_starts_from_a_pruned_network_has_nothing_to_compare_with():
    session = Session()
    scores = mbp.SingularValueImportance(session.network).scores()
    mbp.prune_(session.network, scores, mbp.Budget(parameters=0.3), session.optimizer)
    session.importance.reset()
    with pytest.raises(
        mbp.ConfigurationError, match="The first evaluation of the pruning curve is of a pruned network"
    ):
        session.run()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_small_validation": "ignore"}, "on_small_validation must be one of ('point', 'raise'), got 'ignore'"),
        ({"expected_auc": 1.0}, "expected_auc must be at least 0.5 and below 1, got 1.0"),
        ({"bisections": -1}, "bisections must be"),
        ({"rule": "best"}, "selection must be one of"),
    ],
)
def test_wrong_settings_are_refused(arguments, words):
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        Session(**arguments)


def test_budgets_and_margins_must_fit_each_other():
    session = Session()
    with pytest.raises(mbp.ConfigurationError, match=re.escape("of one quantity, got ['bases', 'parameters']")):
        session.rounds.bind([mbp.Budget(bases=0.3), mbp.Budget(parameters=0.5)])
    session.curve.margin = 0.01
    words = "auc_margin is 0.05, but the curve compares with a margin of 0.01: give both the same."
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        session.rounds.bind([mbp.Budget(bases=0.3)])


def test_a_target_that_cannot_be_met_stops_the_run_before_any_training():
    session = Session()
    session.pruning.budgets.append(mbp.Budget(bases=0.99))
    with pytest.raises(mbp.BudgetError, match="cannot be met"):
        session.run()
    assert session.engine.state.iteration == 0


def test_targets_of_another_quantity_are_another_search():
    session, other = Session(), Session()
    other.rounds.bind([mbp.Budget(parameters=target) for target in TARGETS])
    words = "The checkpoint is of a search with targets of bases, this one has targets of parameters: go on with the"
    with pytest.raises(mbp.PlanMismatchError, match=words):
        other.pruning.load_state_dict(session.pruning.state_dict())


def test_a_checkpoint_of_another_search_cuts_nothing():
    session, other = Session(), Session(bisections=1)
    session.run()
    with pytest.raises(mbp.PlanMismatchError, match="this one has"):
        other.pruning.load_state_dict(session.pruning.state_dict())
    assert bases(other.network) == 14
    assert other.pruning.rounds == 0
