"""Makes hostile files out of good ones: blind changes of bytes, and changes that know the format."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_LONG = 70_000
EVIL_TEXTS = (
    *("", " ", "\0", "a\0b", "nan", "inf", "-1", "1e999", "0x10", "9" * 400, "../../../etc/passwd", "/etc/passwd"),
    *("C:\\Windows\\x", "..\\..\\x", "//host/share", "CON", "a" * 300, "a/" * 200, "~", ".", "..", "\u202e\u0000gnp"),
    *("\x1b[2J\x1b]0;x\x07", "\r\n", "é\u0301", "\ufeff", "\ud800", "𝟙", "１", "<script>alert(1)</script>", "%s%n{0}"),
    *("$setattr(__import__('sys'), 'hostile', 1)", "@bundle_root", "%train.json::run", "=cmd|' /C x'!A1"),
    *("${jndi:x}", "{{ 7 * 7 }}", "' OR 1=1 --", "x" * _LONG),
)
_EVIL_NUMBERS = (
    *(0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**32, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400, True, False, 65536, 10**9),
)


def blind(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change bytes without knowing what they mean, once or several times."""
    work = bytearray(data)
    for _ in range(1 + min(int(rng.expovariate(1.2)), 7)):
        place = rng.randrange(len(work) + 1)
        kind = rng.randrange(9)
        if kind == 0 and place < len(work):
            work[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(work):
            work[place] = rng.choice((0, 0xFF, 0x80, 0x7F, rng.randrange(256)))
        elif kind == 2:
            order, size = rng.choice("<>"), rng.choice("HI")
            value = rng.choice(_INTEGERS) & (0xFFFF if size == "H" else 0xFFFFFFFF)
            packed = struct.pack(order + size, value)
            work[place : place + len(packed)] = packed
        elif kind == 3:
            del work[place:]
        elif kind == 4:
            del work[place : place + _length(rng)]
        elif kind == 5:
            work[place:place] = work[place : place + _length(rng)] * rng.choice((1, 2, 50))
        elif kind == 6:
            work[place:place] = rng.randbytes(_length(rng))
        elif kind == 7:
            other = rng.choice(others)
            work[place:] = other[rng.randrange(len(other) + 1) :]
        else:
            start = rng.randrange(len(work) + 1)
            work[place : place + 16] = work[start : start + 16]
    return bytes(work)


def _length(rng: random.Random) -> int:
    return rng.choice((1, 2, 4, 8, 64, 1000))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value[:20]):
            found += _places(part, (*path, key))
    return found


def evil_value(rng: random.Random, old: Any = None) -> Any:
    """Return a value of JSON that hardly anybody expects."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(EVIL_TEXTS)
    if kind == 1:
        return rng.choice(_EVIL_NUMBERS)
    if kind == 2:
        return rng.choice((None, [], {}, [[]], {"": None}, [None] * 3))
    if kind == 3:
        return [copy.deepcopy(old)]
    if kind == 4:
        return {rng.choice(EVIL_TEXTS): old}
    if kind == 5:
        return [rng.choice(_EVIL_NUMBERS) for _ in range(rng.choice((1, 3, 300)))]
    if kind == 6 and isinstance(old, (int, float)) and not isinstance(old, bool):
        return rng.choice(
            (-old, old + 1, float(min(max(old, -1e99), 1e99)), f"{old:.3g}" if abs(old) < 1e99 else "9", old * 10**6)
        )
    if kind == 7 and isinstance(old, (list, str)):
        return old * rng.choice((0, 2, 20)) if len(old) < 1000 else old[:1]
    return "\ue000DEEP" if rng.random() < 0.3 else rng.choice(EVIL_TEXTS)


def json_aware(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change values, keys and nesting of a JSON file that stays one; sometimes a key stands twice."""
    content = json.loads(data)
    for _ in range(1 + min(int(rng.expovariate(1.2)), 5)):
        path = rng.choice(_places(content))
        if not path:
            if rng.random() < 0.05:
                content = evil_value(rng, content)
            continue
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        kind, key = rng.randrange(8), path[-1]
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(EVIL_TEXTS)] = parent.pop(key)
        elif kind == 2 and isinstance(parent, dict):
            parent[f"\ue000TWICE{key}"] = evil_value(rng, parent[key])
        elif kind == 3 and isinstance(parent, list):
            parent.insert(0, copy.deepcopy(rng.choice(parent)))
        elif kind == 4 and isinstance(parent, dict):
            parent[rng.choice(list(parent))] = copy.deepcopy(parent[key])
        else:
            parent[key] = evil_value(rng, parent[key])
        if not isinstance(content, (dict, list)):
            break
    depth = rng.choice((30, 100, 900, 5000, 100_000))
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    for mark in ("\ue000", "\\ue000"):
        text = text.replace(f'"{mark}DEEP"', rng.choice("[{")[0].replace("{", '{"a":') * depth)
        text = text.replace(f"{mark}TWICE", "")
    raw = text.encode("utf-8", errors="surrogatepass")
    return blind(rng, raw, others) if rng.random() < 0.1 else raw


def table_aware(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change cells, rows, separators and the encoding of a table."""
    text = data.decode("utf-8", errors="replace")
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(1 + min(int(rng.expovariate(1.2)), 6)):
        row = rng.choice(lines)
        kind = rng.randrange(7)
        if kind == 0:
            row[rng.randrange(len(row))] = rng.choice(EVIL_TEXTS)
        elif kind == 1:
            row.insert(0, rng.choice(('"', '""', "'", "label", "image", '"a\n', "\t", "|")))
        elif kind == 2:
            row += [rng.choice(("", "x"))] * rng.choice((1, 5, 3000))
        elif kind == 3:
            lines.append(list(row))
        elif kind == 4:
            lines.insert(0, [rng.choice(("sep=;", "", "x" * 200_000, "image", ",,,,"))])
        elif kind == 5 and len(row) > 1:
            row.pop()
        else:
            row[0] = rng.choice(("1", "0.0", "999999999", "positive", "９"))
    text = "\n".join(rng.choice((",", ",", ";")).join(row) for row in lines)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252", "utf-32"))
    raw = text.encode(encoding, errors="replace")
    return blind(rng, raw, others) if rng.random() < 0.3 else raw


_LONG_VR = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR")


def _elements(data: bytes) -> tuple[bytes, list[list[bytes]]]:
    """Split a DICOM file of Explicit VR Little Endian into its start and [tag, VR, length, value] of each element."""
    place, found = 132, []
    while place + 8 <= len(data):
        tag, vr = data[place : place + 4], data[place + 4 : place + 6]
        start = place + (12 if vr in _LONG_VR else 8)
        packed = data[place + (8 if vr in _LONG_VR else 6) : start]
        length = int.from_bytes(packed, "little")
        if length == 0xFFFFFFFF:
            length = len(data) - start
        found.append([tag, vr, packed, data[start : start + length]])
        place = start + length
    return data[:132], found


def dicom_aware(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change values, lengths, types, tags and the order of DICOM elements."""
    head, elements = _elements(data)
    if not elements:
        return blind(rng, data, others)
    for _ in range(1 + min(int(rng.expovariate(1.2)), 5)):
        # the elements of the image (group 0028) and the header before any other
        own = [e for e in elements if e[0][:2] in (b"\x28\x00", b"\x02\x00")] if rng.random() < 0.6 else elements
        element = rng.choice(own or elements)
        kind = rng.randrange(11)
        if kind == 0:
            element[3] = rng.choice(EVIL_TEXTS).encode("utf-8", errors="replace")[:60_000]
        elif kind == 1:
            element[3] = b"".join(
                struct.pack("<H", rng.choice(_INTEGERS) & 0xFFFF) for _ in range(rng.choice((1, 2, 3)))
            )
        elif kind == 2:
            element[2] = struct.pack("<I", rng.choice(_INTEGERS))[: len(element[2])]
            continue
        elif kind == 3:
            element[1] = rng.choice((*_LONG_VR, b"US", b"SS", b"DS", b"IS", b"UI", b"PN", b"AT", b"FD", b"\0\0", b"ZZ"))
            width = 6 if element[1] in _LONG_VR else 2
            element[2] = struct.pack("<I", len(element[3]))[:2].rjust(width, b"\0") if width == 6 else element[2][-2:]
        elif kind == 4:
            element[0] = struct.pack(
                "<HH", *(rng.choice((0x28, 0x02, 0x08, 0x10, 0x7FE0, 0xFFFE)), rng.randrange(0x1200))
            )
        elif kind == 5:
            elements.insert(rng.randrange(len(elements) + 1), list(element))
        elif kind == 6:
            elements.remove(element)
            if not elements:
                break
        elif kind == 7:
            rng.shuffle(elements) if rng.random() < 0.2 else elements.reverse()
        elif kind == 8:
            element[3] = element[3] * rng.choice((0, 2, 100))
        elif kind == 9:
            element[3] = blind(rng, element[3], others)
        else:
            depth = rng.choice((1, 20, 400, 3000))
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x28\x00\x10\x30SQ\0\0\xff\xff\xff\xff"
            elements.append([b"\x28\x00\x10\x30", b"SQ", b"\0\0\xff\xff\xff\xff", item * depth])
            continue
        width = len(element[2])
        size = struct.pack("<I", len(element[3]))
        element[2] = b"\0\0" + size if width == 6 else size[:2]
    raw = head + b"".join(b"".join(element) for element in elements)
    return blind(rng, raw, others) if rng.random() < 0.15 else raw


def archive_aware(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change the parts of a zip archive: their names, contents and compression, with check sums that are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 1 << 24:
                return blind(rng, data, others)
            parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:
        return blind(rng, data, others)
    for _ in range(1 + min(int(rng.expovariate(1.2)), 4)):
        index = rng.randrange(len(parts))
        if rng.random() < 0.5:  # the pickle says what the rest means
            index = next((i for i, (name, _) in enumerate(parts) if name.endswith(".pkl")), index)
        name, content = parts[index]
        kind = rng.randrange(7)
        if kind == 0:
            parts[index] = (
                rng.choice(("../../escaped", "/escaped", f"{name}x", "archive/../data.pkl", name.upper())),
                content,
            )
        elif kind == 1:
            del parts[index]
            if not parts:
                break
        elif kind == 2:
            parts.append((name, content))
        elif kind == 3:
            parts[index] = (name, bytes(1 << 20) if rng.random() < 0.5 else content * 3)
        else:
            parts[index] = (name, blind(rng, content, [content for _, content in parts]))
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(
            stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        ) as new:
            for name, content in parts:
                new.writestr(name, content)
    raw = stream.getvalue()
    return blind(rng, raw, others) if rng.random() < 0.1 else raw
