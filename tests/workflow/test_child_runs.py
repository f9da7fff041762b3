from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import nn

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.child_runs import (
    RECORD_FILE,
    check_earlier,
    plain_config,
    pretrain_once,
    run_and_tell,
    run_digests,
    runs_at_once,
)
from monai_basisprune.workflow.cohort import PreparedCohort
from monai_basisprune.workflow.pretrained import load_pretrained
from monai_basisprune.workflow.repeat_process import RepeatTask, available_cores

from ..networks import tiny_classifier
from ..report.studies import make_study
from .small_studies import write_repeat

SALT = b"a secret of 32 bytes or so, fixed"


# --- settings


def test_settings_are_told_apart_without_their_values() -> None:
    config = {"pretrained": "/data/Doe_John.pt", "batch_size": 16, "parallel": 2, "output_dir": "a", "_about": "x"}
    digests = run_digests({**config, "prune": ["$@study"]}, "0" * 64, SALT)
    assert "Doe" not in json.dumps(digests)
    assert set(digests) == {"pretrained", "batch_size", "(the images, their labels and their split)", "versions"}
    moved = {**config, "parallel": 4, "output_dir": "b", "dataset_dir": "/c", "_about": "y"}
    assert run_digests(moved, "0" * 64, SALT) == digests
    other = run_digests({**config, "batch_size": 8}, "1" * 64, SALT)
    changed = {key for key in digests if other[key] != digests[key]}
    assert changed == {"batch_size", "(the images, their labels and their split)"}
    assert run_digests(config, "0" * 64, b"another")["pretrained"] != digests["pretrained"]


def test_the_split_is_told_apart_only_where_it_is_known() -> None:
    known, unknown = run_digests({"seed": 1}, "0" * 64, SALT), run_digests({"seed": 1}, None, SALT)
    assert set(known) - set(unknown) == {"(the images, their labels and their split)"}
    assert {key: known[key] for key in unknown} == unknown


def complete(folder: Path, settings: Any) -> Path:
    write_repeat(folder, make_study())
    (folder / RECORD_FILE).write_text(json.dumps({"seed": 0, "settings": settings}))
    return folder


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    split = "(the images, their labels and their split)"
    own = {"batch_size": "a1", "targets": "b2", split: "c3"}
    folders = [complete(tmp_path / "repeat-00", own), tmp_path / "repeat-01"]
    check_earlier(folders, [own, {"anything": "x"}])  # the second is not there yet
    check_earlier([], [])
    unknown = {key: value for key, value in own.items() if key != split}
    check_earlier(folders, [unknown] * 2)  # before the cases are read
    with pytest.raises(ConfigurationError, match=r"^output_dir holds repeats that were made with other settings: "):
        check_earlier(folders, [{**own, split: "other"}] * 2)
    complete(folders[1], {**own, "Ü\n" + "k" * 80: "x"})
    with pytest.raises(ConfigurationError) as caught:
        check_earlier(folders, [{**own, "targets": "other", "seed": "d4"}, own], "runs")
    shown = r"\xdc\n" + "k" * 54  # a name from a file that anybody may have written
    assert str(caught.value) == (
        f"output_dir holds runs that were made with other settings: {shown}, seed, targets. Set them as they were to "
        f"go on, or pass another --output_dir."
    )
    for text in ("{", "[]", "{}", '{"settings": 3}', '{"settings": null}'):
        (folders[0] / RECORD_FILE).write_text(text)
        with pytest.raises(ConfigurationError, match=rf"settings: \({RECORD_FILE} of repeat-00 cannot be read\)"):
            check_earlier(folders[:1], [own])
    (folders[0] / RECORD_FILE).unlink()
    with pytest.raises(ConfigurationError, match=r"of repeat-00 cannot be read"):
        check_earlier(folders[:1], [own])
    (folders[0] / "study.json").unlink()
    check_earlier(folders[:1], [{"anything": "x"}])  # it is not complete, and will be made anew


def test_how_many_run_at_once() -> None:
    assert runs_at_once(3, "cpu") == 3
    assert runs_at_once(1, "cuda") == 1
    assert runs_at_once(None, "cpu") == max(1, available_cores() // 2)
    assert runs_at_once(None, torch.device("cuda", 1)) == 1  # they would share its memory
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(
            ConfigurationError, match=r"^parallel must be a whole number from 1, or null; got "
        ) as caught:
            runs_at_once(wrong, "cpu")  # type: ignore[arg-type]
        assert repr(wrong) in str(caught.value)


def test_another_process_gets_what_json_holds() -> None:
    config = {"a": [1, 2.5, None, True], "b": {"c": "@a"}, "tuple": (1, 2)}
    plain = plain_config(config)
    assert plain == {**config, "tuple": [1, 2]}
    plain["a"].append(3)
    assert len(config["a"]) == 4  # a copy
    unfit = {"device": torch.device("cpu"), "nested": [{"network": nn.Identity()}], "good": 1}
    with pytest.raises(
        ConfigurationError, match=r"with a _target_ or as expressions: device \(device\), nested \(list\)"
    ):
        plain_config(unfit)


# --- the pretraining that all share


@pytest.fixture
def unseeded() -> Iterator[None]:
    yield
    set_determinism(None)


def test_all_runs_start_from_one_pretraining_and_keep_their_own_heads(tmp_path: Path, unseeded: None) -> None:
    config: dict[str, Any] = {
        "pretrained": "synthetic",
        "pretrained_network": {"_target_": "tests.networks.tiny_classifier", "seed": 3},
    }
    path = pretrain_once(ConfigParser(config), tmp_path, {"a": "1"}, 0)
    assert path is not None
    assert path.parent == tmp_path / "work"
    own = tiny_classifier(4)
    loaded = load_pretrained(own, str(path), 8).state_dict()
    for name, value in tiny_classifier(3).state_dict().items():
        assert torch.equal(loaded[name], own.state_dict()[name] if name.startswith("head.") else value), name
    # it is there, so nothing is made; with other settings it is another one
    config["pretrained_network"] = "$1 / 0"
    assert pretrain_once(ConfigParser(config), tmp_path, {"a": "1"}, 7) == path
    with pytest.raises(RuntimeError, match="evaluate"):
        pretrain_once(ConfigParser(config), tmp_path, {"a": "2"}, 0)
    assert [file.name for file in (tmp_path / "work").iterdir()] == [path.name]
    for start in ("imagenet", str(path), None):
        assert pretrain_once(ConfigParser({**config, "pretrained": start}), tmp_path, {"a": "2"}, 0) is None


def test_the_pretraining_follows_from_the_seed(tmp_path: Path, unseeded: None) -> None:
    config = {"pretrained": "synthetic", "pretrained_network": {"_target_": "tests.networks.TinyClassifier"}}
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = pretrain_once(ConfigParser(config), tmp_path / name, {}, seed)
        assert path is not None
        states.append(torch.load(path, weights_only=True)["stem.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


# --- real processes


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("$print(@source)", "it ended without a result"),
        pytest.param("$shutil.copytree(@source, @folder, dirs_exist_ok=True)", None, marks=pytest.mark.slow),
    ],
)
def test_each_run_is_told_of_and_one_without_a_result_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str, reason: str | None
) -> None:
    complete, folder = write_repeat(tmp_path / "complete", make_study()), tmp_path / "new"
    config = {"imports": ["$import shutil"], "source": str(complete), "folder": str(folder), "cohort": {}}
    cohort = PreparedCohort(tmp_path, tmp_path / "datalist.json", {}, False)
    task = RepeatTask(folder, {**config, "prune": [step]}, cohort)
    shown = {complete: "repeat-00", folder: "repeat-01 (seed 1)"}
    assert run_and_tell([task], 1, shown) == ({} if reason is None else {folder: reason})
    assert capsys.readouterr().out == f"[2/2] repeat-01 (seed 1): {reason or 'done'}\n"
    assert run_and_tell([], 1, {complete: "repeat-00"}) == {}
    assert capsys.readouterr().out == ""
