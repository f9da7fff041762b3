from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune import recomposition
from monai_basisprune.forward import memory_format

from .networks import relative_error, tiny_classifier


def pruned_classifier() -> nn.Module:
    network = mbp.decompose(tiny_classifier()).eval()
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(parameters=0.5))
    return network


def test_the_measured_form_is_taken(monkeypatch):
    network, x = pruned_classifier(), torch.rand(2, 1, 8, 8)
    for split in ({"stem": True, "grouped": False}, {"stem": False, "grouped": True}):
        monkeypatch.setattr(recomposition, "faster_split", lambda network, shape, split=split: split)
        plain = mbp.recompose(network, cheaper_by="latency", input_shape=(1, 8, 8))
        assert {name: isinstance(getattr(plain, name), nn.Sequential) for name in split} == split
        with torch.no_grad():
            assert relative_error(plain(x), network(x)) <= 1e-5


def test_a_network_recomposed_by_latency_gives_the_same_output():
    network, x = pruned_classifier(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        plain = mbp.recompose(network, cheaper_by="latency", input_shape=(1, 8, 8))
        assert relative_error(plain(x), network(x)) <= 1e-5


def test_an_unknown_currency_is_refused():
    with pytest.raises(ValueError, match=r"cheaper_by must be one of \('parameters', 'latency'\), got 'flops'"):
        mbp.recompose(pruned_classifier(), cheaper_by="flops")


@pytest.mark.parametrize("arguments", [{"cheaper_by": "latency"}, {"fold": True}])
def test_what_has_to_be_run_needs_a_shape(arguments):
    with pytest.raises(ValueError, match="recompose needs input_shape"):
        mbp.recompose(pruned_classifier(), **arguments)


@pytest.mark.parametrize(("spatial_dims", "last"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_is_kept(spatial_dims, last):
    conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
    torch.manual_seed(0)
    original = nn.Sequential(conv(2, 8, 3), conv(8, 8, 3)).to(memory_format=last)
    x = torch.rand(2, 2, *[8] * spatial_dims)
    network = mbp.decompose(original)
    assert memory_format(network[0].basis.weight) is last
    mbp.prune_(network, {"1": torch.arange(8.0)}, mbp.Budget(threshold=4.5))
    assert memory_format(network[1].basis.weight) is last
    plain = mbp.recompose(network)
    assert isinstance(plain[1], nn.Sequential)
    assert memory_format(plain[0].weight) is last
    assert memory_format(plain[1][0].weight) is last
    assert relative_error(plain(x), network(x)) <= 1e-5
    default = mbp.recompose(mbp.decompose(nn.Sequential(conv(2, 8, 3))))
    assert memory_format(default[0].weight) is torch.contiguous_format
