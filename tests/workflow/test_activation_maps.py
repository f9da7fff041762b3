from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet
from monai.visualize import GradCAM
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.errors import BasisPruneError
from monai_basisprune.workflow.activation_maps import ActivationMaps, activation_layer

from ..networks import MONAI_NETWORKS, FlatClassifier, TinyClassifier, cut, same_bits, snapshot, tiny_classifier


class Pointwise(nn.Module):
    """Sees each place by itself, so its map is the image wherever that is positive."""

    def __init__(self, spatial_dims: int, weights: tuple[float, ...] = (1.0, 1.0)) -> None:
        super().__init__()
        self.conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](1, 1, 1, bias=False)
        self.act = nn.ReLU()
        self.head = nn.Linear(1, len(weights))
        nn.init.ones_(self.conv.weight)
        self.head.weight = nn.Parameter(torch.tensor(weights)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.conv(x)).flatten(2).mean(dim=2))


class InPlace(Pointwise):
    """Changes the map of its convolution in place, by a module that runs twice."""

    def __init__(self) -> None:
        super().__init__(2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.act(self.conv(x))).flatten(2).mean(dim=2))


# --- the layer, for the networks of MONAI in one, two and three dimensions

LAYERS = {
    "DenseNet": "class_layers.relu",
    "DenseNet with PReLU": "class_layers.relu",
    "DenseNet 3D with InstanceNorm": "class_layers.relu",
    "ResNet 3D with shortcut A": "layer3",  # the map of the fourth has one place only
    "ResNet 1D": "layer4",
    "EfficientNet": None,
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_the_last_before_the_pooling(name: str) -> None:
    make, shape = MONAI_NETWORKS[name]
    torch.manual_seed(0)
    network = mbp.decompose(make())
    images = torch.rand((1, *shape))
    layer = activation_layer(network.eval(), images)
    if LAYERS[name] is not None:
        assert layer == LAYERS[name]
    maps: list[torch.Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: maps.append(output))
    network(images)
    assert len(maps) == 1
    assert maps[0].ndim == images.ndim
    assert maps[0][0, 0].numel() > 1


def test_a_module_that_runs_twice_is_left_out() -> None:
    class Shared(TinyClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.pool(self.act(self.grouped(self.act(self.stem(x))))).flatten(1))

    assert activation_layer(Shared(), torch.rand((1, 1, 8, 8))) == "grouped"


def test_a_network_without_a_feature_map_has_no_layer() -> None:
    images = torch.rand(1, 1, 8, 8)
    for network in (FlatClassifier(), nn.Sequential(nn.Flatten(), nn.Linear(64, 2))):
        with pytest.raises(BasisPruneError, match=r"^no layer of the network has a feature map over space$"):
            activation_layer(network, images)
    with pytest.raises(BasisPruneError, match="has a feature map over space"):
        ActivationMaps.of(FlatClassifier(), FlatClassifier(), images[0], "cpu")


def test_looking_for_the_layer_leaves_no_hook_behind() -> None:
    network = tiny_classifier().eval()
    activation_layer(network, torch.rand(1, 1, 8, 8))
    with pytest.raises(RuntimeError):
        activation_layer(network, torch.rand(1, 3, 8, 8))  # also where the network fails
    assert all(not module._forward_hooks for module in network.modules())


# --- the pictures


def test_no_color_of_a_picture_is_left_out() -> None:
    torch.manual_seed(0)
    pair = cut(DenseNet(2, 3, 2, init_features=8, growth_rate=4, block_config=(2,), bn_size=2))
    image = torch.zeros((3, 32, 32))
    for color in range(3):
        image[color, 8 * color + 4 : 8 * color + 12, 8:24] = 1.0
    shown = ActivationMaps.of(*pair, image, "cpu").draw(image).image
    assert [float(shown[7 * row, 112]) > 0.1 for row in (1, 8, 15, 23, 30)] == [False, True, True, True, False]


def test_a_volume_shows_the_slice_of_largest_activation() -> None:
    torch.manual_seed(0)
    network = DenseNet(3, 1, 2, init_features=8, growth_rate=4, block_config=(2,), bn_size=2)
    network.class_layers.out.weight.data.abs_()  # every feature speaks for the positive class
    pair = cut(network)
    image = torch.rand((1, 12, 16, 20))
    image[:, 3:6, 8:11] += 4
    image[:, 3:6, 8:11, 15:18] += 4
    shown = ActivationMaps.of(*pair, image, "cpu").draw(image)
    heats = [
        GradCAM(mbp.decompose(network) if index == 0 else pair[1], "class_layers.relu", postprocessing=lambda x: x)(
            image[None].requires_grad_(True), class_idx=1
        ).detach()[0, 0]
        for index in range(2)
    ]
    total = sum(heat / heat.max() for heat in heats)
    highest = total.amax(dim=(0, 1))
    assert shown.slice_index is not None
    assert highest[shown.slice_index] == pytest.approx(highest.max())
    assert shown.image.shape == (224, 168)  # rows from front to back, columns from right to left
    assert 0.3 < shown.original.max() <= 1
    row, column = np.unravel_index(shown.image.argmax(), shown.image.shape)
    # in front of the middle (8 to 10 of 16) and left of it (3 to 5 of 12), which is on the right
    assert 5 / 16 < (row + 0.5) / 224 < 8 / 16
    assert 6 / 12 < (column + 0.5) / 168 < 9 / 12


def test_of_equal_slices_the_one_in_their_middle_is_shown() -> None:
    image = torch.rand((1, 4, 6, 1)).expand(-1, -1, -1, 9)
    maps = ActivationMaps.of(Pointwise(3), Pointwise(3), image, "cpu")
    assert maps.draw(image).slice_index == 4
    image = image.clone()
    image[0, 2, 1, 2:5] = 7.0
    assert maps.draw(image).slice_index == 3


def test_each_map_is_that_of_its_network_for_the_class_that_is_asked_for() -> None:
    image = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    first, second = Pointwise(2, (-1.0, 2.0)), Pointwise(2, (1.0, -2.0))
    maps = ActivationMaps.of(first, second, image, "cpu")
    assert (maps.positive, maps.layer) == (1, "act")
    # where the image is positive, scaled to 1: the share of a class does not show
    wanted = nn.functional.interpolate(image.relu()[None], (224, 224), mode="bilinear")[0, 0].double().numpy()
    nothing = np.zeros((224, 224))
    for output, before, after in ((None, wanted, nothing), (1, wanted, nothing), (0, nothing, wanted)):
        shown = maps.draw(image, output)
        assert shown.original == pytest.approx(before, abs=1e-6)
        assert shown.pruned == pytest.approx(after, abs=1e-6)
        assert shown.slice_index is None


def test_the_longer_side_of_a_picture_has_224_pixels_and_values_from_0_to_1() -> None:
    for shape, wanted in (((448, 112), (224, 56)), ((10, 40), (56, 224)), ((1, 1000), (1, 224))):
        image = torch.rand((1, *shape)) * 900 - 100
        shown = ActivationMaps.of(Pointwise(2), Pointwise(2), image, "cpu").draw(image)
        assert shown.image.shape == shown.original.shape == shown.pruned.shape == wanted
        assert 0 <= shown.image.min() <= shown.image.max() <= 1
        if shape == (448, 112):  # each pixel is the mean of those that it stands for
            gray = (image[0].double() - image.min()) / (image.max() - image.min())
            assert shown.image == pytest.approx(gray.reshape(224, 2, 56, 2).mean(dim=(1, 3)).numpy(), abs=1e-6)
    even = torch.full((1, 8, 8), 3.0)
    shown = ActivationMaps.of(Pointwise(2), Pointwise(2), even, "cpu").draw(even)
    assert not shown.image.any()  # and no division by nothing
    assert shown.original == pytest.approx(np.ones((224, 224)))


def test_neither_the_networks_nor_the_image_are_changed() -> None:
    pair = [InPlace().train(), tiny_classifier().train()]
    pair[0].requires_grad_(False)
    pair[1].head.weight.data.abs_()  # so that something speaks for the class
    image = torch.rand((1, 8, 8)) - 0.5
    before, seen = [snapshot(network) for network in pair], image.clone()
    for network in pair:  # one works in place, and its weights are frozen; the other has a norm
        shown = ActivationMaps.of(network, network, image, "cpu").draw(image)
        assert shown.original.max() > 0
    assert torch.equal(image, seen)
    for network, state in zip(pair, before, strict=True):
        assert same_bits(snapshot(network), state)
        assert network.training
        assert all(not module._forward_hooks and not module._backward_hooks for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())
    assert pair[0].act.inplace


def test_a_map_that_is_not_finite_is_not_drawn() -> None:
    broken = Pointwise(2)
    broken.head.weight.data[1] = float("nan")
    image = torch.rand((1, 8, 8))
    maps = ActivationMaps.of(Pointwise(2), broken, image, "cpu")
    with pytest.raises(BasisPruneError, match=r"^the map holds NaN or infinite values$"):
        maps.draw(image)


def test_a_signal_is_not_drawn_and_the_reason_is_said() -> None:
    make, shape = MONAI_NETWORKS["ResNet 1D"]
    torch.manual_seed(0)
    pair = cut(make())
    image = torch.rand(shape)
    maps = ActivationMaps.of(*pair, image, "cpu")
    with pytest.raises(BasisPruneError, match="an image with 1 dimensions; 2 or 3 are drawn"):
        maps.draw(image)
