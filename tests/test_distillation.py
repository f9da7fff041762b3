from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp

from .networks import same_bits, snapshot, tiny_classifier

BATCH = [4, 0, 5, 2]


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training images and their labels."""
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1, 0])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x, labels = images()
    return x[BATCH], labels[BATCH]


def distillation(*arguments, **more) -> mbp.DistillationLoss:
    return mbp.DistillationLoss(images()[0].split(4), *arguments, **more)


def decided_classifier() -> nn.Module:
    """Return a classifier whose outputs differ from image to image."""
    network = tiny_classifier()
    network.head.weight.data *= 50
    return network


def halved(network: nn.Module) -> nn.Module:
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.5))
    return network


def test_before_start_it_is_the_plain_loss():
    network, (x, labels) = mbp.decompose(tiny_classifier()), batch()
    outputs = network(x)
    assert torch.equal(distillation()(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    assert torch.equal(distillation(weighted)(outputs, labels), weighted(outputs, labels))


def test_while_it_rests_it_is_the_plain_loss():
    network, (x, labels) = mbp.decompose(decided_classifier()), batch()
    loss = distillation()
    loss.start(network)
    outputs = halved(network).train()(x)
    loss.resting = True
    loss.cases = BATCH
    assert torch.equal(loss(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    loss.resting = False
    with pytest.raises(ValueError, match="does not know which training images"):  # those of the batch before are gone
        loss(outputs, labels)
    assert not torch.equal(loss(outputs, labels, BATCH), nn.functional.cross_entropy(outputs, labels))


@pytest.mark.parametrize(("weight", "temperature"), [(0.9, 2.0), (0.5, 1.0), (1.0, 4.0), (0.0, 2.0)])
def test_loss_is_the_sum_done_by_hand(weight, temperature):
    original, (x, labels) = decided_classifier().eval(), batch()
    with torch.no_grad():
        before = original(x).double()
    network = mbp.decompose(original)
    loss = distillation(weight=weight, temperature=temperature)
    loss.start(network)
    outputs = halved(network).train()(x)
    found = loss(outputs, labels, torch.tensor(BATCH))
    p, q = (torch.softmax(values / temperature, 1) for values in (before, outputs.detach().double()))
    distance = sum(float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)) / len(x)
    plain = float(nn.functional.cross_entropy(outputs.detach().double(), labels))
    assert distance > 1e-3
    wanted = (1 - weight) * plain + weight * temperature**2 * distance
    assert found.item() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_findings_that_occur_together_are_two_classes_each():
    original, (x, _) = decided_classifier().eval(), batch()
    labels = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    with torch.no_grad():
        before = original(x).double()
    network = mbp.decompose(original)
    loss = distillation(nn.BCEWithLogitsLoss(), weight=0.5, temperature=2.0, exclusive=False)
    loss.start(network)
    outputs = halved(network).train()(x)
    found = loss(outputs, labels, BATCH)
    p, q = (torch.sigmoid(values / 2) for values in (before, outputs.detach().double()))
    distance = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
    plain = float(nn.functional.binary_cross_entropy_with_logits(outputs.detach().double(), labels.double()))
    assert distance > 1e-3
    assert found.item() == pytest.approx(0.5 * plain + 0.5 * 4 * distance, rel=1e-3, abs=1e-6)


def test_gradient_is_that_of_a_finite_difference():
    network, (x, labels) = mbp.decompose(decided_classifier().double()), batch()
    x = x.double()
    loss = distillation()
    loss.start(network)
    halved(network).train()
    factors = mbp.freeze_weights_(network)[0]
    loss(network(x), labels, BATCH).backward()
    step, values = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            factors[0] += sign * step
        values.append(float(loss(network(x), labels, BATCH)))
        with torch.no_grad():
            factors[0] -= sign * step
    assert float(factors.grad[0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.02, abs=1e-4)


def test_training_on_it_alone_brings_the_outputs_back():
    network, (x, labels) = mbp.decompose(decided_classifier()), batch()
    loss = distillation(weight=1.0)
    loss.start(network)
    halved(network).train()
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network), lr=0.02)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(network(x), labels, BATCH)
        value.backward()
        optimizer.step()
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]


def test_start_leaves_the_network_as_it_was_and_keeps_outputs_alone():
    network = mbp.decompose(tiny_classifier()).train()
    before, modes = snapshot(network), [module.training for module in network.modules()]
    loss = distillation()
    loss.start(network)
    # in training mode it would have put the images into the statistics of its norms
    assert same_bits(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    assert loss.wanted.shape == (6, 2)
    assert not loss.wanted.requires_grad
    assert list(loss.parameters()) == []
    with torch.no_grad():
        torch.testing.assert_close(loss.wanted, network.eval()(images()[0]))


def test_what_was_noted_is_enough_to_go_on():
    network, (x, labels) = mbp.decompose(tiny_classifier()), batch()
    first, second = distillation(), distillation()
    first.start(network)
    second.wanted = first.wanted.clone()
    outputs = halved(network)(x)
    assert torch.equal(first(outputs, labels, BATCH), second(outputs, labels, BATCH))


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weight_is_a_share(weight):
    with pytest.raises(ValueError, match="weight is a share from 0 to 1, got"):
        distillation(weight=weight)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match="temperature must be a number above 0, got"):
        distillation(temperature=temperature)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the loader is empty"),
        ([torch.full((2, 1, 8, 8), float("nan"))], r"batch 1: NaN or infinite values in the images at \[0, 1\]"),
        ([{"label": torch.zeros(2)}], "batch 1: a dictionary with"),
    ],
)
def test_images_that_cannot_be_used_are_refused_and_nothing_is_noted(data, words):
    loss = mbp.DistillationLoss(data)
    with pytest.raises(ValueError, match=f"DistillationLoss cannot use its data:\n.*{words}"):
        loss.start(mbp.decompose(tiny_classifier()))
    assert loss.wanted is None


@pytest.mark.parametrize("network", [nn.Flatten(0), nn.Sequential(nn.Flatten(), nn.Linear(64, 1))])
def test_networks_without_classes_are_refused(network):
    with pytest.raises(ValueError, match=re.escape("takes logits of shape (batch, classes)")):
        distillation().start(network)


def test_a_network_that_puts_out_nan_is_refused():
    network = mbp.decompose(tiny_classifier())
    network.head.bias.data[0] = float("nan")
    loss = distillation()
    with pytest.raises(ValueError, match="learn NaN or infinite outputs"):
        loss.start(network)
    assert loss.wanted is None


def test_outputs_of_other_images_are_refused():
    network, (x, labels) = mbp.decompose(tiny_classifier()).train(), batch()
    loss = distillation()
    loss.start(network)
    outputs = network(x)
    with pytest.raises(ValueError, match=re.escape("Outputs of shape (4, 2) are not those of the 3 images named")):
        loss(outputs, labels, BATCH[:3])
    for cases in ([0, 1, 2, 6], [0, 1, 2, -1]):
        with pytest.raises(ValueError, match="Positions of training images go from 0 to 5, got"):
            loss(outputs, labels, cases)
