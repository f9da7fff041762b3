from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp

from .networks import same_bits, snapshot, tiny_classifier


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, 1, 8, 8, generator=generator), torch.tensor([0, 1, 1, 0])


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
    assert torch.equal(mbp.DistillationLoss()(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    assert torch.equal(mbp.DistillationLoss(weighted)(outputs, labels), weighted(outputs, labels))


def test_while_it_rests_it_is_the_plain_loss_and_the_unpruned_network_is_not_run():
    network, (x, labels) = mbp.decompose(decided_classifier()), batch()
    loss = mbp.DistillationLoss()
    loss.start(network)
    passes = []
    loss.reference.register_forward_hook(lambda *_: passes.append(1))
    halved(network).train()
    loss.resting = True
    outputs = network(x)
    assert torch.equal(loss(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    assert passes == []
    loss.resting = False
    with pytest.raises(ValueError, match="found no images"):  # those of the batch before are gone
        loss(outputs, labels)
    outputs = network(x)
    assert not torch.equal(loss(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    assert passes == [1]


@pytest.mark.parametrize(("weight", "temperature"), [(0.9, 2.0), (0.5, 1.0), (1.0, 4.0), (0.0, 2.0)])
def test_loss_is_the_sum_done_by_hand(weight, temperature):
    original, (x, labels) = decided_classifier().eval(), batch()
    with torch.no_grad():
        before = original(x).double()
    network = mbp.decompose(original)
    loss = mbp.DistillationLoss(weight=weight, temperature=temperature)
    loss.start(network)
    outputs = halved(network).train()(x)
    found = loss(outputs, labels)
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
    loss = mbp.DistillationLoss(nn.BCEWithLogitsLoss(), weight=0.5, temperature=2.0, exclusive=False)
    loss.start(network)
    outputs = halved(network).train()(x)
    found = loss(outputs, labels)
    p, q = (torch.sigmoid(values / 2) for values in (before, outputs.detach().double()))
    distance = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
    plain = float(nn.functional.binary_cross_entropy_with_logits(outputs.detach().double(), labels.double()))
    assert distance > 1e-3
    assert found.item() == pytest.approx(0.5 * plain + 0.5 * 4 * distance, rel=1e-3, abs=1e-6)


def test_gradient_is_that_of_a_finite_difference():
    network, (x, labels) = mbp.decompose(decided_classifier().double()), batch()
    x = x.double()
    loss = mbp.DistillationLoss()
    loss.start(network)
    halved(network).train()
    factors = mbp.freeze_weights_(network)[0]
    loss(network(x), labels).backward()
    step, values = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            factors[0] += sign * step
        values.append(float(loss(network(x), labels)))
        with torch.no_grad():
            factors[0] -= sign * step
    assert float(factors.grad[0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.02, abs=1e-4)


def test_training_on_it_alone_brings_the_outputs_back():
    network, (x, labels) = mbp.decompose(decided_classifier()), batch()
    loss = mbp.DistillationLoss(weight=1.0)
    loss.start(network)
    halved(network).train()
    optimizer = torch.optim.Adam(mbp.freeze_weights_(network), lr=0.02)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(network(x), labels)
        value.backward()
        optimizer.step()
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]


def test_reference_is_a_plain_network_that_stays_as_it_was():
    network, (x, labels) = mbp.decompose(tiny_classifier()), batch()
    loss = mbp.DistillationLoss()
    loss.start(network)
    before = snapshot(loss.reference)
    assert not any(isinstance(module, mbp.DecomposedConv) for module in loss.reference.modules())
    assert not any(parameter.requires_grad for parameter in loss.reference.parameters())
    loss.train()
    network.train()
    optimizer = torch.optim.Adam([p for p in (*loss.parameters(), *network.parameters()) if p.requires_grad], lr=0.1)
    loss(network(x), labels).backward()
    optimizer.step()
    # in training mode it would have put the batch into the statistics of its norms
    assert same_bits(snapshot(loss.reference), before)


def test_state_goes_on_with_the_same_reference():
    first, second, (x, labels) = mbp.decompose(tiny_classifier(0)), mbp.decompose(tiny_classifier(1)), batch()
    losses = [mbp.DistillationLoss(), mbp.DistillationLoss()]
    for loss, network in zip(losses, (first, second), strict=True):
        loss.start(network)
    losses[1].load_state_dict(losses[0].state_dict())
    second.load_state_dict(first.state_dict())
    found = [loss(network.train()(x), labels) for loss, network in zip(losses, (first, second), strict=True)]
    assert torch.equal(*found)


def test_hook_changes_nothing_and_acts_on_no_copy():
    network, (x, labels) = mbp.decompose(tiny_classifier()).train(), batch()
    other = copy.deepcopy(network)
    loss = mbp.DistillationLoss()
    loss.start(network)
    assert torch.equal(network(x), other(x))
    trial = copy.deepcopy(network)
    loss(network(x), labels)
    outputs = trial(x)
    with pytest.raises(ValueError, match=re.escape("found no images: call it once after each forward pass")):
        loss(outputs, labels)
    assert not any(isinstance(hook, mbp.DistillationLoss) for hook in trial._forward_pre_hooks.values())


def test_evaluation_does_not_take_the_place_of_the_last_batch():
    network, (x, labels) = mbp.decompose(tiny_classifier()).train(), batch()
    loss = mbp.DistillationLoss()
    loss.start(network)
    outputs = network(x)
    network.eval()
    with torch.no_grad():
        network(torch.rand(2, 1, 8, 8))
    assert torch.isfinite(loss(outputs, labels))


def test_stop_gives_the_plain_loss_back():
    network, (x, labels) = mbp.decompose(tiny_classifier()).train(), batch()
    loss = mbp.DistillationLoss()
    loss.start(network)
    loss.stop()
    outputs = network(x)
    assert torch.equal(loss(outputs, labels), nn.functional.cross_entropy(outputs, labels))
    assert not network._forward_pre_hooks
    assert loss.reference is None


def test_start_again_leaves_one_hook():
    network = mbp.decompose(tiny_classifier())
    loss = mbp.DistillationLoss()
    for _ in range(2):
        loss.start(network)
    assert len(network._forward_pre_hooks) == 1


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weight_is_a_share(weight):
    with pytest.raises(ValueError, match="weight is a share from 0 to 1, got"):
        mbp.DistillationLoss(weight=weight)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match="temperature must be a number above 0, got"):
        mbp.DistillationLoss(temperature=temperature)


def test_start_needs_decomposed_layers():
    loss = mbp.DistillationLoss()
    with pytest.raises(mbp.LayerSelectionError):
        loss.start(tiny_classifier())
    assert loss.reference is None


def test_outputs_of_another_kind_or_batch_are_refused():
    network, x = mbp.decompose(tiny_classifier()).train(), batch()[0]
    loss = mbp.DistillationLoss(loss=nn.MSELoss())
    loss.start(network)
    network(x)
    with pytest.raises(ValueError, match=re.escape("takes logits of shape (batch, classes)")):
        loss(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=re.escape("Outputs of shape (3, 2) are not those of the last batch")):
        loss(torch.zeros(3, 2), torch.zeros(3, 2))
