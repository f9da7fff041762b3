from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.workflow.bundle_files import check_output, copy_bundle, not_carried, read_metadata, shown_names


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A bundle with what belongs to it, what belongs to its network, and what could be of patients."""
    files = ("configs/train.json", "docs/README.md", "docs/__pycache__/a.pyc", "scripts/net.py", "own/__init__.py")
    files += ("models/model.pt", "eval/x.csv", "large_files.yml", "LICENSE", "requirements.txt", "tool.py")
    files += ("data/Doe^Jane.npy", "labels.csv", ".git/config", ".hidden.py", "eval_old/models/x", "other/a.py")
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    return tmp_path / "source"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- where a new bundle may be written


def test_a_new_or_empty_folder_will_do(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_output(tmp_path / "a" / "b" / "new", source) == tmp_path.resolve() / "a" / "b" / "new"
    assert not (tmp_path / "a").exists()  # it only checks
    (tmp_path / "empty").mkdir()
    assert check_output(str(tmp_path / "empty"), str(source)) == (tmp_path / "empty").resolve()
    monkeypatch.chdir(tmp_path)
    assert check_output("new", "source") == tmp_path.resolve() / "new"
    assert check_output("source_pruned", "source") == tmp_path.resolve() / "source_pruned"  # beside it, not inside


def test_a_folder_that_holds_anything_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / ".hidden").write_text("mine")
    for path in (tmp_path / "used", tmp_path / "used" / ".hidden", source):
        with pytest.raises(ConfigurationError, match=r"not empty: name one that does not exist yet") as caught:
            check_output(path, source)
        assert str(tmp_path) not in str(caught.value)
    assert (tmp_path / "used" / ".hidden").read_text() == "mine"


def test_a_place_where_no_bundle_can_be_moved_to_is_refused_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="a part of the path is a file"):
        check_output(tmp_path / "file" / "new", source)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_output(tmp_path / "link", source) == (tmp_path / "real").resolve()
    (tmp_path / "into").symlink_to(source)
    for inside in (source / "new", tmp_path / "into" / "new", source / "data" / ".." / "new"):
        with pytest.raises(ConfigurationError, match="must not lie inside the source bundle, which stays as it is"):
            check_output(inside, source)
    with monkeypatch.context() as context:
        context.setattr(os.path, "ismount", lambda path: str(path).endswith("real"))
        with pytest.raises(ConfigurationError, match=r"a drive or a volume of its own.*name a folder in it"):
            check_output(tmp_path / "real", source)
    # as for a user who may read the folder; root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(ConfigurationError, match="cannot be written where you want it: no permission"):
        check_output(tmp_path / "new", source)


# --- what is carried over


def test_what_could_be_of_patients_or_is_of_the_unpruned_network_is_not_carried(source: Path) -> None:
    of_network = ["eval", "large_files.yml", "models"]
    unusual = [".git", ".hidden.py", "data", "eval_old", "labels.csv", "other"]
    left_out = not_carried(source)
    assert left_out == sorted([*of_network, *unusual])
    assert shown_names(left_out) == (*of_network, "6 other files or folders at its top")
    assert shown_names(of_network) == tuple(of_network)
    assert shown_names(["Doe^Jane.npy"]) == ("1 other files or folders at its top",)
    assert shown_names([]) == ()


def test_a_copy_has_all_but_what_is_left_out_at_its_top(source: Path, tmp_path: Path) -> None:
    (tmp_path / "shared.txt").write_text("a text")
    (source / "docs" / "linked.txt").symlink_to(tmp_path / "shared.txt")
    (source / "data" / "more").symlink_to(tmp_path)  # a circle, in what is left out
    before = names(source)
    copy_bundle(source, tmp_path / "new", ["data", ".git", "models"])
    wanted = {name for name in before if not name.startswith(("data/", ".git/", "models/"))}
    assert names(tmp_path / "new") == wanted - {"docs/__pycache__/a.pyc"}
    assert "eval_old/models/x" in wanted  # the same name further below is another thing
    assert (tmp_path / "new" / "scripts" / "net.py").read_text() == "scripts/net.py"
    assert (tmp_path / "new" / "docs" / "linked.txt").read_text() == "a text"
    assert not (tmp_path / "new" / "docs" / "linked.txt").is_symlink()
    assert names(source) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes need rights there")
def test_links_to_folders_and_what_is_no_file_are_refused_before_anything_is_copied(
    source: Path, tmp_path: Path
) -> None:
    (source / "scripts" / "all").symlink_to(tmp_path)
    (source / "docs" / "nothing").symlink_to(tmp_path / "nothing")
    os.mkfifo(source / "own" / "Doe^Jane")
    with pytest.raises(ConfigurationError, match=r"what is no file, in docs, own, scripts: put the folders") as caught:
        copy_bundle(source, tmp_path / "new", [])
    assert "Doe" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    copy_bundle(source, tmp_path / "new", ["docs", "own", "scripts"])
    assert "LICENSE" in names(tmp_path / "new")


# --- metadata


def test_metadata_are_read_or_the_reason_is_said(tmp_path: Path) -> None:
    path = tmp_path / "configs" / "metadata.json"
    with pytest.raises(ConfigurationError, match=r"There is no configs/metadata\.json: name the folder of a MONAI bun"):
        read_metadata(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({"version": "0.1.0", "a": [1, None]}))
    assert read_metadata(str(tmp_path)) == {"version": "0.1.0", "a": [1, None]}
    for text, words in (
        ("{", r"is no JSON: "),
        ('{"a": 1, "a": 2}', r"is no JSON: a key stands twice in one object"),
        ('{"a": NaN}', r"is no JSON: NaN is no number"),
        ("[]", r"holds no dictionary"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=rf"^configs/metadata\.json of the bundle {words}") as caught:
            read_metadata(tmp_path)
        assert str(tmp_path) not in str(caught.value)
