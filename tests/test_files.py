from __future__ import annotations

import hashlib
import inspect
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_basisprune.files import archive_problem, move_into_place, sha256_of, write_atomically


@pytest.mark.parametrize("content", ["täxt µ\n", b"\x00\xff"])
def test_text_and_bytes_are_written_as_they_are_and_folders_are_made(tmp_path: Path, content: str | bytes) -> None:
    target = tmp_path / "new folder" / "deeper" / "file"
    assert write_atomically(target, content) == target
    assert target.read_bytes() == (content.encode("utf-8") if isinstance(content, str) else content)
    assert write_atomically(str(target), "second") == target
    assert target.read_text(encoding="utf-8") == "second"
    assert os.listdir(target.parent) == ["file"]


def test_a_function_writes_beside_the_final_place(tmp_path: Path) -> None:
    target, seen = tmp_path / "weights.pt", []
    target.write_text("earlier", encoding="utf-8")

    def write(temporary: Path) -> None:
        seen.append((temporary, target.read_text(encoding="utf-8")))
        torch.save({"a": torch.ones(3)}, temporary)

    write_atomically(target, write)
    ((temporary, earlier),) = seen
    assert temporary.parent == tmp_path
    assert temporary != target
    assert earlier == "earlier"
    assert torch.load(target, weights_only=True)["a"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_earlier_file_survives_a_failing_write_and_nothing_is_left_over(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file"
    target.write_text("earlier", encoding="utf-8")

    def write(temporary: Path) -> None:
        temporary.write_text("half of", encoding="utf-8")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_atomically(target, write)
    assert target.read_text(encoding="utf-8") == "earlier"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(
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
    assert len(list(tmp_path.iterdir())) == (1 if sys.platform != "win32" else 2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock that tells that a writer is dead")
def test_only_left_over_files_of_the_same_name_are_removed(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    stale = [f".file.{token}.tmp", f".file.{token[::-1]}.tmp"]
    others = [f".other.{token}.tmp", ".file.tmp", f".file.{token}x.tmp", f"file.{token}.tmp", f".xfile.{token}.tmp"]
    for name in stale + others:
        (tmp_path / name).write_text("half of")
    (tmp_path / f".file.{'a' * 16}.tmp").mkdir()  # not one of ours
    (tmp_path / "target").write_text("of another")
    (tmp_path / f".file.{'b' * 16}.tmp").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "file", "text")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*others, "file", "target", f".file.{'a' * 16}.tmp", f".file.{'b' * 16}.tmp"]
    )
    assert (tmp_path / "target").read_text() == "of another"


def test_a_writer_that_is_at_work_keeps_its_temporary_file(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("outer")
        write_atomically(tmp_path / "file", "inner")  # as another process or thread would
        assert temporary.read_text() == "outer"
        assert (tmp_path / "file").read_text() == "inner"

    write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "outer"
    assert os.listdir(tmp_path) == ["file"]


def test_many_writers_of_one_name_do_not_hinder_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write_atomically, tmp_path / "file", f"{i}" * 1000) for i in range(200)]:
            done.result()
    assert len(set((tmp_path / "file").read_text())) <= 3
    assert os.listdir(tmp_path) == ["file"]


def test_a_name_with_signs_of_patterns_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".a.0123456789abcdef.tmp").write_text("of another")
    write_atomically(tmp_path / "[ab]*?.txt", "text")
    write_atomically(tmp_path / ".*", "text")
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.skipif(os.name != "posix", reason="symbolic links are those of POSIX")
def test_a_symbolic_link_is_replaced_and_what_it_points_to_is_left(tmp_path: Path) -> None:
    (tmp_path / "original").write_text("earlier")
    (tmp_path / "link").symlink_to(tmp_path / "original")
    write_atomically(tmp_path / "link", "new")
    assert ((tmp_path / "link").read_text(), (tmp_path / "original").read_text()) == ("new", "earlier")


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    move_into_place(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "a"


def test_a_folder_in_the_place_of_the_file_is_an_error_and_nothing_is_left_over(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of files are those of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_colleagues_may_read_the_file_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    earlier = os.umask(umask)
    try:
        write_atomically(tmp_path / "text", "text")
        write_atomically(tmp_path / "written", lambda temporary: temporary.write_text("text", encoding="utf-8"))
    finally:
        os.umask(earlier)
    for name in ("text", "written"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


@pytest.mark.parametrize("size", [0, 5, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()
    with open(tmp_path / "file", "rb") as file:
        assert sha256_of(file) == hashlib.sha256(content[:size]).hexdigest()


def test_an_archive_is_checked_by_its_sums(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.arange(100.0)}, path)
    assert archive_problem(path) is None
    with open(path, "rb") as file:
        assert archive_problem(file) is None
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "network.ts")
    assert archive_problem(str(tmp_path / "network.ts")) is None
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["a"].tolist() != list(range(100))  # PyTorch does not notice
    assert archive_problem(path) == "it is damaged: the check sum of 'weights/data/0' is wrong"
    path.write_bytes(b"")
    assert archive_problem(path) == "it is damaged, or no archive: BadZipFile, File is not a zip file"
    path.unlink()
    assert (
        archive_problem(path) == "it is damaged, or no archive: FileNotFoundError, No such file or directory"
    )  # not where it was looked for
