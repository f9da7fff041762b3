"""The files of a folder of pictures: which there are, what is in them, and where a picture is now."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_basisprune.data.elements import ImageProblemError
from monai_basisprune.data.identifiers import known
from monai_basisprune.data.images import decode_picture, read_limited
from monai_basisprune.data.preflight import IGNORED_NAMES, IGNORED_SUFFIXES, refuse_folder
from monai_basisprune.errors import CohortError

__all__ = ["ImageRecord", "inspect_pictures", "list_pictures", "place_pictures"]

_MOST_WORKERS = 4


@dataclass(frozen=True)
class ImageRecord:
    """What one file is.

    Attributes:
        position: place in the sorted list of files, from 1.
        path: path relative to the folder, with forward slashes.
        size: bytes.
        file_sha256: SHA-256 of the file; empty where it could not be read.
        digest: SHA-256 of the shape and the decoded pixels; empty where they could not be.
        problem: a sentence without a subject, or None.
    """

    position: int
    path: str = field(repr=False)
    size: int
    file_sha256: str = ""
    digest: str = ""
    problem: str | None = None

    @property
    def name(self) -> str:
        """A neutral name: those of files can name patients."""
        return f"file #{self.position} of the sorted list ({self.size} bytes)"


def list_pictures(root: Path, ignored: Sequence[Path] = ()) -> tuple[list[str], list[str], int]:
    """List the files of a folder and its subfolders that should be pictures; links are not followed.

    Args:
        root: the folder.
        ignored: files to leave out, such as the table of labels.

    Returns:
        sorted paths relative to the folder, problems, and how many files were left out: tables, texts, hidden ones.

    Raises:
        CohortError: when a subfolder cannot be listed.
    """
    others = {path.resolve() for path in ignored}
    found: list[str] = []
    links, left_out = 0, 0
    for folder, folders, names in os.walk(root, onerror=refuse_folder):
        links += sum(os.path.islink(os.path.join(folder, name)) for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            lower = name.lower()
            if path.is_symlink():
                continue
            ours = lower in IGNORED_NAMES or path.resolve() in others
            if ours or name.startswith(".") or lower.endswith(IGNORED_SUFFIXES):
                left_out += 1
            else:
                found.append(path.relative_to(root).as_posix())
    problems = []
    if links:
        problems.append(
            f"dataset_dir: holds {links} symbolic links, which could lead outside and are not followed; put the files "
            "themselves there"
        )
    return sorted(found), problems, left_out


def inspect_pictures(root: Path, paths: Sequence[str], progress: bool = True) -> list[ImageRecord]:
    """Decode every picture in a small pool of threads, and forget it again; nothing is raised for a bad one.

    Args:
        root: the folder.
        paths: paths relative to it.
        progress: whether to show a progress bar on the error stream.
    """
    known.remember_files(Path(path).name for path in paths)
    workers = max(1, min(_MOST_WORKERS, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="preflight") as pool:
        records = pool.map(lambda item: _inspect(root, item[1], item[0]), enumerate(paths, start=1))
        return list(tqdm(records, total=len(paths), desc="preflight", unit="file", disable=not progress))


def _inspect(root: Path, path: str, position: int) -> ImageRecord:
    size = 0
    try:
        size = (root / path).stat().st_size
        content = read_limited(root / path)
        sha256 = hashlib.sha256(content).hexdigest()
        image = decode_picture(content)
    except ImageProblemError as error:
        return ImageRecord(position, path, size, problem=str(error))
    except OSError as error:
        return ImageRecord(position, path, size, problem=f"cannot be read ({type(error).__name__})")
    digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
    return ImageRecord(position, path, size, sha256, digest)


def place_pictures(items: Sequence[Mapping[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Return items of a datalist with the paths of their pictures, which are found by their content.

    Raises:
        CohortError: naming by case id those that are not in the folder.
    """
    paths, _, _ = list_pictures(root)
    places = {record.digest: record.path for record in inspect_pictures(root, paths, progress=False) if record.digest}
    missing = [f"case {item['case_id']}" for item in items if item["image_sha256"] not in places]
    if missing:
        raise CohortError("dataset_dir does not hold these pictures of the datalist; is it the right folder?", missing)
    return [{**item, "image": places[item["image_sha256"]]} for item in items]
