"""Several methods on one page: what is refused, what is the same for all, and a comparison of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.evidence import compare_auc
from monai_basisprune.report import load_study
from monai_basisprune.workflow.method_comparison import _difference, _read_methods
from monai_basisprune.workflow.start import check_keys

from ..bundle_runs import BUNDLE, CONFIGS, TINY_PRUNE, config_files, merged_config, run_command, tiny_densenet

NAMES = ("train", "prune", "compare")
METHODS = sorted(
    path.stem
    for path in CONFIGS.glob("*.json")
    if json.loads(path.read_text(encoding="utf-8")).get("method") and path.stem != "prune"
)


def overlay(folder: Path, name: str, **content: Any) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_all_methods_of_the_bundle_are_compared_by_default_and_have_a_row_in_its_page() -> None:
    config = merged_config(NAMES)
    assert sorted(config["methods"]) == sorted(["prune", *METHODS])
    page = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split("## Methods")[1].split("\n## ")[0]
    for name in METHODS:
        assert f"`{name}.json`" in page
    assert len(METHODS) >= 6


@pytest.mark.parametrize("name", METHODS)
def test_an_overlay_holds_only_what_differs_and_all_its_keys_are_used(name: str) -> None:
    content = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    base = merged_config(("train", "prune"))
    assert [key for key, value in content.items() if key in base and base[key] == value] == []
    assert len(content) <= 11
    check_keys(merged_config(("train", "prune", name)))
    check_keys(merged_config((*NAMES, name)))


def test_classes_without_known_patients_are_compared_with_the_network_that_was_never_cut(tmp_path: Path) -> None:
    labels = [0, 1, 2] * 8
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn((24, 3), generator=generator).tolist() for _ in range(2)]
    for name, own in zip(("unpruned", "prune"), scores, strict=True):
        (tmp_path / name / "work").mkdir(parents=True)
        content = {"labels": labels, "original": own, "pruned": own, "patients": []}
        (tmp_path / name / "work" / "test_predictions.json").write_text(json.dumps(content))
    found = _difference(tmp_path / "unpruned", tmp_path / "prune", 0.05)
    assert found == compare_auc(labels, *scores, None, 0.05).to_dict()


def test_methods_are_laid_over_the_running_configuration(tmp_path: Path) -> None:
    base = merged_config(NAMES) | {"targets": [0.4]}
    own = overlay(tmp_path, "mine", **{"method": "slowly", "train#optimizer#lr": 0.5, "epochs_per_round": 4})
    found = _read_methods(["prune", "bases", own], base, BUNDLE)
    assert [method.name for method in found] == ["prune", "bases", "mine"]
    assert [method.title for method in found] == [
        base["method"], json.loads((CONFIGS / "bases.json").read_text())["method"], "slowly",
    ]  # fmt: skip
    assert found[0].config == base
    assert found[0].config["channel_importance"]["_target_"] == "monai_basisprune.ChannelTaylorImportance"
    assert found[1].config["channel_importance"] is None
    assert found[2].config["train"]["optimizer"]["lr"] == 0.5
    assert base["train"]["optimizer"]["lr"] == "@learning_rate"  # untouched
    assert all(method.config["targets"] == [0.4] for method in found)
    assert not any(method.own_start for method in found)
    other = overlay(tmp_path, "other", method="another network", pretrained="imagenet")
    assert _read_methods(["prune", other], base, BUNDLE)[1].own_start


def test_all_that_is_wrong_with_the_methods_is_said_at_once(tmp_path: Path) -> None:
    base = merged_config(NAMES)
    nameless = overlay(tmp_path, "nameless", method=None)
    same = overlay(tmp_path, "same", learning_rate=0.1)
    with pytest.raises(ConfigurationError) as caught:
        _read_methods(["prune", "doubel", "scaling", "scaling", nameless, same, "/data/Doe/none.json"], base, BUNDLE)
    message = str(caught.value)
    for words in (
        "doubel: there is no such file, and no configuration of the bundle has this name",
        "scaling: given twice",
        "nameless.json: its 'method', which says in words what it does, must be a text",
        f"same: has the 'method' of another one, {base['method']!r}; say in it what differs",
        "none.json: there is no such file",
    ):
        assert words in message
    assert "Doe" not in message
    for methods in (["prune"], "prune", []):
        with pytest.raises(ConfigurationError, match="methods must be a list of at least two configurations"):
            _read_methods(methods, base, BUNDLE)


@pytest.mark.slow
def test_methods_are_run_compared_and_not_run_again(tmp_path: Path) -> None:
    torch.save(tiny_densenet(1).state_dict(), tmp_path / "net.pt")
    settings = {**TINY_PRUNE, "pretrained": str(tmp_path / "net.pt"), "targets": [0.5]}
    (tmp_path / "overlay.json").write_text(json.dumps(settings))
    broken = overlay(tmp_path, "broken", method="cannot be run", target_modules=["no.such.layer"])
    methods = str(["bases", "unpruned", broken])
    files = str(config_files(NAMES, tmp_path / "overlay.json"))
    output = tmp_path / "output"
    command = ["compare", "--config_file", files, "--output_dir", str(output), "--parallel", "2", "--methods", methods]
    done = run_command(command)
    assert done.returncode != 0
    assert "1 of 3 runs failed; the others are in comparison.html." in done.stderr
    record = json.loads((output / "comparison.json").read_text())
    assert record["reference"] == "unpruned"
    assert [entry["name"] for entry in record["methods"]] == ["bases", "unpruned"]
    assert [entry["name"] for entry in record["failed"]] == ["broken"]
    bases, unpruned = record["methods"]
    studies = [load_study(output / "methods" / name / "study.json") for name in ("bases", "unpruned")]
    assert len({study["data"]["split_sha256"] for study in studies}) == 1
    assert unpruned["epochs"] == 2 == studies[0]["curve"][-1]["epoch"]  # as long as the longest
    assert len(studies[1]["curve"]) == 1
    assert unpruned["difference_to_reference"] is None
    before, after = (
        json.loads((output / "methods" / name / "work" / "test_predictions.json").read_text())
        for name in ("unpruned", "bases")
    )
    wanted = compare_auc(before["labels"], before["pruned"], after["pruned"], before["patients"], 0.01)
    assert bases["difference_to_reference"] == wanted.to_dict()
    page = (output / "comparison.html").read_text()
    assert "Change against study 2" in page
    assert "Validation AUC at the same targets" in page
    assert "never cut, trained as long" in page
    written = (output / "methods" / "bases" / "study.json").stat().st_mtime_ns
    again = run_command([*command[:-1], "['bases','unpruned']"])
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs are complete already and are not run again." in again.stdout
    assert (output / "methods" / "bases" / "study.json").stat().st_mtime_ns == written
    refused = run_command([*command[:-1], "['bases','unpruned']", "--batch_size", "8"])
    assert refused.returncode != 0
    assert "output_dir holds runs that were made with other settings: batch_size." in refused.stderr
