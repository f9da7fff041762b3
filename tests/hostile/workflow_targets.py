"""Readers of what studies and bundles hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.cli_parser import split_overrides
from monai_basisprune.errors import ConfigurationError
from monai_basisprune.export import export_network
from monai_basisprune.inference import read_deployment
from monai_basisprune.plan import PruningPlan
from monai_basisprune.report import load_study, write_report
from monai_basisprune.report.study import validate_study
from monai_basisprune.workflow.bundle_configs import config_files, next_metadata, pruned_config, write_config
from monai_basisprune.workflow.bundle_files import read_metadata
from monai_basisprune.workflow.child_runs import check_earlier
from monai_basisprune.workflow.repeat_results import _not_comparable, _pooled
from tests.report.studies import make_study
from tests.workflow.source_bundles import train_config

from .mutations import archive_aware, blind, json_aware
from .network_targets import saved
from .target import Target

__all__ = ["bundle_targets", "study_targets"]

_DEPLOYED = {"image_size": 16, "image_channels": 1, "intensity_mean": 0.4, "intensity_std": 0.2}


def study_targets(folder: Path, original: nn.Module) -> list[Target]:
    """Return the readers of what a study leaves."""
    study = make_study()
    rendered = [0]

    def read_study(path: Path) -> None:
        loaded = load_study(path)
        validate_study(loaded)
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest[0] < 3:  # pages and pictures take far longer than all else
            rendered[0] += 1
            page = write_report(loaded, path.parent / "page")["report_html"].read_text(encoding="utf-8")
            assert "<script>alert(1)</script>" not in page

    scores = [i / 20 for i in range(20)]
    pooled = {
        "labels": [i % 2 for i in range(20)],
        "original": scores,
        "pruned": scores,
        "patients": [f"p{i}" for i in range(20)],
    }

    def read_predictions(path: Path) -> None:
        (path.parent / "work").mkdir()
        path.replace(path.parent / "work" / "test_predictions.json")
        result, remarks = _pooled([(0, 0, 1, path.parent)], 0.01)
        assert result is not None or remarks

    layer = next(name for name, module in original.named_modules() if isinstance(module, nn.Conv2d))
    state = mbp.decompose(original).state_dict()

    def read_repeat(path: Path) -> None:
        (path.parent / "work" / "networks").mkdir(parents=True)
        path.replace(path.parent / "work" / "networks" / "a7.pt")
        found = _not_comparable([path.parent] * 2, [{"curve": [{"structure": "a7"}]}] * 2, {layer: 4})
        assert set(found) <= {layer}

    (folder / "repeat" / "work").mkdir(parents=True)
    (folder / "repeat" / "study.json").write_text(json.dumps(study))
    (folder / "repeat" / "work" / "test_predictions.json").write_text(json.dumps(pooled))

    def read_record(path: Path) -> None:
        place = folder / "repeat" / "repeat.json"
        path.replace(place)
        check_earlier([folder / "repeat"], [{"seed": "a"}])

    record = json.dumps({"seed": 0, "fold": None, "settings": {"seed": "a"}}).encode()
    jsons = (json_aware, json_aware, blind)
    return [
        Target(
            "study",
            (json.dumps(study).encode(), json.dumps(make_study(layers=[])).encode()),
            read_study,
            jsons,
            8,
            ".json",
        ),
        Target("predictions of a repeat", (json.dumps(pooled).encode(),), read_predictions, jsons, 3, ".json"),
        Target("networks of a repeat", (saved(state),), read_repeat, (archive_aware, blind), 2, ".pt"),
        Target("record of a repeat", (record,), read_record, jsons, 1, ".json"),
    ]


def bundle_targets(folder: Path, network: nn.Module) -> list[Target]:
    """Return the readers of what a bundle holds."""
    plan = PruningPlan.from_network(network)
    metadata = {
        "version": "0.1.2",
        "changelog": {"0.1.2": "first"},
        "required_packages_version": {"nibabel": "5.2"},
        "eval_metrics": {"AUC": 0.9},
        "network_data_format": {"inputs": {"image": {"type": "image", "num_channels": 1}}},
    }

    def read_bundle_metadata(path: Path) -> None:
        (path.parent / "configs").mkdir()
        path.replace(path.parent / "configs" / "metadata.json")
        new = next_metadata(read_metadata(path.parent), "pruned", {"AUC": 0.5})
        assert new["version"] != new.get("before")
        json.dumps(new, allow_nan=False)

    def read_config(path: Path) -> None:
        (path.parent / "configs").mkdir()
        path.replace(path.parent / "configs" / f"train{path.suffix}")
        for name, config in config_files(path.parent).items():
            new = pruned_config(config, plan)
            if new is not None:
                write_config(new, path.parent / "configs" / name)

    def read_model(path: Path) -> None:
        path.replace(path.with_name("model.ts"))
        found = read_deployment(path.parent)
        texts = json.dumps(found, allow_nan=False)
        assert not any(f'"{mark}' in texts for mark in "$@%"), "a text that a bundle would run"

    def read_override(path: Path) -> None:
        word = path.read_bytes().decode("utf-8", errors="surrogateescape")
        split_overrides(_Parser(), ["--key", word] if not word.startswith("--") else [f"--key={word}"])

    export_network(network, folder / "model.ts", (1, 16, 16), metadata={**_DEPLOYED, "class_names": ["no", "yes"]})
    evil = {**_DEPLOYED, "image_size": "$__import__('os').system('x')", "class_names": ["no", "yes"]}
    export_network(network, folder / "evil.ts", (1, 16, 16), metadata=evil)
    config = json.dumps(train_config()).encode()
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    yamls = (
        yaml.safe_dump(train_config()).encode(),
        bomb.encode(),
        b"a: &a [*a]\nnetwork_def: {_target_: x}\n",
        b"!!python/object/apply:os.system ['x']",
    )
    models = tuple((folder / name).read_bytes() for name in ("model.ts", "evil.ts"))
    jsons = (json_aware, json_aware, blind)
    return [
        Target("metadata of a bundle", (json.dumps(metadata).encode(),), read_bundle_metadata, jsons, 4, ".json"),
        Target("JSON configuration", (config,), read_config, jsons, 3, ".json"),
        Target("YAML configuration", yamls, read_config, (blind,), 2, ".yaml"),
        Target("deployed network", models, read_model, (archive_aware, archive_aware, blind), 3, ".ts"),
        Target("override of a command", (b'{"a": [1, 2, {"b": "c"}]}',), read_override, jsons, 1),
    ]


class _Parser:
    _option_string_actions = ()

    def error(self, message: str) -> None:
        raise ConfigurationError(message)
