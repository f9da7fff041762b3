from __future__ import annotations

import os
import shutil
import warnings

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGLSLossless, RLELossless
from radiograph_files import ROOT, radiograph, ramp, save, uid

from monai_basisprune.data.preflight import cross_check, inspect_files, list_files
from monai_basisprune.errors import CohortError


def inspect(folder):
    return inspect_files(folder, list_files(folder)[0], progress=False)


def problems(folder):
    return [str(problem) for problem in cross_check(inspect(folder))]


def test_every_file_is_read_and_named(tmp_path):
    save(radiograph(number=1), tmp_path / "a" / "x.dcm")
    save(radiograph(number=2, PatientSex="F", PatientAge="041Y", Manufacturer="GE Healthcare"), tmp_path / "b.dcm")
    records = inspect(tmp_path)
    assert [record.path for record in records] == ["a/x.dcm", "b.dcm"]
    assert records[0].name == f"SOPInstanceUID {uid(1)}"
    assert records[1].attributes == {"sex": "F", "age": 41, "manufacturer": "GE"}
    assert cross_check(records) == []


def test_what_is_ignored(tmp_path):
    for name in (".hidden", "labels.csv", "notes.txt", "a.json", "b.md", "DICOMDIR", "salt", ".git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    save(radiograph(), tmp_path / "image")
    (tmp_path / "table").write_text("x")
    paths, left_out = list_files(tmp_path, [tmp_path / "table"])
    assert [path.name for path in paths] == ["image"]
    assert left_out == 8


def test_a_link_back_up_does_not_loop(tmp_path):
    save(radiograph(), tmp_path / "sub" / "a.dcm")
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    assert len(list_files(tmp_path)[0]) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CohortError, match="cannot be listed"):
        list_files(tmp_path)


def test_unreadable_files_are_named_by_position_and_size(tmp_path):
    (tmp_path / "Doe.dcm").write_bytes(b"")
    (tmp_path / "Roe.png").write_bytes(b"\x89PNG" + b"\0" * 200)
    (tmp_path / "Zoe.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)) * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = problems(tmp_path)
    assert found[0] == "file #1 of the sorted list (0 bytes): is empty (0 bytes); copy it again"
    assert "file #2 of the sorted list (204 bytes): is not a DICOM file" in found[1]
    assert "file #3" in found[2]
    assert not any(name in "".join(found) for name in ("Doe", "Roe", "Zoe"))


def test_all_problems_of_a_file_at_once(tmp_path):
    save(radiograph(NumberOfFrames=2, WindowCenter=1, SOPInstanceUID=""), tmp_path / "a.dcm")
    found = "\n".join(problems(tmp_path))
    assert "multi-frame" in found
    assert "only one of WindowCenter" in found
    assert "no valid SOPInstanceUID" in found


def test_truncated_pixels_show_before_training(tmp_path):
    path = save(radiograph(ramp(64, 64)), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-100])
    assert "pixels that cannot be decoded" in problems(tmp_path)[0]


def test_rle_is_read(tmp_path):
    dataset = radiograph()
    dataset.compress(RLELossless, generate_instance_uid=False)
    save(dataset, tmp_path / "a.dcm")
    assert problems(tmp_path) == []


def test_missing_codec_names_syntax_and_extra(tmp_path):
    shutil.copy(get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False), tmp_path / "a.dcm")
    decoder = get_decoder(JPEGLSLossless)
    plugins = decoder.available_plugins
    for name in plugins:
        decoder.remove_plugin(name)
    try:
        (found,) = problems(tmp_path)
    finally:
        for name in plugins:
            decoder.add_plugin(name, (f"pydicom.pixels.decoders.{name}", "_decode_frame"))
    assert "JPEG-LS Lossless Image Compression (1.2.840.10008.1.2.4.80)" in found
    assert "pip install monai-basisprune[codecs]" in found
    assert problems(tmp_path) == []


def test_duplicates(tmp_path):
    save(radiograph(number=1), tmp_path / "a.dcm")
    save(radiograph(number=1), tmp_path / "b.dcm")
    save(radiograph(ramp() // 2, number=2, WindowCenter=5, WindowWidth=900), tmp_path / "c.dcm")
    save(radiograph(number=2), tmp_path / "d.dcm")
    found = problems(tmp_path)
    assert "2 files (#1, #2 of the sorted list) share it and hold the same image" in found[0]
    assert "(#3, #4 of the sorted list) share it and hold different images" in found[1]


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_slices_of_a_volume_are_a_problem(tmp_path, modality):
    for number in (1, 2, 3):
        elements = {"Modality": modality, "SeriesInstanceUID": f"{ROOT}.7", "InstanceNumber": number}
        save(radiograph(number=number, **elements), tmp_path / f"{number}.dcm")
    (found,) = problems(tmp_path)
    assert f"one of 3 slices of a {modality} series" in found


def test_views_that_share_a_series_are_no_problem(tmp_path):
    for number in (1, 2):
        save(
            radiograph(number=number, SeriesInstanceUID=f"{ROOT}.7", InstanceNumber=number), tmp_path / f"{number}.dcm"
        )
    assert problems(tmp_path) == []


def test_constant_image(tmp_path):
    save(radiograph(np.zeros((4, 4), dtype=int)), tmp_path / "a.dcm")
    assert "constant image" in problems(tmp_path)[0]
