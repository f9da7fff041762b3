"""The original network, however a caller names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

__all__ = ["make_network"]


def make_network(network_def: nn.Module | Callable[[], nn.Module] | Mapping[str, Any]) -> nn.Module:
    """Return the network that a ``network_def`` stands for.

    Args:
        network_def: the network itself; or a function or a bundle component (a dictionary with ``_target_``) that
            makes it.

    Raises:
        TypeError: if it stands for something else.
    """
    network: Any = network_def
    if isinstance(network_def, Mapping):
        network = ConfigParser({"network_def": dict(network_def)}).get_parsed_content("network_def")
    elif not isinstance(network_def, nn.Module) and callable(network_def):
        network = network_def()
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network_def must be a torch.nn.Module, or a function or a dictionary with _target_ that makes one; "
            f"got {type(network).__name__}."
        )
    return network
