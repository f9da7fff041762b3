"""Rows of a table of labels, files and patients that have to agree."""

from __future__ import annotations

import unicodedata

import pytest

from monai_basisprune.data.labels import LabelRow, LabelTable
from monai_basisprune.data.matching import check_patients, check_rows, match_rows
from monai_basisprune.data.preflight import FileRecord, Problem


def record(position: int, path: str = "", uid: str | None = None, birth: str = "", sex: str = "") -> FileRecord:
    return FileRecord(
        position, path or f"{position}.dcm", 100, sop_instance_uid=uid, birth_date=birth,
        attributes={"sex": sex} if sex else {},
    )  # fmt: skip


def row(image: str, line: int = 2, label: int | None = 1, patient: str = "", section: str | None = None) -> LabelRow:
    return LabelRow(line, image, label, patient, section)


def positions(image: str, records: list[FileRecord]) -> list[int]:
    """Return the files that a row is matched with."""
    matched, problems = match_rows(LabelTable((row(image),)), records)
    assert bool(matched) != bool(problems)
    return sorted(matched)


COMPOSED = unicodedata.normalize("NFC", "Lübeck/a.dcm")
RECORDS = [
    record(1, "a.dcm", "1.2.3"),
    record(2, COMPOSED, "1.2.4"),
    record(3, "deep/er/b.dcm"),
    record(4, "1.2.9", "1.5"),
    record(5, "c.dcm", "ab//12"),  # an identifier is no path
]


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ("a.dcm", [1]),
        ("./a.dcm", [1]),
        ("1.2.3", [1]),
        ("deep\\er\\b.dcm", [3]),
        ("deep//er/./b.dcm", [3]),
        (COMPOSED, [2]),
        (unicodedata.normalize("NFD", COMPOSED), [2]),
        ("1.2.9", [4]),
        ("1.5", [4]),
        ("ab//12", [5]),
        ("ab/12", []),
        ("A.dcm", []),
        ("er/b.dcm", []),
        ("/a.dcm", []),
    ],
)
def test_a_row_names_a_file_by_its_path_or_its_identifier(image, wanted):
    assert positions(image, RECORDS) == wanted


def test_a_file_whose_name_has_two_forms_is_found_by_both():
    decomposed = unicodedata.normalize("NFD", COMPOSED)
    assert positions(COMPOSED, [record(1, decomposed)]) == positions(decomposed, [record(1, decomposed)]) == [1]


def test_rows_of_one_file_are_together_and_an_identifier_of_two_files_is_both():
    table = LabelTable((row("a.dcm", 2), row("1.2.3", 3), row("b.dcm", 4)))
    matched, problems = match_rows(table, [record(1, "a.dcm", "1.2.3"), record(2, "b.dcm", "1.2.3")])
    assert problems == []
    assert {position: [one.line for one in rows] for position, rows in matched.items()} == {1: [2, 3], 2: [3, 4]}


def test_a_row_without_a_file_says_where_it_may_be():
    records = [record(1, "one/a.dcm"), record(2, "b.dcm")]
    table = LabelTable((row("two/a.dcm", 2), row("a", 3), row("b.png", 4), row("c.dcm", 5)))
    matched, problems = match_rows(table, records, "AccessionNumber")
    assert matched == {}
    hint = " (a file of that name exists in another folder or with another ending)"
    advice = "write its path relative to dataset_dir, or its AccessionNumber"
    assert problems == [
        Problem(f"labels table, line {line}", f"names an image for which there is no file{near}; {advice}")
        for line, near in ((2, hint), (3, hint), (4, ""), (5, ""))
    ]


def test_what_is_wrong_with_a_row_leaves_its_file_out():
    wrong = LabelRow(7, "a.dcm", None, "", None, ("has no label", "has 3 cells"))
    matched, problems = match_rows(LabelTable((wrong,)), RECORDS)
    subject = "SOPInstanceUID 1.2.3 (labels table, line 7)"
    assert problems == [Problem(subject, "has no label", (1,)), Problem(subject, "has 3 cells", (1,))]
    assert list(matched) == [1]
    nowhere = LabelRow(8, "", 1, "", None, ("names no image",))
    assert match_rows(LabelTable((nowhere,)), RECORDS) == (
        {}, [Problem("labels table, line 8", "names no image")],
    )  # fmt: skip


def test_a_table_without_rows_matches_nothing():
    assert match_rows(LabelTable(), RECORDS) == ({}, [])


# --- rows of one file


def test_one_row_agrees_with_itself_and_equal_rows_count_once():
    one = record(3, uid="1.2.3")
    assert check_rows(one, []) == check_rows(one, [row("a")]) == ([], [])
    equal = [row("a", 2, 1, "P", "test"), row("./a", 5, 1, "P", "test")]
    note = "SOPInstanceUID 1.2.3: has equal rows in lines 2, 5 of the labels table; counted once"
    assert check_rows(one, equal) == ([], [note])


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"label": 0}, ["labels"]),
        ({"label": None}, ["labels"]),
        ({"patient": "Q"}, ["patients"]),
        ({"section": "training"}, ["splits"]),
        ({"label": 0, "patient": "Q", "section": "training"}, ["labels", "patients", "splits"]),
    ],
)
def test_rows_that_differ_are_each_told(other, names):
    same = {"label": 1, "patient": "P", "section": "test"}
    problems, notes = check_rows(
        record(3), [row("a", 2, **same), row("a", 3, **same), row("a", 9, **{**same, **other})]
    )
    assert notes == []
    assert problems == [
        Problem(
            "file #3 of the sorted list (100 bytes)",
            f"has conflicting {name} in lines 2, 3, 9 of the labels table",
            (3,),
        )
        for name in names
    ]


# --- patients


@pytest.mark.parametrize(
    ("births", "sexes", "found"),
    [
        (("19500101", "19500101"), ("F", "F"), None),
        (("19500101", ""), ("F", ""), None),
        (("", ""), ("F", "O"), None),
        (("19500101", "19510101"), ("", ""), "birth dates"),
        (("", ""), ("F", "M"), "sexes"),
        (("19500101", "19510101"), ("F", "M"), "birth dates and sexes"),
    ],
)
def test_one_id_is_one_person(births, sexes, found):
    records = [record(n, uid=f"1.{n}", birth=b, sex=s) for n, (b, s) in enumerate(zip(births, sexes, strict=True), 1)]
    records.append(record(3, uid="1.3"))
    problems = check_patients(records, {1: "Doe^Jane", 2: "Doe^Jane", 3: "Doe^Jane"})
    if found is None:
        assert problems == []
        return
    (problem,) = problems
    assert problem.subject == "SOPInstanceUID 1.1"
    assert problem.positions == (1, 2, 3)
    assert problem.text == (
        f"shares its patient id with 2 other files, which differ in {found}; one id must be one person, so correct the "
        f"ids or add a patient_id column"
    )
    assert "Doe" not in str(problem)


def test_files_without_a_patient_and_other_patients_are_not_compared():
    records = [record(1, birth="19500101"), record(2, birth="19600101"), record(3, birth="19700101")]
    assert check_patients(records, {1: "", 2: ""}) == []
    assert check_patients(records, {1: "P", 2: "Q"}) == []
    assert [problem.positions for problem in check_patients(records, {1: "P", 2: "Q", 3: "P"})] == [(1, 3)]
    assert check_patients([], {}) == []
