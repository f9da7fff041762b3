"""Plants a mark in every text that a set of DICOM files can hold, and looks for it in all that a run leaves."""

from __future__ import annotations

import base64
import csv
import gzip
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import torch
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID

from .bundle_runs import BUNDLE, CONFIGS, ROOT, TINY_PRUNE, tiny_densenet, write_cohort, write_overlay

MARK = "ZQXPHI"
BORN, MINUTE = "19370523", "031337"
UID_ROOT = "1.2.826.0.1.3680043.99.7177"
SOP_ROOT = "1.2.826.0.1.3680043.99.8188"
"""A message about a bad file and the table of predictions name the SOPInstanceUID: their reader must find the image."""

TEXTS = ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "CS")
READ = {  # elements that say how the pixels are to be shown, and one with a list of values of its own
    *("SpecificCharacterSet", "PhotometricInterpretation", "PresentationLUTShape", "VOILUTFunction", "Modality"),
    *("PatientSex", "PixelPresentation", "RescaleType", "LossyImageCompression"),
}
DEBUG = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=DEBUG
handlers=console
[handler_console]
class=StreamHandler
level=DEBUG
formatter=plain
args=(sys.stderr,)
[formatter_plain]
format=%(name)s %(levelname)s %(message)s
"""


def marked_texts() -> tuple[Dataset, dict[str, str]]:
    """Return a data set with a mark of its own in each text of the standard, and what each mark stands for."""
    dataset, places = Dataset(), {}
    for number, (tag, (vr, multiplicity, _, _, keyword)) in enumerate(sorted(DicomDictionary.items())):
        if tag >> 16 in (0x0002, 0x0004, 0x0000) or keyword in READ or not keyword:
            continue
        mark = f"{MARK}{number:04d}"
        if vr in TEXTS:
            places[mark] = keyword
            value = f"{mark}^{mark}^^Dr={mark}={mark}" if vr == "PN" else mark
            dataset.add_new(tag, vr, [value] * 2 if multiplicity == "1-n" and vr != "UR" else value)
        elif vr in ("DA", "TM", "DT"):
            dataset.add_new(tag, vr, {"DA": BORN, "TM": MINUTE, "DT": BORN + MINUTE}[vr])
        elif vr == "UI" and keyword not in ("SOPClassUID", "SOPInstanceUID"):
            dataset.add_new(tag, vr, UID(f"{UID_ROOT}.{number}"))
    inner = Dataset()
    inner.PatientID, inner.PatientName, inner.PatientComments = f"{MARK}9901", f"{MARK}9902^A", f"{MARK}9903"
    outer = Dataset()
    outer.RequestedProcedureDescription = f"{MARK}9904"
    outer.OtherPatientIDsSequence = DicomSequence([inner])
    dataset.RequestAttributesSequence = DicomSequence([outer])
    dataset.OtherPatientIDsSequence = DicomSequence([inner])
    block = dataset.private_block(0x0011, f"{MARK}9905 VENDOR", create=True)
    for offset, vr in enumerate(("LO", "PN", "UT", "LT"), start=1):
        block.add_new(offset, vr, f"{MARK}991{offset}")
    dataset.add_new(0x60000022, "LO", f"{MARK}9920")
    return dataset, places


def plant(folder: Path) -> Path:
    """Write a cohort whose files, folders, names and tables carry marks; returns its folder."""
    plain = write_cohort(folder / "plain", patients=24)
    images = folder / f"{MARK}9001_Doe^John" / f"{MARK}9002 study"
    (images / f"{MARK}9003").mkdir(parents=True)
    texts, places = marked_texts()
    assert len(places) > 1500
    rows = []
    with open(plain / "labels.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for number, row in enumerate(table):
        dataset = pydicom.dcmread(plain / row["image"])
        patient = dataset.PatientID
        dataset.update(texts)
        dataset.PatientID, dataset.PatientName = f"{MARK}92-{patient}", f"{MARK}93{patient}^Doe"
        dataset.file_meta.SourceApplicationEntityTitle = f"{MARK}9930"
        dataset.file_meta.ImplementationVersionName = f"{MARK}9931"
        dataset.file_meta.PrivateInformationCreatorUID = UID(f"{UID_ROOT}.1")
        dataset.file_meta.PrivateInformation = f"{MARK}9932".encode()
        dataset.preamble = f"{MARK}9933".encode().ljust(128, b"\0")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"{SOP_ROOT}.{number}")
        name = f"{MARK}9003/{MARK}94{number}, a (1).dcm"
        dataset.save_as(images / name)
        rows.append({"image": name, "label": row["label"], "patient_id": f"{MARK}95-{patient}"})
    with open(images / f"{MARK}9004.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label", "patient_id"])
        writer.writeheader()
        writer.writerows(rows)
    shutil.rmtree(plain)
    return images


def damage(images: Path) -> None:
    """Spoil some files: cut, no number as slope, no row in the table, a row too many, no DICOM, no patient."""
    first, second, third, *_ = sorted((images / f"{MARK}9003").iterdir())
    first.write_bytes(first.read_bytes()[:-200])
    dataset = pydicom.dcmread(second)
    dataset.RescaleSlope, dataset.RescaleIntercept = "nan", 0
    dataset.save_as(second)
    third.rename(third.with_name(f"{MARK}9499.dcm"))
    (images / f"{MARK}9498.dcm").write_text(f"{MARK}9497")


# --- looking


def _base64_forms(text: bytes) -> set[bytes]:
    """Return what is the same in base64 whatever stands before and behind the text."""
    forms = set()
    for before in range(3):
        code = base64.b64encode(b"\0" * before + text)
        whole = len(text) + before
        forms.add(code[-(-before * 8 // 6) : whole * 8 // 6])
    return forms | {form.translate(bytes.maketrans(b"+/", b"-_")) for form in forms}


def spellings(text: str) -> set[bytes]:
    raw = text.encode()
    forms = {raw, raw.lower(), text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode("utf-32-le")}
    forms |= {urllib.parse.quote(text, safe="").encode(), raw.hex().encode(), raw.hex().upper().encode(), raw[::-1]}
    return forms | _base64_forms(raw)


WANTED = {text: spellings(text) for text in (MARK, "Doe^John", "Doe_John", BORN, "1937-05-23", UID_ROOT, SOP_ROOT)}


def found_in(content: bytes) -> set[str]:
    """Return which marks a content holds, its archives unpacked."""
    found = {text for text, forms in WANTED.items() if any(form in content for form in forms)}
    if content[:2] == b"\x1f\x8b":
        found |= found_in(gzip.decompress(content))
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                found |= found_in(name.encode()) | found_in(archive.read(name))
    return found


@dataclass
class Left:
    """What a run leaves: its status, what it wrote to the terminal, and its folders."""

    status: int
    terminal: str
    folders: tuple[Path, ...]

    def files(self) -> Iterator[tuple[str, bytes]]:
        for folder in self.folders:
            for path in sorted(folder.rglob("*")):
                content = path.read_bytes() if path.is_file() else b""
                yield path.relative_to(folder).as_posix(), content

    def leaks(self) -> dict[str, set[str]]:
        found = {name: found_in(name.encode()) | found_in(content) for name, content in self.files()}
        found["the terminal"] = found_in(self.terminal.encode())
        return {name: marks for name, marks in found.items() if marks}


def run(folder: Path, names: Sequence[str], *arguments: str, output: Path | None = None) -> Left:
    """Run the bundle in a working folder and with a temporary folder of its own, with logging at its most talkative."""
    output = output or folder / "output"
    work, temporary = folder / "cwd", folder / "tmp"
    for path in (work, temporary):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "logging.conf").write_text(DEBUG)
    files = [str(CONFIGS / f"{name}.json") for name in names]
    if "prune" in names:
        files.append(str(write_overlay(folder, {**TINY_PRUNE, "targets": [0.5]})))
    command = [sys.executable, "-W", "always::UserWarning", "-m", "monai.bundle", "run"]
    command += ["prune" if "prune" in names else "run", "--config_file", str(files), "--bundle_root", str(BUNDLE)]
    command += ["--logging_file", str(folder / "logging.conf"), "--output_dir", str(output), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "TMPDIR": str(temporary)}
    environment.update(PYTHONPATH=str(ROOT), MLFLOW_DISABLE_TELEMETRY="true")
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=600, encoding="utf-8"
    )
    return Left(done.returncode, done.stdout + done.stderr, (output, work, temporary))


def of_cohort(images: Path) -> list[str]:
    weights = images.parent / f"{MARK}9005.pt"
    if not weights.exists():
        torch.save(tiny_densenet(1).state_dict(), weights)
    return ["--dataset_dir", str(images), "--labels_file", f"{MARK}9004.csv", "--pretrained", str(weights)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("phi"))


@pytest.fixture(scope="module")
def pruned(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("pruned")
    known = all(importlib.util.find_spec(name) for name in ("mlflow", "sqlalchemy", "alembic", "tensorboard"))
    tracking = ["--tracking", "mlflow", "--tensorboard", "true", "--save_execute_config", "True"] if known else []
    left = run(folder, ("train", "prune"), *of_cohort(images), *tracking)
    assert left.status == 0, left.terminal[-3000:]
    return left


# --- the search finds what it should


@pytest.mark.parametrize("before", range(4))
def test_every_spelling_of_a_mark_is_found(before: int) -> None:
    text = "x" * before + f"{MARK}0007^B"
    for content in (
        text.encode(),
        text.lower().encode(),
        text.encode("utf-16"),
        base64.b64encode(text.encode()),
        base64.urlsafe_b64encode(text.encode() + b"more"),
        urllib.parse.quote(text).encode(),
        text.encode().hex().encode(),
        gzip.compress(text.encode()),
    ):
        assert MARK in found_in(b"some " + content if content[:1] != b"\x1f" else content), content
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", text)
    assert found_in(packed.getvalue()) == {MARK}
    assert found_in(b"ZQX and PHI, 1937") == set()


@pytest.mark.slow
def test_without_the_redaction_marks_are_found(images: Path, tmp_path: Path) -> None:
    """MONAI itself repeats the folder of the images at its own level INFO."""
    shown = {}
    for switch in ("true", "false"):
        left = run(tmp_path / switch, ("inference",), "--dataset_dir", str(images), "--redact_logs", switch)
        assert left.status != 0  # there is no network to predict with
        shown[switch] = left
    assert "> dataset_dir: " in shown["true"].terminal
    assert "[removed]" in shown["true"].terminal
    assert shown["true"].leaks() == {}
    assert shown["false"].leaks() == {"the terminal": {MARK, "Doe^John"}}


# --- what runs leave


def test_a_pruning_run_leaves_no_mark(pruned: Left) -> None:
    names = {name for name, _ in pruned.files()}
    assert {"study.json", "report.html", "model.pt", "model.ts", "datalist.json", "work/datalist.json"} <= names
    assert "[removed]" in pruned.terminal
    assert " DEBUG " in pruned.terminal
    assert pruned.leaks() == {}


@pytest.mark.slow
def test_evaluating_and_predicting_leave_no_mark(pruned: Left, images: Path, tmp_path: Path) -> None:
    output = pruned.folders[0]
    left = run(tmp_path / "a", ("inference", "evaluate"), "--dataset_dir", str(images), output=output)
    assert left.status == 0, left.terminal[-3000:]
    assert "AUC on" in left.terminal
    assert left.leaks() == {}
    table = tmp_path / "b" / "output" / "predictions.csv"
    left = run(
        tmp_path / "b",
        ("inference",),
        *("--dataset_dir", str(images), "--predictions_file", str(table), "--num_workers", "1"),
        output=output,
    )
    assert left.status == 0, left.terminal[-3000:]
    assert left.leaks() == {}
    text = table.read_text()
    assert re.match(r"SOPInstanceUID,", text)
    assert found_in(text.encode()) == {SOP_ROOT}  # who asks for a prediction must know of which image it is


@pytest.mark.parametrize("on_problem", ["raise", pytest.param("skip", marks=pytest.mark.slow)])
def test_bad_files_leave_no_mark(images: Path, tmp_path: Path, on_problem: str) -> None:
    copy = Path(shutil.copytree(images.parent, tmp_path / f"{MARK}9006_Doe^John")) / images.name
    damage(copy)
    output = tmp_path / f"{MARK}9007" / "output"
    left = run(tmp_path, ("train", "prune"), *of_cohort(copy), "--on_problem", on_problem, output=output)
    assert (left.status != 0) == (on_problem == "raise"), left.terminal[-3000:]
    for words in ("cannot be decoded", "RescaleSlope", "is not a DICOM file", "there is no file", "has no row"):
        assert words in left.terminal, words
    # the terminal names bad images by their SOPInstanceUID, for who must repair them; no file does
    assert left.leaks() == {"the terminal": {SOP_ROOT}}


@pytest.mark.slow
@pytest.mark.parametrize("on_problem", ["raise", "skip"])
def test_predicting_bad_files_leaves_no_mark(pruned: Left, images: Path, tmp_path: Path, on_problem: str) -> None:
    copy = Path(shutil.copytree(images.parent, tmp_path / f"{MARK}9006_Doe^John")) / images.name
    damage(copy)
    table = str(tmp_path / "predictions.csv")
    arguments = ["--dataset_dir", str(copy), "--on_problem", on_problem, "--predictions_file", table]
    left = run(tmp_path, ("inference",), *arguments, output=pruned.folders[0])
    assert left.status == {"raise": 1, "skip": 3}[on_problem], left.terminal[-3000:]
    assert left.leaks() == {"the terminal": {SOP_ROOT}}
