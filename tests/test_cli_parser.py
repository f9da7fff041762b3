from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_basisprune import cli, cli_bundles
from monai_basisprune.errors import BasisPruneError

from .noted_calls import Calls, note_calls


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["monai-basisprune", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is to be pruned, instead of pruning it."""
    return note_calls(monkeypatch, "prune_bundle")


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "a" / "configs").mkdir(parents=True)
    return str(tmp_path / "a")


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset_dir", "/data/x", "a", "b"],
        ["a", "--dataset_dir", "/data/x", "b"],
        ["a", "b", "--dataset_dir", "/data/x"],
        ["a", "--seed", "3", "b", "--dataset_dir=/data/x"],
    ],
)
def test_the_value_of_a_key_is_never_taken_for_a_folder(calls, words: list[str], bundle: str) -> None:
    assert cli.main(["prune", *(bundle if word == "a" else word for word in words)]) == 0
    assert calls[-1][0] == (bundle, "b")
    assert calls[-1][1]["overrides"] == {"dataset_dir": "/data/x"}


def test_wrong_usage_ends_with_2_and_names_no_folder(calls, bundle: str, capsys, monkeypatch) -> None:
    assert "required: COMMAND" in refused([], capsys, monkeypatch)
    assert "invalid choice: 'shrink'" in refused(["shrink"], capsys, monkeypatch)
    assert "OUTPUT" in refused(["prune", "/data/Doe^Jane"], capsys, monkeypatch)
    for words in (["/data/Doe^Jane"], ["Doe"], ["--amp", "1", "Doe"], ["--", "/data/Doe^Jane"], ["--seed", "/x/Doe"]):
        text = refused(["prune", "a", "b", *words], capsys, monkeypatch)
        assert "Doe" not in text, text
    assert "look at --dataset_dir" in refused(["prune", "a", "b", "--dataset_dir"], capsys, monkeypatch)
    text = refused(["prune", "a", "b", "--amp", "--train", "2"], capsys, monkeypatch)
    assert "look at --amp" in text  # its value is missing
    assert "--amp is given twice" in refused(["prune", "a", "b", "--amp=1", "--amp", "2"], capsys, monkeypatch)
    # no abbreviations: --target would be a key of the bundle, not --targets
    assert cli.main(["prune", bundle, "b", "--target", "1"]) == 0
    assert calls[-1][1]["overrides"] == {"target": 1}


def test_our_errors_end_with_their_message_and_2(bundle: str, capsys, monkeypatch, tmp_path: Path) -> None:
    secret = tmp_path / "Doe^Jane"
    assert cli.main(["export-bundle", str(secret), str(secret), str(tmp_path / "new")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("monai-basisprune: The folder of the study lacks study.json")
    assert len(shown.splitlines()) == 1

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(secret))

    monkeypatch.setattr(cli_bundles, "prune_bundle", fail)
    assert cli.main(["prune", bundle, "b"]) == 2
    assert capsys.readouterr().err == "monai-basisprune: a file cannot be read or written (Permission denied).\n"

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_bundles, "prune_bundle", stop)
    assert cli.main(["prune", bundle, "b"]) == 130
    shown = capsys.readouterr().err
    assert shown.startswith("monai-basisprune: interrupted.")
    assert "with the same command, the run goes on." in shown

    def wrap(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"evaluating {secret}") from BasisPruneError("the cohort is too small")

    monkeypatch.setattr(cli_bundles, "prune_bundle", wrap)  # as MONAI does
    assert cli.main(["prune", bundle, "b"]) == 2
    assert capsys.readouterr().err == "monai-basisprune: the cohort is too small\n"

    def break_down(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"no idea what {secret}/a.dcm is")

    monkeypatch.setattr(cli_bundles, "prune_bundle", break_down)
    assert cli.main(["prune", bundle, str(secret)]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text  # nobody foresaw it, so all but the names is shown
    assert "RuntimeError: no idea what [removed] is" in text
    assert "Doe" not in text


def test_a_subcommand_is_added_by_one_function(capsys, monkeypatch) -> None:
    def add_twice(subparsers: Any) -> None:
        parser = subparsers.add_parser("twice")
        parser.add_argument("number", type=int)
        parser.set_defaults(run=run)

    def run(options: argparse.Namespace) -> None:
        if options.number < 0:
            raise BasisPruneError("too small")
        print(2 * options.number)

    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, add_twice))
    assert cli.main(["twice", "4"]) == 0
    assert capsys.readouterr().out == "8\n"
    assert "twice does not know --more; see" in refused(["twice", "4", "--more", "Doe"], capsys, monkeypatch)
