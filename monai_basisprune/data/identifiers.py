"""Texts that name a patient, as this process has met them: kept in memory only, to be taken out of what is shown.

The preflight and the labels table fill it, a run adds the folders that it was given, and
:mod:`monai_basisprune.redaction` takes the texts out of logs, warnings and tracebacks.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import monai
import torch
from pydicom.dataset import Dataset

from monai_basisprune.data.elements import element_text

__all__ = ["REMOVED", "PrivateTexts", "known", "remember_dataset"]

REMOVED = "[removed]"
"""What stands where a text was taken out."""

IDENTIFYING_KEYWORDS = (
    *("PatientID", "PatientName", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName"),
    *("PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "MedicalRecordLocator"),
    *("AccessionNumber", "ResponsiblePerson"),
)
"""Elements of a DICOM file whose text names a patient."""

COMMON_FOLDERS = ("home", "tmp", "mnt", "media", "data", "usr", "var", "opt", "root", "srv", "Users", "Volumes")
"""Folders at the top of a file system, which name nobody."""

_WORD = re.compile(r"[^\W_]+")
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)")
_TAIL = re.compile(r"""[^\s'"<>|,;:()\[\]{}]*""")
_MOST_WORDS = 12
_SHORTEST, _SHORTEST_NUMBER = 3, 4


class PrivateTexts:
    """Texts and folders that must not be shown, and the removal of both.

    A text is found where it stands as words of their own, in the spelling in which it was read and as the usual
    escapes of Python, JSON and addresses write it. A folder is found in a path with all that lies below it, and so
    are the folders above it; those of the program itself stay readable.

    Numbers of fewer than 4 digits and Latin words of fewer than 3 letters are not taken out: they could be anything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: set[str] = set()
        self._most_words = 0
        self._folders: dict[str, bool] = {}  # how a path starts, and whether it may be shown
        self._pattern: re.Pattern[str] | None = None

    def remember(self, values: Iterable[str]) -> None:
        """Add texts such as ids, names (their parts count, too) and dates."""
        found = {form for value in values for part in _parts(value) for form in _spellings(part)}
        with self._lock:
            self._add(found)

    def remember_files(self, names: Iterable[str | PurePath]) -> None:
        """Add names of files and folders, and all their parts but plain words such as ``images``."""
        found = {form for name in names for part in _path_parts(PurePath(name)) for form in _spellings(part)}
        with self._lock:
            self._add(found)

    def remember_folders(self, paths: Iterable[str | os.PathLike[str] | None]) -> None:
        """Add folders or files as absolute or relative paths, with what lies below and above them."""
        given = [os.fspath(path) for path in paths if path is not None]
        whole = {path for text in given for path in (Path(text).absolute(), Path(os.path.realpath(text)))}
        hidden = {str(path) for path in whole} | {text for text in given if re.search(r"[/\\].*\w", text)}
        hidden |= {str(p) for path in whole for p in path.parents if p != Path(p.anchor) and not _is_common(p)}
        code = {str(path) for path in _code_folders()}
        names = {part for path in whole for part in path.parts[1:]} - {p for c in code for p in Path(c).parts}
        self.remember_files(name for name in names if name not in COMMON_FOLDERS)
        with self._lock:
            for paths_of, shown in ((hidden - code, False), (code, True)):
                self._folders.update({form: shown for path in paths_of for form in _escapes(path.rstrip("/\\"))})
            starts = "|".join(re.escape(form) for form in sorted(self._folders, key=len, reverse=True))
            self._pattern = re.compile(rf"(?<!\w)(?:{starts})(?!\w)") if self._folders else None

    def texts(self) -> set[str]:
        """Return the texts, for another process; folders are not among them."""
        with self._lock:
            return set(self._texts)

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._texts, self._most_words, self._folders, self._pattern = set(), 0, {}, None

    def redacted(self, text: str) -> str:
        """Return a text with ``[removed]`` in place of what is known; the same object where there is nothing."""
        spans, shown = self._path_spans(text)
        spans += [span for span in self._text_spans(text) if not any(a <= span[0] and span[1] <= b for a, b in shown)]
        if not spans:
            return text
        pieces, end = [], 0
        for start, stop in sorted(spans):
            if start >= end:
                pieces += [text[end:start], REMOVED]
            end = max(end, stop)
        return "".join([*pieces, text[end:]])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock behind, for the process of another loader."""
        with self._lock:
            return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def take(self, other: PrivateTexts) -> None:
        """Know what another one knows, and nothing else."""
        state = other.__getstate__()
        with self._lock:
            self.__dict__.update(state)

    def _add(self, texts: set[str]) -> None:
        self._texts |= texts
        self._most_words = max([self._most_words, *(len(_WORD.findall(text)) for text in texts)])

    def _text_spans(self, text: str) -> Iterator[tuple[int, int]]:
        if not self._texts:
            return
        words = [match.span() for match in _WORD.finditer(text)]
        first = 0
        while first < len(words):
            start, following = words[first][0], first + 1
            for last in range(min(first + self._most_words, len(words)) - 1, first - 1, -1):
                if text[start : words[last][1]] in self._texts:
                    yield start, words[last][1]
                    following = last + 1
                    break
            first = following

    def _path_spans(self, text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return where private paths are, to their ends, and where paths of the program are."""
        hidden: list[tuple[int, int]] = []
        shown: list[tuple[int, int]] = []
        if self._pattern is None:
            return hidden, shown
        for match in self._pattern.finditer(text):
            start, stop = match.span()
            tail = _TAIL.match(text, stop)
            stop = stop if tail is None else tail.end()
            if self._folders.get(match.group(), False):
                shown.append((start, stop))
                continue
            quotation = text[start - 1 : start]
            if quotation in ("'", '"') and start:
                closing = text.find(quotation, stop)
                line_end = text.find("\n", stop)
                if closing >= 0 and (line_end < 0 or closing < line_end):
                    stop = closing
            hidden.append((start, stop))
        return hidden, shown


known = PrivateTexts()
"""What this process knows. It is never written."""


def remember_dataset(dataset: Dataset) -> None:
    """Add what a DICOM file says about who its patient is."""
    known.remember(text for keyword in IDENTIFYING_KEYWORDS if (text := element_text(dataset, keyword)))


def _parts(value: str) -> Iterator[str]:
    """Return a text, each of several values, and each part of a person's name."""
    yield value
    yield from re.split(r"[\\^=]", value)
    date = _DATE.fullmatch(value)
    if date:
        year, month, day = date.groups()
        yield from (f"{year}-{month}-{day}", f"{year}/{month}/{day}", f"{day}.{month}.{year}")
        yield f"{year}, {int(month)}, {int(day)}"


def _path_parts(path: PurePath) -> Iterator[str]:
    """Return a path, its folders and its name, with and without a suffix; no plain word, and no short number."""
    if len(path.parts) > 1:
        yield str(path.as_posix())
    for part in path.parts:
        stem = part.split(".")[0]
        if not re.fullmatch(r"[a-z]+|\d{1,5}", stem):
            yield from {part, stem}


def _spellings(text: str) -> set[str]:
    """Return how a text may be written, from its first to its last word; none if it is too short to tell anything."""
    core = _from_word_to_word(text)
    if len(core) < (_SHORTEST_NUMBER if core.isdigit() else _SHORTEST if core.isascii() else _SHORTEST - 1):
        return set()
    return {_from_word_to_word(form) for form in _escapes(core)}


def _from_word_to_word(text: str) -> str:
    words = list(_WORD.finditer(text))[:_MOST_WORDS]
    return text[words[0].start() : words[-1].end()] if words else ""


def _escapes(text: str) -> set[str]:
    """Return a text as it is and as Python, JSON and addresses escape it."""
    escaped = text.encode("unicode_escape").decode("ascii")
    of_bytes = repr(text.encode())[2:-1]
    return {text, escaped, of_bytes, json.dumps(text)[1:-1], quote(text), quote(text, safe="")}


def _is_common(path: Path) -> bool:
    return len(path.parts) == 2 and path.name in COMMON_FOLDERS


def _code_folders() -> set[Path]:
    """Return the folders of Python, of its packages and of this one."""
    files = (os.__file__, torch.__file__, monai.__file__, str(Path(__file__).parents[1]))
    found = {Path(file).parent for file in files if file} | {Path(sys.prefix), Path(sys.base_prefix)}
    found |= {Path(torch.__file__).parents[1], Path(monai.__file__).parents[1]}
    return {path for path in found | {Path(os.path.realpath(path)) for path in found} if len(path.parts) > 2}
