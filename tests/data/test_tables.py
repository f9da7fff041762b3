"""Tables that people make with a spreadsheet: their rows, and their columns by name."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_basisprune.data.tables import find_column, read_table

ROWS = [["image", "label", "note"], ["ü/a.dcm", "1", 'said "no", then'], ["b.dcm", "0", ""]]


def written(rows: list[list[str]], mark: str = ",", end: str = "\n") -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=mark, lineterminator=end).writerows(rows)
    return stream.getvalue()


def cells(content: bytes) -> list[list[str]]:
    rows, problem = read_table(content)
    assert problem is None
    return [row for _, row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_a_spreadsheet_writes_comes_back(encoding, mark, end):
    assert cells(written(ROWS, mark, end).encode(encoding)) == ROWS


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8).map(str.strip)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.lists(WORD, min_size=2, max_size=2), max_size=5), st.sampled_from(",;\t|"))
def test_any_rows_below_a_header_come_back(rows, mark):
    rows = [row for row in rows if any(row)]
    assert cells(written([["image", "label"], *rows], mark).encode()) == [["image", "label"], *rows]


def test_rows_have_the_lines_of_the_file():
    rows, problem = read_table(b'\n , \nimage,label\n\na,1\n,,\n"b\nc",0\nd,1')
    assert problem is None
    # a cell of two lines ends its row in the second one
    assert rows == [(3, ["image", "label"]), (5, ["a", "1"]), (8, ["b\nc", "0"]), (9, ["d", "1"])]
    hinted, _ = read_table(b"SEP=;\nimage;label\na,b;1\n")
    assert hinted == [(2, ["image", "label"]), (3, ["a,b", "1"])]


def test_the_mark_that_makes_most_columns_of_the_header_divides():
    assert cells(b"image, of whom;label;split\na,b;1;x\n") == [["image, of whom", "label", "split"], ["a,b", "1", "x"]]
    assert cells(b"image\nPK,1\n") == [["image"], ["PK", "1"]]


def test_spaces_around_cells_are_no_part_of_them():
    assert cells(b'image , label\n "a, b",\t1 \n') == [["image", "label"], ["a, b", "1"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\3\4 and more", "is an Excel workbook or another archive; save it as CSV"),
        (b"image,label\na\0b,1\n", "is not a text file; save it as CSV (UTF-8)"),
        (b"image,label\n\x81,1\n", "is not a text file; save it as CSV (UTF-8)"),
        (b"\xff\xfea", "is not a text file; save it as CSV (UTF-8)"),
        (b"", "is empty; it needs a header and one row for each image"),
        (b"\n ,, \n\t\n", "is empty; it needs a header and one row for each image"),
        (b'image,label\na,1\n"b,0\nc,1\n', "cannot be read as a table near line 4 (a quotation mark is not closed?)"),
        (b'sep=,\nimage,label\n"b,0\n', "cannot be read as a table near line 3 (a quotation mark is not closed?)"),
    ],
)
def test_what_is_no_table_is_refused_with_what_it_is(content, words):
    assert read_table(content) == ([], words)


def test_a_header_has_limits():
    assert len(cells(b",".join([b"x"] * 500))[0]) == 500
    assert len(cells(b"x" * 200)[0][0]) == 200
    wide = "has 501 columns, the longest name of 1 characters; a table of labels may have 500, with names of up to 200"
    assert read_table(b",".join([b"x"] * 501)) == ([], f"{wide} characters")
    long = "has 2 columns, the longest name of 201 characters; a table of labels may have 500, with names of up to 200"
    assert read_table(b"a," + b"x" * 201) == ([], f"{long} characters")
    endless = "has a header of 100001 characters, which is no list of column names; save it as CSV"
    assert read_table(b"\n" + b"x" * 100_001) == ([], endless)
    assert cells(b"image\n" + b"y" * 100_001)[1] == ["y" * 100_001]


# --- columns


HEADER = ["Patient", "IMAGE", "label", "Label", "Straße"]


@pytest.mark.parametrize(
    ("asked", "defaults", "index"),
    [
        ("image", ("label",), 1),
        (" Image ", (), 1),
        (None, ("file", "image", "patient"), 1),
        (None, ("patient", "image"), 0),
        ("STRASSE", (), 4),
    ],
)
def test_a_column_is_found_in_any_case(asked, defaults, index):
    assert find_column(HEADER, asked, defaults, "image") == (index, None)


def test_a_name_that_two_columns_have_is_refused():
    assert find_column(HEADER, "LABEL", (), "label") == (
        None, "the label column 'LABEL' occurs 2 times; rename all but one",
    )  # fmt: skip


def test_a_column_that_is_missing_is_told_with_those_that_are_there_and_those_that_are_near():
    index, problem = find_column(["image", "lable", "labels"], None, ("label", "class"), "label")
    assert index is None
    assert problem == (
        "no label column 'label' or 'class'; found columns 'image', 'lable', 'labels'; did you mean 'labels' or "
        "'lable'; rename the column or pass label_column"
    )
    index, problem = find_column(["image", "finding"], "Patients", ("patient",), "patient")
    assert index is None
    assert problem == (
        "no patient column 'Patients'; found columns 'image', 'finding'; rename the column or pass patient_column"
    )
