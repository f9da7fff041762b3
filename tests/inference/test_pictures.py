from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_basisprune.data import LoadPictured
from monai_basisprune.data.npz import read_npz, write_pictures
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.files import sha256_of
from monai_basisprune.inference import list_images

from ..data.pictures import gray, save, write_folders, write_npz, write_table


def test_every_picture_is_listed_by_the_hash_of_its_file(tmp_path: Path) -> None:
    root = write_table(write_folders(tmp_path / "images", 2), ["healthy/000.png,ill"])
    cases = list_images(root, progress=False)
    assert [Path(case["image"]) for case in cases] == sorted(root.rglob("*.png"))
    assert [case["case_id"] for case in cases] == [sha256_of(path) for path in sorted(root.rglob("*.png"))]
    assert {case["problem"] for case in cases} == {""}


def test_damaged_pictures_stop_the_list_or_stay_in_it_with_the_reason(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images", 2)
    (root / "Jane.png").write_bytes(b"nothing")
    with pytest.raises(CohortError, match="1 problems were found in 7 files") as error:
        list_images(root, progress=False)
    assert "Jane" not in str(error.value)
    cases = list_images(root, "skip", progress=False)
    assert [bool(case["problem"]) for case in cases] == [True, *[False] * 6]
    assert all(len(case["case_id"]) == 64 for case in cases[1:])
    for path in root.rglob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(CohortError, match="dataset_dir holds no picture that can be read"):
        list_images(root, "skip", progress=False)
    with pytest.raises(ConfigurationError, match="on_problem must be 'raise' or 'skip'"):
        list_images(root, "ignore", progress=False)


def test_links_are_never_left_out_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folders(tmp_path / "images", 2)
    (root / "Jane.png").symlink_to(save(tmp_path / "elsewhere.png", gray(5)))
    with pytest.raises(CohortError, match="holds 1 symbolic links"):
        list_images(root, progress=False)
    assert len(list_images(root, "skip", progress=False)) == 6
    told = capsys.readouterr().err
    assert "holds 1 symbolic links" in told
    assert "Jane" not in told


@pytest.mark.parametrize("name", [None, "nowhere", "picture.png", "list.zip"])
def test_what_is_neither_a_folder_nor_an_npz_file_is_refused(tmp_path: Path, name: str | None) -> None:
    save(tmp_path / "picture.png", gray(1))
    (tmp_path / "list.zip").write_bytes(b"PK")
    with pytest.raises(CohortError, match=r"dataset_dir is neither a folder nor a \.npz file; pass --dataset_dir"):
        list_images(None if name is None else tmp_path / name, progress=False)


def test_the_images_of_an_npz_file_are_those_that_training_reads(tmp_path: Path) -> None:
    """Training writes them as PNG files first; the numbers that come out must be the same bits."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (12, 9, 7, 3)).astype(np.uint8)
    deep = rng.integers(0, 65536, (12, 9, 7)).astype(np.uint16)
    path = write_npz(tmp_path / "a.npz", val_images=color, test_images=deep)
    cases = list_images(path, progress=False)
    assert [case["case_id"] for case in cases[:3]] == [f"train_images[{number}]" for number in range(3)]
    assert len({case["case_id"] for case in cases}) == len(cases) == 36
    files = [
        file for section in read_npz(path) for file in write_pictures(section, tmp_path / "pictures" / section.name)
    ]
    for channels in (1, 3):
        load = LoadPictured("image", channels)
        for case, file in zip(cases, files, strict=True):
            ours, theirs = (load({"image": source})["image"].numpy() for source in (case["image"], file))
            assert ours.dtype == theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)


def test_an_npz_file_of_new_images_needs_no_labels(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", train_images=None, train_labels=None, val_labels=None, test_labels=None)
    assert [case["case_id"] for case in list_images(path)][::12] == ["val_images[0]", "test_images[0]"]
    np.savez(tmp_path / "b.NPZ.npz", images=np.stack([gray(1)]), notes=np.array([{"a": 1}], dtype=object))
    (case,) = list_images(tmp_path / "b.NPZ.npz")  # an array that is not asked for is not read
    assert case["case_id"] == "images[0]"
    np.testing.assert_array_equal(case["image"], gray(1))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": np.zeros(3, int)}, "it has no array 'images'"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "array 'images': holds Python objects (pickle), refused"),
        ({"images": np.zeros((3, 4, 4))}, "array 'images': holds float64, needed are uint8, or uint16 for gray"),
        ({"images": np.uint8(3)}, "array 'images': has shape ()"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "array 'images': holds no image"),
        ({"images": np.zeros((2, 8, 8, 8), np.uint8)}, "volumes belong to the bundle volume_classification"),
    ],
    ids=["none", "pickle", "float", "one number", "empty", "volumes"],
)
def test_an_npz_file_that_cannot_be_used_says_why(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CohortError) as error:
        list_images(tmp_path / "a.npz", "skip")
    assert words in str(error.value)


def test_pixels_of_a_size_that_is_no_picture_are_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"case images\[0\] cannot be read: it has 5 x 1 pixels, too few"):
        LoadPictured("image")({"image": np.zeros((1, 5), np.uint8), "case_id": "images[0]"})
    Image.fromarray(np.zeros((1, 5), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(CohortError, match="has 5 x 1 pixels, too few"):
        LoadPictured("image")({"image": tmp_path / "a.png"})
