from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from pydicom.dataset import Dataset

import monai_basisprune
from monai_basisprune.data import identifiers
from monai_basisprune.data.identifiers import REMOVED, PrivateTexts, known, remember_dataset


@pytest.fixture
def texts() -> PrivateTexts:
    return PrivateTexts()


def test_an_empty_one_returns_the_same_text(texts: PrivateTexts) -> None:
    text = "epoch 3 of 10, /tmp/x, PAT-0001"
    assert texts.redacted(text) is text


@pytest.mark.parametrize(
    "text",
    ["epoch 3 of 10", "PAT-00012 of another", "XPAT-0001", "the John-son", "Doer", "20131117 12:00:00", ""],
)
def test_what_needs_nothing_is_the_same_object(texts: PrivateTexts, text: str) -> None:
    texts.remember(["PAT-0001", "DOE^JOHN", "19370523", "3", "10"])
    assert texts.redacted(text) is text


@pytest.mark.parametrize(
    ("value", "text", "wanted"),
    [
        ("PAT-0001", "id PAT-0001, twice: PAT-0001.", f"id {REMOVED}, twice: {REMOVED}."),
        ("PAT-0001", "file PAT-0001_3.dcm", f"file {REMOVED}_3.dcm"),
        ("DOE^JOHN", "Invalid value 'DOE^JOHN' for VR", f"Invalid value '{REMOVED}' for VR"),
        ("DOE^JOHN", "Mr. DOE, the father of JOHN", f"Mr. {REMOVED}, the father of {REMOVED}"),
        ("A123\\B456", "other ids B456 and A123", f"other ids {REMOVED} and {REMOVED}"),
        ("19370523", "born 1937-05-23 or 19370523", f"born {REMOVED} or {REMOVED}"),
        ("19370523", "datetime.date(1937, 5, 23)", f"datetime.date({REMOVED})"),
        ("4711", "patient 4711 of 47110", f"patient {REMOVED} of 47110"),
    ],
)
def test_values_are_removed_as_whole_words(texts: PrivateTexts, value: str, text: str, wanted: str) -> None:
    texts.remember([value])
    assert texts.redacted(text) == wanted


@pytest.mark.parametrize(
    "spell",
    [str, repr, ascii, json.dumps, lambda v: repr(v.encode()), quote, lambda v: f"<{v}>", lambda v: f"?{v}\n{v}"],
)
@pytest.mark.parametrize("value", ["Müller^Jörg", "山田^太郎", "O'Neil^Ann Mary"])
def test_escapes_of_python_json_and_addresses_are_known(texts: PrivateTexts, spell: object, value: str) -> None:
    texts.remember([value])
    shown = texts.redacted(f"got {spell(value)}!")  # type: ignore[operator]
    assert REMOVED in shown
    for part in value.replace("'", "^").split("^"):
        for form in (part, ascii(part)[1:-1], quote(part), repr(part.encode())[2:-1]):
            if len(part) > 1:
                assert form not in shown


FOLDER = "/patients/Doe_John/study"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"cannot open {FOLDER}/images/1.dcm: no such file", f"cannot open {REMOVED}: no such file"),
        (f"[Errno 2] No such file: '{FOLDER}/a, b (1).dcm'", f"[Errno 2] No such file: '{REMOVED}'"),
        (f"in {FOLDER}.", f"in {REMOVED}"),
        ("in /patients/Doe_John only", f"in {REMOVED} only"),
        (f"file://{FOLDER}/x y", f"file://{REMOVED} y"),
        ("the study of Doe_John", f"the study of {REMOVED}"),
        ("the images of the study", "the images of the study"),
        ("/patient/Doe_Jane", "/patient/Doe_Jane"),
    ],
)
def test_folders_are_removed_with_what_is_below_and_above(texts: PrivateTexts, text: str, wanted: str) -> None:
    texts.remember_folders([None, FOLDER, FOLDER + "/labels.csv"])
    assert texts.redacted(text) == wanted


def test_relative_folders_are_removed_as_given_and_in_full(
    texts: PrivateTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Doe_John" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "Doe_John")
    monkeypatch.chdir(tmp_path)
    texts.remember_folders(["link/b"])
    for text in ("link/b/x.dcm", f"{tmp_path}/link/b/x.dcm", f"{tmp_path}/Doe_John/b/x.dcm", f"{tmp_path}"):
        assert texts.redacted(f"at {text} now") == f"at {REMOVED} now"


def test_windows_paths_are_removed_also_with_doubled_backslashes(texts: PrivateTexts) -> None:
    texts.remember_folders(["C:\\Users\\Doe John\\study"])
    assert texts.redacted("no C:\\Users\\Doe John\\study\\1.dcm") == f"no {REMOVED}"
    assert texts.redacted(repr("C:\\Users\\Doe John\\study\\1.dcm")) == f"'{REMOVED}'"


def test_the_code_stays_readable_and_what_lies_in_its_folder_does_not(texts: PrivateTexts) -> None:
    package = Path(monai_basisprune.__file__).parent
    output = package.parent / "bundles" / "Doe_John" / "output"
    texts.remember_folders([output, Path(torch.__file__).parents[3] / "data"])
    for file in (package / "curve.py", torch.__file__, os.__file__, sys.prefix):
        text = f'File "{file}", line 3'
        assert texts.redacted(text) is text
    assert texts.redacted(f"{output}/study.json") == REMOVED


def test_names_of_files_are_known_but_plain_words_are_not(texts: PrivateTexts) -> None:
    texts.remember_files(["images/Doe, John (2).dcm", "images/0001.dcm", "data/MRN77812/img.dcm"])
    assert texts.redacted("left out: Doe, John (2).dcm") == f"left out: {REMOVED}"
    assert texts.redacted("MRN77812") == REMOVED
    assert texts.redacted("see images/0001.dcm") == f"see {REMOVED}"
    text = "16 images of 0001 data in img"
    assert texts.redacted(text) is text


def test_a_dicom_file_fills_the_registry() -> None:
    dataset = Dataset()
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "ZQX-1", "ZQXDOE^JOHN", "19370523"
    dataset.AccessionNumber, dataset.Manufacturer, dataset.PatientSex = "ZQXACC", "Siemens", "M"
    try:
        remember_dataset(dataset)
        wanted = " ".join([REMOVED] * 4) + " Siemens M"
        assert known.redacted("ZQX-1 ZQXDOE^JOHN 1937-05-23 ZQXACC Siemens M") == wanted
    finally:
        known.forget()
    assert known.redacted("ZQX-1") == "ZQX-1"


def test_it_can_go_to_another_process(texts: PrivateTexts) -> None:
    texts.remember(["PAT-0001"])
    texts.remember_folders([FOLDER])
    other = PrivateTexts()
    other.take(pickle.loads(pickle.dumps(texts)))
    assert other.redacted(f"PAT-0001 in {FOLDER}/x") == f"{REMOVED} in {REMOVED}"
    other.remember(["PAT-0002"])  # it has a lock of its own again
    assert other.redacted("PAT-0002") == REMOVED


def test_threads_may_add_and_read_at_once(texts: PrivateTexts) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(200):
                texts.remember([f"ID{number}-{i:04d}"])
                assert texts.redacted(f"a ID{number}-{i:04d} b") == f"a {REMOVED} b"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert texts.redacted("ID3-0199") == REMOVED


def test_the_work_does_not_grow_with_the_number_of_patients(texts: PrivateTexts) -> None:
    """20,000 ids that begin alike: the number of look-ups depends on the text alone."""
    texts.remember(f"PAT-{i:06d}" for i in range(20_000))
    looked_up = 0

    class Counting(set[str]):
        def __contains__(self, item: object) -> bool:
            nonlocal looked_up
            looked_up += 1
            return super().__contains__(item)

    texts._texts = Counting(texts._texts)
    assert texts.redacted("epoch 1: PAT-019999 and PAT-020000") == f"epoch 1: {REMOVED} and PAT-020000"
    assert looked_up < 20


def test_nothing_is_shown_by_repr(texts: PrivateTexts) -> None:
    texts.remember(["PAT-0001"])
    assert "PAT" not in repr(texts)
    assert identifiers.REMOVED == "[removed]"
