from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import gray, write_npz

from monai_basisprune.data import npz
from monai_basisprune.data.images import decode_picture
from monai_basisprune.data.npz import read_npz, write_pictures
from monai_basisprune.errors import CohortError


def test_sections_come_as_they_are(tmp_path: Path) -> None:
    sections = read_npz(write_npz(tmp_path / "a.npz"))
    assert [section.name for section in sections] == ["training", "validation", "test"]
    for place, section in enumerate(sections):
        np.testing.assert_array_equal(section.images[5], gray(1000 * place + 5))
        assert section.labels[:4].tolist() == [[0], [1], [2], [0]]


def test_findings_color_and_16_bits(tmp_path: Path) -> None:
    color = np.stack([gray(seed) for seed in range(36)]).reshape(12, 12, 12, 3)
    wide = np.stack([gray(seed) for seed in range(12)]).astype(np.uint16) * 256
    path = write_npz(tmp_path / "a.npz", findings=3, train_images=color, val_images=wide)
    training, validation, _ = read_npz(path)
    assert training.labels.shape == (12, 3)
    for section, scale in ((training, 255), (validation, 65535)):
        files = write_pictures(section, tmp_path / section.name)
        values = decode_picture(files[7].read_bytes())
        expected = section.images[7].transpose(2, 0, 1) if section.images.ndim == 4 else section.images[7][None]
        np.testing.assert_array_equal(values, np.float32(expected) / np.float32(scale))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"train_labels": np.array([{"a": 1}] * 12, dtype=object)},
            "array 'train_labels': holds Python objects (pickle), refused",
        ),
        ({"val_images": None}, "it has no array 'val_images'"),
        ({"train_labels": np.array(["a"] * 12)}, "array 'train_labels': holds <U1, not numbers"),
        (
            {"test_labels": np.array([0, np.nan] * 6)},
            "array 'test_labels': holds NaN or fractions, needed are whole numbers",
        ),
        ({"test_labels": np.array([0, 0.5] * 6)}, "array 'test_labels': holds NaN or fractions"),
        ({"train_images": np.full((12, 4, 4), np.nan)}, "array 'train_images': holds NaN or infinite values"),
        ({"train_images": np.zeros((12, 4, 4))}, "holds float64, needed are uint8, or uint16 for gray"),
        ({"val_labels": np.zeros(11, int)}, "section 'val': has 12 images and 11 labels"),
        ({"val_images": np.zeros((12, 28, 28, 28), np.uint8)}, "volumes belong to the bundle volume_classification"),
        ({"val_labels": np.zeros((12, 2, 2), int)}, "array 'val_labels': has shape (12, 2, 2)"),
        ({"val_labels": np.zeros((12, 2), int)}, "differ in the number of columns: [1, 2]"),
        ({"train_images": np.zeros((0, 4, 4), np.uint8)}, "section 'train': has 0 images and 12 labels"),
    ],
    ids=[
        *("object", "missing", "text", "nan labels", "fractions", "nan images", "float", "lengths", "volumes"),
        *("label shape", "columns", "empty"),
    ],
)
def test_unusable_arrays_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CohortError) as error:
        read_npz(write_npz(tmp_path / "a.npz", **changes))
    assert words in str(error.value)
    assert "Pass the .npz file of a MedMNIST data set" in str(error.value)


def archive(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return path


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def test_path_tricks_are_refused(tmp_path: Path) -> None:
    for name in ("../train_images.npy", "/etc/train_images.npy", "a\\..\\b.npy"):
        path = archive(tmp_path / "a.npz", {name: npy(gray(0))})
        with pytest.raises(CohortError, match="name leads into another folder; nothing of it was unpacked"):
            read_npz(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MOST_BYTES", 10_000)
    path = write_npz(tmp_path / "a.npz", train_images=np.zeros((12, 100, 100), np.uint8))
    monkeypatch.setattr(npz, "_read", lambda *_: pytest.fail("an array was read"))
    with pytest.raises(CohortError, match=r"at most 10000 are read \(a zip bomb\?\)"):
        read_npz(path)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    whole = npy(np.zeros((12, 4, 4), np.uint8))
    lying = whole.replace(b"(12, 4, 4)", b"(12, 4, 9)")
    parts = {}
    for section in ("train", "val", "test"):
        parts |= {f"{section}_images.npy": lying, f"{section}_labels.npy": npy(np.zeros(12, int))}
    with pytest.raises(CohortError, match=r"its header promises \(12, 4, 9\) of uint8, which is not what it holds"):
        read_npz(archive(tmp_path / "a.npz", parts))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(50)])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "Jane.npz"
    path.write_bytes(content)
    with pytest.raises(CohortError, match=r"The \.npz file is damaged, or is none") as error:
        read_npz(path)
    assert "Jane" not in str(error.value)


def test_a_broken_check_sum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {}
    for section in ("train", "val", "test"):
        arrays |= {f"{section}_images": np.zeros((12, 40, 40), np.uint8), f"{section}_labels": np.zeros(12, np.uint8)}
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[content.index(b"\n", content.index(b"NUMPY")) + 40] ^= 255  # among the values
    path.write_bytes(content)
    with pytest.raises(CohortError, match=r"damaged, or is none \(BadZipFile\)"):
        read_npz(path)
