from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_basisprune.inference import PredictionRun
from monai_basisprune.inference.__main__ import main

from ..data.pictures import write_folders
from .deployments import Brightness, deploy, deployment_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_options_reach_the_library_and_its_code_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def note(*arguments: Any, **options: Any) -> PredictionRun:
        calls.append((arguments, options))
        return PredictionRun(3, 1, 0.1, 3)

    monkeypatch.setattr("monai_basisprune.inference.command.predict_folder", note)
    assert main(["predict", "images", "table.csv", "--output_dir", "study"]) == 3
    defaults = {"on_problem": "raise", "sr_dir": None, "batch_size": None, "num_workers": 1, "device": "cpu"}
    assert calls == [(("study", "images", "table.csv"), defaults)]
    words = ["--on_problem", "skip", "--sr_dir", "sr", "--batch_size", "2", "--num_workers", "0", "--device", "cuda"]
    assert main(["predict", "images", "table.csv", "--output_dir", "study", *words]) == 3
    given = {"on_problem": "skip", "sr_dir": "sr", "batch_size": 2, "num_workers": 0, "device": "cuda"}
    assert calls[-1][1] == given


def test_what_is_missing_ends_with_2_and_names_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, table = tmp_path / "Doe^Jane", tmp_path / "p.csv"
    words = ["predict", str(tmp_path / "Doe^John"), str(table), "--output_dir", str(study), "--num_workers", "0"]
    assert main(words) == 2
    assert "There is no pruned network (model.ts) in output_dir" in capsys.readouterr().err
    deploy(study, Brightness((1, 8, 8), 2), **deployment_of("pictures"))
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "dataset_dir is neither a folder nor a .npz file" in shown
    write_folders(tmp_path / "Doe^John", 1)
    assert main(words) == 0
    shown += "".join(capsys.readouterr())
    assert "3 predictions written" in shown
    assert "Doe" not in shown + table.read_text()
