"""Readers of tables, of lists of cases, and of the secret of their ids."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from monai_basisprune.data import load_split
from monai_basisprune.data.datalist import FORMAT_VERSION, split_hash
from monai_basisprune.data.labels import read_labels
from monai_basisprune.data.matching import check_rows, match_rows
from monai_basisprune.data.preflight import FileRecord
from monai_basisprune.data.pseudonyms import load_or_create_salt
from monai_basisprune.errors import CohortError
from tests.data.radiograph_files import uid

from .mutations import blind, json_aware, table_aware
from .target import Target

__all__ = ["table_targets"]


def table_targets(folder: Path) -> list[Target]:
    """Return the readers of tables and lists; what they need is written into a folder."""
    rows = [
        f"{uid(i)},{('positive', 'negative')[i % 2]},P{i // 2},{('training', 'test')[i % 3 == 0]}" for i in range(8)
    ]
    names = "\n".join(["image;label"] + [f"scan {i}.dcm;{i % 2}" for i in range(8)])
    seeds = (
        "\n".join(["image,label,patient_id,split", *rows]).encode(),
        names.encode("utf-16"),
        b"SOPInstanceUID,label\n1.2,1\n",
    )
    records = [FileRecord(i + 1, f"scan {i}.dcm", 100, "a", uid(i), attributes={}) for i in range(8)]

    def read_table(path: Path) -> None:
        table = read_labels(path, ("negative", "positive"))
        assert bool(table.rows) != bool(table.problems)
        assert all(row.label in (None, 0, 1) and (row.label is not None or row.problems) for row in table.rows)
        matched, problems = match_rows(table, records)
        for record in records:
            problems += check_rows(record, matched.get(record.position, []))[0]
        texts = [*table.problems, *(str(problem) for problem in problems)]
        if texts:
            raise CohortError("The labels table cannot be used.", texts)

    images = folder / "images"
    images.mkdir()
    (images / "a.dcm").write_bytes(b"")
    item = {
        "image": "a.dcm",
        "label": 1,
        "patient_id": "",
        "case_id": "",
        "sex": "F",
        "age": 50,
        "image_sha256": "0" * 64,
    }
    sections: dict[str, Any] = {
        name: [{**item, "label": i % 2, "case_id": f"c{name}{i}", "patient_id": f"p{name}{i}"} for i in range(2)]
        for name in ("training", "validation", "test")
    }
    datalist = {
        "format_version": FORMAT_VERSION,
        "class_names": ["no", "yes"],
        "split_sha256": split_hash(sections),
        **sections,
    }

    def read_datalist(path: Path) -> None:
        content: Any = path
        with contextlib.suppress(Exception):  # as if its writer had made the hash, too
            found = json.loads(path.read_text(encoding="utf-8"))
            found["split_sha256"] = split_hash(found)
            path.write_text(json.dumps(found))
        for section in ("training", "test"):
            for case in load_split(content, section, images):
                assert Path(case["image"]).resolve().is_relative_to(images.resolve())
                assert type(case["label"]) is int

    def read_salt(path: Path) -> None:
        path.replace(path.with_name("salt"))
        assert len(load_or_create_salt(path.parent)) >= 16

    return [
        Target("labels table", seeds, read_table, (table_aware, table_aware, blind), 14, ".csv"),
        Target(
            "datalist", (json.dumps(datalist).encode(),), read_datalist, (json_aware, json_aware, blind), 9, ".json"
        ),
        Target("salt", (b"0" * 64 + b"\n",), read_salt, (blind,), 1),
    ]
