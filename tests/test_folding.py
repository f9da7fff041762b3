from __future__ import annotations

import pytest
import torch
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.folding import fold_norms, foldable_norms

from .networks import MONAI_NETWORKS, relative_error, same_bits, snapshot


def trained_norms(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def names(network: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    known = {module: name for name, module in network.named_modules()}
    return [(known[conv], known[norm]) for conv, norm in foldable_norms(network, shape)]


@pytest.mark.parametrize("name", [name for name in MONAI_NETWORKS if name != "DenseNet 3D with InstanceNorm"])
def test_networks_of_monai_give_the_same_output(name):
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network, x = trained_norms(make()), torch.rand(2, *shape)
    before = snapshot(network)
    folded = fold_norms(network, shape)
    with torch.no_grad():
        assert relative_error(folded(x), network(x)) <= 1e-5
    assert same_bits(snapshot(network), before)
    count = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    left = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert left == count - len(foldable_norms(network, shape))


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_norm_after_a_convolution_is_folded_by_hand(kind):
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[kind - 1]
    network = nn.Sequential(conv(1, 2, 1, bias=False), norm(2)).eval()
    network[0].weight.data.flatten().copy_(torch.tensor([2.0, 3.0]))
    network[0].weight.data = torch.tensor([2.0, 3.0]).reshape(network[0].weight.shape)
    network[1].running_mean.copy_(torch.tensor([1.0, -1.0]))
    network[1].running_var.copy_(torch.tensor([4.0, 0.25]) - network[1].eps)
    folded = fold_norms(network, (1, *[4] * kind))
    assert folded[0].weight.flatten().tolist() == pytest.approx([1.0, 6.0])
    assert folded[0].bias.tolist() == pytest.approx([-0.5, 2.0])
    assert isinstance(folded[1], nn.Identity)


class Branches(nn.Module):
    """Each norm follows a convolution, but only that of ``plain`` is the only one that uses its output."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("plain", "added", "returned", "twice", "between"):
            setattr(self, name, nn.Conv2d(2, 2, 3, padding=1))
            setattr(self, f"{name}_norm", nn.BatchNorm2d(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.plain_norm(self.plain(x))
        added = self.added(x)
        x = self.added_norm(added) + added
        x = self.twice_norm(self.twice(self.twice_norm(self.twice(x))))
        x = self.between_norm(torch.relu_(self.between(x)))
        returned = self.returned(x)
        return self.returned_norm(returned), returned


def test_an_output_with_another_use_is_left_alone():
    torch.manual_seed(0)
    network, x = trained_norms(Branches()), torch.rand(1, 2, 6, 6)
    assert names(network, (2, 6, 6)) == [("plain", "plain_norm")]
    with torch.no_grad():
        for found, wanted in zip(fold_norms(network, (2, 6, 6))(x), network(x), strict=True):
            assert relative_error(found, wanted) <= 1e-5


def test_norms_without_statistics_or_with_hooks_are_left_alone():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2)
    )
    assert names(network, (1, 4, 4)) == []
    watched = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    handle = watched[0].register_forward_hook(lambda module, args, output: None)
    assert names(watched, (1, 4, 4)) == []
    handle.remove()
    assert names(watched, (1, 4, 4)) == [("0", "1")]


def test_a_pruned_network_is_recomposed_and_folded():
    make, shape = MONAI_NETWORKS["ResNet with shortcut B"]
    torch.manual_seed(0)
    network = mbp.decompose(trained_norms(make()))
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(parameters=0.6))
    folded, x = mbp.recompose(network, fold=True, input_shape=shape), torch.rand(2, *shape)
    with torch.no_grad():
        assert relative_error(folded(x), network(x)) <= 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(m.training for m in folded.modules())
