from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import gray, save, write_folders

from monai_basisprune.data.image_classes import LabelSettings
from monai_basisprune.data.image_files import inspect_pictures, list_pictures, place_pictures
from monai_basisprune.data.image_folder import prepare_image_datalist
from monai_basisprune.errors import CohortError
from monai_basisprune.files import sha256_of


def test_written_lists_hold_no_paths_and_pictures_are_found_again(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images")
    output = tmp_path / "work" / "datalist.json"
    prepare_image_datalist(root, output, LabelSettings(), progress=False, image_paths=False)
    written = json.loads(output.read_text())
    assert "healthy/" not in output.read_text()
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(root / f"{number}.png")
    placed = place_pictures(written["test"], root)
    assert all((root / item["image"]).is_file() for item in placed)
    (root / placed[0]["image"]).unlink()
    with pytest.raises(CohortError, match="is it the right folder") as error:
        place_pictures(written["test"], root)
    assert error.value.problems == (f"case {placed[0]['case_id']}",)


def test_pictures_are_listed_without_tables_hidden_files_and_links(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images", 1)
    for name in ("labels.csv", ".hidden.png", "notes.txt", "Thumbs.db", "mine.xyz"):
        (root / name).write_bytes(b"x")
    (root / ".cache").mkdir()
    save(root / ".cache" / "a.png", gray(1))
    (root / "link.png").symlink_to(root / "healthy" / "000.png")
    paths, problems, left_out = list_pictures(root, [root / "unclear" / "000.png"])
    assert paths == ["healthy/000.png", "ill/000.png", "mine.xyz"]
    assert left_out == 5
    (problem,) = problems
    assert "holds 1 symbolic links" in problem


def test_a_picture_is_known_by_its_pixels_whatever_its_file_is(tmp_path: Path) -> None:
    save(tmp_path / "a.png", gray(1))
    save(tmp_path / "b.png", gray(1), compress_level=0)
    save(tmp_path / "c.png", gray(1).reshape(6, 24))  # the same numbers in another shape
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    first, second, third, fourth = inspect_pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png"], progress=False)
    assert [one.position for one in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert first.digest == second.digest != third.digest
    assert first.file_sha256 == sha256_of(tmp_path / "a.png") != second.file_sha256
    assert fourth.digest == ""
    assert "cannot be decoded" in str(fourth.problem)
    assert "d.png" not in repr(fourth) + fourth.name
