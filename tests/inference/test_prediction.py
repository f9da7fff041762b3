from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from monai_basisprune.data import read_radiograph
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.inference import (
    CaseDataset,
    input_shape,
    load_deployed,
    predict_cases,
    predict_folder,
)

from ..bundle_runs import ROOT, write_cohort
from ..data.pictures import write_folders, write_npz
from ..data.volume_files import nifti, series
from .deployments import CARRIED, Brightness, deploy, deployment_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def original_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("inference") / "images", patients=8)


@pytest.fixture
def cohort(original_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_cohort, tmp_path / "images"))


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def all_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_in_a_table_out(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    before = all_bytes(cohort)
    run = predict_folder(tmp_path / "out", cohort, tmp_path / "p.csv", batch_size=5, num_workers=0, progress=False)
    assert all_bytes(cohort) == before
    rows = rows_of(tmp_path / "p.csv")
    files = sorted((cohort / "images").iterdir())
    assert (run.cases, run.skipped, run.exit_code) == (len(files), 0, 0) == (len(rows), 0, 0)
    assert [row[0] for row in rows] == [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    network = load_deployed(tmp_path / "out")
    for row, path in zip(rows, files, strict=True):  # by hand
        pixels = torch.from_numpy(read_radiograph(path)[0])[None, None]
        small = torch.nn.functional.interpolate(pixels, (8, 8), mode="area")
        wanted = network((small - 0.449) / 0.226).softmax(1)[0].tolist()
        np.testing.assert_allclose([float(row[1]), float(row[2])], wanted, atol=2e-5)


def test_processes_that_load_change_nothing(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    for workers in (0, 2):
        file = tmp_path / f"{workers}.csv"
        predict_folder(tmp_path / "out", cohort, file, batch_size=3, num_workers=workers, progress=False)
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_damage_stops_the_run_or_is_skipped(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    files = sorted((cohort / "images").iterdir())
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    for path in files[:2]:
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CohortError) as caught:
        predict_folder(tmp_path / "out", cohort, tmp_path / "p.csv", num_workers=0, progress=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == uids[:2]  # both, not only the first
    assert not (tmp_path / "p.csv").exists()
    files[2].write_bytes(b"x")
    with pytest.raises(CohortError, match=r"1 of \d+ files cannot be used"):  # by its header, before anything else
        predict_folder(tmp_path / "out", cohort, tmp_path / "p.csv", num_workers=0, progress=False)
    run = predict_folder(tmp_path / "out", cohort, tmp_path / "p.csv", "skip", num_workers=1, progress=False)
    assert (run.cases, run.skipped, run.exit_code) == (len(files), 3, 3)
    assert [row[0] for row in rows_of(tmp_path / "p.csv") if row[3]] == [
        *uids[:2],
        "file #3 of the sorted list (1 bytes)",
    ]
    assert "synth" not in (tmp_path / "p.csv").read_text()


def test_inputs_are_never_overwritten(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    before = all_bytes(tmp_path)
    for name in ("labels.csv", "images/synth0001_1.dcm"):
        with pytest.raises(ConfigurationError, match="predictions_file names a file that is no table of predictions"):
            predict_folder(tmp_path / "out", cohort, cohort / name, num_workers=0, progress=False)
    for arguments in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ConfigurationError, match="batch_size must be at least 1 and num_workers at least 0"):
            predict_folder(tmp_path / "out", cohort, tmp_path / "p.csv", **arguments)
    assert all_bytes(tmp_path) == before


def test_several_labels_get_a_sigmoid_each() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    images = torch.randn(5, 1, 2, 2)
    data = CaseDataset([{"image": x, "case_id": str(i)} for i, x in enumerate(images)], lambda case: case, (1, 2, 2))
    found = predict_cases(network, data, 2, 0, multi_label=True, progress=False)
    np.testing.assert_allclose(found.outputs, network(images).sigmoid().tolist(), rtol=1e-5)
    one = predict_cases(network, data, 2, 0, progress=False)
    np.testing.assert_allclose(one.outputs, network(images).softmax(1).tolist(), rtol=1e-5)
    assert found.case_ids == list("01234")


BLOCKED = ("sklearn", "scipy", "matplotlib", "jinja2", "ignite", "torch_pruning", "onnx", "highdicom")
OURS = ("handlers", "evidence", "report", "workflow", "cli")
LEAN = f"""
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] in {BLOCKED!r} or parts[:1] == ["monai_basisprune"] and parts[1:2] and parts[1] in {OURS!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
from monai_basisprune.inference.__main__ import main
for words in json.loads(sys.argv[1]):
    code = main(words)
held = sorted({{name.split(".")[0] for name in sys.modules}} & set({BLOCKED!r}))
assert not held, held
sys.exit(code)
"""


def run_lean(*commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands, in one process where nothing that training needs can be imported; its code is that of the last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", LEAN, json.dumps(commands)]
    return subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_plain_network_needs_nothing_that_training_needs(cohort: Path, tmp_path: Path) -> None:
    deploy(tmp_path / "out", **CARRIED)
    first = sorted((cohort / "images").iterdir())[0]
    first.write_bytes(first.read_bytes()[:-500])
    words = [
        "predict",
        str(cohort),
        str(tmp_path / "p.csv"),
        "--output_dir",
        str(tmp_path / "out"),
        "--num_workers",
        "1",
    ]

    done = run_lean([*words, "--on_problem", "skip"])
    assert done.returncode == 3, done.stderr
    assert "predictions written to predictions_file" in done.stdout
    assert "1 of" in done.stderr
    assert str(tmp_path) not in done.stdout + done.stderr
    assert len(rows_of(tmp_path / "p.csv")) == len(list((cohort / "images").iterdir()))
    done = run_lean(words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-2].startswith("monai-basisprune: 1 of")
    assert "Traceback" not in done.stderr


def write_volumes(folder: Path) -> Path:
    nifti(folder / "a.nii.gz")
    series(folder / "ct")
    (folder / "b.nii").write_bytes(b"x" * 400)
    return folder


def write_pictures(folder: Path) -> Path:
    (write_folders(folder, 1) / "b.png").write_bytes(b"x" * 400)
    return folder


def test_volumes_and_pictures_need_no_more(tmp_path: Path) -> None:
    runs: list[tuple[str, dict[str, Any], Path, int]] = [
        ("volumes", {}, write_volumes(tmp_path / "volumes"), 3),
        ("volumes", {"spacing": [2.0, 2.0, 2.0], "intensity": "percentiles"}, tmp_path / "volumes", 3),
        ("pictures", {"label_kind": "multi"}, write_pictures(tmp_path / "pictures"), 4),
        ("pictures", {}, write_npz(tmp_path / "new.npz", count=1), 3),
    ]
    commands = []
    for number, (kind, changes, images, _) in enumerate(runs):
        deployment = deployment_of(kind, **changes)
        deploy(tmp_path / f"out{number}", Brightness(input_shape(deployment), 2), **deployment)
        words = [
            "predict",
            str(images),
            str(tmp_path / f"{number}.csv"),
            "--output_dir",
            str(tmp_path / f"out{number}"),
        ]
        commands.append([*words, "--num_workers", "0", "--on_problem", "skip"])
    done = run_lean(*commands)
    assert done.returncode == 0, done.stderr  # that of the last, of which no image is damaged
    assert str(tmp_path) not in done.stdout + done.stderr
    for number, (_, _, images, cases) in enumerate(runs):
        rows = rows_of(tmp_path / f"{number}.csv")
        assert len(rows) == cases
        assert [bool(row[1]) for row in rows] == [not row[3] for row in rows]
        assert any(row[3] for row in rows) == images.is_dir()
