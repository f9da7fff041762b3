from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.inspected import format_inspection, inspect_source
from monai_basisprune.workflow.shipped_bundles import (
    copy_shipped_bundle,
    run_shipped_bundle,
    shipped_bundle,
    shipped_bundles,
)

from ..bundle_runs import ROOT, contents, own_error, unchanged_process
from .small_studies import write_small_study

NAME = "chest_xray_classification"


def test_the_bundles_are_those_of_the_repository_with_their_tasks() -> None:
    found = shipped_bundles()
    assert list(found) == sorted(path.parents[1].name for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
    assert len(found) == 3
    for name, task in found.items():
        assert shipped_bundle(name).samefile(ROOT / "bundles" / name)
        assert task == json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())["task"]
        assert len(task) > 20


@pytest.mark.parametrize("name", ["nothing", "", "..", f"{NAME}/configs", str(ROOT)])
def test_a_bundle_of_another_name_is_refused(name: str, tmp_path: Path) -> None:
    for use in (
        lambda: shipped_bundle(name),
        lambda: copy_shipped_bundle(name, tmp_path / "copy"),
        lambda: run_shipped_bundle(name, "prune", ("train",), tmp_path),
    ):
        with pytest.raises(ConfigurationError, match=rf"no bundle of that name; those that come .*: \['{NAME}', "):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_whole_without_what_runs_left_and_stays_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    path = copy_shipped_bundle(NAME, str(tmp_path / "copy"))
    assert path == (tmp_path / "copy").resolve()
    left_out = ("output", "eval", "models", "__pycache__")
    wanted = {
        name: content
        for name, content in contents(ROOT / "bundles" / NAME).items()
        if not any(part in left_out or part.startswith(".") for part in name.split("/"))
    }
    assert contents(path) == wanted
    assert {"LICENSE", "configs/train.json", "configs/prune.json", "docs/README.md"} <= set(wanted)
    with pytest.raises(ConfigurationError, match="is not empty: name one that does not exist yet"):
        copy_shipped_bundle(NAME, path)
    with pytest.raises(ConfigurationError, match="must not lie inside the source bundle"):
        copy_shipped_bundle(NAME, ROOT / "bundles" / NAME / "copy")
    assert not (ROOT / "bundles" / NAME / "copy").exists()


@pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")
def test_a_bundle_runs_where_it_lies_with_the_values_that_are_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_study(tmp_path / "output")
    before = contents(ROOT / "bundles" / NAME)
    with unchanged_process():
        # the file of MONAI's logging would take pytest's handlers away
        run_shipped_bundle(NAME, "inspect", ("tools",), tmp_path / "output", {"logging_file": False})
    assert format_inspection(inspect_source(tmp_path / "output")) in capsys.readouterr().out
    overrides = {"logging_file": False, "source": str(tmp_path / "none")}
    with unchanged_process(), pytest.raises(Exception) as caught:
        run_shipped_bundle(NAME, "inspect", ("tools",), tmp_path / "output", overrides)
    assert "What to inspect was not found" in str(own_error(caught.value))
    assert contents(ROOT / "bundles" / NAME) == before
