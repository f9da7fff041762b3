from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_basisprune.errors import ConfigurationError, ExportError, PlanMismatchError
from monai_basisprune.inference import read_deployment
from monai_basisprune.workflow.study_network import export_study_network

from ..bundle_runs import contents
from .small_studies import DEPLOYMENT, INPUT_SHAPE, NETWORK_DEF, write_small_study

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("study") / "output"
    return folder, write_small_study(folder)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network is that of the study once the study's own settings are put in."""
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    config = {"image_channels": 3, "network_def": {**NETWORK_DEF, "in_channels": "@image_channels"}}
    (tmp_path / "bundle" / "configs" / "train.json").write_text(json.dumps(config))
    return tmp_path / "bundle"


def test_the_file_has_the_network_of_the_study_and_what_it_carries(
    pruned: tuple[Path, nn.Module], bundle: Path, tmp_path: Path
) -> None:
    study, network = pruned
    before = contents(study)
    (tmp_path / "new").mkdir()
    result = export_study_network(study, tmp_path / "new" / "model.ts", str(bundle))
    assert (result.file, result.format) == ("model.ts", "torchscript")
    assert result.size == (tmp_path / "new" / "model.ts").stat().st_size
    assert contents(study) == before
    assert read_deployment(tmp_path / "new") == DEPLOYMENT
    x = torch.rand(3, *INPUT_SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "new" / "model.ts")(x), network(x), rtol=1e-4, atol=1e-5)


def test_another_network_than_the_bundles_is_named(
    pruned: tuple[Path, nn.Module], bundle: Path, tmp_path: Path
) -> None:
    path = bundle / "configs" / "train.json"
    path.write_text(json.dumps({"network_def": {**NETWORK_DEF, "growth_rate": 4}}))
    with pytest.raises(PlanMismatchError, match=r"is the one that was pruned.*pass the network_def of the study"):
        export_study_network(pruned[0], tmp_path / "model.ts", bundle)
    assert not (tmp_path / "model.ts").exists()
    export_study_network(pruned[0], tmp_path / "model.ts", bundle, {"network_def": NETWORK_DEF})
    path.unlink()
    with pytest.raises(ConfigurationError, match=r"neither configs/train\.json nor configs/inference\.json"):
        export_study_network(pruned[0], tmp_path / "other.ts", bundle, {"network_def": NETWORK_DEF})


def test_what_is_there_is_not_written_over(pruned: tuple[Path, nn.Module], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.ts").write_text("mine")
    (tmp_path / "link.ts").symlink_to(tmp_path / "nowhere.ts")
    for name in ("mine.ts", "link.ts", "bundle"):
        with pytest.raises(ConfigurationError, match=r"^The file to write exists: name another one\.$"):
            export_study_network(pruned[0], tmp_path / name, bundle)
    assert (tmp_path / "mine.ts").read_text() == "mine"
    assert not (tmp_path / "nowhere.ts").exists()
    with pytest.raises(ExportError, match=r"\.ts.*\.onnx.*\.pt2"):
        export_study_network(pruned[0], tmp_path / "model.txt", bundle)
    assert not (tmp_path / "model.txt").exists()


def test_a_folder_without_a_whole_study_is_refused(
    pruned: tuple[Path, nn.Module], bundle: Path, tmp_path: Path
) -> None:
    words = r"lacks study\.json, model\.pt, model\.plan\.json, model\.ts: name the output_dir of a finished pruning run"
    with pytest.raises(ConfigurationError, match=words) as caught:
        export_study_network(tmp_path / "Doe^Jane", tmp_path / "new.ts", bundle)
    assert "Doe" not in str(caught.value)
    for name in ("model.plan.json", "study.json"):
        copy = Path(shutil.copytree(pruned[0], tmp_path / name))
        (copy / name).unlink()
        with pytest.raises(ConfigurationError, match=rf"^The folder of the study lacks {name}: "):
            export_study_network(copy, tmp_path / "new.ts", bundle)
    assert not (tmp_path / "new.ts").exists()
