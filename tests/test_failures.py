"""What ended a run from outside is told in words, and nothing else is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from monai_basisprune.failures import explain_failure


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "disk is full"),
        (OSError(errno.EFBIG, "x"), "limit on the size of files"),
        (PermissionError(errno.EACCES, "x"), "read-only"),
        (OSError(errno.EIO, "x"), "network drive"),
        (FileNotFoundError(errno.ENOENT, "x"), "gone that was there"),
        (OSError(errno.EMFILE, "x"), "ulimit -n"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "shared memory"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]"), "its own message says"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), "network"),
    ],
)
def test_each_failure_has_its_words(error: Exception, words: str) -> None:
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("of another library") from inner
    except RuntimeError as outer:
        text = explain_failure(outer)
    assert text is not None
    assert words in text
    assert "left as it is" in text


def test_what_is_no_failure_of_the_system_is_not_explained() -> None:
    assert explain_failure(RuntimeError("shapes cannot be multiplied")) is None
    assert explain_failure(FileNotFoundError(errno.ENOENT, "x"), running=False) is None
    assert explain_failure(ValueError("out of memory of mine")) is None


GROUPS = {
    "make room": ("ENOSPC", "EFBIG", "EDQUOT"),
    "change its permissions": ("EROFS", "EACCES", "EPERM"),
    "connect it again": (
        *("EIO", "ESTALE", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT", "ENODEV", "ENXIO", "EREMOTEIO"),
        *("ENOENT", "ENOTDIR"),
    ),
    "smaller --num_workers": ("EMFILE",),
}
BEFORE_A_RUN = {"EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR"}
"""What may as well be a wrong name that the user gave."""


@pytest.mark.parametrize(
    ("name", "words"),
    [(name, words) for words, names in GROUPS.items() for name in names if hasattr(errno, name)],
)
def test_each_error_of_the_system_says_what_to_change_and_names_no_file(name: str, words: str) -> None:
    error = OSError(getattr(errno, name), "of the system", "/home/jane/scans")
    text = explain_failure(error)
    assert text is not None
    assert words in text
    assert "jane" not in text
    assert sum(other in text for other in GROUPS) == 1
    assert explain_failure(error, running=False) == (None if name in BEFORE_A_RUN else text)


@pytest.mark.parametrize("text", ["a reason", "[Errno 28] as a text alone"])
def test_an_error_without_a_number_is_not_explained(text: str) -> None:
    assert explain_failure(OSError(text)) is None
    assert explain_failure(ConnectionResetError(errno.ECONNRESET, text)) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this device is one of Linux")
def test_what_python_and_pytorch_raise_on_a_full_disk_is_explained() -> None:
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert "The disk is full" in (explain_failure(caught.value) or "")
    with pytest.raises(RuntimeError) as raised:
        torch.save({"weight": torch.zeros(1 << 16)}, "/dev/full")
    assert "A network cannot be written" in (explain_failure(raised.value) or "")


def test_what_pytorch_raises_without_memory_is_explained() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert "memory of the device or of the computer is used up" in (explain_failure(caught.value) or "")


@pytest.mark.parametrize(
    "text",
    [
        "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend Out Of Memory",
    ],
)
def test_memory_that_runs_out_has_many_names(text: str) -> None:
    assert "--batch_size" in (explain_failure(RuntimeError(text)) or "")
    assert explain_failure(KeyError(text)) is None


def test_what_was_raised_while_another_error_was_handled_is_explained_by_that() -> None:
    def tidy_up() -> None:
        try:
            raise OSError(errno.ENOSPC, "x")
        except OSError:
            raise ValueError("of what tidied up") from None

    with pytest.raises(ValueError) as caught:
        tidy_up()
    assert "disk is full" in (explain_failure(caught.value) or "")


def test_the_outermost_failure_that_is_known_explains() -> None:
    inner, outer = OSError(errno.ENOSPC, "x"), MemoryError()
    outer.__cause__ = inner
    assert "memory" in (explain_failure(outer) or "")
    inner.__cause__ = outer  # errors that name each other
    assert "disk" in (explain_failure(inner) or "")
    strange, other = ValueError(), KeyError()
    strange.__cause__, other.__context__ = other, strange
    assert explain_failure(strange) is None
