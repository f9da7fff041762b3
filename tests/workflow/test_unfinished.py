from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.unfinished import UnfinishedRun, check_not_ended, unfinished_run


class Stopped(BaseException):
    """As Ctrl-C."""


def stopped(output: Path, checkpoint: bool) -> UnfinishedRun:
    def work() -> None:
        with unfinished_run(output) as run:
            run.bundle.mkdir()
            run.checkpoints.mkdir()
            if checkpoint:
                (run.checkpoints / "checkpoint_000001.pt").touch()
            raise Stopped

    with pytest.raises(Stopped):
        work()
    return UnfinishedRun(output)


def test_the_folder_goes_with_the_end_and_stays_where_a_run_can_go_on(tmp_path: Path) -> None:
    with unfinished_run(tmp_path / "new") as run:
        run.networks.mkdir()
        assert run.path == tmp_path / "new.unfinished"
    stopped(tmp_path / "new", checkpoint=False)
    assert not list(tmp_path.iterdir())
    run = stopped(tmp_path / "new", checkpoint=True)
    (tmp_path / f".new.{16 * 'a'}.tmp").mkdir()  # of a process that was killed while it wrote the bundle
    (tmp_path / ".new.mine.tmp").mkdir()
    with unfinished_run(tmp_path / "new"):
        assert run.can_go_on()
        assert not run.bundle.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".new.mine.tmp"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "new.unfinished"
    other.mkdir()
    (other / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match="no such run has made it: move it"), unfinished_run(tmp_path / "new"):
        pass
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    (other / "notes.txt").unlink()
    with unfinished_run(tmp_path / "new") as run:
        (run.path / "notes.txt").touch()
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_bundle_that_is_whole_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "new" / "docs").mkdir(parents=True)
    (tmp_path / "new" / "docs" / "pruning.json").touch()
    check_not_ended(tmp_path / "new")
    (tmp_path / "new.unfinished").mkdir()
    with pytest.raises(ConfigurationError, match=r"is there and whole.*Delete the folder.*unfinished"):
        check_not_ended(tmp_path / "new")


def second(output: Path) -> None:
    """Exit with 3 where another process is at work, of which this one was forked."""
    try:
        with unfinished_run(output):
            pass
    except ConfigurationError as error:
        sys.exit(3 if "Another run is at work on this new bundle" in str(error) else 1)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such lock")
def test_two_runs_do_not_mix(tmp_path: Path) -> None:
    def exit_code() -> int | None:
        process = multiprocessing.get_context("fork").Process(target=second, args=(tmp_path / "new",))
        process.start()
        process.join()
        return process.exitcode

    with unfinished_run(tmp_path / "new"):
        assert exit_code() == 3
        assert (tmp_path / "new.unfinished" / "lock").is_file()
    assert exit_code() == 0
