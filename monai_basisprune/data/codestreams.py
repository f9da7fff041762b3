"""What a compressed image says of its own size, read before any decoder makes room for it.

The decoders believe the compressed data, not the DICOM header: a few bytes can ask for gigabytes. Sizes stand in the
frame header of JPEG and JPEG-LS (ITU-T T.81, B.2.2; T.87, C.2.2) and in the SIZ segment of JPEG 2000 (T.800, A.5.1).
"""

from __future__ import annotations

import re
import struct

from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.uid import UID, JPEG2000TransferSyntaxes, RLELossless

from monai_basisprune.data.elements import element_text, is_uid

__all__ = ["codestream_size", "compressed_problem"]

# start of frame: all of JPEG but DHT, JPG and DAC, and that of JPEG-LS
_FRAMES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_SLACK = 1 << 16


def compressed_problem(dataset: Dataset, rows: int, columns: int, sample_bytes: int) -> str | None:
    """Return what keeps a compressed image from being given to a decoder, or None; also for one not compressed.

    Args:
        dataset: a parsed DICOM data set with PixelData.
        rows: height that its header says.
        columns: width that its header says.
        sample_bytes: bytes of a pixel that its header says.
    """
    meta = getattr(dataset, "file_meta", None)
    text = "" if meta is None else element_text(meta, "TransferSyntaxUID")
    syntax = UID(text if is_uid(text) else "")
    if not syntax.is_transfer_syntax or not syntax.is_encapsulated:
        return None
    try:
        value = dataset.get_item("PixelData").value
    except Exception:  # pydicom converts here what it had to look into, and raises many types
        value = None
    if not isinstance(value, bytes):
        return "has pixels that cannot be read; export it again"
    if len(value) > 2 * rows * columns * sample_bytes + _SLACK:
        return f"has {len(value)} bytes of compressed pixels, far more than its {rows} x {columns} pixels need"
    if syntax == RLELossless:  # holds no size; what it can unpack to follows from its bytes
        return None
    try:
        fragments = list(generate_fragments(value))
        stream = b"".join(fragments[1:])
        found = codestream_size(stream, syntax in JPEG2000TransferSyntaxes or b"\xff\x4f\xff\x51" in stream[:4096])
    except Exception:  # of pydicom, for what is cut short
        found = None
    if found is None:
        return "has compressed pixels without a readable size of their own; copy or export it again"
    if found != (rows, columns):
        return f"holds compressed pixels of {found[0]} x {found[1]}, its header says {rows} x {columns}"
    return None


def codestream_size(stream: bytes, jpeg_2000: bool = False) -> tuple[int, int] | None:
    """Return rows and columns of a compressed image, or None if they cannot be read.

    Args:
        stream: the bytes of one image.
        jpeg_2000: whether it is JPEG 2000, else it is JPEG or JPEG-LS.
    """
    if jpeg_2000:
        places = [match.start() for match in re.finditer(rb"\xff\x4f\xff\x51", stream)]
        if len(places) != 1 or len(stream) < places[0] + 24:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", stream, places[0] + 8)
        return bottom - top, right - left
    place = 2
    if stream[:2] != b"\xff\xd8":
        return None
    sizes = set()
    while place + 4 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        if marker in _BARE:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", stream, place + 2)
        if marker in _FRAMES and place + 9 <= len(stream):
            sizes.add(struct.unpack_from(">2H", stream, place + 5))
        if marker == 0xDA:  # the pixels begin
            break
        place += 2 + max(length, 2)
    return sizes.pop() if len(sizes) == 1 else None
