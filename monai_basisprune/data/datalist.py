"""Writes a split cohort as a MONAI datalist (JSON), and reads a section of it back, checked again."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from monai_basisprune.data.cohort import Cohort, read_cohort
from monai_basisprune.data.preflight import inspect_files, list_files
from monai_basisprune.data.pseudonyms import load_or_create_salt
from monai_basisprune.data.splits import SECTIONS, check_fractions, split_cohort
from monai_basisprune.errors import CohortError
from monai_basisprune.files import write_atomically
from monai_basisprune.reading import read_json

__all__ = ["divide_cohort", "load_split", "prepare_datalist", "split_hash", "write_datalist"]

FORMAT_VERSION = 1
_TEXT_KEYS = ("case_id", "patient_id")


def split_hash(sections: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Hash which image with which label is in which section; paths, order and the salt of the ids do not count.

    Args:
        sections: the items under "training", "validation" and "test"; other keys do not count.
    """
    content = {
        name: sorted([item.get("image_sha256") or item["case_id"], item["label"]] for item in sections[name])
        for name in SECTIONS
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def prepare_datalist(
    dataset_dir: str | Path,
    output_file: str | Path,
    labels_file: str | Path | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    image_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    salt: str | bytes | None = None,
    on_problem: Literal["raise", "skip"] = "raise",
    progress: bool = True,
    image_paths: bool = True,
) -> dict[str, Any]:
    """Read a cohort, split it and write a MONAI datalist; equal inputs write an equal file.

    Beside the datalist stands the file ``salt`` (mode 600), the secret behind the hashes: keep it to get the same ids
    again, delete it to make them untraceable. Image paths in the datalist are relative to `dataset_dir`.

    Names of files and folders can hold names of patients. Without them in the file, :func:`load_split` finds each
    image by the hash of its content.

    Args:
        dataset_dir: folder of DICOM files; see :func:`read_cohort` for all that is not explained here.
        output_file: the datalist (JSON); its folder is made where needed.
        labels_file: table of labels.
        class_names: names of the classes.
        image_column: column of images.
        label_column: column of labels.
        patient_column: column of patients.
        fractions: shares for training, validation, test; unused when the table has a split column.
        seed: seed of the split; unused when the table has a split column.
        salt: secret for the hashes instead of the file ``salt``.
        on_problem: "raise" or "skip"; what is skipped is shown as a warning and counted in the datalist.
        progress: whether to show a progress bar.
        image_paths: whether the file holds the paths of the images; what is returned always does.

    Returns:
        What was written, with the paths of the images: the three sections (items with ``image``, ``label``,
        ``case_id``, ``patient_id`` and, where known, ``sex``, ``age``, ``manufacturer``, ``view_position``,
        ``pixel_spacing``), ``class_names``, ``fractions`` and ``seed`` (null when the table splits),
        ``split_source``, ``split_sha256``, ``skipped_problems``, ``format_version``.

    Raises:
        CohortError: when the cohort cannot be used or split.
        ConfigurationError: when an argument cannot be used.
    """
    shares = check_fractions(fractions)
    path = Path(output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = load_or_create_salt(path.parent) if salt is None else salt
    cohort = read_cohort(
        dataset_dir,
        labels_file=labels_file,
        class_names=class_names,
        image_column=image_column,
        label_column=label_column,
        patient_column=patient_column,
        salt=secret,
        on_problem=on_problem,
        progress=progress,
    )
    return divide_cohort(cohort, path, shares, seed, image_paths)


def divide_cohort(
    cohort: Cohort, path: Path, fractions: Sequence[float], seed: int = 0, image_paths: bool = True
) -> dict[str, Any]:
    """Split a cohort of any kind of images and write its datalist; see :func:`prepare_datalist`."""
    shares = check_fractions(fractions)
    if cohort.skipped:
        lines = "\n".join(f"  - {line}" for line in cohort.skipped)
        warnings.warn(f"left out of the datalist, {len(cohort.skipped)} problems:\n{lines}", UserWarning, stacklevel=2)
    sections = split_cohort(cohort, shares, seed)
    datalist: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "class_names": list(cohort.class_names),
        "split_source": "labels table" if cohort.has_sections else "random",
        "fractions": None if cohort.has_sections else list(shares),
        "seed": None if cohort.has_sections else seed,
        "skipped_problems": len(cohort.skipped),
    }
    items = {name: [case.to_item() for case in sections[name]] for name in SECTIONS}
    datalist["split_sha256"] = split_hash(items)
    datalist.update(items)
    write_datalist(datalist, path, image_paths)
    return datalist


def write_datalist(datalist: Mapping[str, Any], path: str | Path, image_paths: bool = True) -> None:
    """Write a datalist, with or without the paths of its images; see :func:`prepare_datalist`."""
    written = dict(datalist)
    if not image_paths:
        for name in SECTIONS:
            written[name] = [{key: item[key] for key in item if key != "image"} for item in datalist[name]]
    write_atomically(path, json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _find_images(items: Sequence[Mapping[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Return items with the paths of their images; those that a datalist leaves out are found by content."""
    if all("image" in item for item in items):
        return [dict(item) for item in items]
    paths, _ = list_files(root)
    places = {record.digest: record.path for record in inspect_files(root, paths, progress=False) if record.digest}
    return [{"image": places.get(item.get("image_sha256", ""), ""), **item} for item in items]


def _read_datalist(datalist: str | Path | Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read the sections of a datalist and check their form; the class names come under "class_names"."""
    if isinstance(datalist, Mapping):
        content: Any = datalist
    else:
        try:
            content = read_json(datalist)
        except OSError as error:
            raise CohortError(
                f"The datalist cannot be opened ({type(error).__name__}); write it with prepare_datalist."
            ) from None
        except ValueError as error:
            raise CohortError(
                f"The datalist is not valid JSON ({error}); write it again with prepare_datalist."
            ) from None
    if not isinstance(content, Mapping):
        raise CohortError("The datalist holds no sections; write it again with prepare_datalist.")
    if content.get("format_version") != FORMAT_VERSION:
        raise CohortError(
            f"The datalist has format_version {str(content.get('format_version'))[:40]!r}, known is {FORMAT_VERSION}; "
            "write it again with prepare_datalist."
        )
    sections: dict[str, list[dict[str, Any]]] = {}
    names = content.get("class_names")
    classes = len(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else 0
    problems = [] if classes > 1 else ["class_names: must be a list of at least two names"]
    for name in SECTIONS:
        items = content.get(name)
        if not isinstance(items, list) or not items:
            problems.append(f"section {name}: is {'missing' if items is None else 'empty or not a list'}")
            continue
        for number, item in enumerate(items):
            if not isinstance(item, dict) or not all(_is_id(item.get(key)) for key in _TEXT_KEYS):
                problems.append(f"section {name}, item {number}: must have the texts {', '.join(_TEXT_KEYS)}")
            elif not all(isinstance(item.get(key, ""), str) for key in ("image", "image_sha256")) or not (
                item.get("image") or item.get("image_sha256")
            ):
                problems.append(f"section {name}, item {number}: must have the text image or image_sha256")
            elif not _is_label(item.get("label"), max(classes, 1)):
                problems.append(f"section {name}, item {number}: must have a label that is an index of class_names")
        sections[name] = items
    if problems:
        raise CohortError("The datalist cannot be used; write it again with prepare_datalist.", problems)
    if content.get("split_sha256") != split_hash(sections):
        raise CohortError(
            "The datalist does not match its split_sha256: cases, labels or sections were changed after it was "
            "written, so results could not be traced to it. Write it again with prepare_datalist."
        )
    return sections


def _is_label(label: Any, classes: int) -> bool:
    """Tell whether a label is the index of a class, or 0 and 1 for each of several findings."""
    if isinstance(label, list):
        return len(label) == classes and all(type(one) is int and one in (0, 1) for one in label)
    return type(label) is int and 0 <= label < classes


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _leaves(image: str) -> bool:
    """Tell whether a written path would leave the folder, on this system or another."""
    windows = PureWindowsPath(image)
    return PurePosixPath(image).is_absolute() or bool(windows.drive) or bool(windows.root) or ".." in windows.parts


def load_split(datalist: str | Path | Mapping[str, Any], section: str, dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Load one section of a datalist for a MONAI `Dataset`, after checking all of it.

    Args:
        datalist: path of a file that :func:`prepare_datalist` wrote, or what it returned.
        section: "training", "validation" or "test".
        dataset_dir: folder that the image paths are relative to. Where the datalist has none, every file in it is
            read, to find the images by their content.

    Returns:
        Dictionaries with ``image`` (absolute path), ``label``, ``case_id``, ``patient_id``. The attributes for an
        audit stay in the datalist: they are not there for every case, and a batch needs equal keys.

    Raises:
        CohortError: for an unknown or empty section, a wrong form, a changed split, a patient in two sections, a path
            that leaves `dataset_dir`, or a missing file; cases are named by their case_id.
    """
    if section not in SECTIONS:
        raise CohortError(f"The section {section!r} was asked for; a datalist has {', '.join(SECTIONS)}.")
    sections = _read_datalist(datalist)
    places: dict[str, set[str]] = defaultdict(set)
    seen: dict[str, str] = {}
    problems = []
    for name in SECTIONS:
        for item in sections[name]:
            places[item["patient_id"]].add(name)
            if item["case_id"] in seen:
                problems.append(f"case {item['case_id']}: is in {seen[item['case_id']]} and again in {name}")
            seen[item["case_id"]] = name
    for patient, where in places.items():
        if len(where) > 1:
            problems.append(f"patient {patient} (hashed): is in {', '.join(n for n in SECTIONS if n in where)}")
    root = Path(dataset_dir).absolute()
    loaded = []
    for item in _find_images(sections[section], root):
        path = root / item["image"]
        if _leaves(item["image"]):
            problems.append(f"case {item['case_id']}: has an image path that leaves dataset_dir")
        elif not item["image"] or not os.path.exists(path):  # a series of slices is a folder
            problems.append(f"case {item['case_id']}: has no file in dataset_dir; is it the right folder?")
        loaded.append({**{key: item[key] for key in ("label", "case_id", "patient_id")}, "image": str(path)})
    if problems:
        raise CohortError(f"The section {section!r} of the datalist cannot be used.", problems)
    return loaded
