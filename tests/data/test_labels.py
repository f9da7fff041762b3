from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_basisprune.data.labels import check_class_names, parse_label, parse_labels
from monai_basisprune.errors import ConfigurationError

NAMES = ("negative", "positive")


def parse(text, encoding="utf-8", **columns):
    return parse_labels(text.encode(encoding), NAMES, **columns)


def triples(table):
    assert not table.problems
    return [(row.image, row.label, row.patient_id) for row in table.rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_forms_of_a_table(encoding, mark, end):
    lines = ["Image,Label,patient_id", " ü/a.dcm , POSITIVE ,P1", "", " , , ", '"b c.dcm",0,P2', "d.dcm,1.0,"]
    text = end.join(line.replace(",", mark) for line in lines) + end
    assert triples(parse(text, encoding)) == [("ü/a.dcm", 1, "P1"), ("b c.dcm", 0, "P2"), ("d.dcm", 1, "")]


def test_line_numbers_and_the_hint_of_excel():
    table = parse("sep=;\nimage;label\n\na;1\nb;0\n")
    assert [row.line for row in table.rows] == [4, 5]


def test_quoted_cells_may_hold_the_separator():
    assert triples(parse('image,label\n"a,b.dcm",1\n')) == [("a,b.dcm", 1, "")]


def test_named_columns_and_defaults():
    table = parse("SOPInstanceUID,pneumonia,person\n1.2.3,1,x\n", label_column="Pneumonia", patient_column="person")
    assert triples(table) == [("1.2.3", 1, "x")]
    assert parse("file,label,split\na,1,Train\nb,0,val\n").rows[1].section == "validation"


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("name,lable\na,1\n", {}, ["no image column 'image' or 'file' or 'SOPInstanceUID'", "'name', 'lable'"]),
        ("image,lable\na,1\n", {}, ["no label column 'label'", "did you mean 'lable'", "pass label_column"]),
        ("image,label\na,1\n", {"label_column": "x"}, ["no label column 'x'", "'image', 'label'"]),
        ("image,label\na,1\n", {"patient_column": "pid"}, ["no patient column 'pid'"]),
        ("image,label,Label\na,1,1\n", {}, ["label column 'label' occurs 2 times"]),
        ("image,label\n", {}, ["header but no rows"]),
        ("\n ,\n", {}, ["is empty"]),
        ('image,label\n"a,1\n', {}, ["cannot be read as a table", "quotation mark"]),
        ("\0\1\2", {}, ["not a text file"]),
        ("PK\3\4", {}, ["Excel workbook", "save it as CSV"]),
    ],
)
def test_unusable_tables(text, columns, words):
    table = parse(text, **columns)
    assert not table.rows
    for word in words:
        assert word in "\n".join(table.problems)


@pytest.mark.parametrize("first", ["Doe^John/1.dcm,1", "Doe.dcm,positive", "Doe,positive", "Doe,17"])
def test_first_row_without_header_is_not_quoted(first):
    (problem,) = parse(f"{first}\nx.dcm,0\n").problems
    assert "first row looks like data" in problem
    assert "Doe" not in problem


def test_unknown_labels_are_named_with_the_known_ones():
    table = parse("image,label\na,1\nb,maybe\nc,2\nd,\n,1\ne,1,x\n")
    problems = [" ".join(row.problems) for row in table.rows]
    assert problems[0] == ""
    assert "unknown label 'maybe'; known are 'negative' (or 0), 'positive' (or 1)" in problems[1]
    assert "unknown label '2'" in problems[2]
    assert "has no label" in problems[3]
    assert "names no image" in problems[4]
    assert "3 cells where the header has 2" in problems[5]


def test_values_of_a_wrong_column_are_withheld():
    table = parse("image,label\n" + "".join(f"a{i},Doe{i}\n" for i in range(4)))
    assert all("withheld" in row.problems[0] and "Doe" not in row.problems[0] for row in table.rows)
    table = parse("image,label\n" + "".join(f"a{i},{'ill' if i % 2 else 'well'}\n" for i in range(4)))
    assert "unknown label 'ill'" in table.rows[1].problems[0]


def test_unknown_split():
    assert "unknown split" in parse("image,label,split\na,1,holdout\n").rows[0].problems[0]


@pytest.mark.parametrize(
    ("text", "label"),
    [("1", 1), ("1.0", 1), ("0", 0), ("Positive", 1), (" NEGATIVE ", 0), ("1.5", None), ("-1", None), ("²", None)],
)
def test_parse_label(text, label):
    assert parse_label(text, NAMES) == label


@pytest.mark.parametrize("names", ["ab", ("a",), ("a", "A"), ("a", " "), ("1", "0"), ("a", "7")])
def test_impossible_class_names(names):
    with pytest.raises(ConfigurationError, match="class_names"):
        check_class_names(names)


def test_numbers_may_name_their_own_class():
    assert check_class_names(("0", " 1 ")) == ("0", "1")


CELL = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12).map(str.strip)


@given(st.lists(st.tuples(CELL.filter(bool), st.sampled_from(["0", "1", "Negative", "positive", "1.0"])), min_size=1))
def test_whatever_csv_writes_is_read_back(rows):
    file = io.StringIO()
    csv.writer(file, delimiter=";").writerows([("image", "label"), *rows])
    table = parse(file.getvalue(), "utf-8-sig")
    assert [(row.image, row.label) for row in table.rows] == [(image, parse_label(text, NAMES)) for image, text in rows]


@given(st.binary(max_size=80))
def test_no_bytes_raise(content):
    parse_labels(content, NAMES)
    parse_labels(b"image,label\n" + content, NAMES)
