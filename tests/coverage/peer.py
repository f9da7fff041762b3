"""What Torch-Pruning does with a network of the table: its default use, with the head ignored."""

from __future__ import annotations

import time
import warnings

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import nn

from .checks import Finding, first_line, tensors
from .row import Row, build, images

__all__ = ["torch_pruning"]


def torch_pruning(row: Row, pruning_ratio: float = 0.5) -> Finding:
    """Prune channels by group magnitude with Torch-Pruning, as its documentation shows it.

    The layer that runs last is ignored, so that the output keeps its shape. The heads of an attention block are told,
    as its documentation asks. Parameters outside layers (class token, positions) are left to its own detection.

    Returns:
        the finding, with state ``"prunes"``, ``"no reduction"``, ``"wrong"`` or ``"fails"``.
    """
    import torch_pruning as tp  # optional, and no dependency

    start = time.perf_counter()
    figures: dict[str, float | int] = {}
    try:
        network = build(row)
        x = images(row, 2, seed=1)
        with torch.no_grad():
            wanted = [t.shape for t in tensors(network(x))]
        figures["parameters"] = sum(p.numel() for p in network.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                network,
                x,
                importance=tp.importance.GroupMagnitudeImportance(),
                pruning_ratio=pruning_ratio,
                ignored_layers=[_last_layer(network, x)],
                num_heads={m.qkv: m.num_heads for m in network.modules() if isinstance(m, SABlock)},
            )
            pruner.step()
        figures["parameters_left"] = sum(p.numel() for p in network.parameters())
        with torch.no_grad():
            found = list(tensors(network(x)))
        if [t.shape for t in found] != wanted:
            state, reason = "wrong", "the output has another shape"
        elif not all(bool(torch.isfinite(t).all()) for t in found):
            state, reason = "wrong", "the output is not finite"
        elif figures["parameters_left"] >= figures["parameters"]:
            state, reason = "no reduction", "it removed nothing"
        else:
            state, reason = "prunes", None
    except Exception as error:  # many types
        state, reason = "fails", first_line(error)
    return Finding("Torch-Pruning", state, figures, reason, time.perf_counter() - start)


def _last_layer(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """Return the convolution or linear layer that runs last: the head."""
    ran: list[nn.Module] = []
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [
        m.register_forward_hook(lambda module, *_: ran.append(module))
        for m in network.modules()
        if isinstance(m, kinds)
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return ran[-1]
