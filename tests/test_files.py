from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_basisprune.files import write_atomically


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path: Path) -> None:
    assert write_atomically(tmp_path / "a" / "b.txt", "µ").read_bytes() == "µ".encode()
    assert write_atomically(str(tmp_path / "c.bin"), b"\x00").read_bytes() == b"\x00"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failure_leaves_the_earlier_file_and_nothing_else(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomically(tmp_path / "study.json", "earlier")

    def fail(*_: Any) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, "new")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
def test_killed_in_the_middle_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "study.json", "earlier")
    # The file is run by itself, since importing the package takes seconds.
    program = (
        "import os, runpy, signal, sys\n"
        "write = runpy.run_path(sys.argv[1])['write_atomically']\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write(sys.argv[2], 'new' * 1000)\n"
    )
    source = inspect.getsourcefile(write_atomically)
    result = subprocess.run([sys.executable, "-c", program, str(source), str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert path.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 2  # the temporary file is left over, and harms nobody
    write_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_colleagues_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert write_atomically(tmp_path / "x", "x").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
