from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import monai_basisprune as mbp
from monai_basisprune import cli
from monai_basisprune.errors import BasisPruneError
from monai_basisprune.workflow.existing_bundle import DEFAULT_TARGETS

ROOT = Path(__file__).parents[1]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["monai-basisprune", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the functions of the library are called with; they are tested by themselves."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for name in ("prune_bundle", "export_study_bundle"):
        monkeypatch.setattr(cli, name, lambda *args, **kwargs: found.append((args, kwargs)))
    monkeypatch.setattr(cli, "_show", lambda bundle: None)
    return found


def test_the_command_is_installed_under_its_name() -> None:
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]\n")[1].split("\n[")[0]
    assert 'monai-basisprune = "monai_basisprune.cli:main"' in scripts.splitlines()
    assert callable(cli.main)


def test_help_speaks_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Makes a trained MONAI classifier smaller", "not a medical device", "prune", "export-bundle"):
        assert words in text
    for command in ("prune", "export-bundle"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "new bundle" in text
        assert "--dataset_dir FOLDER" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == mbp.__version__


def test_prune_hands_its_options_on(calls) -> None:
    assert cli.main(["prune", "a", "b"]) == 0
    assert calls[-1][0] == ("a", "b")
    assert calls[-1][1]["overrides"] == {}
    assert calls[-1][1]["targets"] == list(DEFAULT_TARGETS)
    words = ["prune", "a", "b", "--targets", "0.4", "0.6", "--margin", "0.02", "--patient_key", "patient"]
    words += [
        "--dataset_dir",
        "/data/x",
        "--train#dataloader#batch_size=4",
        "--amp",
        "true",
        "--network_def",
        '{"a": 1}',
    ]
    assert cli.main(words) == 0
    assert calls[-1][1] == {
        "overrides": {
            "dataset_dir": "/data/x",
            "train#dataloader#batch_size": 4,
            "amp": True,
            "network_def": {"a": 1},
        },
        "targets": [0.4, 0.6],
        "budget": "parameters",
        "transfer_epochs": 5,
        "epochs_per_round": 2,
        "margin": 0.02,
        "selection": "point",
        "patient_key": "patient",
        "seed": 0,
    }


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset_dir", "/data/x", "a", "b"],
        ["a", "--dataset_dir", "/data/x", "b"],
        ["a", "b", "--dataset_dir", "/data/x"],
        ["a", "--seed", "3", "b", "--dataset_dir=/data/x"],
    ],
)
def test_the_value_of_a_key_is_never_taken_for_a_folder(calls, words: list[str]) -> None:
    assert cli.main(["prune", *words]) == 0
    assert calls[-1][0] == ("a", "b")
    assert calls[-1][1]["overrides"] == {"dataset_dir": "/data/x"}


def test_export_bundle_hands_its_options_on(calls) -> None:
    assert cli.main(["export-bundle", "a", "b", "c", "--network_def", '{"_target_": "X"}']) == 0
    assert calls == [(("a", "b", "c"), {"overrides": {"network_def": {"_target_": "X"}}})]


def test_wrong_usage_ends_with_2_and_names_no_folder(calls, capsys, monkeypatch) -> None:
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
    assert cli.main(["prune", "a", "b", "--target", "1"]) == 0
    assert calls[-1][1]["overrides"] == {"target": 1}


def test_our_errors_end_with_their_message_and_1(capsys, monkeypatch, tmp_path: Path) -> None:
    secret = tmp_path / "Doe^Jane"
    assert cli.main(["prune", str(secret), str(tmp_path / "new")]) == 1
    shown = capsys.readouterr()
    assert shown.err == "monai-basisprune: BUNDLE is not a folder: name the folder of a MONAI bundle.\n"
    assert cli.main(["export-bundle", str(secret), str(secret), str(tmp_path / "new")]) == 1
    assert "The folder of the study lacks study.json" in capsys.readouterr().err

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(secret))

    monkeypatch.setattr(cli, "prune_bundle", fail)
    assert cli.main(["prune", "a", "b"]) == 1
    assert capsys.readouterr().err == "monai-basisprune: a file cannot be read or written (Permission denied).\n"

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "prune_bundle", stop)
    assert cli.main(["prune", str(secret), "b"]) == 130
    assert capsys.readouterr().err == "monai-basisprune: interrupted.\n"

    def break_down(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"no idea what {secret}/a.dcm is")

    monkeypatch.setattr(cli, "prune_bundle", break_down)
    assert cli.main(["prune", str(secret), "b"]) == 1
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


@pytest.mark.slow  # a process of its own
def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "monai_basisprune.cli", "prune", str(tmp_path / "none"), str(tmp_path / "new")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path) not in done.stderr
