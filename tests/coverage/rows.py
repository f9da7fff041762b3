"""The coverage table: every classification network of MONAI 1.6, in the settings of MONAI's own network tests.

Each line says which network, with which arguments, and the shape of one input. Networks are of full size unless the
name says otherwise; inputs are as small as the network permits, because sizes change the time and not the claims.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.networks import nets
from torch import nn

from .row import Row, labeled, monai_row, square

__all__ = ["NOT_IN_TABLE", "ROWS"]

NOT_IN_TABLE = {
    "TorchVisionFCModel": "wraps a network of torchvision, which is no part of MONAI",
    "NetAdapter": "wraps any network that it is given",
    "Transchex": "needs the transformers package and text beside the image",
    "NaViT": "takes a list of images of different sizes, not a tensor",
    "EfficientNetEncoder": "a list of feature extractors for FlexibleUNet; the same as EfficientNetBNFeatures",
    "ResNetEncoder": "a list of feature extractors for FlexibleUNet; the same as ResNetFeatures",
    "ResNetBlock": "one block of a ResNet",
    "ResNetBottleneck": "one block of a ResNet",
    "HighResBlock": "one block of a HighResNet",
}
"""Classes of the families in the table that have no line of their own, and why."""

INSTANCE = ("instance", {"affine": True})
GROUP = ("group", {"num_groups": 8})


def _densenets() -> list[Row]:
    names = ("DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264")
    table = [(name, 1, "", {}, None) for name in names] + [(name, 2, "", {}, None) for name in names]
    table += [(name, 2, "PReLU", {"act": "PRELU"}, None) for name in names]
    table += [(name, 3, "", {}, None) for name in names[:2]]
    # float32 is not exact to 1e-5 where an instance norm sees few positions: the last stage is 1/32 of the image
    table += [
        (n, 3, "instance norm", {"norm": ("instance", {"eps": 1e-5})}, 96 if n == names[3] else 64) for n in names
    ]
    table += [
        ("DenseNet121", 1, "PReLU", {"act": "PRELU"}, None),
        ("DenseNet121", 1, "affine instance norm", {"norm": INSTANCE}, 1024),
        ("DenseNet121", 2, "affine instance norm", {"norm": INSTANCE}, 128),
        ("DenseNet121", 2, "group norm", {"norm": GROUP}, None),
        ("DenseNet121", 2, "dropout", {"dropout_prob": 0.2}, None),
        ("DenseNet121", 3, "affine instance norm", {"norm": INSTANCE}, 64),
        ("DenseNet121", 3, "group norm", {"norm": GROUP}, None),
        ("DenseNet121", 3, "PReLU", {"act": "PRELU"}, None),
        ("DenseNet", 2, "two blocks", {"block_config": (4, 4), "init_features": 32, "bn_size": 2}, None),
    ]
    return [
        monai_row(
            "DenseNet", n, labeled(d, label), square(2, d, size), spatial_dims=d, in_channels=2, out_channels=3, **more
        )
        for n, d, label, more, size in table
    ]


def _resnets() -> list[Row]:
    names = tuple(f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200))
    table = [(n, d, f"shortcut {s}", {"shortcut_type": s}) for n in names for d in (1, 2) for s in "AB"]
    table += [(n, 3, f"shortcut {s}", {"shortcut_type": s}) for n in names[:4] for s in "AB"]
    table += [(n, 3, "shortcut B", {"shortcut_type": "B"}) for n in names[4:]]
    table += [
        ("resnet18", 2, "first conv 7×7, stride 2", {"conv1_t_size": 7, "conv1_t_stride": 2}),
        ("resnet10", 3, "first conv 7×7×7, stride 2", {"conv1_t_size": 7, "conv1_t_stride": (2, 2, 2)}),
        ("resnet18", 1, "first conv 3, ReLU not in place", {"conv1_t_size": 3, "act": ("relu", {"inplace": False})}),
        ("resnet18", 2, "PReLU after the first conv", {"act": "prelu"}),
        ("resnet10", 3, "PReLU after the first conv", {"act": "prelu"}),
        ("resnet18", 2, "instance norm after the first conv", {"norm": INSTANCE}),
        ("resnet10", 3, "instance norm after the first conv", {"norm": INSTANCE}),
        ("resnet18", 2, "group norm after the first conv", {"norm": GROUP}),
        ("resnet18", 2, "features only", {"feed_forward": False}),
        ("resnet50", 2, "shortcut convs without bias", {"bias_downsample": False}),
        ("resnet18", 3, "MedicalNet", {"feed_forward": False, "shortcut_type": "A", "bias_downsample": True}),
        ("resnet50", 3, "MedicalNet", {"feed_forward": False, "shortcut_type": "B", "bias_downsample": False}),
        ("resnet18", 2, "half width", {"widen_factor": 0.5}),
        ("resnet18", 2, "no maximum pooling", {"no_max_pool": True}),
    ]
    rows = [
        monai_row(
            "ResNet", n, labeled(d, label), square(2, d), spatial_dims=d, n_input_channels=2, num_classes=3, **more
        )
        for n, d, label, more in table
    ]
    layer_norm = {"norm": ("layer", {"normalized_shape": (64, 256)})}
    whole = {"spatial_dims": 1, "n_input_channels": 2, "num_classes": 3, "conv1_t_size": [3], "conv1_t_stride": 1}
    for block, label, more in (
        ("basic", "basic blocks", {}),
        ("bottleneck", "bottleneck blocks", {}),
        ("bottleneck", "bottleneck blocks, shortcut convs without bias", {"bias_downsample": False}),
        ("basic", "layer norm after the first conv", layer_norm),
    ):
        layers, widths = [3, 4, 6, 3], [64, 128, 256, 512]
        rows.append(monai_row("ResNet", "ResNet", labeled(1, label), (2, 256), block, layers, widths, **whole, **more))
    rows.append(
        monai_row(
            "ResNet",
            "ResNetFeatures",
            "3D",
            (1, 32, 32, 32),
            "resnet10",
            pretrained=False,
            spatial_dims=3,
            in_channels=1,
        )
    )
    return rows


def _senets() -> list[Row]:
    names = ("SENet154", "SEResNet50", "SEResNet101", "SEResNet152", "SEResNext50", "SEResNext101")
    table = [(name, d, "", {}) for d in (1, 2, 3) for name in names]
    table += [
        ("SEResNet50", 2, "no dropout", {"dropout_prob": None}),
        ("SEResNext50", 2, "3×3 stem", {"input_3x3": True}),
    ]
    rows = [
        monai_row("SENet", n, labeled(d, label), square(2, d), spatial_dims=d, in_channels=2, num_classes=2, **more)
        for n, d, label, more in table
    ]
    for d in (2, 3):
        generic = {"block": "se_bottleneck", "layers": (1, 1, 1, 1), "groups": 64, "reduction": 16, "num_classes": 2}
        label = labeled(d, "one block each, 64 groups")
        rows.append(monai_row("SENet", "SENet", label, square(2, d), spatial_dims=d, in_channels=2, **generic))
    return rows


def _efficientnets() -> list[Row]:
    names = [f"efficientnet-b{number}" for number in range(9)]
    table = [(name, d, "", {}) for d in (1, 2) for name in names] + [(names[0], 3, "", {}), (names[3], 3, "", {})]
    table += [(names[number], 2, "instance norm", {"norm": "instance"}) for number in (0, 3, 7)]
    table += [
        (names[0], 2, "affine instance norm", {"norm": INSTANCE}),
        (names[0], 2, "group norm", {"norm": GROUP}),
        (names[0], 2, "memory-efficient swish", {"memory_efficient": True}),
        (names[0], 3, "instance norm", {"norm": "instance"}),
    ]
    rows = []
    for n, d, label, more in table:
        # the last stage is 1/32 of the image, and an instance norm needs several positions there
        size = (64 if d == 3 else 224) if "instance" in label else None
        arguments = {"model_name": n, "pretrained": False, "spatial_dims": d, "in_channels": 3, "num_classes": 10}
        rows.append(
            monai_row("EfficientNet", "EfficientNetBN", labeled(d, label), square(3, d, size), **arguments, **more)
        )
    blocks = ["r1_k3_s11_e1_i32_o16_se0.25", "r2_k3_s22_e6_i16_o24_se0.25_noskip", "r1_k5_s22_e6_i24_o40_se0.25"]
    rows.append(
        monai_row("EfficientNet", "EfficientNet", "2D, three stages", (3, 64, 64), blocks, 2, 3, 5, image_size=64)
    )
    rows.append(
        monai_row(
            "EfficientNet", "EfficientNetBNFeatures", "2D", (3, 64, 64), model_name="efficientnet-b0", pretrained=False
        )
    )
    return rows


def _highresnets() -> list[Row]:
    table: list[tuple[int, str, dict[str, Any]]] = [(d, "", {}) for d in (1, 2, 3)]
    table += [(d, "instance norm", {"norm_type": "instance"}) for d in (2, 3)]
    table += [
        (3, "ReLU6", {"acti_type": "relu6"}),
        (2, "PReLU", {"acti_type": "prelu"}),
        (2, "group norm", {"norm_type": GROUP, "out_channels": 8}),
        (1, "dropout", {"dropout_prob": 0.1}),
        (2, "projected shortcuts, with bias", {"channel_matching": "project", "bias": True}),
    ]
    return [
        monai_row("HighResNet", "HighResNet", labeled(d, label), square(2, d, None if d == 1 else 16),
             spatial_dims=d, in_channels=2, **{"out_channels": 3, **more})
        for d, label, more in table
    ]  # fmt: skip


def _classifiers() -> list[Row]:
    rows, layers = [], {"channels": (16, 32, 64), "strides": (2, 2, 2)}
    for network, head in (("Classifier", (4,)), ("Regressor", ((2,),)), ("Discriminator", ()), ("Critic", ())):
        table: list[tuple[int, str, dict[str, Any]]] = [(d, "residual", {"num_res_units": 2}) for d in (1, 2, 3)]
        table += [
            (2, "plain", {"num_res_units": 0}),
            (2, "batch norm", {"norm": "batch"}),
            (3, "group norm, ReLU", {"norm": GROUP, "act": "relu"}),
        ]
        for d, label, more in table:
            shape = square(1, d)
            rows.append(monai_row("Classifier", network, labeled(d, label), shape, shape, *head, **layers, **more))
    softmax = {"last_act": ("softmax", {"dim": 1}), "bias": False, "kernel_size": 5}
    label = "2D, softmax, 5×5, no bias"
    rows.append(monai_row("Classifier", "Classifier", label, (1, 64, 64), (1, 64, 64), 4, **layers, **softmax))
    return rows


def _linear_networks() -> list[Row]:
    blocks = {"targets": r"blocks\..*\.(qkv|out_proj|linear1|linear2)", "needs": "einops"}
    small = {"hidden_size": 192, "mlp_dim": 768, "num_layers": 4, "num_heads": 6, "num_classes": 3}
    table: list[tuple[int, str, dict[str, Any]]] = [
        (2, "linear layers", {**blocks, "classification": True, "post_activation": False}),
        (2, "linear layers, perceptron patches", {**blocks, "classification": True, "proj_type": "perceptron"}),
        (2, "linear layers, with bias, sine positions",
         {**blocks, "classification": True, "qkv_bias": True, "pos_embed_type": "sincos"}),
        (2, "linear layers, no class token", blocks),
        (2, "linear layers and convs",
         {**blocks, "targets": r"(blocks|patch_embedding)\..*\.?(qkv|out_proj|linear1|linear2|patch_embeddings)",
          "classification": True}),
        (2, "convs only", {"needs": "einops", "classification": True}),
        (3, "linear layers", {**blocks, "classification": True, "dropout_rate": 0.6}),
        (3, "linear layers, attention kept", {**blocks, "classification": True, "save_attn": True}),
    ]  # fmt: skip
    rows = [
        monai_row("ViT", "ViT", labeled(d, label), square(1, d), in_channels=1, img_size=square(1, d)[1:],
                  patch_size=8, spatial_dims=d, **small, **more)
        for d, label, more in table
    ]  # fmt: skip
    full = {"in_channels": 3, "img_size": 64, "patch_size": 16, "spatial_dims": 2, "classification": True}
    rows.append(monai_row("ViT", "ViT", "2D, base size, linear layers", (3, 64, 64), **full, **blocks))
    for d in (2, 3):
        arguments = {"in_channels": 1, "img_size": square(1, d)[1:], "patch_size": 4, "spatial_dims": d}
        small = {"hidden_size": 96, "mlp_dim": 192, "num_layers": 2, "num_heads": 4}
        rows.append(
            monai_row("ViT", "ViTAutoEnc", labeled(d, "linear layers"), square(1, d), **arguments, **small, **blocks)
        )
    everything = {"in_channels": 64, "out_channels": 4, "hidden_channels": (96, 96), "targets": ".*"}
    rows.append(monai_row("ViT", "FullyConnectedNet", "linear layers", (64,), **everything))
    return rows


def _mil_models() -> list[Row]:
    def mil(mode: str, backbone: Callable[[], nn.Module], features: int) -> Callable[[], nn.Module]:
        return lambda: nets.MILModel(
            3, mode, pretrained=False, backbone=backbone(), backbone_num_features=features, trans_blocks=1
        )

    def resnet() -> nn.Module:
        return nets.resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False)

    def densenet() -> nn.Module:
        network = nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=2)
        network.class_layers.out = nn.Identity()
        return network

    bag = (2, 3, 64, 64)  # two patches of one slide
    rows = [
        Row(f"MILModel 2D, {mode}, ResNet-18 inside", "MILModel", "MILModel", mil(mode, resnet, 512), bag)
        for mode in ("mean", "max", "att", "att_trans")
    ]
    inside = mil("att", densenet, 1024)
    rows.append(Row("MILModel 2D, att, DenseNet121 inside", "MILModel", "MILModel", inside, bag))
    rows.append(
        Row("MILModel 2D, att, convs and linear layers", "MILModel", "MILModel", mil("att", resnet, 512), bag,
            r"net\..*conv.*|attention\..*|myfc")
    )  # fmt: skip
    return rows


def _bystanders() -> list[Row]:
    rows = []
    levels = {"in_channels": 1, "out_channels": 2, "channels": (16, 32, 64), "strides": (2, 2)}
    table: list[tuple[str, int, str, dict[str, Any]]] = [
        *(("UNet", d, "residual", {**levels, "num_res_units": 2}) for d in (1, 2, 3)),
        ("UNet", 2, "plain, batch norm", {**levels, "norm": "batch"}),
        ("UNet", 3, "affine instance norm, leaky ReLU", {**levels, "norm": INSTANCE, "act": "leakyrelu"}),
        ("UNet", 2, "group norm", {**levels, "norm": ("group", {"num_groups": 2}), "num_res_units": 1}),
        *(("AutoEncoder", d, "", {**levels, "strides": (2, 2, 1)}) for d in (1, 2, 3)),
        (
            "AutoEncoder",
            2,
            "inner units",
            {**levels, "strides": (2, 2, 1), "inter_channels": [32, 32], "inter_dilations": [1, 2]},
        ),
        *(("SegResNet", d, "group norm", {"init_filters": 16, "in_channels": 1, "out_channels": 2}) for d in (2, 3)),
        ("SegResNet", 3, "batch norm", {"init_filters": 16, "in_channels": 1, "out_channels": 2, "norm": "batch"}),
        ("SegResNet", 2, "instance norm", {"init_filters": 16, "in_channels": 1, "out_channels": 2, "norm": INSTANCE}),
        *(("BasicUNet", d, "", {"features": (8, 8, 16, 32, 64, 8)}) for d in (1, 2, 3)),
        ("BasicUNet", 2, "group norm, ReLU", {"features": (8, 8, 16, 32, 64, 8), "norm": GROUP, "act": "relu"}),
    ]
    for network, d, label, more in table:
        size = 64 if network == "BasicUNet" else None if d < 3 else 16
        if network == "BasicUNet" and d == 3:
            size = 32
        rows.append(monai_row("Bystanders", network, labeled(d, label), square(1, d, size), spatial_dims=d, **more))
    return rows


ROWS: tuple[Row, ...] = (
    *_densenets(),
    *_resnets(),
    *_senets(),
    *_efficientnets(),
    *_highresnets(),
    *_classifiers(),
    *_linear_networks(),
    *_mil_models(),
    *_bystanders(),
)
"""The table."""
