"""A layer and its twin in a reference, watched while both see the same images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_slices import kept_channels
from monai_basisprune.paired_passes import input_pair_moments, output_difference, output_pair_moments

from .handlers.engines import SHAPE, calls, images, residual_classifier
from .networks import same_bits, snapshot, tiny_classifier


def cut_network() -> nn.Module:
    """Return the residual classifier without some of its bases and channels, its scaling factors as if trained."""
    network = mbp.decompose(residual_classifier())
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.3))
    generator = torch.Generator().manual_seed(0)
    free = [group for group in mbp.channel_status(network, SHAPE) if group.skipped is None]
    scores = {group.name: torch.rand(group.channels, generator=generator) for group in free}
    mbp.prune_channels_(network, scores, mbp.Budget(parameters=0.4), SHAPE)
    with torch.no_grad():
        network.inner.scaling.scaling_factors.uniform_(0.5, 2.0, generator=generator)
    return network.train()


def left(layer: nn.Module, side: str) -> list[int]:
    kept = kept_channels(layer)[side]
    assert kept
    return kept


@pytest.mark.parametrize("plain", [False, True])
def test_outputs_are_wanted_of_the_channels_that_are_left(plain):
    network, reference, x = cut_network(), residual_classifier(), images()
    reference = reference if plain else mbp.decompose(reference)
    before = snapshot(network), snapshot(reference)
    layer, twin = network.inner, reference.inner
    moments = output_pair_moments(network, reference, layer, twin, [x[:4], x[4:]])
    assert same_bits(snapshot(network), before[0])
    assert same_bits(snapshot(reference), before[1])
    for part in (network, reference):
        assert part.training
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in part.modules())
    features = calls(network, layer.basis, x)[1] * layer.scaling.scaling_factors.detach().double().reshape(-1, 1)
    kept = left(layer, "out")
    assert len(kept) < 12
    both = torch.cat([features, calls(reference, twin, x)[1][kept]])
    assert moments.samples == both.shape[1] == 6 * 64
    torch.testing.assert_close(moments.second_moment()[0], both @ both.T / both.shape[1])
    torch.testing.assert_close(moments.mean()[0], both.mean(dim=1))


def test_inputs_are_those_that_are_left_and_then_all_of_the_twin():
    network, reference, x = cut_network(), residual_classifier(), images()
    moments = input_pair_moments(network, reference, network.outer, reference.outer, [x])
    found, wanted = calls(network, network.outer, x)[0], calls(reference, reference.outer, x)[0]
    assert len(found) == len(left(network.outer, "in")) < len(wanted) == 12
    both = torch.cat([found, wanted])
    torch.testing.assert_close(moments.second_moment()[0], both @ both.T / both.shape[1])
    torch.testing.assert_close(moments.mean()[0], both.mean(dim=1))


def test_inputs_of_a_linear_layer_are_paired_too():
    network, reference, x = cut_network(), residual_classifier(), images()
    moments = input_pair_moments(network, reference, network.head, reference.head, [x])
    assert moments.samples == 6
    both = torch.cat([calls(network, network.head, x)[0], calls(reference, reference.head, x)[0]])
    torch.testing.assert_close(moments.second_moment()[0], both @ both.T / 6)


def test_the_difference_is_that_of_the_channels_that_are_left():
    network, reference, x = cut_network(), residual_classifier(), images()
    layer, twin = network.inner, reference.inner
    found, wanted = calls(network, layer, x)[1], calls(reference, twin, x)[1][left(layer, "out")]
    difference = float((found - wanted).square().mean())
    assert difference > 0
    for batches in ([x], [x[:1], x[1:]]):
        assert output_difference(network, reference, layer, twin, batches) == pytest.approx(difference, rel=1e-6)
    same = mbp.decompose(residual_classifier())
    assert output_difference(same, same, same.inner, same.inner, [x]) == 0.0


def test_groups_are_paired_group_by_group():
    network, reference, x = mbp.decompose(tiny_classifier()), tiny_classifier(), images()
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.3))
    moments = output_pair_moments(network, reference, network.grouped, reference.grouped, [x])
    features, wanted = calls(network, network.grouped.basis, x)[1], calls(reference, reference.grouped, x)[1]
    rank = network.grouped.rank() // 2
    for group in range(2):
        both = torch.cat([features[group * rank :][:rank], wanted[group * 4 :][:4]])
        torch.testing.assert_close(moments.second_moment()[group], both @ both.T / both.shape[1])
    inputs = input_pair_moments(network, reference, network.grouped, reference.grouped, [x])
    assert inputs.second_moment().shape == (2, 6, 6)


class Again(nn.Module):
    """A layer that is used some times in one pass."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = torch.relu(self.layer(x))
        return x


def test_a_layer_that_is_used_twice_is_paired_call_by_call():
    network, reference, x = mbp.decompose(Again(2)), Again(2), images()
    with torch.no_grad():
        network.layer.scaling.bias += 0.3
    moments = input_pair_moments(network, reference, network.layer, reference.layer, [x])
    both = torch.cat([calls(network, network.layer, x)[0], calls(reference, reference.layer, x)[0]])
    assert moments.samples == both.shape[1] == 2 * 6 * 64
    torch.testing.assert_close(moments.second_moment()[0], both @ both.T / both.shape[1])


def test_a_layer_that_is_used_less_often_has_no_pairs():
    network, reference = mbp.decompose(Again(2)), Again(3)
    with pytest.raises(ValueError, match="zip"):
        output_difference(network, reference, network.layer, reference.layer, [images()])
    assert not any(module._forward_hooks for module in (*network.modules(), *reference.modules()))


def test_passes_after_the_first_end_with_the_last_call_of_the_layer():
    network, reference, x = cut_network(), residual_classifier(), images()
    reached = []
    handles = [one.head.register_forward_hook(lambda *_: reached.append(True)) for one in (network, reference)]
    whole = output_pair_moments(network, reference, network.inner, reference.inner, [x])
    assert len(reached) == 2
    parts = output_pair_moments(network, reference, network.inner, reference.inner, [x[:2], x[2:3], x[3:]])
    assert len(reached) == 4
    assert parts.samples == whole.samples
    torch.testing.assert_close(parts.second_moment(), whole.second_moment())
    assert network.training
    assert reference.training
    for handle in handles:
        handle.remove()


def test_images_that_do_not_fit_are_an_error_and_leave_no_hook():
    network, reference = mbp.decompose(tiny_classifier()), tiny_classifier()
    with pytest.raises(ValueError, match="cannot process an input of shape"):
        input_pair_moments(network, reference, network.stem, reference.stem, [torch.rand(1, 3, 8, 8)])
    assert not any(module._forward_pre_hooks for module in (*network.modules(), *reference.modules()))
