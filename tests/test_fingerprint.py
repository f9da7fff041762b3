from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.networks.nets import ViT
from torch import nn
from torch.nn.utils import parametrizations

import monai_basisprune as mbp
from monai_basisprune.fingerprint import (
    BLOCK_SETTINGS,
    LAYER_SETTINGS,
    architecture_of,
    module_differences,
    module_settings,
    shape_differences,
)

from .networks import MONAI_NETWORKS, tiny_classifier


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def vit(heads: int = 2) -> nn.Module:
    return ViT(1, (16, 16), (8, 8), 16, 24, 2, heads, classification=True, num_classes=2, spatial_dims=2)


@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_the_fingerprint_of_a_decomposed_network_is_that_of_the_original(name):
    network = MONAI_NETWORKS[name][0]()
    decomposed = mbp.decompose(network)
    mbp.prune_(decomposed, mbp.SingularValueImportance(decomposed).scores(), mbp.Budget(bases=0.3))
    assert architecture_of(decomposed) == architecture_of(network) == shapes_of(network)
    assert module_settings(decomposed) == module_settings(network)
    assert list(module_settings(decomposed)) == list(module_settings(network))
    assert json.loads(json.dumps(module_settings(network), allow_nan=False)) == module_settings(network)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.Conv3d(2, 4, (1, 2, 3), (3, 2, 1), padding="valid", dilation=2),
        nn.Conv2d(4, 4, 3, padding=(0, 1), groups=2, bias=False, padding_mode="reflect"),
        nn.Linear(5, 4),
        nn.Linear(5, 4, bias=False),
    ],
)
def test_a_network_that_is_one_layer_has_the_same_fingerprint_before_and_after(layer):
    decomposed = mbp.decompose(layer, target_modules=[""] if isinstance(layer, nn.Linear) else None)
    assert isinstance(decomposed, mbp.layers.DecomposedLayer)
    assert module_settings(decomposed) == module_settings(layer)
    assert architecture_of(decomposed) == architecture_of(layer) == shapes_of(layer)


def test_linear_layers_of_a_transformer_have_the_same_fingerprint_before_and_after():
    network = vit()
    decomposed = mbp.decompose(network, target_modules=["linear1", "linear2", "qkv", "out_proj"])
    assert module_settings(decomposed) == module_settings(network)
    assert architecture_of(decomposed) == shapes_of(network)


def chain(*changes: tuple[int, nn.Module]) -> nn.Module:
    """Return a network of many kinds of layers, some of them replaced."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, 4, 3, padding=1),  # 0, the only one that is decomposed
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),  # 3, depthwise
        nn.GroupNorm(2, 4),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),  # 6
        nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(4),
        nn.Upsample(scale_factor=2, mode="nearest"),  # 9
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(4),  # 12
        nn.Dropout(0.2),
        nn.Identity(),
        nn.Linear(4, 2),  # 15
        nn.Softmax(dim=1),
    ]
    for position, layer in changes:
        layers[position] = layer
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("position", "layer", "words"),
    [
        (1, nn.BatchNorm2d(4, eps=1e-3), "1: differs in {'eps': 0.001}, the plan has {'eps': 1e-05}"),
        (1, nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "{'type': 'InstanceNorm2d'}"),
        (2, nn.LeakyReLU(), "{'type': 'LeakyReLU', 'negative_slope': 0.01}, the plan has {'type': 'ReLU'"),
        (2, nn.Identity(), "2: missing, the plan has a ReLU"),
        (3, nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), "{'padding': 2, 'dilation': 2}, the plan has"),
        (
            3,
            nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
            "3: differs in {'padding_mode': 'circular'}",
        ),
        (4, nn.GroupNorm(4, 4), "4: differs in {'num_groups': 4}, the plan has {'num_groups': 2}"),
        (5, nn.LeakyReLU(0.2), "5: differs in {'negative_slope': 0.2}, the plan has {'negative_slope': 0.1}"),
        (6, nn.AvgPool2d(2), "6: differs in {'type': 'AvgPool2d'"),
        (6, nn.MaxPool2d(2, stride=1), "6: differs in {'stride': 1}, the plan has {'stride': 2}"),
        (
            7,
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1),
            "{'output_padding': 0}, the plan has {'output_padding': 1}",
        ),
        (8, nn.InstanceNorm2d(4, eps=1.0), "8: differs in {'eps': 1.0}"),
        (9, nn.Upsample(scale_factor=4, mode="nearest"), "9: differs in {'scale_factor': 4.0}, the plan has"),
        (10, nn.AdaptiveMaxPool2d(1), "10: differs in {'type': 'AdaptiveMaxPool2d'}"),
        (10, nn.AdaptiveAvgPool2d((1, 2)), "10: differs in {'output_size': [1, 2]}, the plan has {'output_size': 1}"),
        (12, nn.LayerNorm(4, eps=0.1), "12: differs in {'eps': 0.1}"),
        (13, nn.Tanh(), "13: unexpected, a Tanh"),
        (16, nn.Softmax(dim=0), "16: differs in {'dim': 0}, the plan has {'dim': 1}"),
    ],
)
def test_what_changes_the_output_and_no_shape_is_noticed(position, layer, words):
    assert shapes_of(chain((position, layer))) == shapes_of(chain())
    plan = mbp.PruningPlan.from_network(mbp.decompose(chain(), target_modules=["0"]))
    with pytest.raises(mbp.PlanMismatchError) as caught:
        mbp.build_pruned(chain((position, layer)), plan)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"  - {position}: ")
    assert words in lines[1]


class OwnConv(nn.Conv2d):
    """Computes what its parent does."""


class OtherConv(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [(13, nn.Dropout(0.7)), (14, nn.Dropout2d(0.5))],  # nothing of this is there in inference
        [(13, nn.Identity()), (14, nn.Dropout())],
        [(2, nn.ReLU(inplace=True))],
        [(6, nn.MaxPool2d((2, 2)))],  # the same, said otherwise
        [(10, nn.AdaptiveAvgPool2d((1, 1)))],
        [(1, nn.BatchNorm2d(4, momentum=0.5))],  # matters in training only
        [(0, OwnConv(1, 4, 3, padding=1))],
    ],
)
def test_what_changes_nothing_in_inference_does_not_part_a_network_from_its_plan(changes):
    plan = mbp.PruningPlan.from_network(mbp.decompose(chain(), target_modules=["0"]))
    mbp.build_pruned(chain(*changes), plan)


def test_a_subclass_that_computes_something_else_has_a_name_of_its_own():
    own, other = module_settings(OwnConv(1, 4, 3)), module_settings(OtherConv(1, 4, 3))
    assert own == module_settings(nn.Conv2d(1, 4, 3))
    assert module_differences(other, own) == [": differs in {'type': 'OtherConv'}, the plan has {'type': 'Conv2d'}"]


def test_an_efficientnet_that_is_made_ready_for_export_keeps_its_fingerprint():
    make = MONAI_NETWORKS["EfficientNet"][0]
    network = make()
    network.set_swish(memory_efficient=False)
    assert module_settings(network) == module_settings(make())
    assert {"type": "Swish", "alpha": 1.0} in module_settings(network).values()


def test_the_number_of_heads_of_attention_is_noticed():
    differences = module_differences(module_settings(vit(4)), module_settings(vit()))
    assert differences == [
        f"blocks.{i}.attn: differs in {{'num_heads': 4}}, the plan has {{'num_heads': 2}}" for i in range(2)
    ]
    attention = nn.MultiheadAttention(8, 2)
    assert module_settings(attention) == {
        "": {"type": "MultiheadAttention", "num_heads": 2},
        "out_proj": {"type": "Linear"},
    }


def test_a_convolution_with_a_weight_norm_is_compared_as_well():
    network = parametrizations.weight_norm(nn.Conv2d(1, 4, 3, stride=2))
    assert module_settings(network)[""]["stride"] == 2


def test_settings_are_numbers_and_text_whatever_the_network_holds():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel_size = (np.int64(3), np.int64(3))
            self.stride = torch.ones(2)
            self.padding = [[1, 2], [3, 4]]
            self.mode = "x" * 1000
            self.size = (4, None)
            self.min_val = float("-inf")
            self.eps = np.float32(0.5)
            self.dilation = ()

        @property
        def groups(self) -> int:
            raise RuntimeError("a property could run anything")

    assert module_settings(Odd()) == {
        "": {"type": "Odd", "kernel_size": 3, "size": [4, None], "min_val": "-inf", "eps": 0.5}
    }
    network = nn.Sequential(nn.Conv2d(1, 4, 3), Odd(), nn.Hardtanh(-1, float("inf")), nn.Threshold(1e12, 0))
    plan = mbp.PruningPlan.from_network(mbp.decompose(network))
    assert mbp.PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan


def test_every_setting_is_one_that_a_layer_of_pytorch_or_monai_has():
    layers = [
        *chain(),
        *(
            nn.AvgPool2d(2),
            nn.FractionalMaxPool2d(2, output_ratio=0.5),
            nn.LPPool2d(2, 2),
            nn.LocalResponseNorm(2),
            nn.GELU(),
        ),
        *(nn.RReLU(), nn.Hardtanh(), nn.Hardshrink(), nn.Threshold(0, 0), nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
    ]
    found = {key for layer in layers for key in vars(layer)}
    assert set(LAYER_SETTINGS) <= found
    assert {"num_heads"} <= {key for module in vit().modules() for key in vars(module)}
    assert not set(LAYER_SETTINGS) & set(BLOCK_SETTINGS)


def test_differences_of_shapes_are_listed_one_by_one():
    network = tiny_classifier()
    assert shape_differences(shapes_of(network), shapes_of(network)) == []
    assert shape_differences({"a": [1], "b": [2], "c": []}, {"b": [3], "c": [], "d": [4, 5]}) == [
        "d: missing, expected with shape [4, 5]",
        "a: unexpected, shape [1]",
        "b: shape [2], expected [3]",
    ]
