"""Groups of channels that are followed through cuts are those that a new trace finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune import channel_tracking
from monai_basisprune.channel_graph import channel_groups
from monai_basisprune.channel_tracking import TrackedGroups
from monai_basisprune.snapshot import restore_, take_snapshot

from .networks import TinyClassifier, tiny_classifier

SHAPE = TinyClassifier.input_shape


def free(network):
    return {
        group.name: (group.units, list(group.sides()))
        for group in channel_groups(network, SHAPE)
        if group.kept_because is None
    }


def cut(network, share, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = [group for group in channel_groups(network, SHAPE) if group.kept_because is None]
    scores = {group.name: torch.rand(len(group.units), generator=generator) for group in groups}
    mbp.prune_channels_(network, scores, mbp.Budget(parameters=share), SHAPE)


@pytest.fixture
def traces(monkeypatch):
    """How often a network was traced."""
    counted = []

    def trace(network, input_shape):
        counted.append(network)
        return channel_groups(network, input_shape)

    monkeypatch.setattr(channel_tracking, "channel_groups", trace)
    return counted


def plain_classifier():
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 7, 3))
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2))


def test_groups_are_followed_through_cuts_and_found_anew_after_a_restoration(traces):
    network = mbp.decompose(plain_classifier())
    whole = take_snapshot(network)
    tracked = TrackedGroups(network, SHAPE)
    for seed, share in enumerate((0.3, 0.6, 0.8)):
        cut(network, share, seed)
        found = {group.name: (group.units, list(group.sides())) for group in tracked.current()}
        assert found == free(network)
        assert found
    assert len(traces) == 1
    smaller = take_snapshot(network)
    restore_(network, None, whole)
    assert {group.name: (group.units, list(group.sides())) for group in tracked.current()} == free(network)
    restore_(network, None, smaller)
    later = TrackedGroups(network, SHAPE)
    restore_(network, None, whole)
    assert {group.name: (group.units, list(group.sides())) for group in later.current()} == free(network)
    assert len(traces) == 3  # the second one when it was made, and when it had to hold more than it knew


@pytest.mark.parametrize("make", [plain_classifier, tiny_classifier])
def test_what_keeps_its_channels_is_told_and_one_channel_is_no_group(make):
    network = mbp.decompose(make())
    tracked = TrackedGroups(network, SHAPE)
    assert tracked.kept
    assert all(group.kept_because for group in tracked.kept)
    scores = {group.name: torch.rand(len(group.units)) for group in tracked.current()}
    mbp.prune_channels_(network, scores, mbp.Budget(threshold=2.0), SHAPE)  # all but one of each
    assert tracked.current() == []
