"""Whatever is in a table, an image or a list of cases, it is read or refused in words."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_basisprune.data.labels import parse_labels
from monai_basisprune.data.radiograph import read_radiograph
from monai_basisprune.errors import CohortError
from tests.data.radiograph_files import radiograph, save

from .fuzz import judge
from .targets import Target

FAST = settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))

TABLE = ("negative", "positive")


@FAST
@given(st.binary(max_size=400))
def test_any_bytes_are_a_table_or_a_reason(content: bytes) -> None:
    table = parse_labels(content, TABLE)
    assert bool(table.rows) != bool(table.problems)


@FAST
@given(st.text(max_size=200), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
def test_any_text_below_a_header_is_rows_or_a_reason(text: str, encoding: str) -> None:
    table = parse_labels(("image,label\n" + text).encode(encoding, errors="replace"), TABLE)
    assert bool(table.rows) != bool(table.problems)
    assert all(row.label in (0, 1) or row.problems for row in table.rows)


def test_a_header_of_endless_columns_is_refused_with_its_size() -> None:
    assert "501 columns" in parse_labels(b"image,label," + b",".join([b"x"] * 499) + b"\na,1\n", TABLE).problems[0]
    assert "no list of column names" in parse_labels(b"x" * 200_000 + b"\n1\n", TABLE).problems[0]


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_basisprune.data.elements._MOST_BYTES", 1 << 20)
    dataset = radiograph()
    path = save(dataset, tmp_path / "x.dcm")
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    # the length of the transfer syntax, and that of its group, grow by two
    place = content.index(b"1.2.840.10008.1.2.1.99")
    content = content[: place - 2] + (22).to_bytes(2, "little") + content[place:]
    end = content.index(b"\x08\x00", place)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(content[:end] + packer.compress(content[end:] + bytes(4 << 20)) + packer.flush())
    with pytest.raises(CohortError, match="would unpack to more than 1 MiB"):
        read_radiograph(path)


@pytest.mark.parametrize(("rows", "columns"), [(65535, 65535), (8193, 8192)])
def test_a_size_in_a_header_is_believed_up_to_a_limit(tmp_path: Path, rows: int, columns: int) -> None:
    path = save(radiograph(Rows=rows, Columns=columns), tmp_path / "x.dcm")
    with pytest.raises(CohortError, match=rf"too large to be one radiograph \({rows} x {columns} pixels"):
        read_radiograph(path)


def test_the_size_of_compressed_pixels_is_read_from_them(targets: list[Target], tmp_path: Path) -> None:
    seeds = next(target for target in targets if target.name == "DICOM radiograph").seeds
    for mark, place, other in (
        (b"\xff\xc0\x00\x0b\x08", 5, b"\xff\xff\xff\xff"),
        (b"\xff\x4f\xff\x51", 8, b"\x7f\xff\xff\xff\x7f\xff\xff\xff"),
    ):
        seed = next(seed for seed in seeds if mark in seed)
        start = seed.index(mark) + place
        path = tmp_path / "x.dcm"
        path.write_bytes(seed)
        assert read_radiograph(path)[0].shape == (32, 40)
        path.write_bytes(seed[:start] + other + seed[start + len(other) :])
        with pytest.raises(CohortError, match=r"holds compressed pixels of .*, its header says 32 x 40"):
            read_radiograph(path)


def test_compressed_pixels_of_an_unknown_kind_are_refused(targets: list[Target], tmp_path: Path) -> None:
    seeds = next(target for target in targets if target.name == "DICOM radiograph").seeds
    seed = next(seed for seed in seeds if b"1.2.840.10008.1.2.5\0" in seed)  # RLE
    assert b"\xe0\x7f\x10\0OB" in seed
    path = tmp_path / "x.dcm"
    path.write_bytes(seed.replace(b"\xe0\x7f\x10\0OB", b"\xe0\x7f\x10\0GB"))
    with pytest.raises(CohortError, match="has pixels that cannot be read; export it again"):
        read_radiograph(path)


@pytest.mark.parametrize(
    "item",
    [
        {"image": "a" * 300},
        {"image": "a\0b"},
        {"image": "a.dcm", "image_sha256": {}},
        {"image": "a.dcm", "case_id": "c\x1b[2J"},
        {"image": "../a.dcm"},
        {"image": 7},
    ],
)
def test_an_item_of_a_datalist_is_refused_in_words(targets: list[Target], tmp_path: Path, item: dict[str, Any]) -> None:
    target = next(target for target in targets if target.name == "datalist")
    content = json.loads(target.seeds[0])
    content["training"][0] |= item
    kind, where = judge(target, json.dumps(content).encode(), tmp_path)
    assert (kind, where) == ("error", "CohortError")
