from __future__ import annotations

import io
import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.importance import NORMALIZATIONS

from .networks import snapshot, tiny_classifier


def decomposed(seed: int = 0) -> nn.Module:
    """Return a decomposed classifier whose scaling factors are no longer 1."""
    network = mbp.decompose(tiny_classifier(seed)).eval()
    generator = torch.Generator().manual_seed(seed)
    for layer in (network.stem, network.grouped):
        layer.scaling.scaling_factors.data = torch.randn(layer.rank(), generator=generator)
    return network


def batches(count: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(4, 1, 8, 8, generator=generator), torch.randint(0, 2, (4,), generator=generator))
        for _ in range(count)
    ]


def backward(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], scale: float = 1.0) -> None:
    network.zero_grad()
    (scale * nn.functional.cross_entropy(network(batch[0]), batch[1])).backward()


FACTORS = ("stem", "grouped")


def brute_force(network: nn.Module, data, power: int) -> dict[str, torch.Tensor]:
    """Average (s · ∂L/∂s)² or its magnitude number by number, in plain Python."""
    sums = {name: [0.0] * network.get_submodule(name).rank() for name in FACTORS}
    for batch in data:
        backward(network, batch)
        for name in FACTORS:
            factors = network.get_submodule(name).scaling.scaling_factors
            for j in range(len(sums[name])):
                sums[name][j] += abs(factors[j].item() * factors.grad[j].item()) ** power
    return {name: torch.tensor([s / len(data) for s in values], dtype=torch.float64) for name, values in sums.items()}


@pytest.mark.parametrize(("reduction", "power"), [("square", 2), ("abs", 1)])
def test_taylor_is_the_mean_over_batches_of_what_a_loop_computes(reduction, power):
    network, data = decomposed(), batches(3)
    taylor = mbp.TaylorImportance(network, reduction=reduction)
    for batch in data:
        backward(network, batch)
        assert taylor.accumulate() is True
    found, wanted = taylor.scores(), brute_force(network, data, power)
    assert list(found) == ["stem", "grouped"]
    assert taylor.batches == 3
    for name in FACTORS:
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-12)
    assert min(scores.max() for scores in found.values()) > 0


def test_taylor_is_the_slope_of_the_loss_by_finite_differences():
    network, batch = decomposed().double(), batches(1)[0]
    batch = (batch[0].double(), batch[1])
    taylor = mbp.TaylorImportance(network)
    backward(network, batch)
    taylor.accumulate()
    step = 1e-5
    for name, scores in taylor.scores().items():
        factors = network.get_submodule(name).scaling.scaling_factors.data
        for j in range(len(factors)):
            value, losses = factors[j].item(), []
            for shrink in (1 - step, 1 + step):  # the loss as this basis is shrunk or grown a little
                factors[j] = value * shrink
                losses.append(nn.functional.cross_entropy(network(batch[0]), batch[1]).item())
            factors[j] = value
            slope = (losses[1] - losses[0]) / (2 * step)
            assert scores[j].item() == pytest.approx(slope**2, rel=1e-4, abs=1e-10)


def test_taylor_default_is_the_mean_of_squares_without_normalization():
    taylor = mbp.TaylorImportance(decomposed())
    assert (taylor.reduction, taylor.normalization, taylor.batches) == ("square", "none", 0)


def test_singular_values_are_those_of_the_original_weights():
    network = tiny_classifier()
    scores = mbp.SingularValueImportance(mbp.decompose(network)).scores()
    stem = torch.linalg.svdvals(network.stem.weight.double().reshape(6, 9))
    grouped = torch.linalg.svdvals(network.grouped.weight.double().reshape(2, 4, 27)).reshape(-1)
    torch.testing.assert_close(scores["stem"], stem, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores["grouped"], grouped, rtol=1e-5, atol=1e-6)


def test_singular_values_do_not_look_at_the_scaling_factors_and_survive_a_cut():
    network = decomposed()
    before = mbp.SingularValueImportance(mbp.decompose(tiny_classifier())).scores()
    torch.testing.assert_close(mbp.SingularValueImportance(network).scores(), before)
    result = mbp.prune_(network, before, mbp.Budget(bases=0.5))
    after = mbp.SingularValueImportance(network).scores()
    for name in FACTORS:
        torch.testing.assert_close(after[name], before[name][result.kept[name]])


def test_singular_values_count_the_norms_of_both_halves():
    network = mbp.decompose(tiny_classifier())
    before = mbp.SingularValueImportance(network).scores()
    network.grouped.basis.weight.data[3] *= 4
    network.grouped.scaling.weight.data[:4, 3] /= 4
    torch.testing.assert_close(mbp.SingularValueImportance(network).scores(), before)


def test_scaling_importance_is_the_magnitude_of_the_scaling_factors():
    network = decomposed()
    network.stem.scaling.scaling_factors.data = torch.tensor([1.0, -3.0, 0.0, 0.5, -0.25, 2.0])
    scores = mbp.ScalingImportance(network).scores()
    assert scores["stem"].tolist() == [1.0, 3.0, 0.0, 0.5, 0.25, 2.0]
    assert scores["stem"].dtype == torch.float64
    assert not scores["stem"].requires_grad
    assert {float(s) for s in mbp.ScalingImportance(mbp.decompose(tiny_classifier())).scores()["grouped"]} == {1.0}


@pytest.mark.parametrize(
    ("normalization", "divisor"),
    [
        ("none", lambda values: 1.0),
        ("l2", lambda values: sum(v * v for v in values) ** 0.5),
        ("mean", lambda values: sum(values) / len(values)),
        ("max", max),
    ],
)
def test_normalizations_divide_the_scores_of_each_layer(normalization, divisor):
    network = decomposed()
    backward(network, batches(1)[0])
    for kind in (mbp.ScalingImportance, mbp.SingularValueImportance, mbp.TaylorImportance):
        plain, other = kind(network), kind(network, normalization=normalization)
        for one in (plain, other):
            if isinstance(one, mbp.TaylorImportance):
                one.accumulate()
        for name, scores in plain.scores().items():
            wanted = [value / divisor(scores.tolist()) for value in scores.tolist()]
            assert other.scores()[name].tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", [mbp.ScalingImportance, mbp.SingularValueImportance, mbp.TaylorImportance])
def test_normalization_by_size_divides_by_the_weights_that_a_basis_costs(kind):
    network = decomposed()
    backward(network, batches(1)[0])
    plain, other = kind(network), kind(network, normalization="size")
    for one in (plain, other):
        if isinstance(one, mbp.TaylorImportance):
            one.accumulate()
    # a filter of 3 x 3 for 1 channel, or 3 in a group, and one weight for each output channel of the group
    for name, size in (("stem", 9 + 6), ("grouped", 3 * 9 + 8 // 2)):
        assert other.scores()[name].tolist() == pytest.approx((plain.scores()[name] / size).tolist(), rel=1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalized_scores_of_a_layer_of_zeros_are_zeros(normalization):
    network = decomposed()
    network.stem.scaling.scaling_factors.data.zero_()
    assert mbp.ScalingImportance(network, normalization).scores()["stem"].tolist() == [0.0] * 6


def test_taylor_divides_by_the_scale_of_the_loss():
    network, data = decomposed(), batches(2)
    plain, scaled = mbp.TaylorImportance(network), mbp.TaylorImportance(network)
    for batch in data:
        backward(network, batch)
        plain.accumulate()
        backward(network, batch, scale=4096.0)
        scaled.accumulate(gradient_scale=4096.0)
    for name in FACTORS:
        torch.testing.assert_close(scaled.scores()[name], plain.scores()[name], rtol=1e-5, atol=0)


def test_taylor_reads_and_writes_nothing_of_the_network():
    network = decomposed()
    taylor = mbp.TaylorImportance(network)
    backward(network, batches(1)[0])
    before = snapshot(network)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    taylor.accumulate()
    taylor.accumulate()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(p.grad, gradients[name]) for name, p in network.named_parameters() if p.grad is not None)


def test_taylor_without_gradients_names_the_layers():
    network = decomposed()
    taylor = mbp.TaylorImportance(network)
    with pytest.raises(ValueError, match=re.escape("no gradient on the scaling factors of ['stem', 'grouped']")):
        taylor.accumulate()
    network.stem.scaling.scaling_factors.requires_grad_(False)
    backward(network, batches(1)[0])
    with pytest.raises(ValueError, match=re.escape("of ['stem']: call it after backward()")):
        taylor.accumulate()
    assert taylor.batches == 0


def test_taylor_without_batches_says_what_to_do():
    with pytest.raises(ValueError, match=re.escape("No scores yet: call accumulate() after the backward pass")):
        mbp.TaylorImportance(decomposed()).scores()


def test_taylor_after_pruning_asks_for_a_reset():
    network, data = decomposed(), batches(2)
    taylor = mbp.TaylorImportance(network)
    backward(network, data[0])
    taylor.accumulate()
    mbp.prune_(network, taylor.scores(), mbp.Budget(bases=0.5))
    backward(network, data[1])
    with pytest.raises(ValueError, match=re.escape("pruned since the last reset(): call reset() after pruning")):
        taylor.accumulate()
    with pytest.raises(ValueError, match="The scores do not fit the network"):
        mbp.prune_(network, taylor.scores(), mbp.Budget(bases=0.6))
    taylor.reset()
    assert taylor.accumulate()
    assert taylor.batches == 1
    wanted = brute_force(network, data[1:], 2)
    for name, scores in taylor.scores().items():
        torch.testing.assert_close(scores, wanted[name], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_with_broken_gradients_raises_or_is_left_out(value):
    network, data = decomposed(), batches(2)
    taylor = mbp.TaylorImportance(network)
    backward(network, data[0])
    taylor.accumulate()
    backward(network, data[1])
    network.grouped.scaling.scaling_factors.grad[3] = value
    with pytest.raises(ValueError, match=re.escape("accumulate() found infinite or NaN gradients")):
        taylor.accumulate()
    assert taylor.accumulate(skip_nonfinite=True) is False
    assert taylor.batches == 1
    wanted = brute_force(network, data[:1], 2)
    for name, scores in taylor.scores().items():
        torch.testing.assert_close(scores, wanted[name], rtol=1e-5, atol=1e-12)


def test_taylor_state_goes_through_a_file_and_on():
    network, data = decomposed(), batches(3)
    whole, first = mbp.TaylorImportance(network), mbp.TaylorImportance(network)
    for batch in data[:2]:
        backward(network, batch)
        whole.accumulate()
        first.accumulate()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = mbp.TaylorImportance(network)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.batches == 2
    backward(network, data[2])
    whole.accumulate()
    second.accumulate()
    for name, scores in whole.scores().items():
        assert torch.equal(second.scores()[name], scores)


def test_taylor_state_before_the_first_batch_can_be_loaded():
    network = decomposed()
    taylor = mbp.TaylorImportance(network)
    state = mbp.TaylorImportance(network).state_dict()
    backward(network, batches(1)[0])
    taylor.accumulate()
    taylor.load_state_dict(state)
    assert taylor.batches == 0
    with pytest.raises(ValueError, match="No scores yet"):
        taylor.scores()


def test_what_was_loaded_is_not_changed_by_going_on():
    network = decomposed()
    taylor, other = mbp.TaylorImportance(network), mbp.TaylorImportance(network)
    backward(network, batches(1)[0])
    taylor.accumulate()
    state = taylor.state_dict()
    before = state["sum"].clone()
    other.load_state_dict(state)
    other.accumulate()
    assert torch.equal(state["sum"], before)


def test_taylor_state_of_a_network_with_other_ranks_is_refused_by_name():
    network = decomposed()
    taylor = mbp.TaylorImportance(network)
    state = taylor.state_dict()
    mbp.prune_(network, {"grouped": torch.arange(8.0)}, mbp.Budget(threshold=3.0))
    with pytest.raises(ValueError, match=re.escape("network with other ranks: ['grouped'] differ")):
        taylor.load_state_dict(state)
    with pytest.raises(ValueError, match=re.escape("['', 'grouped', 'stem'] differ")):
        mbp.TaylorImportance(mbp.decompose(nn.Conv2d(1, 6, 3))).load_state_dict(state)


def test_sums_are_still_there_after_a_state_was_refused():
    network = decomposed()
    taylor = mbp.TaylorImportance(network)
    backward(network, batches(1)[0])
    taylor.accumulate()
    before = taylor.scores()
    with pytest.raises(ValueError, match="other ranks"):
        taylor.load_state_dict({"batches": 1, "ranks": {"stem": 6}, "sum": torch.zeros(6)})
    assert taylor.batches == 1
    assert all(torch.equal(scores, before[name]) for name, scores in taylor.scores().items())


@pytest.mark.parametrize("kind", [mbp.ScalingImportance, mbp.SingularValueImportance, mbp.TaylorImportance])
def test_what_is_no_importance_is_refused(kind):
    words = "normalization must be one of ['l2', 'max', 'mean', 'none', 'size'], got 'median'"
    with pytest.raises(ValueError, match=re.escape(words)):
        kind(decomposed(), normalization="median")
    with pytest.raises(mbp.LayerSelectionError, match="holds no decomposed layer"):
        kind(tiny_classifier())


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction must be 'square' or 'abs', got 'sum'"):
        mbp.TaylorImportance(decomposed(), reduction="sum")
