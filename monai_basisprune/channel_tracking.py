"""Follows the groups of channels of a network through cuts, so that it is traced once and not after each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from .channel_graph import ChannelGroup, channel_groups
from .channel_slices import channel_count, kept_channels
from .channel_trial import Side

__all__ = ["TrackedGroups"]


class TrackedGroups:
    """The groups of channels that can be removed from one network, as they are now.

    Which channels go together does not change when some of them go, only their positions do. The network is traced
    again when it holds a channel that it did not hold when it was traced, as when it was restored.

    Args:
        network: a decomposed network.
        input_shape: shape of one input without the batch, such as ``(1, 224, 224)``.

    Attributes:
        kept: the groups that keep their channels, as they were when the network was traced.

    Raises:
        LayerSelectionError: if the network cannot be traced.
        ValueError: if the network cannot process the input.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int]) -> None:
        self.network = network
        self.input_shape = tuple(input_shape)
        self._trace()

    def current(self) -> list[ChannelGroup]:
        """Return the groups with more than one channel, at the positions of now.

        Raises:
            LayerSelectionError: if the network has to be traced again and cannot be.
        """
        held = self._channels(self._held)
        if any(not set(held[side]) <= set(channels) for side, channels in self._held.items()):
            self._trace()
            return list(self._free)
        places = {side: {channel: place for place, channel in enumerate(channels)} for side, channels in held.items()}
        groups = []
        for group in self._free:
            units = []
            for unit in group.units:
                channels = {side: [self._held[side][position] for position in unit[side]] for side in unit}
                if all(channel in places[side] for side in unit for channel in channels[side]):
                    units.append({side: [places[side][channel] for channel in channels[side]] for side in unit})
            if len(units) > 1:
                groups.append(replace(group, units=units))
        return groups

    def _trace(self) -> None:
        groups = channel_groups(self.network, self.input_shape)
        self.kept = [group for group in groups if group.kept_because is not None]
        self._free = [group for group in groups if group.kept_because is None]
        self._held = self._channels(side for group in self._free for side in group.sides())

    def _channels(self, sides: Iterable[Side]) -> dict[Side, list[int]]:
        """Return which of its original channels a module holds, for some sides of modules."""
        modules = dict(self.network.named_modules())
        return {
            (name, side): kept_channels(modules[name]).get(side, list(range(channel_count(modules[name], side))))
            for name, side in sides
        }
