"""Small networks and comparisons that the tests of the core share."""

from __future__ import annotations

import torch
from monai.networks.blocks import SEResNeXtBottleneck
from monai.networks.nets import BasicUNet, DenseNet, DynUNet, EfficientNet, HighResNet, ResNet, SegResNet, UNet
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.channel_graph import channel_groups

torch.set_num_threads(1)  # the tensors of these tests are so small that a second thread only costs time

_DENSE = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2), "bn_size": 2}
_EFFICIENT = ["r1_k3_s11_e1_i32_o8_se0.25", "r1_k3_s22_e6_i8_o16_se0.25"]
_HIGHRES = (
    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
    {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 1},
    {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 1},
    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
)

MONAI_NETWORKS = {
    "DenseNet": (lambda: DenseNet(2, 1, 2, **_DENSE), (1, 32, 32)),
    "DenseNet with PReLU": (lambda: DenseNet(2, 1, 2, act="PRELU", **_DENSE), (1, 32, 32)),
    "DenseNet 3D with InstanceNorm": (
        lambda: DenseNet(3, 1, 2, norm=("instance", {"affine": True}), **_DENSE),
        (1, 32, 32, 32),
    ),
    "ResNet 3D with shortcut A": (
        lambda: ResNet("basic", [1] * 4, [4, 8, 12, 16], 3, 1, num_classes=2, shortcut_type="A"),
        (1, 16, 16, 16),
    ),
    "ResNet with shortcut B": (
        lambda: ResNet("bottleneck", [1] * 4, [4, 8, 12, 16], 2, 1, num_classes=2, shortcut_type="B"),
        (1, 32, 32),
    ),
    "ResNet 1D": (lambda: ResNet("basic", [1] * 4, [4, 8, 12, 16], 1, 1, num_classes=2), (1, 64)),
    "SE-ResNeXt block": (lambda: SEResNeXtBottleneck(2, 64, 16, groups=4, reduction=4, base_width=16), (64, 8, 8)),
    "EfficientNet": (lambda: EfficientNet(_EFFICIENT, 2, 1, 2, image_size=32), (1, 32, 32)),
    "HighResNet": (lambda: HighResNet(2, 1, 2, layer_params=_HIGHRES), (1, 16, 16)),
    "UNet 3D": (lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1), (1, 16, 16, 16)),
    "SegResNet 3D": (
        lambda: SegResNet(3, 8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)),
        (1, 16, 16, 16),
    ),
    "DynUNet": (lambda: DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]), (1, 32, 32)),
}
"""Functions that make small variants of MONAI's networks, and the shape of one input of each."""


class ChannelPReLU(nn.Module):
    """A PReLU with one weight for each channel, a depthwise convolution and an up-sampling one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.PReLU(6),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.InstanceNorm2d(6, affine=True),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(4, 2, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Grouped(nn.Module):
    """Grouped convolutions in a row, and a flattened feature map in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(12)
        self.two = nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(4 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.one(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.two(x)).flatten(1))


NETWORKS = {
    **MONAI_NETWORKS,
    "ResNet with shortcut A": (
        lambda: ResNet("basic", [1] * 4, [4, 8, 12, 16], 2, 1, num_classes=2, shortcut_type="A"),
        (1, 32, 32),
    ),
    "BasicUNet": (lambda: BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)), (1, 32, 32)),
    "UNet with PReLU": (lambda: UNet(2, 1, 2, (4, 8), (2,), num_res_units=0), (1, 16, 16)),
    "channel PReLU": (ChannelPReLU, (1, 8, 8)),
    "grouped": (Grouped, (1, 4, 4)),
}
"""Those of MONAI, and others with channels of every kind."""


class TinyClassifier(nn.Module):
    """Two convolutions, one of them grouped, with a batch norm and a head: what a classifier has, in small."""

    input_shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.pool(torch.relu(self.grouped(x))).flatten(1))


class Nested(nn.Module):
    """Convolutions whose names are alike, at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.layer1 = nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)))
        self.layer10 = nn.ModuleDict({"conv1": nn.Conv2d(2, 2, 1), "myconv1": nn.Conv2d(2, 2, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer10["myconv1"](self.layer10["conv1"](self.layer1(self.conv1(x))))


NESTED = ["conv1", "layer1.0.0", "layer1.0.1", "layer10.conv1", "layer10.myconv1"]
"""The names of its convolutions."""


class FlatClassifier(nn.Module):
    """Has no feature map over space after its only convolution, which takes the whole image in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 8)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).flatten(1))


def tiny_classifier(seed: int = 0) -> TinyClassifier:
    """Return a :class:`TinyClassifier` with weights of a seed and norm statistics as if it had been trained."""
    torch.manual_seed(seed)
    network = TinyClassifier()
    network.norm.running_mean.normal_(std=0.1)
    network.norm.running_var.uniform_(0.5, 1.5)
    return network


def sound(make) -> nn.Module:
    """A network with norms as if it had been trained, in float64, so that rounding hides nothing."""
    torch.manual_seed(0)
    network = make().double().eval()
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.5)
    return network


def random_scores(network: nn.Module, shape: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random score for each channel that can be removed."""
    generator = torch.Generator().manual_seed(seed)
    free = [group for group in channel_groups(network, shape) if group.kept_because is None]
    return {group.name: torch.rand(len(group.units), generator=generator) for group in free}


def cut(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a network decomposed, and the same with fewer bases."""
    unpruned, pruned = mbp.decompose(network), mbp.decompose(network)
    mbp.prune_(pruned, mbp.SingularValueImportance(pruned).scores(), mbp.Budget(bases=0.6))
    return unpruned, pruned


def snapshot(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all values of a network, to compare with later."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether two state dicts hold the same entries with the same bits."""
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest deviation, relative to the largest value."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
