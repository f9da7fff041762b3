from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.channel_selection import select_channels

SHAPE = (1, 8, 8)


def network() -> nn.Module:
    """A network with groups of 20, 12 and 3 channels that can go."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 12, 3, padding=1)]
    layers += [nn.ReLU(), nn.Conv2d(12, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)]
    return mbp.decompose(nn.Sequential(*layers)).eval()


def scores() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(size, generator=generator) for name, size in (("0", 20), ("3", 12), ("5", 3))}


@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_a_multiple_is_left_wherever_channels_go_and_the_budget_is_met(multiple, share):
    cut = network()
    result = mbp.prune_channels_(cut, scores(), mbp.Budget(parameters=share), SHAPE, multiple=multiple)
    assert result.parameter_reduction >= share
    assert result.removed_channels > 0
    for name, values in scores().items():
        kept = result.kept[name]
        assert len(kept) == len(values) or len(kept) % multiple == 0
        assert len(kept) >= min(multiple, len(values))
        gone = [position for position in range(len(values)) if position not in kept]
        assert not gone or max(values[gone]) <= min(values[kept])  # the best of each group stay
    status = {layer.name: layer for layer in mbp.channel_status(cut, SHAPE)}
    assert {name: status[name].channels for name in result.kept} == {n: len(kept) for n, kept in result.kept.items()}
    assert bool(torch.isfinite(mbp.recompose(cut)(torch.rand(2, *SHAPE))).all())


def test_blocks_go_by_the_mean_of_their_scores():
    given = {"0": torch.arange(20.0), "3": torch.tensor([0.0, 9.0, *range(20, 30)]), "5": torch.full((3,), 50.0)}
    one = network()
    # blocks of 4 of "0" have the means 1.5, 5.5, 9.5, 13.5, and the first one of "3" has (0 + 9 + 20 + 21) / 4 = 12.5
    kept = select_channels(one, channel_groups(one, SHAPE), given, mbp.Budget(threshold=12.0), SHAPE, multiple=4)
    assert kept == {"0": list(range(12, 20)), "3": list(range(12)), "5": [0, 1, 2]}
    kept = select_channels(one, channel_groups(one, SHAPE), given, mbp.Budget(threshold=13.0), SHAPE, multiple=4)
    assert kept["3"] == list(range(4, 12))


def test_the_first_block_brings_a_group_to_a_multiple():
    one = network()
    given = {"0": torch.arange(20.0)}
    kept = select_channels(one, channel_groups(one, SHAPE), given, mbp.Budget(threshold=2.0), SHAPE, multiple=16)
    assert kept == {"0": list(range(4, 20))}  # 4 of 20 first, at their mean of 1.5
    kept = select_channels(one, channel_groups(one, SHAPE), given, mbp.Budget(threshold=1e9), SHAPE, multiple=16)
    assert kept == {"0": list(range(4, 20))}  # one block stays


def test_a_multiple_of_one_changes_nothing():
    one = network()
    groups, budget = channel_groups(one, SHAPE), mbp.Budget(macs=0.5, input_shape=SHAPE)
    plain = select_channels(one, groups, scores(), budget, SHAPE)
    assert select_channels(one, groups, scores(), budget, SHAPE, multiple=1) == plain


def test_what_blocks_cannot_reach_is_refused_and_the_network_untouched():
    one = network()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    with pytest.raises(mbp.BudgetError, match="with one block of 16 channels left in every group that has scores"):
        mbp.prune_channels_(one, scores(), mbp.Budget(parameters=0.9), SHAPE, multiple=16)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("multiple", [0, -16, 1.5, True, "16"])
def test_a_multiple_that_is_none_is_refused(multiple):
    words = f"multiple must be a whole number of at least 1, the channels of one block, got {multiple!r}."
    with pytest.raises(ValueError, match=re.escape(words)):
        mbp.prune_channels_(network(), scores(), mbp.Budget(parameters=0.4), SHAPE, multiple=multiple)
