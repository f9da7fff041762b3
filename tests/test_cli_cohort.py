from __future__ import annotations

import json
from pathlib import Path

from monai_basisprune import cli

from .bundle_runs import contents, write_cohort


def test_cohort_checks_and_divides(tmp_path: Path, capsys) -> None:
    images = write_cohort(tmp_path / "Doe^Jane", patients=30)
    before = contents(images)
    assert cli.main(["cohort", str(images), str(tmp_path / "lists" / "datalist.json")]) == 0
    assert contents(images) == before
    shown = capsys.readouterr().out
    datalist = json.loads((tmp_path / "lists" / "datalist.json").read_text())
    for section in ("training", "validation", "test"):
        (line,) = [line for line in shown.splitlines() if line.startswith(section)]
        assert line.split()[1] == str(len(datalist[section]))
        assert line.split()[2] == str(len({item["patient_id"] for item in datalist[section]}))
    assert "image" not in datalist["test"][0]
    assert "Doe" not in shown + (tmp_path / "lists" / "datalist.json").read_text()
    assert cli.main(["cohort", str(images), str(tmp_path / "lists" / "datalist.json")]) == 2
    assert "The file to write exists" in capsys.readouterr().err
    first = sorted((images / "images").iterdir())[0]
    first.write_bytes(b"x")
    assert cli.main(["cohort", str(images), str(tmp_path / "other.json")]) == 2
    text = capsys.readouterr().err
    assert "is not a DICOM file" in text
    assert "The cohort cannot be used" in text
    assert "Doe" not in text
    assert not (tmp_path / "other.json").exists()
