from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, SmartCacheDataset
from monai.engines import SupervisedTrainer
from monai.transforms import RandGaussianNoised
from torch import nn
from torch.utils.data import Sampler

from monai_basisprune.checkpoints import setting_digests
from monai_basisprune.workflow.bundle_state import bundle_settings, file_digests, stateful_parts, unsteady_data

from .source_bundles import write_data


def cases(count: int = 12) -> list[dict[str, Any]]:
    return [{"image": torch.full((1, 4, 4), float(number)), "label": number % 2} for number in range(count)]


class Counting(Sampler[int]):
    """Has a state that no seed sets."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from self.generator.permutation(self.length).tolist()


def reasons(loader: DataLoader, epoch_length: int | None = None) -> list[str]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        epoch_length=epoch_length,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=nn.CrossEntropyLoss(),
    )
    return unsteady_data(trainer, 3)


def test_data_that_follow_from_the_seed_are_told_from_others() -> None:
    noise = RandGaussianNoised("image", prob=1.0)
    for data in (Dataset(cases(), noise), CacheDataset(cases(), noise, progress=False)):
        assert reasons(DataLoader(data, batch_size=4, shuffle=True)) == []
        generator = torch.Generator().manual_seed(1)
        assert reasons(DataLoader(data, batch_size=4, shuffle=True, generator=generator)) == []
        assert reasons(DataLoader(data, batch_size=4), epoch_length=6) == []
    data = Dataset(cases())
    (text,) = reasons(DataLoader(data, batch_size=4, sampler=Counting(12)))
    assert "the first batch is another one each time" in text
    (text,) = reasons(DataLoader(data, batch_size=4), epoch_length=2)
    assert "in the middle of the data (epoch_length)" in text
    smart = SmartCacheDataset(cases(), None, replace_rate=0.5, cache_num=8, progress=False)
    (text,) = reasons(DataLoader(smart, batch_size=4))
    assert "SmartCacheDataset" in text


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_are_known_by_whether_they_stay() -> None:
    data = Dataset(cases(), RandGaussianNoised("image", prob=1.0))
    assert reasons(DataLoader(data, batch_size=4, shuffle=True, num_workers=1)) == []
    found = reasons(DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True))
    assert "persistent_workers" in found[0]
    assert len(found) == 2  # it shows in the noise as well


class Unkept:
    """Holds what no checkpoint of ours may."""

    def state_dict(self) -> dict[str, Any]:
        return {"place": Path("x")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError


def test_schedules_are_found_wherever_the_configuration_makes_them() -> None:
    network = nn.Linear(2, 2)
    parser = ConfigParser(
        {
            "network": network,
            "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
            "handler": {
                "_target_": "LrScheduleHandler",
                "lr_scheduler": {
                    "_target_": "torch.optim.lr_scheduler.StepLR",
                    "optimizer": "@optimizer",
                    "step_size": 2,
                },
            },
            "other": "$torch.optim.lr_scheduler.MultiStepLR(@optimizer, [3, 5])",
            "again": "@other",
            "kind": "$torch.optim.SGD",
            "odd": {"_target_": "tests.workflow.test_bundle_state.Unkept"},
        }
    )
    parser.parse()
    for key in ("handler", "other", "again", "kind", "odd"):
        parser.get_parsed_content(key)
    found, unkept = stateful_parts(parser, (network, parser.get_parsed_content("optimizer")))
    assert {name: type(part).__name__ for name, part in found.items()} == {
        "handler::lr_scheduler": "StepLR",
        "other": "MultiStepLR",
    }
    assert unkept == ["odd"]


def test_settings_tell_what_changed_and_not_where_files_lie(tmp_path: Path) -> None:
    bundle, data = tmp_path / "bundle", write_data(tmp_path / "data", (4, 2, 2))
    for name in ("configs/train.json", "models/model.pt", "docs/README.md", "Doe^Jane.csv"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(name)

    def digests(folder: Path, **overrides: Any) -> dict[str, str]:
        part = json.loads((folder / "datalist.json").read_text())[0]
        items = [{**case, "image": str(folder / case["image"])} for case in part]
        loaders = {"training": DataLoader(Dataset(items)), "validation": DataLoader(list(range(3)))}
        return setting_digests(bundle_settings(file_digests(bundle), overrides, {"seed": 0}, loaders), b"salt")

    def differing(found: dict[str, str]) -> set[str]:
        return {key for key in {*found, *first} if found.get(key) != first.get(key)}

    first = digests(data, dataset_dir="a", batch_size=2)
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    assert differing(digests(moved, dataset_dir="b", batch_size=2)) == set()
    (bundle / "docs" / "README.md").write_text("other")
    assert differing(digests(data, batch_size=3)) == {"--batch_size"}
    np.save(moved / "case_000.npy", np.zeros((3, 3)))
    assert differing(digests(moved, batch_size=2)) == {"the training cases"}
    for name in ("configs/train.json", "models/model.pt", "Doe^Jane.csv"):
        (bundle / name).write_text("other")
    names = {"configs/train.json", "models", "other files"}
    assert differing(digests(data, batch_size=2)) == {f"the bundle's {name}" for name in names}
