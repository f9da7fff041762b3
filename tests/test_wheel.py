"""The package as it is installed, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import tomllib

from .bundle_runs import TINY_PRUNE

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path.name for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())


def test_every_folder_of_modules_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "monai_basisprune").rglob("*.py")}
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "monai_basisprune.bundles"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources in which a bundle was run."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("monai_basisprune", "bundles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("output/report.html", "output/work/salt", "models/model.pt", "configs/.hidden.json"):
        made = source / "bundles" / SHIPPED[0] / name
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("{}")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, cwd=folder, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.mark.slow  # builds a wheel
def test_the_wheel_holds_the_bundles_and_nothing_that_a_run_left(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = "monai_basisprune/bundles/"
    for path in (ROOT / "bundles").glob("*/*"):
        parts = path.relative_to(ROOT / "bundles").parts
        if path.name in ("LICENSE", "configs", "docs"):
            wanted = [path] if path.is_file() else [file for file in path.iterdir() if file.name[0] != "."]
            assert {inside + file.relative_to(ROOT / "bundles").as_posix() for file in wanted} <= names, parts
    assert not [name for name in names if "/output/" in name or "/models/" in name or "/." in name]
    assert not [name for name in names if name.split("/")[0].removesuffix(".dist-info")[:16] != "monai_basisprune"]


@pytest.mark.slow  # builds a wheel, makes an environment, and runs a bundle in it
def test_a_plain_installation_runs_a_bundle_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    # the packages of this environment are seen, but not its .pth files, so not an editable installation of ours
    (own / "others.pth").write_text("\n".join(site.getsitepackages()))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--force-reinstall", "--no-index", str(wheel)], check=True, timeout=300)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        variables["OMP_NUM_THREADS"] = "1"
        return subprocess.run(
            list(words), cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=400, encoding="utf-8"
        )

    found = run(str(python), "-c", "import monai_basisprune; print(monai_basisprune.__file__)").stdout
    assert found.startswith(str(own))
    listed = run(str(scripts / "monai-basisprune"), "bundle")
    assert listed.returncode == 0, listed.stderr
    assert [line.split(":")[0] for line in listed.stdout.splitlines()] == SHIPPED
    copied = run(str(scripts / "monai-basisprune"), "bundle", "chest_xray_classification", "copy")
    assert copied.returncode == 0, copied.stderr
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_PRUNE))
    files = ["copy/configs/train.json", "copy/configs/prune.json", "tiny.json"]
    words = ["-m", "monai.bundle", "run", "prune", "--bundle_root", "copy", "--config_file", str(files)]
    pruned = run(str(python), *words)
    assert pruned.returncode == 0, pruned.stderr[-3000:]
    assert (tmp_path / "copy" / "output" / "report.html").is_file()
    assert (tmp_path / "copy" / "output" / "model.ts").is_file()
    assert not list((own / "monai_basisprune" / "bundles").glob("*/output"))
