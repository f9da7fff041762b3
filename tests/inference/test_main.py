from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest


def run_as_module(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """Do what ``python -m monai_basisprune.inference`` does, and return what it would end with."""
    monkeypatch.setattr(sys, "argv", ["-m", *words])
    monkeypatch.delitem(sys.modules, "monai_basisprune.inference.__main__", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("monai_basisprune.inference", run_name="__main__")
    return caught.value.code


def test_as_a_module_it_takes_the_words_of_the_command_line_and_ends_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(tmp_path), str(tmp_path / "p.csv"), "--output_dir", str(tmp_path / "Doe^Jane")]
    assert run_as_module(monkeypatch, *words) == 2
    shown = "".join(capsys.readouterr())
    assert "There is no pruned network (model.ts) in output_dir" in shown
    assert "Doe" not in shown
    assert run_as_module(monkeypatch, "--help") == 0
    assert "predict" in capsys.readouterr().out


def test_it_predicts_and_does_nothing_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # all else would need what is not installed there
    assert run_as_module(monkeypatch, "prune", "a", "b") == 2
    assert "invalid choice: 'prune'" in capsys.readouterr().err
    assert run_as_module(monkeypatch) == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err
