from __future__ import annotations

import multiprocessing
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import get_seed

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.start import RunStart, check_keys, is_on, show_command, start_run

from ..bundle_runs import (
    COMBINATIONS,
    CONFIGS,
    FAILED_WORDS,
    config_files,
    contents,
    documented_settings,
    merged_config,
    own_error,
    run_command,
    run_in_python,
    unchanged_process,
)

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with unchanged_process():
        yield


def misspellings(key: str) -> set[str]:
    """All words that differ from a key by one letter: left out, doubled, replaced, or swapped with the next."""
    found = set()
    for i in range(len(key)):
        found |= {key[:i] + key[i + 1 :], key[:i] + key[i] + key[i:], key[:i] + "z" + key[i + 1 :]}
        found.add(key[:i] + key[i + 1 : i + 2] + key[i] + key[i + 2 :])
    return {word for word in found if word and not word.startswith("_")}


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_key_of_the_shipped_configurations_is_used(names: tuple[str, ...]) -> None:
    check_keys(merged_config(names))


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_misspelt_key_is_refused_with_the_right_suggestion(names: tuple[str, ...]) -> None:
    config = merged_config(names)
    keys = [key for key in config if not key.startswith("_")]
    tried = 0
    for key in keys:
        for word in sorted(misspellings(key) - set(keys)):
            with pytest.raises(ConfigurationError) as caught:
                check_keys({**config, word: 1})
            (line,) = [line for line in str(caught.value).splitlines() if line.startswith(f"  - {word}:")]
            assert "nothing in this configuration uses it; did you mean" in line
            assert re.search(rf"--{key}\b", line), (key, line)
            tried += 1
    assert tried > 300


@pytest.mark.parametrize("names", [("train",), ("train", "prune")], ids="+".join)
def test_every_documented_setting_can_be_set(names: tuple[str, ...]) -> None:
    config = merged_config(names)
    keys = set(documented_settings()) & set(config)
    assert "network_def" in keys
    for key in sorted(keys - {"save_execute_config"}):  # MONAI's own, which holds no group
        check_keys({**config, key: {"a": "value"}})  # what another key stands for must not become unused


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("train", "prune"), "dataset"),  # meant as --dataset_dir: the run takes the synthetic cohort instead
        (("train", "prune"), "val_interval"),
        (("train",), "handlers"),
        (("inference",), "key_metric"),
    ],
)
def test_a_key_of_monai_that_nothing_uses_is_refused(names: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"- {key}: nothing in this configuration uses it"):
        check_keys({**merged_config(names), key: "/data/study"})


def test_all_unused_keys_are_listed_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_keys({"rate": 1, "run": ["$print(@rate)"], "rats": 2, "xyz": 3})
    message = str(caught.value)
    assert message.startswith("The configuration has keys that would be ignored; correct or remove them:")
    assert "  - rats: nothing in this configuration uses it; did you mean --rate?" in message
    assert "  - xyz: nothing in this configuration uses it; no key is like it." in message
    assert message.endswith("Keys that can be set: rate, run.")


@pytest.mark.parametrize(
    "user",
    [
        "@rate",
        "$2 * @rate",
        {"deep": [{"deeper": "$[@rate]"}]},
        "@rate::0",
        "@rate#inner",
        "$@rate.method('x')",
        "%rate",
        "%rate::0",
    ],
)
def test_references_count_wherever_they_are(user: Any) -> None:
    check_keys({"rate": [1], "use": user, "run": ["$@use"]})
    with pytest.raises(ConfigurationError, match="- rate: nothing"):
        check_keys({"rate": [1], "use": 1, "run": ["$@use"]})


def test_a_longer_name_is_no_reference_to_a_shorter_one() -> None:
    with pytest.raises(ConfigurationError, match="- rate: nothing in this configuration uses it"):
        check_keys({"rate": 1, "rate_2": 1, "run": ["$@rate_2"]})


def test_comments_and_lists_of_steps_are_no_mistakes() -> None:
    check_keys({"_about": "words", "_meta_": {}, "prune": ["$1 + 1", "$2"], "imports": ["$import os"]})
    for value in ("$1", [], ["$1", 2], ["1"], 3):
        with pytest.raises(ConfigurationError, match="- prune: nothing"):
            check_keys({"prune": value})


def test_a_misspelt_override_ends_the_command_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("an earlier result")
    before = contents(tmp_path)
    arguments = ["prune", "--config_file", str(config_files(("train", "prune"))), "--output_dir", str(tmp_path)]
    done = run_command([*arguments, "--targts", "[0.5]"])
    assert done.returncode != 0
    assert FAILED_WORDS not in done.stderr
    message = done.stderr[done.stderr.index("monai_basisprune: ") :]
    assert message.startswith("monai_basisprune: The configuration has keys that would be ignored")
    assert "  - targts: nothing in this configuration uses it; did you mean --targets" in message
    last = message.rstrip("\n").splitlines()[-1]
    assert last.startswith("Keys that can be set: ")
    assert last.endswith(".")
    assert " targets, " in last
    assert contents(tmp_path) == before
    assert not (tmp_path / "work").exists()


def test_a_misspelt_override_ends_a_run_in_python(tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        run_in_python("prune", ("train", "prune"), output_dir=str(tmp_path), learning_rat=0.1)
    error = own_error(caught.value)
    assert isinstance(error, ConfigurationError)
    assert "- learning_rat: nothing in this configuration uses it; did you mean --learning_rate" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_counts_the_seconds_that_it_had_taken() -> None:
    stopped, resumed = RunStart("prune"), RunStart("prune")
    stopped.time -= 100.0
    resumed.load_state_dict(stopped.state_dict())
    assert stopped.time - 60.0 <= resumed.time <= stopped.time + 60.0


def test_a_workflow_starts_with_good_keys_and_not_with_bad_ones(tmp_path: Path) -> None:
    files = [str(CONFIGS / "train.json"), str(CONFIGS / "prune.json")]
    workflow = ConfigWorkflow(files, run_id="prune", logging_file=False, seed=11, output_dir=str(tmp_path))
    (start,) = workflow.initialize()
    assert isinstance(start, RunStart)
    assert get_seed() == 11
    assert workflow.parser.get_parsed_content("start") is start
    workflow = ConfigWorkflow(files, run_id="prune", logging_file=False, marign=0.02)
    with pytest.raises(Exception) as caught:
        workflow.initialize()
    assert "did you mean --margin" in str(own_error(caught.value))


def test_pruning_keys_are_refused_where_nothing_is_pruned() -> None:
    with pytest.raises(Exception) as caught:
        run_in_python("run", ("train",), targets=[0.5], margin=0.1)
    message = str(own_error(caught.value))
    assert "- targets: nothing" in message
    assert "- margin: nothing" in message


def test_seeds_are_set() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    start_run(7)
    first = draw()
    assert first[0] == float(torch.rand((), generator=torch.Generator().manual_seed(7)))
    assert first[1] == np.random.RandomState(7).rand()
    assert first[2] == random.Random(7).random()
    start_run(7)
    assert draw() == first
    start_run(8)
    assert draw() != first
    torch.manual_seed(3)
    state = torch.get_rng_state()
    start_run(None)
    assert torch.equal(torch.get_rng_state(), state)


def test_own_errors_are_shown_as_a_message_and_others_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    start_run(None)
    try:
        try:
            raise ConfigurationError("what was asked, what was found, what to do")
        except ConfigurationError as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "\nmonai_basisprune: what was asked, what was found, what to do\n"
    try:
        raise RuntimeError("another one")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.startswith(FAILED_WORDS)
    assert shown.endswith("RuntimeError: another one\n")


@pytest.mark.parametrize(
    ("value", "on"), [(True, True), ("true", True), ("True", True), (False, False), ("false", False)]
)
def test_switches_take_the_words_of_a_command_line(value: bool | str, on: bool) -> None:
    assert is_on("redact_logs", value) is on


@pytest.mark.parametrize("value", ["no", "", 1, None, "off"])
def test_other_words_for_a_switch_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"redact_logs must be true or false, got .*: pass --redact_logs true"):
        start_run(None, redact_logs=value)


def test_our_own_message_is_shown_without_private_paths(capsys: pytest.CaptureFixture[str]) -> None:
    start_run(None, private_paths=["/patients/Doe_John", None])
    error = ConfigurationError("the file '/patients/Doe_John/a b.pt' was asked for, and /patients/Doe_John/x")
    sys.excepthook(type(error), error, None)
    shown = capsys.readouterr().err
    assert shown == "\nmonai_basisprune: the file '[removed]' was asked for, and [removed]\n"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--dataset_dir", "/data/DOE^JOHN"], ["--dataset_dir", "<dataset_dir>"]),
        (["--dataset_dir=/data/DOE^JOHN"], ["--dataset_dir=<dataset_dir>"]),
        (["--dataset_dir", "..\\Doe"], ["--dataset_dir", "<dataset_dir>"]),
        (["--dataset_dir", "C:\\Users\\Doe"], ["--dataset_dir", "<dataset_dir>"]),
        (["--dataset_dir=C:\\Users\\Doe"], ["--dataset_dir=<dataset_dir>"]),
        (["--dataset_dir", "\\\\server\\share\\Doe"], ["--dataset_dir", "<dataset_dir>"]),
        (["--pretrained", "./doe.pt"], ["--pretrained", "<pretrained>"]),
        (["--labels_file=study/doe.csv"], ["--labels_file=<labels_file>"]),
        (["--seed", "3", "--amp", "true"], ["--seed", "3", "--amp", "true"]),
        (["--budget=macs", "--margin=0.02"], ["--budget=macs", "--margin=0.02"]),
        (["--targets", "[0.5,0.9]"], ["--targets", "[0.5,0.9]"]),
        (["--pretrained", "imagenet"], ["--pretrained", "imagenet"]),
        (["--pretrained", "synthetic"], ["--pretrained", "synthetic"]),
        (["run", "prune"], ["run", "prune"]),
    ],
)
def test_commands_show_settings_but_no_path(
    arguments: list[str], shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = show_command(["/opt/somewhere/python", *arguments])
    assert [word.strip("'") for word in command.split()[-len(shown) :]] == shown
    assert "somewhere" not in command
    assert not re.search("doe", command, re.IGNORECASE)


def test_commands_do_not_show_folders_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DOE_JOHN").mkdir()
    (tmp_path / "Doe, John").mkdir()
    for folder in ("DOE_JOHN", "Doe, John"):
        for arguments in (["--dataset_dir", folder], [f"--dataset_dir={folder}"], [folder]):
            command = show_command(["x", *arguments])
            assert not re.search("doe", command, re.IGNORECASE), command
            assert "<" in command


def test_one_dash_hides_no_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["-dataset_dir", "/data/doe"], ["-dataset_dir=/data/doe"], ["-d", "C:\\doe"]):
        assert "doe" not in show_command(["x", *arguments])


def test_commands_show_the_configurations_of_the_bundle() -> None:
    files = "['/home/doe/bundles/chest_xray_classification/configs/train.json','configs/prune.json']"
    command = show_command(["x", "run", "prune", "--config_file", files])
    assert "configs/train.json'" in command.replace("'\"'\"'", "'")
    assert "'configs/prune.json'" in command.replace("'\"'\"'", "'")
    assert "doe" not in command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output_dir", "DOE_JOHN"],  # made later in the run
        ["--output_dir=DOE_JOHN"],
        ["--labels_file", "doe.csv"],  # relative to dataset_dir, as README allows
        ["--predictions_file", "doe.csv"],
        ["-dataset_dir", "DOE_JOHN"],  # fire takes one dash as well
    ],
)
def test_commands_do_not_show_folders_that_do_not_exist(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = show_command(["x", *arguments])
    assert not re.search("doe", command, re.IGNORECASE), command


@pytest.mark.parametrize(
    "value",
    [
        "/patients/Doe_John/overlay.json",
        "/patients/Doe^John/overlay.json",
        "['bundles/b/configs/train.json','/data/Doe John/overlay.json']",
    ],
)
def test_commands_do_not_show_folders_of_an_overlay(value: str) -> None:
    command = show_command(["x", "--config_file", value])
    assert "overlay.json" in command
    assert "John" not in command


def test_commands_with_a_long_value_are_shown() -> None:
    definition = "{'_target_': 'monai.networks.nets.DenseNet', " + ", ".join(f"'a{i}': {i}" for i in range(60)) + "}"
    assert "'a59': 59" in show_command(["x", "--network_def", definition]).replace("'\"'\"'", "'")


@pytest.mark.parametrize("arguments", [[""], []], ids=["at the prompt of Python", "embedded"])
def test_a_session_without_a_command_has_words_for_it(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert show_command(arguments).strip()


@pytest.mark.parametrize("key", ["max_epochs", "learning_rate", "epochs"])
def test_a_plain_value_in_a_group_that_nothing_uses_is_refused(key: str) -> None:
    config = merged_config(("train", "prune"))
    config["train"] = {**config["train"], key: 3}
    with pytest.raises(ConfigurationError, match=f"- train#{key}: nothing in this configuration uses it"):
        check_keys(config)


def tracked_in_one_of_two(rank: int, folder: Path) -> None:
    """Do what a process does that torchrun has started, and in which MONAI has written the configuration."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    written = folder / f"config_20260101_00000{rank}.json"
    written.write_text("{}")
    parser = ConfigParser(
        {
            "save_execute_config": str(written),
            "initialize": ["$monai_basisprune.workflow.keep_one_tracked_config()"],
        },
        globals={"monai_basisprune": "monai_basisprune"},
    )
    parser.get_parsed_content("initialize")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="cannot fork")
def test_of_several_processes_one_leaves_its_configuration(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=tracked_in_one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.glob("config_*.json")] == ["config_20260101_000000.json"]
