from __future__ import annotations

import json
import logging
import traceback
import warnings

import pytest
from pydicom.datadict import dictionary_VR
from radiograph_files import radiograph, save, uid, write_cohort

from monai_basisprune.data import LoadRadiographd, prepare_datalist, read_cohort
from monai_basisprune.errors import BasisPruneError, CohortError, ConfigurationError

SALT = "0123456789abcdef"


def read(folder, **options):
    return read_cohort(folder, salt=SALT, progress=False, **options)


def refuse(folder, *words, **options):
    with pytest.raises(CohortError) as caught:
        read(folder, **options)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_a_cohort(tmp_path):
    write_cohort(tmp_path, patients=6, images=2, positives=2)
    cohort = read(tmp_path)
    assert cohort.class_names == ("negative", "positive")
    assert cohort.cases_per_class == {"negative": 8, "positive": 4}
    assert cohort.patients_per_class == {"negative": 4, "positive": 2}
    assert cohort.patient_count == 6
    assert len({case.case_id for case in cohort.cases}) == 12
    assert [case.image for case in cohort.cases] == [f"{i:03d}.dcm" for i in range(1, 13)]
    assert not cohort.skipped
    assert not cohort.has_sections


def test_hashes_depend_on_the_salt_only(tmp_path):
    write_cohort(tmp_path, patients=4)
    first, again = read(tmp_path), read(tmp_path)
    other = read_cohort(tmp_path, salt="another salt of 16", progress=False)
    assert first == again
    assert {case.case_id for case in first.cases}.isdisjoint(case.case_id for case in other.cases)
    assert {case.patient_id for case in first.cases}.isdisjoint(case.case_id for case in first.cases)


def test_rows_by_uid_by_backslash_and_in_subfolders(tmp_path):
    save(radiograph(number=1), tmp_path / "a" / "x.dcm")
    save(radiograph(number=2, patient="P2"), tmp_path / "b" / "y.dcm")
    (tmp_path / "labels.csv").write_text(f"image,label\n{uid(1)},1\n.\\b\\y.dcm,0\n")
    assert [case.label for case in read(tmp_path).cases] == [1, 0]


def test_patient_column_goes_before_the_tag(tmp_path):
    save(radiograph(number=1, patient="ANON"), tmp_path / "1.dcm")
    save(radiograph(number=2, patient="ANON"), tmp_path / "2.dcm")
    save(radiograph(number=3, patient=""), tmp_path / "3.dcm")
    (tmp_path / "t.csv").write_text("file;pneumonia;who\n1.dcm;1;A\n2.dcm;0;B\n3.dcm;0;B\n")
    cohort = read(tmp_path, labels_file="t.csv", label_column="pneumonia", patient_column="who")
    assert cohort.patient_count == 2


def test_every_problem_in_one_error(tmp_path):
    write_cohort(tmp_path, patients=6)
    save(radiograph(number=50), tmp_path / "unlabeled.dcm")
    (tmp_path / "zz.dcm").write_bytes(b"no dicom" * 40)
    save(radiograph(number=51, NumberOfFrames=4), tmp_path / "multi.dcm")
    save(radiograph(number=52, patient=""), tmp_path / "nobody.dcm")
    with open(tmp_path / "labels.csv", "a") as file:
        file.write("gone.dcm,1\nmulti.dcm,1\nnobody.dcm,1\n001.dcm,0\n002.dcm,positive\n003.dcm,maybe\n")
    error = refuse(
        tmp_path,
        "before any training",
        "on_problem='skip'",
        f"SOPInstanceUID {uid(50)}: has no row in the labels table",
        "is not a DICOM file",
        f"SOPInstanceUID {uid(51)}: is a multi-frame image",
        f"SOPInstanceUID {uid(52)}: has no patient: PatientID is blank",
        "line 8: names an image for which there is no file",
        f"SOPInstanceUID {uid(1)}: has conflicting labels in lines 2, 11",
        f"SOPInstanceUID {uid(3)} (labels table, line 13): has the unknown label 'maybe'",
    )
    assert len(error.problems) == 8  # the conflict of 003 between a label and none is the eighth
    assert "gone" not in str(error)


def test_skip_leaves_out_and_says_so(tmp_path):
    write_cohort(tmp_path, patients=6)
    save(radiograph(number=50), tmp_path / "unlabeled.dcm")
    with open(tmp_path / "labels.csv", "a") as file:
        file.write("gone.dcm,1\n001.dcm,0\n")
    cohort = read(tmp_path, on_problem="skip")
    assert len(cohort.cases) == 5
    assert len(cohort.skipped) == 3
    assert uid(50) in "\n".join(cohort.skipped)


def test_skip_still_refuses_what_cannot_be_used(tmp_path):
    write_cohort(tmp_path, patients=4, positives=1)
    (tmp_path / "001.dcm").write_bytes(b"x")
    refuse(tmp_path, "even with the files concerned left out", "missing: positive", on_problem="skip")


def test_equal_rows_are_a_note(tmp_path):
    write_cohort(tmp_path, patients=4)
    with open(tmp_path / "labels.csv", "a") as file:
        file.write(f"001.dcm,1\n{uid(2)},positive\n")
    cohort = read(tmp_path)
    assert len(cohort.cases) == 4
    assert any("equal rows in lines 2, 6" in note for note in cohort.notes)


def test_empty_missing_and_one_class(tmp_path):
    refuse(tmp_path / "none", "dataset_dir is not a folder")
    error = refuse(tmp_path, "no labels table: labels.csv was looked for", "no DICOM files among 0 files")
    assert len(error.problems) == 2
    write_cohort(tmp_path, patients=3, positives=0)
    refuse(tmp_path, "no usable case of a class", "missing: positive")
    refuse(tmp_path, "labels_file that was passed exists neither", labels_file="none.csv")


def test_unusable_table_is_reported_with_the_problems_of_files(tmp_path):
    write_cohort(tmp_path, patients=3)
    (tmp_path / "003.dcm").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("picture,lable\n001.dcm,1\n")
    error = refuse(tmp_path, "no image column", "no label column", "file #3 of the sorted list (1 bytes)")
    assert "has no row" not in str(error)


def test_one_id_two_persons(tmp_path):
    write_cohort(tmp_path, patients=4)
    save(radiograph(number=1, patient="P0", PatientBirthDate="19700101", PatientSex="M"), tmp_path / "001.dcm")
    save(radiograph(number=2, patient="P0", PatientBirthDate="19800101", PatientSex="F"), tmp_path / "002.dcm")
    refuse(tmp_path, "shares its patient id with 1 other files, which differ in birth dates and sexes")


def test_conflicting_patients_of_one_image(tmp_path):
    write_cohort(tmp_path, patients=2)
    (tmp_path / "labels.csv").write_text("image,label,patient_id\n001.dcm,1,A\n001.dcm,1,B\n002.dcm,0,C\n")
    refuse(tmp_path, "conflicting patients in lines 2, 3")


def test_wrong_arguments(tmp_path):
    with pytest.raises(ConfigurationError, match="on_problem must be 'raise' or 'skip', found 'ignore'"):
        read(tmp_path, on_problem="ignore")
    with pytest.raises(ConfigurationError, match="salt has 3 bytes, at least 16"):
        read_cohort(tmp_path, salt="abc")


MARKER = "MARKERDOE"
TEXT_ELEMENTS = [
    "PatientName",
    "PatientID",
    "PatientBirthName",
    "PatientAddress",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "PatientComments",
    "OtherPatientNames",
    "InstitutionName",
    "InstitutionAddress",
    "ReferringPhysicianName",
    "OperatorsName",
    "StationName",
    "Manufacturer",
    "ManufacturerModelName",
    "StudyDescription",
    "SeriesDescription",
    "AccessionNumber",
    "StudyID",
    "ProtocolName",
    "ViewPosition",
    "ImageComments",
    "DeviceSerialNumber",
    "EthnicGroup",
    "MilitaryRank",
    "Occupation",
    "StudyDate",
    "BodyPartExamined",
]


def marked(number, patient, **elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = radiograph(number=number)
        for keyword in TEXT_ELEMENTS:
            value = f"{MARKER}{patient}"[: 16 if dictionary_VR(keyword) in ("SH", "CS") else 30]
            setattr(dataset, keyword, value)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
    return dataset


def test_no_text_of_a_file_gets_out(tmp_path, caplog, capfd):
    folder = tmp_path / f"{MARKER}_folder"
    names = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(1, 13):
            names.append(f"{MARKER}_{number:02d}/{MARKER}.dcm")
            save(marked(number, number), folder / names[-1])
    rows = [f"{name},{number % 2}" for number, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    output = tmp_path / "out" / "datalist.json"
    caplog.clear()
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        datalist = prepare_datalist(folder, output, progress=True)
    for section in ("training", "validation", "test"):
        for item in datalist[section]:
            assert MARKER in item.pop("image")
            assert item["manufacturer"] == item["view_position"] == "other"
    assert MARKER not in json.dumps(datalist)
    texts = [str(warning.message) for warning in shown] + [caplog.text]
    # Now everything that can go wrong, at once.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken = {
            "PhotometricInterpretation": MARKER,
            "PresentationLUTShape": MARKER,
            "VOILUTFunction": MARKER,
            "PatientBirthDate": "19700101",
        }
        for number, (keyword, value) in enumerate(broken.items(), start=20):
            save(marked(number, 1, **{keyword: value}), folder / f"{MARKER}{number}.dcm")
        path = save(marked(31, 1, RescaleSlope="1111111", WindowWidth="1111111"), folder / f"{MARKER}31.dcm")
        path.write_bytes(path.read_bytes().replace(b"1111111", MARKER[:7].encode()))
        path = save(marked(32, 1), folder / f"{MARKER}32.dcm")
        path.write_bytes(path.read_bytes().replace(uid(32).encode(), MARKER.ljust(len(uid(32))).encode()))
        path = save(marked(33, 1), folder / f"{MARKER}33.dcm")
        path.write_bytes(path.read_bytes()[:-50])
        dataset = marked(34, 1)
        dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
        path = save(dataset, folder / f"{MARKER}34.dcm")
        path.write_bytes(path.read_bytes()[:-50])
        (folder / f"{MARKER}35.dcm").write_text(MARKER * 50)
        (folder / f"{MARKER}36.dcm").write_text("\0" * 128 + "DICM" + MARKER * 50)
        (folder / f"{MARKER}37.dcm").symlink_to(folder / f"{MARKER}_nowhere")
    with open(folder / "labels.csv", "a") as file:
        file.write(f"\n{MARKER}_gone.dcm,1\n{names[0]},1\n{MARKER}20.dcm,{MARKER}^X\n{MARKER}21.dcm,1,{MARKER}\n")
    caplog.clear()
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        for action in (
            lambda: read_cohort(folder),
            lambda: prepare_datalist(folder, output),
            lambda: prepare_datalist(folder, output, on_problem="skip"),
            lambda: read_cohort(folder, labels_file=f"{MARKER}.csv"),
            lambda: read_cohort(folder / MARKER),
            *(lambda p=p: LoadRadiographd("image")({"image": p}) for p in sorted(folder.glob("*.dcm"))),
            lambda: LoadRadiographd("image")({"image": folder / MARKER}),
        ):
            try:
                action()
            except BasisPruneError as error:
                texts += [str(error), "".join(traceback.format_exception_only(error)), repr(error)]
    texts += [str(warning.message) for warning in shown] + [caplog.text, *capfd.readouterr()]
    texts += [output.read_text().replace(f'"image": "{MARKER}', "").replace(f"/{MARKER}.dcm", "")]
    assert len(texts) > 40
    for text in texts:
        assert MARKER not in text
        assert MARKER[:7] not in text
    assert MARKER not in repr(read_cohort(folder, on_problem="skip", progress=False))
