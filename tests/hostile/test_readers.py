"""Whatever bytes a reader gets, it gives a result that holds what must hold, or an error of ours."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from monai_basisprune.errors import CohortError

from .fuzz import judge, make_input
from .network_targets import saved
from .targets import Target


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
