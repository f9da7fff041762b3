from __future__ import annotations

import re

import pytest
import torch

import monai_basisprune as mbp
from monai_basisprune.curve import CurvePoint
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.rounds import RoundPruner
from monai_basisprune.search_rounds import SearchRounds

from .networks import same_bits, snapshot, tiny_classifier

MARGIN = mbp.Budget(auc_margin=0.05)
LABELS, PATIENTS = [0, 1] * 6, [f"patient {i // 2}" for i in range(12)]


class Run:
    """A network in the rounds of a search, with evaluations that are made up."""

    def __init__(self, targets: list[float], **arguments):
        self.network = mbp.decompose(tiny_classifier())
        self.optimizer = torch.optim.Adam(mbp.freeze_weights_(self.network))
        self.importance = mbp.SingularValueImportance(self.network)
        self.pruner = RoundPruner(self.network, self.importance, self.optimizer)
        budgets = [mbp.Budget(bases=target) for target in targets]
        self.rounds = SearchRounds(MARGIN, budgets, **{"rule": "point", **arguments})
        self.epoch = 0

    def bases(self) -> int:
        return sum(layer.rank() for _, layer in decomposed_layers(self.network))

    def step(self, difference: float | None) -> int | None:
        """Judge the network and cut it again; returns how many bases are left, or None at the end."""
        self.epoch += 1
        compared = None if difference is None else {"difference": difference, "low": difference - 1, "high": 1.0}
        point = CurvePoint(self.epoch, self.bases(), 100, 100, 0.1, 0.1, {"auc": 0.9}, compared)
        return None if self.rounds.advance(self.pruner, point, LABELS, PATIENTS) is None else self.bases()


def targets_of(run: Run) -> list[float]:
    return [step.target for step in run.rounds.search.steps]


def test_every_selection_that_failed_is_tried_only_once():
    run = Run([0.06, 0.7], bisections=1)
    assert run.step(None) == 13
    assert run.step(-0.2) == 4
    assert run.step(-0.2) is None  # 0.03 of 14 bases is the first of them again
    assert targets_of(run) == [0.06, 0.7]
    assert len(run.rounds.search.outcomes) == 3


def test_before_the_bisection_the_network_and_its_optimizer_become_those_that_were_accepted():
    run = Run([0.3, 0.6], bisections=1)
    before = snapshot(run.network)
    first = run.step(None)
    with torch.no_grad():
        run.network.head.weight.add_(1.0)
    assert run.step(-0.5) < first  # the next coarse target, from where the network is: it was only missed
    assert torch.equal(run.network.head.weight, before["head.weight"] + 1.0)
    assert run.step(-0.5) > first  # the bisection, from the unpruned network
    assert torch.equal(run.network.head.weight, before["head.weight"])
    assert run.step(-0.5) is None
    assert same_bits(snapshot(run.network), before)
    assert targets_of(run) == pytest.approx([0.3, 0.6, 0.15])
    assert {id(p) for group in run.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in mbp.trainable_parameters(run.network)
    }


def test_what_is_cut_is_ranked_as_when_the_network_was_accepted():
    run = Run([0.3, 0.6], bisections=1)
    run.step(None)
    scores = run.importance.scores()  # of the network that is judged next
    accepted = [list(layer.kept_bases) for _, layer in decomposed_layers(run.network)]
    run.step(0.0)
    with torch.no_grad():  # as if training had turned the order of what is left around
        run.network.stem.basis.weight.mul_(torch.linspace(1, 50, run.network.stem.rank()).reshape(-1, 1, 1, 1))
    found = run.step(-0.2)
    twin = mbp.decompose(tiny_classifier())
    mbp.prune_(twin, mbp.SingularValueImportance(twin).scores(), mbp.Budget(bases=0.3))
    assert [layer.kept_bases for _, layer in decomposed_layers(twin)] == accepted
    mbp.prune_(twin, scores, mbp.Budget(bases=0.45))
    assert same_bits(snapshot(run.network), snapshot(twin))
    assert found == sum(layer.rank() for _, layer in decomposed_layers(twin))


def test_the_state_goes_on_in_another_process(tmp_path):
    def end(run: Run) -> list[int | None]:
        return [run.step(difference) for difference in (-0.2, 0.0, -0.2) if run.rounds.search.target is not None]

    run, again = Run([0.3, 0.7], bisections=2), Run([0.3, 0.7], bisections=2)
    for difference in (None, 0.0):
        run.step(difference)
    torch.save(run.rounds.state_dict(), tmp_path / "search.pt")
    again.rounds.load_state_dict(torch.load(tmp_path / "search.pt", weights_only=True))
    mbp.prune_(again.network, again.importance.scores(), mbp.Budget(bases=0.3))
    mbp.prune_(again.network, again.importance.scores(), mbp.Budget(bases=0.7))
    again.epoch = run.epoch
    assert end(again) == end(run)
    assert again.rounds.search.to_record() == run.rounds.search.to_record()
    assert same_bits(snapshot(again.network), snapshot(run.network))


def test_targets_of_another_quantity_are_another_search():
    run, other = Run([0.3]), SearchRounds(MARGIN, [mbp.Budget(parameters=0.3)], "point")
    words = "The checkpoint is of a search with targets of bases, this one has targets of parameters: go on with the"
    with pytest.raises(mbp.PlanMismatchError, match=words):
        other.load_state_dict(run.rounds.state_dict())
    with pytest.raises(mbp.ConfigurationError, match=re.escape("of one quantity, got ['bases', 'parameters']")):
        SearchRounds(MARGIN, [mbp.Budget(parameters=0.3), mbp.Budget(bases=0.5)])


def test_a_search_goes_by_one_share_of_parameters_and_macs():
    network = mbp.decompose(tiny_classifier())
    pruner = RoundPruner(network, mbp.SingularValueImportance(network))
    rounds = SearchRounds(MARGIN, [mbp.Budget(parameters=0.4, macs=0.4, input_shape=(1, 8, 8))], "point")
    point = CurvePoint(1, 14, 100, 100, 0.1, 0.1, {"auc": 0.9}, None)
    result = rounds.advance(pruner, point, LABELS, PATIENTS)
    assert min(result.parameter_reduction, result.mac_reduction) >= 0.4
    unequal = mbp.Budget(parameters=0.4, macs=0.3, input_shape=(1, 8, 8))
    with pytest.raises(mbp.ConfigurationError, match="give both quantities the same"):
        SearchRounds(MARGIN, [unequal])


# --- too few validation cases


def test_cases_are_counted_by_patient():
    rounds = Run([0.3], rule="interval").rounds
    problem = rounds.check_cases(0.9, LABELS, PATIENTS, "assumed")
    assert "with 6 positive and 6 negative patients" in problem.message
    assert "with 6 positive and 6 negative patients" in rounds.check_cases(0.9, LABELS, None, "assumed").message
    one_of_each = rounds.check_cases(0.9, LABELS, ["a", "b"] * 6, "assumed")
    assert "with 1 positive and 1 negative patients" in one_of_each.message
    assert rounds.check_cases(0.9, [0, 1] * 5000, None, "assumed") is None
    assert Run([0.3]).rounds.check_cases(0.9, LABELS, PATIENTS, "assumed") is None  # nothing is to be shown


@pytest.mark.parametrize(
    ("labels", "words"), [([0, -1], "labels must be 0 (negative) or 1 (positive)"), ([1, 1], "only one class is")]
)
def test_labels_that_are_not_of_two_classes_are_refused(labels, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Run([0.3], rule="interval").rounds.check_cases(0.9, labels, ["a", "b"], "assumed")


def test_with_too_few_cases_it_goes_on_with_points_or_stops():
    run = Run([0.3], rule="interval")
    run.step(None)
    assert run.rounds.search.rule == "point"
    assert "(AUC 0.900, reached before the first cut" in run.rounds.search.warnings[0]
    run = Run([0.3], rule="interval", on_small_validation="raise")
    before = snapshot(run.network)
    with pytest.raises(mbp.ConfigurationError, match="Add patients to the validation set, take a larger auc_margin"):
        run.step(None)
    assert same_bits(snapshot(run.network), before)
