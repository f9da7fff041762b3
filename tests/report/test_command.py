from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from studies import make_pictures, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import save_study, write_report
from monai_basisprune.report.command import add_report_command


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    add_report_command(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["report", *words])
    arguments.run(arguments)


def test_one_study_is_rendered_again_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "Doe_Jane"
    study = make_study(layers=[])
    path = save_study(study, folder / "study.json")
    case_ids = [case["case_id"] for case in study["audit"]["changed_cases"]]
    page = write_report(study, folder, make_pictures(*case_ids))["report_html"]
    assert "<img" in page.read_text(encoding="utf-8")
    (folder / "roc.csv").unlink()
    run(str(path))
    assert "<img" not in page.read_text(encoding="utf-8")
    assert "activation maps are made when the study is run" in page.read_text(encoding="utf-8")
    assert (folder / "roc.csv").is_file()
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "no class activation maps" in printed
    assert "Doe" not in printed


def test_output_is_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(make_study(audit=None, layers=[]), tmp_path / "study.json")
    run(str(path), "--output", str(tmp_path / "new"))
    assert (tmp_path / "new" / "report.html").is_file()
    assert [file.name for file in tmp_path.glob("*.*")] == ["study.json"]
    assert "activation maps" not in capsys.readouterr().out


def test_several_studies_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(save_study(make_study(seed=seed), tmp_path / f"Doe_{seed}.json")) for seed in range(3)]
    monkeypatch.chdir(tmp_path)
    run(*paths)
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Comparison of 3 pruning studies" in text
    assert "Doe" not in text
    assert capsys.readouterr().out == "comparison.html compares 3 studies.\n"
    run(*paths, "--output", "x/page.html")
    assert (tmp_path / "x" / "page.html").is_file()


def test_missing_files_are_counted_not_named(tmp_path: Path) -> None:
    path = save_study(make_study(), tmp_path / "study.json")
    with pytest.raises(ConfigurationError, match=r"no file was found for number 2, 3: give the study\.json") as caught:
        run(str(path), str(tmp_path / "Doe.json"), str(tmp_path))
    assert "Doe" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["study.json"]
