from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_graph import ChannelGroup, channel_groups
from monai_basisprune.channel_selection import (
    check_channel_scores,
    check_multiple,
    fewest_channels,
    rising_blocks,
    select_channels,
)
from monai_basisprune.channel_trial import removed_slots
from monai_basisprune.channels import cut_channels_

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
    ranked = {"0": torch.arange(20.0), "3": torch.tensor([0.0, 9.0, *range(20, 30)]), "5": torch.full((3,), 50.0)}
    one = network()
    # blocks of 4 of "0" have the means 1.5, 5.5, 9.5, 13.5, and the first one of "3" has (0 + 9 + 20 + 21) / 4 = 12.5
    kept = select_channels(one, channel_groups(one, SHAPE), ranked, mbp.Budget(threshold=12.0), SHAPE, multiple=4)
    assert kept == {"0": list(range(12, 20)), "3": list(range(12)), "5": [0, 1, 2]}
    kept = select_channels(one, channel_groups(one, SHAPE), ranked, mbp.Budget(threshold=13.0), SHAPE, multiple=4)
    assert kept["3"] == list(range(4, 12))


def test_the_first_block_brings_a_group_to_a_multiple():
    one = network()
    ranked = {"0": torch.arange(20.0)}
    kept = select_channels(one, channel_groups(one, SHAPE), ranked, mbp.Budget(threshold=2.0), SHAPE, multiple=16)
    assert kept == {"0": list(range(4, 20))}  # 4 of 20 first, at their mean of 1.5
    kept = select_channels(one, channel_groups(one, SHAPE), ranked, mbp.Budget(threshold=1e9), SHAPE, multiple=16)
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


# --- one by one, and what is checked -------------------------------------------------------------------------------


def groups_of(sizes: dict[str, int], kept_because: str | None = None) -> list[ChannelGroup]:
    return [ChannelGroup(n, [{(n, "out"): [c]} for c in range(size)], kept_because) for n, size in sizes.items()]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=24), st.integers(1, 10))
def test_blocks_hold_each_channel_once_the_worst_first_and_leave_multiples(values, multiple):
    blocks = rising_blocks(torch.tensor(values, dtype=torch.float32), multiple)
    order = [channel for block in blocks for channel in block]
    assert order == sorted(range(len(values)), key=lambda channel: (values[channel], -channel))
    left = [len(values) - sum(map(len, blocks[:count])) for count in range(1, len(blocks))]
    assert all(number > 0 and number % multiple == 0 for number in left)
    assert len(blocks) == max(1, -(-len(values) // multiple))
    assert all(len(block) == multiple for block in blocks[1:])


def test_between_equal_scores_the_later_channel_goes_first_and_the_larger_group_before_the_smaller():
    one = network()
    groups = channel_groups(one, SHAPE)
    equal = {"5": torch.ones(3), "3": torch.ones(12), "0": torch.ones(20)}
    kept = select_channels(one, groups, equal, mbp.Budget(parameters=0.05), SHAPE)
    assert kept["5"] == [0, 1, 2]
    assert kept["3"] == list(range(12))
    assert kept["0"] == list(range(len(kept["0"])))
    assert 1 < len(kept["0"]) < 20


@pytest.mark.parametrize("quantities", [{"parameters": 0.3}, {"macs": 0.3}, {"parameters": 0.2, "macs": 0.3}])
def test_those_with_the_lowest_scores_go_until_the_budget_is_met_and_no_further(quantities):
    one, ranked = network(), scores()
    groups = channel_groups(one, SHAPE)
    budget = mbp.Budget(**quantities, input_shape=SHAPE)
    kept = select_channels(one, groups, ranked, budget, SHAPE)
    assert list(kept) == list(ranked)
    # the best of each group stays, whatever its score is
    candidates = sorted((float(v), n, c) for n, s in ranked.items() for c, v in enumerate(s) if c != int(s.argmax()))
    gone = [(name, c) for _, name, c in candidates if c not in kept[name]]
    assert gone == [(name, c) for _, name, c in candidates[: len(gone)]]

    def reached(removed: list[tuple[str, int]]) -> bool:
        """Whether a network that is really cut meets the budget."""
        cut = copy.deepcopy(one)
        left = {name: [c for c in range(len(s)) if (name, c) not in removed] for name, s in ranked.items()}
        cut_channels_(cut, removed_slots({group.name: group.units for group in groups}, left), None)
        before, after = (mbp.measure_complexity(mbp.recompose(n), SHAPE) for n in (one, cut))
        return all(1 - getattr(after, q) / getattr(before, q) >= share for q, share in quantities.items())

    assert reached(gone)
    assert not reached(gone[:-1])


def test_groups_without_scores_keep_all_and_nothing_goes_for_a_budget_that_is_met():
    one = network()
    groups = channel_groups(one, SHAPE)
    kept = select_channels(one, groups, {"3": scores()["3"]}, mbp.Budget(threshold=9.0), SHAPE)
    assert kept == {"3": [int(scores()["3"].argmax())]}
    everything = {name: list(range(len(values))) for name, values in scores().items()}
    assert select_channels(one, groups, scores(), mbp.Budget(parameters=0.0), SHAPE) == everything
    assert select_channels(one, groups, scores(), mbp.Budget(threshold=0.0), SHAPE) == everything


def test_a_score_at_the_threshold_stays():
    ranked = {"3": torch.tensor([0.5, 0.25, *[1.0] * 10])}
    kept = select_channels(network(), channel_groups(network(), SHAPE), ranked, mbp.Budget(threshold=0.5), SHAPE)
    assert kept == {"3": [0, *range(2, 12)]}


@pytest.mark.parametrize("quantities", [{"bases": 0.5}, {"latency": 0.5, "input_shape": SHAPE}, {"auc_margin": 0.01}])
def test_a_budget_that_is_none_of_channels_is_refused(quantities):
    one = network()
    words = "cannot be met by channels: ask for a share of parameters or of macs, or for a threshold."
    with pytest.raises(mbp.BudgetError, match=re.escape(words)):
        select_channels(one, channel_groups(one, SHAPE), scores(), mbp.Budget(**quantities), SHAPE)


def test_a_budget_beyond_the_last_channel_of_each_group_is_refused_with_the_largest_that_can_be_met():
    one = network()
    with pytest.raises(mbp.BudgetError) as caught:
        select_channels(one, channel_groups(one, SHAPE), scores(), mbp.Budget(parameters=0.999), SHAPE)
    assert "by channels: with one channel left in every group that has scores" in str(caught.value)
    largest = float(re.findall(r"largest that can be met is parameters=(0\.\d+)", str(caught.value))[0])
    kept = select_channels(one, channel_groups(one, SHAPE), scores(), mbp.Budget(parameters=largest), SHAPE)
    assert all(len(left) == 1 for left in kept.values())


def test_all_that_is_wrong_with_scores_stands_in_one_error():
    groups = groups_of({"one": 3, "two": 2, "three": 2}) + groups_of({"last": 2}, "they are outputs of the network")
    check_channel_scores(groups, {"one": torch.zeros(3), "two": torch.ones(2)})
    with pytest.raises(ValueError) as caught:
        check_channel_scores(
            groups,
            {
                "nowhere": torch.zeros(2),
                "last": torch.zeros(2),
                "one": torch.zeros(4),
                "two": torch.tensor([0.0, float("inf")]),
                "three": torch.tensor([float("nan"), 0.0]),
            },
        )
    assert str(caught.value).splitlines() == [
        "The scores do not fit the channels of the network:",
        "  - nowhere: no group of channels has this name",
        "  - last: its channels cannot be removed, they are outputs of the network",
        "  - one: (4,) scores for 3 channels",
        "  - two: scores are NaN or infinite",
        "  - three: scores are NaN or infinite",
    ]
    with pytest.raises(ValueError) as caught:
        check_channel_scores(groups, {})
    assert str(caught.value).splitlines()[1:] == [
        "  - there are none; groups whose channels can be removed are ['one', 'two', 'three'], see channel_status"
    ]
    with pytest.raises(ValueError, match="  - one: scores are NaN or infinite"):
        select_channels(network(), groups, {"one": torch.full((3,), float("nan"))}, mbp.Budget(threshold=1.0), SHAPE)


@pytest.mark.parametrize("multiple", [0, -16, 1.5, True, "16", None])
def test_a_multiple_that_is_none_is_refused(multiple):
    words = f"multiple must be a whole number of at least 1, the channels of one block, got {multiple!r}."
    for act in (
        lambda: check_multiple(multiple),
        lambda: select_channels(network(), [], {}, mbp.Budget(threshold=1.0), SHAPE, multiple),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            act()
    check_multiple(1)
    check_multiple(16)


def test_what_is_left_of_a_group_at_least_is_said_in_words():
    assert fewest_channels(1) == "one channel"
    assert fewest_channels(16) == "one block of 16 channels"
