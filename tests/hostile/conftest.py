from __future__ import annotations

import pytest

from .targets import Target, make_targets


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return make_targets(tmp_path_factory.mktemp("targets") / "good")
