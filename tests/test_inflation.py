from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.blocks import SEResNeXtBottleneck
from monai.networks.layers.factories import Conv
from monai.networks.nets import DenseNet, DenseNet121, EfficientNet, ResNet
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.layers import SUPPORTED_CONVOLUTIONS

from .networks import relative_error, same_bits, snapshot, tiny_classifier

_DENSE = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2), "bn_size": 2}
_EFFICIENT = ["r1_k3_s11_e1_i32_o8_se0.25", "r1_k3_s22_e6_i8_o16_se0.25"]
_DENSE_DEF = {
    "_target_": "monai.networks.nets.DenseNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
    "init_features": 8, "growth_rate": 4, "block_config": [2, 2], "bn_size": 2,
}  # fmt: skip


def dense(dims: int, in_channels: int = 1, out_channels: int = 2, **settings) -> DenseNet:
    return DenseNet(dims, in_channels, out_channels, **{**_DENSE, **settings})


def resnet(dims: int, shortcut: str, block: str = "basic") -> ResNet:
    return ResNet(block, [1] * 4, [4, 8, 12, 16], dims, 1, num_classes=2, shortcut_type=shortcut, conv1_t_size=3)


NETWORKS = {
    "DenseNet": dense,
    "ResNet with shortcut A": lambda dims: resnet(dims, "A"),
    "ResNet with shortcut B": lambda dims: resnet(dims, "B", "bottleneck"),
    "SE-ResNeXt block": lambda dims: nn.Sequential(
        Conv[Conv.CONV, dims](1, 32, 3, padding=1),
        SEResNeXtBottleneck(dims, 32, 8, groups=4, reduction=4, base_width=32),
    ),
    "EfficientNet": lambda dims: EfficientNet(_EFFICIENT, dims, 1, 2, image_size=16),
}


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network with norm statistics as if it had been trained."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return network.eval()


def convolutions(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if isinstance(module, SUPPORTED_CONVOLUTIONS)}


def check_values(image: nn.Module, volume: nn.Module, axis: int = -1) -> None:
    kernels = {f"{name}.weight" for name in convolutions(image)}
    assert kernels
    found = volume.state_dict()
    for name, value in image.state_dict().items():
        if name not in kernels:
            assert torch.equal(found[name], value), name
            continue
        new = found[name].movedim(axis, -1) if axis == -1 else found[name].movedim(2 + axis, -1)
        size = new.shape[-1]
        for index in range(size):  # the same slice T times
            torch.testing.assert_close(new[..., index] * size, value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_monai_from_2d_to_3d_and_then_smaller(name):
    torch.manual_seed(0)
    image = trained(NETWORKS[name](2))
    before = snapshot(image)
    target = NETWORKS[name](3).eval()
    untouched = snapshot(target)
    volume = mbp.inflate(image, target)
    assert same_bits(snapshot(image), before)
    assert same_bits(snapshot(target), untouched)
    check_values(image, volume)
    decomposed = mbp.decompose(volume)
    mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(bases=0.5))
    small = mbp.recompose(decomposed)
    count = [sum(p.numel() for p in network.parameters()) for network in (small, volume)]
    assert count[0] < 0.8 * count[1]
    x = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert relative_error(small(x), decomposed(x)) < 1e-5
        assert relative_error(mbp.recompose(mbp.decompose(volume))(x), volume(x)) < 1e-5


def test_densenet121():
    torch.manual_seed(0)
    image = trained(DenseNet121(2, 1, 2))
    check_values(image, mbp.inflate(image, lambda: DenseNet121(3, 1, 2)))


@pytest.mark.parametrize("name", ["DenseNet", "ResNet with shortcut A"])
def test_a_volume_that_does_not_change_along_the_axis_gives_the_output_of_the_image(name):
    def circular(dims: int) -> nn.Module:
        network = NETWORKS[name](dims)
        for module in network.modules():
            if isinstance(module, SUPPORTED_CONVOLUTIONS):
                module.padding_mode = "circular"
        return network

    torch.manual_seed(0)
    image = trained(circular(2))
    volume = mbp.inflate(image, circular(3)).eval()
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(volume(x.unsqueeze(-1).expand(-1, -1, -1, -1, 32)), image(x)) < 1e-5


def test_one_convolution_is_exact_in_the_interior():
    torch.manual_seed(0)
    image, volume = nn.Conv2d(2, 4, 3, padding=1), nn.Conv3d(2, 4, (3, 3, 5), padding=(1, 1, 2))
    inflated = mbp.inflate(image, volume)
    x = torch.rand(1, 2, 8, 8)
    with torch.no_grad():
        found = inflated(x.unsqueeze(-1).expand(-1, -1, -1, -1, 9))
        wanted = image(x)
        for index in range(2, 7):
            torch.testing.assert_close(found[..., index], wanted)
        assert not torch.allclose(found[..., 0], wanted)  # there the padding with zeros is seen


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_axis_and_any_size_along_it(axis, size):
    torch.manual_seed(0)
    kernel, padding = [3, 5], [1, 2]
    place = axis % 3
    kernel.insert(place, size)
    padding.insert(place, 0)
    image = nn.Conv2d(2, 4, (3, 5), padding=(1, 2))
    inflated = mbp.inflate(image, nn.Conv3d(2, 4, tuple(kernel), padding=tuple(padding)), axis)
    check_values(nn.Sequential(image), nn.Sequential(inflated), place)
    x = torch.rand(1, 2, 6, 7)
    with torch.no_grad():
        found = inflated(x.unsqueeze(2 + place).repeat_interleave(size, dim=2 + place))
        torch.testing.assert_close(found.squeeze(2 + place), image(x))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_rank_stays_and_the_singular_values_are_scaled(size):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 3)) @ rng.normal(size=(3, 18))  # of rank 3
    image = nn.Conv2d(2, 6, 3, dtype=torch.float64)
    image.weight.data.copy_(torch.from_numpy(matrix.reshape(6, 2, 3, 3)))
    inflated = mbp.inflate(image, nn.Conv3d(2, 6, (3, 3, size), dtype=torch.float64))
    values = [np.linalg.svd(conv.weight.detach().numpy().reshape(6, -1))[1] for conv in (image, inflated)]
    assert [np.linalg.matrix_rank(conv.weight.detach().numpy().reshape(6, -1)) for conv in (image, inflated)] == [3, 3]
    np.testing.assert_allclose(values[1], values[0] / np.sqrt(size), rtol=1e-10, atol=1e-12)


def test_the_scores_of_the_bases_are_scaled():
    image = tiny_classifier()
    volume = mbp.inflate(image, inflated_tiny())
    scores = [mbp.SingularValueImportance(mbp.decompose(network)).scores() for network in (image, volume)]
    assert list(scores[0]) == list(scores[1]) == ["stem", "grouped"]
    for name, values in scores[0].items():
        torch.testing.assert_close(scores[1][name], values / 3**0.5, rtol=1e-4, atol=0)
    norms = [mbp.decompose(network).stem.scaling.weight.detach().flatten(1).norm(dim=0) for network in (image, volume)]
    torch.testing.assert_close(norms[1], norms[0] / 3**0.5, rtol=1e-5, atol=1e-7)


def inflated_tiny() -> nn.Module:
    network = tiny_classifier(1)
    network.stem = nn.Conv3d(1, 6, 3, padding=1)
    network.norm = nn.BatchNorm3d(6)
    network.grouped = nn.Conv3d(6, 8, 3, stride=2, padding=1, groups=2, bias=False)
    network.pool = nn.AdaptiveAvgPool3d(1)
    return network


def test_from_1d_to_2d():
    torch.manual_seed(0)
    signal = trained(dense(1))
    check_values(signal, mbp.inflate(signal, dense(2)))


def test_a_bundle_component_and_a_function_make_the_new_network():
    torch.manual_seed(0)
    image = trained(dense(2))
    first, second = mbp.inflate(image, _DENSE_DEF), mbp.inflate(image, lambda: dense(3))
    assert same_bits(snapshot(first), snapshot(second))


def refused(network: nn.Module, network_def, axis: int = -1) -> str:
    before = snapshot(network)
    kept = snapshot(network_def) if isinstance(network_def, nn.Module) else None
    with pytest.raises(mbp.InflationError, match="cannot be inflated; network_def must be the same network") as caught:
        mbp.inflate(network, network_def, axis)
    assert same_bits(snapshot(network), before)
    assert kept is None or same_bits(snapshot(network_def), kept)
    return str(caught.value)


def test_every_difference_is_listed():
    text = refused(dense(2, 3, 5), dense(3, 1, 2, block_config=(2, 3)))
    assert "features.conv0.weight: shape [8, 3, 7, 7], expected [8, 1, 7, 7] to become [8, 1, 7, 7, 7]" in text
    assert "class_layers.out.bias: shape [5], expected [2]; only the kernels of convolutions are inflated" in text
    assert "features.denseblock2.denselayer3.layers.conv1.weight: missing, expected with shape [8, 16, 1, 1, 1]" in text
    reverse = refused(dense(2, block_config=(2, 3)), dense(3))
    assert "features.denseblock2.denselayer3.layers.conv1.weight: unexpected, shape [8, 16, 1, 1]" in reverse


@pytest.mark.parametrize(("dims", "needed"), [((3, 3), (2, 3)), ((2, 2), (1, 2)), ((1, 3), (2, 3)), ((3, 2), (1, 2))])
def test_networks_of_other_dimensions(dims, needed):
    text = refused(dense(dims[0]), dense(dims[1]))
    assert f"features.conv0.weight: {dims[0]} spatial dimensions, {needed[0]} are needed for {needed[1]} in" in text


@pytest.mark.parametrize(
    ("image", "volume", "words"),
    [
        (nn.Conv2d(1, 4, 3, stride=2), nn.Conv3d(1, 4, 3), "stride (2, 2), network_def has (1, 1) in the same"),
        (nn.Conv2d(1, 4, 3, dilation=2), nn.Conv3d(1, 4, 3), "dilation (2, 2), network_def has (1, 1)"),
        (nn.Conv2d(1, 4, 3, padding=1), nn.Conv3d(1, 4, 3), "padding (1, 1), network_def has (0, 0)"),
        (nn.Conv2d(4, 4, 3, groups=2), nn.Conv3d(4, 4, 3, groups=4), "groups 2, network_def has 4"),
        (nn.Conv2d(1, 4, 3), nn.Conv3d(1, 4, 3, padding_mode="reflect"), "padding_mode zeros, network_def has reflect"),
        (nn.Conv2d(1, 4, 3), nn.Conv3d(1, 4, 3, dtype=torch.float64), "type torch.float32, expected torch.float64"),
        (nn.Conv2d(1, 4, 3), nn.Conv3d(1, 4, 3, bias=False), "0.bias: unexpected, shape [4]"),
        (nn.Conv2d(1, 4, 3), nn.ConvTranspose3d(1, 4, 3), "is a Conv2d, network_def has a ConvTranspose3d"),
        (nn.MaxPool2d(3), nn.MaxPool3d(2), "kernel_size 3, network_def has 2 in the same dimensions"),
        (nn.AvgPool2d((2, 2), (1, 1)), nn.AvgPool3d((2, 2, 2), (2, 1, 1)), "stride (1, 1), network_def has (2, 1)"),
        (nn.GroupNorm(2, 4), nn.GroupNorm(4, 4), "num_groups 2, network_def has 4"),
        (nn.BatchNorm2d(4), nn.BatchNorm3d(4, eps=1e-3), "eps 1e-05, network_def has 0.001"),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), "negative_slope 0.1, network_def has 0.2"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2), "mode bilinear, network_def has"),
        (nn.ReLU(), nn.ReLU(), "network_def holds no convolution"),
    ],
)
def test_layers_that_are_not_the_same(image, volume, words):
    assert words in refused(nn.Sequential(image), nn.Sequential(volume))


def test_only_kernels_are_inflated():
    class Positioned(nn.Module):
        def __init__(self, dims: int) -> None:
            super().__init__()
            self.conv = (nn.Conv2d, nn.Conv3d)[dims - 2](1, 4, 3)
            self.position = nn.Parameter(torch.zeros(4, *[5] * dims))
            self.table = nn.Linear(4, 4)
            if dims == 3:
                self.table.weight = nn.Parameter(torch.zeros(4, 4, 2))

    text = refused(Positioned(2), Positioned(3))
    assert "position: shape [4, 5, 5], expected [4, 5, 5, 5]; only the kernels of convolutions are inflated" in text
    assert "table.weight: shape [4, 4], expected [4, 4, 2]; only the kernels of convolutions are inflated" in text


def test_other_norms_and_activations_are_refused_other_paddings_are_not():
    text = refused(dense(2), dense(3, norm=("instance", {"affine": True})))
    assert "features.norm0: is a BatchNorm2d, network_def has a InstanceNorm3d" in text
    assert "features.norm0.running_mean: unexpected" in text
    assert "is a ReLU, network_def has a GELU" in refused(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv3d(1, 4, 3), nn.GELU())
    )
    image, volume = (
        nn.Sequential(conv(1, 4, 3), nn.Upsample(scale_factor=2, mode=mode), pool(2))
        for conv, mode, pool in ((nn.Conv2d, "bilinear", nn.MaxPool2d), (nn.Conv3d, "trilinear", nn.MaxPool3d))
    )
    check_values(image, mbp.inflate(image, volume))
    image = EfficientNet(_EFFICIENT, 2, 1, 2, image_size=31)
    check_values(image, mbp.inflate(image, EfficientNet(_EFFICIENT, 3, 1, 2, image_size=16)))


def test_networks_without_values_or_already_decomposed():
    image = dense(2)
    decomposed = mbp.decompose(image)
    assert "features.conv0: is decomposed in network; inflate first, then decompose" in refused(decomposed, dense(3))
    assert "features.conv0: is decomposed in network_def" in refused(image, mbp.decompose(dense(3)))
    image.features.conv0.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(mbp.InflationError, match=r"features\.conv0\.weight: holds NaN or infinite values"):
        mbp.inflate(image, dense(3))
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(mbp.InflationError, match=r"0\.weight: has no shape yet in network, run it once"):
        mbp.inflate(lazy, nn.Sequential(nn.Conv3d(1, 4, 3)))
    meta = nn.Sequential(nn.Conv3d(1, 4, 3, device="meta"))
    with pytest.raises(mbp.InflationError, match=r"0\.weight: is on the meta device in network_def and has no values"):
        mbp.inflate(nn.Sequential(nn.Conv2d(1, 4, 3)), meta)


def test_arguments_of_other_types():
    with pytest.raises(TypeError, match=r"network must be a torch.nn.Module, got dict"):
        mbp.inflate({}, dense(3))
    with pytest.raises(TypeError, match="network_def must be a"):
        mbp.inflate(dense(2), lambda: 3)
    with pytest.raises(TypeError, match="axis must be a whole number, got '-1'"):
        mbp.inflate(dense(2), dense(3), "-1")
    assert "features.conv0.weight: has 3 spatial dimensions in network_def, axis 3 is none" in refused(
        dense(2), dense(3), 3
    )


def test_modes_gradients_and_statistics_are_those_of_the_new_network():
    torch.manual_seed(0)
    image = trained(dense(2))
    image.requires_grad_(False)
    target = dense(3).train()
    volume = mbp.inflate(image, target)
    assert volume is not target
    assert volume.training
    assert all(p.requires_grad for p in volume.parameters())
    assert int(volume.features.norm0.num_batches_tracked) == 7
    volume.features.norm0.running_mean.add_(1)  # nothing is shared
    assert float((image.features.norm0.running_mean - volume.features.norm0.running_mean).abs().min()) > 0.5
