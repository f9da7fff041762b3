"""Whatever bytes a reader gets, it gives a result that holds what must hold, or an error of ours."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import monai_basisprune as mbp
from monai_basisprune.data import load_split
from monai_basisprune.data.codestreams import codestream_size
from monai_basisprune.data.labels import parse_labels
from monai_basisprune.data.radiograph import read_radiograph
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.files import archive_problem
from monai_basisprune.reading import is_ordinary_tensor, read_bytes, read_json, read_weights, structure_problem
from monai_basisprune.report import load_study
from monai_basisprune.workflow.bundle_configs import config_files
from monai_basisprune.workflow.pretrained import load_pretrained
from tests.data.radiograph_files import radiograph, save
from tests.networks import tiny_classifier

from .fuzz import judge, make_input
from .targets import Target, make_targets

FAST = settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
TABLE = ("negative", "positive")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return make_targets(tmp_path_factory.mktemp("targets") / "good")


def test_every_good_file_is_read(targets: list[Target], tmp_path: Path) -> None:
    for target in targets:
        assert any(judge(target, seed, tmp_path)[0] == "result" for seed in target.seeds), target.name


def test_hostile_files_are_read_or_refused_in_words(targets: list[Target], tmp_path: Path) -> None:
    outcomes = set()
    for number in range(1000):
        target, data = make_input(targets, 7, number)
        kind, where = judge(target, data, tmp_path)
        assert kind in ("result", "error"), f"{target.name}, input {number}: {kind}, {where}"
        outcomes.add((target.name, kind))
    assert {name for name, kind in outcomes if kind == "error"} >= {
        target.name for target in targets if target.weight > 4
    }


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


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@FAST
@given(JSON_VALUES)
def test_any_json_is_read_as_it_is_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        found = read_json(path)
    except ValueError as error:
        reason = str(error)
    else:
        reason = ""
        assert found == value
    no_number = any(word in json.dumps(value) for word in ("NaN", "Infinity"))
    assert bool(reason) == (structure_problem(value) is not None or no_number)


@FAST
@given(JSON_VALUES)
def test_any_json_is_no_study_no_datalist_and_no_plan(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    for read in (load_study, lambda path: load_split(path, "test", path.parent), mbp.PruningPlan.load):
        with pytest.raises(mbp.BasisPruneError):
            read(path)


def test_the_limits_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, words in (
        ("[" * 100_000, "nested deeper"),
        ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ("NaN", "NaN is no number"),
        ("[1e999]", "a number is too large"),
        ("[" + "9" * 30 + "]", "more than 64 bits"),
        ("[" + "9" * 5000 + "]", "digits"),
        ('["\\ud800"]', "half a character"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_json(path)
    path.write_bytes(b"[" + b"0," * 50 + b"0]")
    with pytest.raises(ValueError, match="larger than 0 MiB"):
        read_json(path, most=100)
    assert read_json(path, most=103) == [0] * 51


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10))
    assert read_bytes(tmp_path / "x", 10) == bytes(10)
    with pytest.raises(ValueError, match="larger than"):
        read_bytes(tmp_path / "x", 9)
    with pytest.raises(ValueError, match="larger than"):
        read_bytes("/dev/zero", 1000)


def test_parts_that_are_shared_count_for_each_place() -> None:
    bomb: list[Any] = ["x"] * 10
    for _ in range(20):
        bomb = [bomb] * 10
    assert structure_problem(bomb, 10**5) == "it holds more than 100000 values"
    endless: list[Any] = []
    endless.append(endless)
    assert structure_problem(endless) == "it is nested deeper than 64 levels"


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)]
    (tmp_path / "configs" / "train.yaml").write_text("\n".join(lines))
    with pytest.raises(
        ConfigurationError, match=r"configs/train.yaml of the bundle cannot be used: it holds more than"
    ):
        config_files(tmp_path)


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


def test_a_part_of_a_pickle_is_kept_under_no_huge_number(tmp_path: Path) -> None:
    for number, problem in ((b"\x07\0\0\0", False), (b"\xff\xff\xff\x65", True)):
        path = tmp_path / "model.ts"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}r" + number + b".")
        assert ("says that it holds more than it does" in (archive_problem(path) or "")) is problem


@pytest.mark.parametrize(
    "stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\x00\x0b", b"\xff\xd8" + b"\xff" * 500, b"\0" * 99]
)
def test_a_stream_without_a_size_has_none(stream: bytes) -> None:
    assert codestream_size(stream) is None
    assert codestream_size(stream, jpeg_2000=True) is None


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: torch.zeros(1).expand(2**20, 2**20),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
    ],
)
def test_a_tensor_without_its_values_is_refused(tmp_path: Path, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network = tiny_classifier(0)
    state = dict(network.state_dict())
    name = next(iter(state))
    state[name] = make(state[name])
    assert not is_ordinary_tensor(state[name])
    (tmp_path / "x.pt").write_bytes(saved(state))
    with pytest.raises(ConfigurationError, match="sparse, quantized, nested, or larger than their values"):
        load_pretrained(network, tmp_path / "x.pt", progress=False)


def test_a_part_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    # of the fuzzing: the reader of TorchScript made room for 4 GiB, for a text of which 1 KiB was there
    path = tmp_path / "x.ts"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02X\x00\x00\xff\xffshort")
        archive.writestr("archive/version", b"3\n")
    assert archive_problem(path) == "it is damaged: 'archive/data.pkl' says that it holds more than it does"
    with pytest.raises(ValueError, match="says that it holds more than it does"):
        read_weights(path)


def test_what_a_deployed_network_carries_is_data(targets: list[Target], tmp_path: Path) -> None:
    # of the review: these texts went into the configuration of a new bundle, where "$" starts code
    target = next(target for target in targets if target.name == "deployed network")
    assert b"$__import__('os').system('x')" in target.seeds[1]
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "model.ts").write_bytes(target.seeds[1])
    with pytest.raises(ConfigurationError, match="image_size: must be a whole number from 1 to 65536"):
        target.read(tmp_path / "case" / "model.ts")


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


def test_the_harness_finds_what_is_planted(tmp_path: Path) -> None:
    def planted(read: Callable[[Path], object]) -> str:
        return judge(Target("planted", (b"",), read, (), 1), b"", tmp_path)[0]

    def foreign(path: Path) -> None:
        raise ValueError("not of this package, whatever it says")

    def wrong(path: Path) -> None:
        raise AssertionError

    def silent(path: Path) -> None:
        raise CohortError("")

    def hostile(path: Path) -> None:
        raise CohortError("the letters \x1b[2J speak to a terminal")

    def telling(path: Path) -> None:
        raise CohortError(f"the file {path} is named")

    assert planted(foreign) == "foreign error"
    assert planted(wrong) == "wrong result"
    assert planted(silent) == "foreign error"
    assert planted(hostile) == "control characters in a message"
    assert planted(telling) == "the folder in a message"
    assert planted(lambda path: int(path.name)) == "foreign error"
    assert planted(lambda path: None) == "result"


def test_what_the_fuzzing_found_is_refused_in_words(targets: list[Target], tmp_path: Path) -> None:
    by_name = {target.name: target for target in targets}
    state = {"stem\x1b[2J": torch.zeros(1)}
    assert judge(by_name["pruned weights"], saved(state), tmp_path) == ("error", "PlanMismatchError")
    assert judge(by_name["pretrained checkpoint"], saved(state), tmp_path) == ("error", "ConfigurationError")
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for section in ("train", "val", "test"):
            for part in ("images", "labels"):
                content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
                archive.writestr(f"{section}_{part}.npy", content)
    assert judge(by_name["arrays (.npz)"], stream.getvalue(), tmp_path) == ("error", "CohortError")
    plan = json.loads(by_name["pruning plan"].seeds[1])
    plan["architecture"]["\ufeff"] = [6]
    kind = judge(by_name["pruning plan"], json.dumps(plan).encode(), tmp_path)
    assert kind == ("error", "PlanMismatchError")
    good = by_name["DICOM radiograph"].seeds[0]
    name = b"\x10\x00\x10\x00"
    assert good.count(name + b"PN") == 1
    kind = judge(by_name["DICOM radiograph"], good.replace(name + b"PN", name + b"P\0"), tmp_path)
    assert kind[0] in ("result", "error")
    record = json.dumps({"settings": {"seed": "b", "\x00": 1}}).encode()
    assert judge(by_name["record of a repeat"], record, tmp_path) == ("error", "ConfigurationError")
    label = "image,label\na,x\x1b\n" + "b,positive\n" * 20
    assert judge(by_name["labels table"], label.encode(), tmp_path) == ("error", "CohortError")


def test_an_input_follows_from_its_number(targets: list[Target]) -> None:
    for number in random.Random(0).sample(range(10**6), 20):
        first, second = (make_input(targets, 0, number) for _ in range(2))
        assert (first[0].name, first[1]) == (second[0].name, second[1])
