"""Runs the chest X-ray bundle, in a process of its own or in this one, on cohorts that take seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet
from monai.utils import set_determinism

from monai_basisprune.data import write_synthetic_cohort
from monai_basisprune.errors import BasisPruneError
from monai_basisprune.redaction import remove_redaction

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "chest_xray_classification"
CONFIGS = BUNDLE / "configs"
COMBINATIONS = (("train",), ("train", "prune"), ("inference",), ("inference", "evaluate"))
"""The configurations that are run together."""

TINY = {
    "image_size": 32,
    "transfer_epochs": 1,
    "network_def": {
        "_target_": "monai.networks.nets.DenseNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "init_features": 8,
        "growth_rate": 8,
        "block_config": [2, 2],
    },
}
TINY_PRUNE = {**TINY, "synthetic_patients": 60, "epochs_per_round": 1, "targets": [0.5, 0.8]}
FAILED_WORDS = "Traceback (most recent call last)"


def tiny_densenet(seed: int = 0) -> DenseNet:
    """Return the network that the overlays name."""
    arguments = {key: value for key, value in TINY["network_def"].items() if key != "_target_"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DenseNet(**arguments)


def merged_config(names: Sequence[str]) -> dict[str, Any]:
    """Return shipped configurations, laid over each other by MONAI."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in names])
    return parser.get()


def documented_settings() -> dict[str, str]:
    """Return for each setting in the table of the bundle's page the cell with its default."""
    section = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split("## Settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|(.*?)\| ", section, re.MULTILINE)
    return {name: default.strip() for names, default in rows for name in re.findall(r"`(\w+)`", names)}


def config_files(names: Sequence[str], overlay: Path | None = None) -> list[str]:
    """Return the paths of shipped configurations, relative to the repository, and of an overlay."""
    files = [str((CONFIGS / f"{name}.json").relative_to(ROOT)) for name in names]
    return files if overlay is None else [*files, str(overlay)]


def write_overlay(folder: Path, content: dict[str, Any]) -> Path:
    """Write a configuration to lay over the shipped ones."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "overlay.json"
    path.write_text(json.dumps(content))
    return path


def run_command(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m monai.bundle run`` as the README does."""
    bundle = ["--bundle_root", str(BUNDLE.relative_to(ROOT))]
    command = [sys.executable, "-m", "monai.bundle", "run", *arguments, *bundle]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, encoding="utf-8"
    )


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undo what a run does to its process: hook for errors, redaction, seeds, search path."""
    hook, path, threads = sys.excepthook, list(sys.path), torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of run_command
    try:
        yield
    finally:
        sys.excepthook = hook
        remove_redaction()
        sys.path[:] = path
        torch.set_num_threads(threads)
        set_determinism(None)


def run_in_python(run_id: str, names: Sequence[str], overlay: Path | None = None, **overrides: Any) -> None:
    """Run the bundle by MONAI's function for it."""
    files = [str(CONFIGS / f"{name}.json") for name in names]
    with unchanged_process():
        monai.bundle.run(
            run_id=run_id,
            config_file=files if overlay is None else [*files, str(overlay)],
            bundle_root=overrides.pop("bundle_root", str(BUNDLE)),
            logging_file=False,  # it would take pytest's handlers away
            **overrides,
        )


def own_error(error: BaseException) -> BasisPruneError:
    """Return our error in the chain of one that MONAI raised."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, BasisPruneError):
        link = link.__cause__ or link.__context__
    assert link is not None, f"no error of ours behind {error!r}"
    return link


def write_cohort(folder: Path, patients: int = 30, seed: int = 0) -> Path:
    """Write a cohort of small DICOM files with a table of labels; returns the folder."""
    write_synthetic_cohort(folder, patients=patients, seed=seed, image_size=32)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, but those in its working folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "work"
    }
