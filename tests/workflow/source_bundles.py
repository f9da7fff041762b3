"""A small classification bundle in the layout of the model zoo, with its own data, trained for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.utils import set_determinism

SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
SIZE = 16
NETWORK = {
    "_target_": "DenseNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "init_features": 8,
    "growth_rate": 8,
    "block_config": [2, 2],
}
_PREPROCESSING = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "ToTensord", "keys": ["image", "label"], "track_meta": False},
]
_POSTPROCESSING = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
    ],
}


def train_config() -> dict[str, Any]:
    """Return the training configuration, written as those of the model zoo are."""
    loader = {"_target_": "DataLoader", "batch_size": "@batch_size", "num_workers": 0}
    return {
        "imports": ["$import glob", "$import json", "$import os"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "dataset_dir": "/workspace/data",
        "datalist": "$json.load(open(@dataset_dir + '/datalist.json'))",
        "in_dataset": "$[[{**c, 'image': @dataset_dir + '/' + c['image']} for c in part] for part in @datalist]",
        "device": "$torch.device('cpu')",
        "batch_size": 16,
        "epochs": 3,
        "learning_rate": 0.02,
        "val_interval": 1,
        "network_def": dict(NETWORK),
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": "@learning_rate"},
        "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 50},
        "train": {
            "preprocessing": {"_target_": "Compose", "transforms": _PREPROCESSING},
            "dataset": {"_target_": "Dataset", "data": "$@in_dataset[0]", "transform": "@train#preprocessing"},
            "dataloader": {**loader, "dataset": "@train#dataset", "shuffle": True},
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": _POSTPROCESSING,
            "handlers": [
                {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": False},
                {
                    "_target_": "ValidationHandler",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": "@val_interval",
                },
                {
                    "_target_": "StatsHandler",
                    "tag_name": "train_loss",
                    "output_transform": "$monai.handlers.from_engine(['loss'], first=True)",
                },
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@ckpt_dir",
                    "save_dict": {"model": "@network"},
                    "save_interval": 1,
                },
            ],
            "key_metric": {
                "train_accuracy": {
                    "_target_": "ignite.metrics.Accuracy",
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@epochs",
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "postprocessing": "@train#postprocessing",
                "key_train_metric": "@train#key_metric",
                "train_handlers": "@train#handlers",
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": _PREPROCESSING},
            "dataset": {"_target_": "Dataset", "data": "$@in_dataset[1]", "transform": "@validate#preprocessing"},
            "dataloader": {**loader, "dataset": "@validate#dataset"},
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": _POSTPROCESSING,
            "handlers": [
                {"_target_": "StatsHandler", "iteration_log": False},
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@ckpt_dir",
                    "save_dict": {"model": "@network"},
                    "save_key_metric": True,
                    "key_metric_filename": "model.pt",
                },
            ],
            "key_metric": {
                "accuracy": {
                    "_target_": "ignite.metrics.Accuracy",
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }


def inference_config() -> dict[str, Any]:
    """Return the configuration of inference."""
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "/workspace/data",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.npy'))]",
        "device": "$torch.device('cpu')",
        "network_def": dict(NETWORK),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [*_PREPROCESSING[:2], {"_target_": "ToTensord", "keys": "image", "track_meta": False}],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 4, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [_POSTPROCESSING["transforms"][0]]},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def evaluate_config() -> dict[str, Any]:
    """Return the overlay that evaluates the test cases."""
    return {
        "validate#dataset#data": "$@in_dataset[2]",
        "validate#handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@ckpt_dir + '/model.pt'",
                "load_dict": {"model": "@network"},
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "run": ["$@validate#evaluator.run()"],
    }


def metadata() -> dict[str, Any]:
    """Return the metadata."""
    image = {"type": "image", "format": "magnitude", "modality": "DX", "num_channels": 1, "spatial_shape": [SIZE, SIZE]}
    image |= {"dtype": "float32", "value_range": [-4, 4], "is_patch_data": False, "channel_def": {"0": "image"}}
    pred = {"type": "probabilities", "format": "classes", "num_channels": 2, "spatial_shape": [], "dtype": "float32"}
    pred |= {"value_range": [0, 1], "is_patch_data": False, "channel_def": {"0": "plain", "1": "blob"}}
    return {
        "schema": SCHEMA_URL,
        "version": "0.3.1",
        "changelog": {"0.3.1": "Fixed a typing error.", "0.3.0": "First version."},
        "monai_version": "1.6.1",
        "pytorch_version": "2.13.0",
        "numpy_version": "2.4.6",
        "required_packages_version": {"pytorch-ignite": "0.5.5"},
        "supported_apps": {},
        "name": "Blobs",
        "task": "Tell images with a blob from images without",
        "description": "A small classifier of simulated images.",
        "authors": "The developers of monai_basisprune",
        "copyright": "The developers of monai_basisprune",
        "eval_metrics": {"accuracy": 0.9},
        "intended_use": "Tests.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def write_data(folder: Path, cases: tuple[int, int, int] = (96, 48, 48), seed: int = 0) -> Path:
    """Write images with and without a blob in noise, as numpy files, with a datalist of three parts."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    parts, number = [], 0
    for count in cases:
        part = []
        for case in range(count):
            label = case % 2
            image = rng.normal(0, 1, (SIZE, SIZE))
            if label:
                cy, cx = rng.uniform(4, 12, 2)
                image += 2.0 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
            name = f"case_{number:03d}.npy"
            np.save(folder / name, image.astype(np.float32))
            part.append({"image": name, "label": label, "patient": f"patient_{number // 2:03d}"})
            number += 1
        parts.append(part)
    (folder / "datalist.json").write_text(json.dumps(parts))
    return folder


def write_source(
    bundle: Path,
    data: Path,
    in_yaml: bool = False,
    nested: bool = False,
    change: Callable[[dict[str, Any]], object] = lambda config: None,
) -> Path:
    """Write the bundle and train its network by its own configuration.

    Args:
        bundle: the folder to write.
        data: the folder of :func:`write_data`.
        in_yaml: whether the configurations are YAML.
        change: changes the training configuration in place.
        nested: whether the weights lie under ``model``, as MONAI's saver of several objects leaves them.
    """
    for part in ("configs", "models", "docs"):
        (bundle / part).mkdir(parents=True)
    contents = {"train": train_config(), "inference": inference_config(), "evaluate": evaluate_config()}
    change(contents["train"])
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata(), indent=4))
    for name, content in contents.items():
        if in_yaml:
            (bundle / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        else:
            (bundle / "configs" / f"{name}.json").write_text(json.dumps(content, indent=4))
    (bundle / "LICENSE").write_text("Apache License, Version 2.0\n")
    (bundle / "docs" / "README.md").write_text("# Blobs\n\nTells images with a blob from images without.\n")
    (bundle / "docs" / "data_license.txt").write_text("Simulated, free for any use.\n")
    (bundle / "large_files.yml").write_text("large_files: []\n")
    parser = ConfigParser(contents["train"])
    parser["bundle_root"], parser["dataset_dir"] = str(bundle), str(data)
    parser["train#handlers"] = parser["train#handlers"][:1]  # neither validation nor checkpoints
    set_determinism(0)
    try:
        trainer = parser.get_parsed_content("train#trainer")
        trainer.run()
    finally:
        set_determinism(None)
    state = trainer.network.state_dict()
    torch.save({"model": state} if nested else state, bundle / "models" / "model.pt")
    return bundle
