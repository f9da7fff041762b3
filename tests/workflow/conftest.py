from __future__ import annotations

from pathlib import Path

import pytest

from monai_basisprune.data import write_synthetic_volumes


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of synthetic volumes with their labels, which no test changes."""
    folder = tmp_path_factory.mktemp("volumes") / "images"
    write_synthetic_volumes(folder, patients=16, volume_size=16, problem_files=False)
    return folder
