from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset

from monai_basisprune.data.identifiers import known
from monai_basisprune.errors import CohortError
from monai_basisprune.workflow.bundle_cases import check_separate, content_of, remember_cases, shared_cases

UNLISTED = DataLoader(list(range(3)))
"""A loader whose data set has no list of cases."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    known.forget()


def loader(images: list[Any], patients: list[Any] | None = None) -> DataLoader:
    items = [{"image": image, "label": 0} for image in images]
    for item, patient in zip(items, patients or [], strict=False):
        item["patient"] = patient
    return DataLoader(Dataset(items))


# --- which cases two loaders share


def test_shared_images_are_counted_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.npy", "2.npy", "3.npy"):
        (tmp_path / name).touch()
    (tmp_path / "link.npy").symlink_to(tmp_path / "3.npy")
    one = loader([str(tmp_path / name) for name in ("1.npy", "2.npy", "3.npy")])
    other = loader([f"{tmp_path}/a/../2.npy", tmp_path / "link.npy", str(tmp_path / "4.npy")])
    assert shared_cases(one, other, None) == shared_cases(other, one, None) == 2
    assert shared_cases(one, one, None) == 3
    assert shared_cases(loader(["1.npy", "1.npy"]), loader(["1.npy", "1.npy"]), None) == 1  # images, not cases
    assert shared_cases(one, loader([]), None) == 0


def test_shared_patients_are_counted_where_they_are_named() -> None:
    one, other = loader(["1", "2", "3"], ["p", "q", 7]), loader(["4", "5", "6"], ["q", "q", "7"])
    assert shared_cases(one, other, "patient") == 2  # a number in one table may be a text in another
    assert shared_cases(one, other, None) == 0
    cached = DataLoader(CacheDataset(other.dataset.data, progress=False))
    assert shared_cases(one, cached, "patient") == 2


@pytest.mark.parametrize("key", [None, "patient"])
def test_what_is_not_listed_is_not_counted(key: str | None) -> None:
    listed = loader(["1"], ["p"])
    arrays = loader([torch.zeros(1, 2, 2)], [None])
    assert shared_cases(listed, UNLISTED, key) is None
    assert shared_cases(UNLISTED, listed, key) is None
    assert shared_cases(listed, arrays, key) is None
    assert shared_cases(listed, DataLoader(Dataset(["1"])), key) is None  # cases that are no dictionaries


def test_training_and_validation_must_share_nobody() -> None:
    one, other = loader(["1", "2"], ["p", "q"]), loader(["3", "2"], ["p", "q"])
    with pytest.raises(CohortError, match=r"^1 images are in the training and in the validation data .* separate them"):
        check_separate(one, other, None)
    with pytest.raises(CohortError, match=r"^2 patients are in the training and in the validation data"):
        check_separate(one, other, "patient")
    apart = loader(["3", "4"], ["r", "s"])
    assert check_separate(one, apart, "patient") == []
    (note,) = check_separate(one, apart, None)
    assert note.startswith("No patients are named, so it could not be checked that none is in both")
    for key, what in ((None, "images"), ("patient", "patients")):
        (note,) = check_separate(one, UNLISTED, key)
        assert note.startswith(f"The data sets of the bundle do not list their {what}, so it could not be checked")


# --- what must not be shown


def test_images_and_patients_of_a_loader_are_taken_out_of_texts() -> None:
    cases = loader(["/scans/Doe^Jane/Scan_A1.npy"], ["Muster^Max"])
    text = "Scan_A1.npy of Muster^Max in /scans/Doe^Jane/Scan_A1.npy is damaged"
    remember_cases(UNLISTED, "patient")  # nothing to remember, and no reason to fail
    assert known.redacted(text) == text
    remember_cases(cases, None)
    shown = known.redacted(text)
    assert "Scan_A1" not in shown
    assert "Doe" not in shown
    assert "Muster" in shown
    remember_cases(cases, "patient")
    assert "Muster" not in known.redacted(text)


# --- what the content of cases is


def test_content_is_equal_where_values_are() -> None:
    values = [np.arange(3), torch.arange(3), np.float32(1), 2.0, None, True, "text", Path("a/b"), {1: [object()]}]
    assert content_of(values) == content_of([*values[:-1], {1: [object()]}])
    assert json.loads(json.dumps(content_of(values))) == content_of(values)
    for one, other in ((np.zeros(2), np.zeros((1, 2))), (torch.zeros(2), torch.zeros(2).double()), ("a" * 5000, "b")):
        assert content_of(one) != content_of(other)
    assert content_of("folder/" + "a" * 300) == "folder/" + "a" * 300


def test_of_a_file_its_name_and_size_count_and_not_where_it_lies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.npy").write_bytes(b"12345")
    found = content_of({"image": str(tmp_path / "a" / "x.npy"), 3: (tmp_path / "b" / "x.npy",)})
    assert found == {"image": ["x.npy", 5], "3": [["x.npy", 5]]}
    (tmp_path / "b" / "x.npy").write_bytes(b"123456")
    assert content_of(tmp_path / "b" / "x.npy") == ["x.npy", 6]
    assert content_of(str(tmp_path / "a" / "y.npy")) == str(tmp_path / "a" / "y.npy")
    assert content_of("x\0y/z") == "x\0y/z"


def test_of_an_array_kind_shape_and_values_count() -> None:
    values = np.arange(6.0).reshape(2, 3)
    assert content_of(values) == content_of(np.asfortranarray(values)) == content_of(torch.tensor(values))
    assert content_of(torch.tensor(values, requires_grad=True)) == content_of(values)
    assert content_of(values)[:2] == ["float64", [2, 3]]
    assert content_of(values) != content_of(values + 1e-9)
    assert content_of(np.array([object()])) == "ndarray"  # its values have no bytes of their own
    assert content_of({1, 2}) == "set"
    assert (content_of(np.int64(3)), content_of(True), content_of(None)) == (3, True, None)
