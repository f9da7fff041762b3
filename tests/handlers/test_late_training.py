"""Distillation and the training of the 1×1 convolutions, each from a share of removed parameters on."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised

import monai_basisprune as mbp
from monai_basisprune.channel_slices import kept_channels
from monai_basisprune.decomposition import decomposed_layers
from monai_basisprune.handlers import PruningHandler
from monai_basisprune.handlers.late_training import LateTraining
from monai_basisprune.loading import SeededCacheDataset
from monai_basisprune.training import recombination_weights

from ..networks import tiny_classifier
from .engines import BUDGETS, Session, cases, distillation, loader, trainer


def late_training(
    loss: mbp.DistillationLoss | None = None, distilled_from: float | None = None, recombined_from: float | None = None
) -> LateTraining:
    network = mbp.decompose(tiny_classifier())
    optimizer = torch.optim.SGD(mbp.parameter_groups(network, 0.01), lr=0.1)
    return LateTraining(network, optimizer, loss, distilled_from, recombined_from)


def prune(late: LateTraining, share: float) -> None:
    mbp.prune_(late.network, mbp.SingularValueImportance(late.network).scores(), mbp.Budget(parameters=share))


def recombined(late: LateTraining) -> set[bool]:
    return {layer.scaling.weight.requires_grad for _, layer in decomposed_layers(late.network)}


def tell(late: LateTraining, batch: Any) -> None:
    """Let an engine go through one batch."""
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.ITERATION_STARTED, late.tell_cases)
    engine.run([batch])


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_is_one(share):
    words = re.escape(f"is a share of the parameters, from 0 and below 1, got {share}.")
    with pytest.raises(ValueError, match=f"^distilled_from {words}"):
        late_training(distillation(), share)
    with pytest.raises(ValueError, match=f"^recombined_from {words}"):
        late_training(recombined_from=share)


def test_what_is_to_be_trained_has_to_be_held_by_the_optimizer_as_a_whole():
    network = mbp.decompose(tiny_classifier())
    weights = recombination_weights(network)
    assert len(weights) > 1
    some = torch.optim.SGD([{"params": mbp.freeze_weights_(network)}, {"params": weights[1:]}], lr=0.1)
    with pytest.raises(mbp.ConfigurationError, match="optimizer does not hold them: make it with parameter_groups"):
        LateTraining(network, some, None, None, 0.5)
    LateTraining(network, some, distillation(), 0.5, None)


def test_what_the_network_puts_out_is_noted_once():
    late = late_training(distillation(), 0.0)
    images = torch.stack([case["image"] for case in cases()])
    wanted = late.network.eval()(images).detach()
    late.start()
    prune(late, 0.5)
    late.start()
    torch.testing.assert_close(late.distillation.wanted, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(late.network(images), wanted, atol=1e-3)


def test_each_begins_at_its_share_and_ends_after_a_step_back():
    late = late_training(distillation(), 0.3, 0.6)
    found = []
    for rounds, share in ((0, None), (1, 0.4), (2, 0.6)):
        if share is not None:
            prune(late, share)
        late.choose(rounds)
        found.append((late.distillation.resting, recombined(late)))
    late.network = mbp.decompose(tiny_classifier())
    late.choose(1)
    found.append((late.distillation.resting, recombined(late)))
    assert found == [(True, {False}), (False, {False}), (False, {True}), (True, {False})]


def test_the_1x1_convolutions_are_never_trained_before_the_first_cut():
    late = late_training(recombined_from=0.0)
    late.choose(0)
    assert recombined(late) == {False}
    late.choose(1)
    assert recombined(late) == {True}
    late.choose(0)
    assert recombined(late) == {False}


def test_without_a_share_of_its_own_neither_is_touched():
    late = late_training(distillation())
    late.network.requires_grad_(True)
    late.start()
    late.choose(3)
    assert late.distillation is None
    assert recombined(late) == {True}
    assert late.state_dict() == {}
    assert late.describe() == {"recombined_from": None, "distillation": None}
    tell(late, torch.zeros(2))


def test_the_loss_is_told_the_cases_of_each_batch_while_it_distills():
    late = late_training(distillation(), 0.3)
    batch = {"image": torch.zeros(3, 1, 8, 8), "position": torch.tensor([4, 0, 7])}
    tell(late, batch)
    assert late.distillation.cases is None  # nothing was noted yet
    late.start()
    late.choose(0)
    tell(late, batch)
    assert late.distillation.cases is None  # it rests
    prune(late, 0.4)
    late.choose(1)
    tell(late, batch)
    assert late.distillation.cases is batch["position"]


@pytest.mark.parametrize(
    ("batch", "found"),
    [({"image": torch.zeros(1), "label": torch.zeros(1)}, "['image', 'label']"), ([torch.zeros(1)] * 2, "list")],
)
def test_a_batch_that_does_not_name_its_cases_is_refused(batch, found):
    late = late_training(distillation(), 0.0)
    late.start()
    words = f"position of each case of a batch under 'position', found {found}: take monai_basisprune.loading.Seeded"
    with pytest.raises(mbp.ConfigurationError, match=re.escape(words)):
        tell(late, batch)


def test_a_checkpoint_holds_what_was_noted(tmp_path):
    late = late_training(distillation(), 0.0, 0.5)
    assert late.state_dict() == {}
    late.start()
    torch.save(late.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = late_training(distillation(), 0.0, 0.5)
    again.load_state_dict(state)
    assert torch.equal(again.distillation.wanted, late.distillation.wanted)
    noted = again.distillation.wanted
    again.start()
    assert again.distillation.wanted is noted
    again.load_state_dict({})
    assert again.distillation.wanted is noted
    without = late_training()
    without.load_state_dict(state)
    assert without.state_dict() == {}


# --- while a trainer prunes


def test_distillation_waits_until_the_share_is_gone():
    loss = distillation()
    session = Session([{"parameters": 0.4}, {"parameters": 0.7}], distillation=loss, distilled_from=0.6)
    resting: list[bool] = []
    engine = session.engine()
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: resting.append(loss.resting))
    engine.run()
    assert resting == [False, True, False, False]  # not started, one cut, both cuts
    assert session.pruning.describe()["distillation"] == {
        "weight": 0.8,
        "temperature": 2.0,
        "from": 0.6,
        "augmented": True,
    }
    again = Session([{"parameters": 0.4}], distillation=distillation(), distilled_from=0.6)
    again.engine().run()
    fresh = Session([{"parameters": 0.4}], distillation=distillation(), distilled_from=0.6)
    fresh.pruning.load_state_dict(again.pruning.state_dict())
    assert fresh.pruning.late.distillation.resting is True


def test_distillation_learns_from_what_the_network_put_out_for_the_same_case():
    loss = distillation()
    session = Session([{"parameters": 0.4}], distillation=loss)
    engine, seen = session.engine(), []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: seen.append((loss.cases, e.state.batch["position"])))
    engine.run()
    first, *_ = (number for number, (given, _) in enumerate(seen) if given is not None)
    assert first == 2 * len(engine.data_loader)  # after the transfer
    assert all(torch.equal(given, held) for given, held in seen[first:])
    assert loss.wanted.shape == (12, 2)


def test_distillation_that_never_begins_notes_nothing():
    loss = distillation()
    session = Session([{"parameters": 0.4}], distillation=loss, distilled_from=None)
    session.engine().run()
    assert loss.wanted is None
    assert session.pruning.describe()["distillation"] is None


def test_distillation_needs_batches_that_name_their_cases():
    unnamed = [{key: value for key, value in case.items() if key != "position"} for case in cases()]
    session = Session([{"parameters": 0.4}], distillation=distillation())
    engine = trainer(
        session.network, session.optimizer, [session.taylor, session.pruning], 3, loader(unnamed),
        loss_function=session.loss,
    )  # fmt: skip
    with pytest.raises(mbp.ConfigurationError, match="needs the position of each case of a batch under 'position'"):
        engine.run()


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_recombination_is_trained_once_the_share_is_gone_and_bases_never_are(share):
    session = Session([{"parameters": 0.4}, {"parameters": 0.7}], recombined_from=share)
    bases = {name: layer.basis.weight.detach().clone() for name, layer in decomposed_layers(session.network)}
    trained, weights = [], []
    engine = session.engine()

    def note() -> None:
        layers = [layer for _, layer in decomposed_layers(session.network)]
        trained.append({layer.scaling.weight.requires_grad for layer in layers})
        weights.append([layer.scaling.weight.detach().clone() for layer in layers])
        assert not any(layer.basis.weight.requires_grad for layer in layers)

    engine.add_event_handler(Events.EPOCH_COMPLETED, note)
    engine.run()
    # transfer, one cut, both cuts, trained after the last one
    assert trained == [{False}, {share == 0.0}, {True}, {True}]
    assert not any(torch.equal(before, after) for before, after in zip(*weights[-2:], strict=True))
    for name, layer in decomposed_layers(session.network):
        kept = bases[name][layer.kept_bases]
        inputs = kept_channels(layer).get("in", list(range(kept.shape[1])))
        assert torch.equal(layer.basis.weight, kept[:, inputs])
        moment = session.optimizer.state[layer.scaling.weight]["exp_avg"]
        assert moment.shape == layer.scaling.weight.shape
        assert float(moment.abs().max()) > 0
    assert session.pruning.describe()["recombined_from"] == share


def test_recombination_needs_an_optimizer_that_holds_it():
    session = Session()
    with pytest.raises(mbp.ConfigurationError, match="make it with parameter_groups"):
        PruningHandler(session.network, session.bases, BUDGETS, session.optimizer, recombined_from=0.5)


def test_training_images_are_not_augmented_while_it_distills():
    images = SeededCacheDataset(cases(), Compose([RandGaussianNoised("image", prob=1.0)]), seed=0, progress=False)
    loss = distillation()
    session = Session(
        [{"parameters": 0.4}, {"parameters": 0.7}], distillation=loss, distilled_from=0.6, training_cases=images
    )
    plain, taken = torch.stack([case["image"] for case in cases()]), []
    engine = session.engine(data=DataLoader(images, batch_size=4))
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: taken.append((e.state.epoch, e.state.batch)))
    engine.run()
    as_they_are = [torch.equal(batch["image"], plain[batch["position"]]) for _, batch in taken]
    # two epochs of transfer, one after a cut to 40 %, and one after a cut to 70 %
    assert as_they_are == [epoch == 4 for epoch, _ in taken]
    assert session.pruning.describe()["distillation"]["augmented"] is False
    images.set_augmented(True)
    fresh = Session([{"parameters": 0.7}], distillation=distillation(), distilled_from=0.6, training_cases=images)
    fresh.pruning.load_state_dict(session.pruning.state_dict())  # a run that goes on
    assert torch.equal(images[2]["image"], plain[2])
