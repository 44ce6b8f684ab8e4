"""PNG and JPEG files that hold only pixels, decoded without Pillow's readers.

Of a small file Pillow's readers, which are Python, take more time than its decoders, which are C.
"""

import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageFile

__all__ = [
    "DAMAGE",
    "plain_image",
]

DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, AttributeError),
)  # what Pillow's readers have been seen to raise on bad bytes

Wanted = Callable[[int, int], bool]

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_MODES = {(8, 0): "L", (8, 2): "RGB"}  # of depth and colour type
_PNG_BEFORE = {b"gAMA": 4, b"pHYs": 9, b"sRGB": 1, b"cHRM": 32}  # lengths of what Pillow ignores
_HEADER = struct.Struct(">II5B")  # width, height, depth, colour type, three methods
_CHUNK = struct.Struct(">I4s")

_JPEG = b"\xff\xd8\xff"
_JPEG_MODES = {(8, 1): "L", (8, 3): "RGB"}  # of bits and the number of components
_SEGMENT = struct.Struct(">cBH")
_FRAME = struct.Struct(">BHHB")  # bits, height, width, components
_JFIF, _QUANTISATION, _SCAN = 0xE0, 0xDB, 0xDA
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; Huffman codes
_OTHERS = frozenset({0xC4, 0xDD, 0xFE})  # Huffman codes, restart interval, comment
_TABLE_BYTES = 65  # of 64 steps in 8 bits, and its number
_TABLES = frozenset(range(16))  # numbers of tables in 8 bits; from 16 on they have 16
_JFIF_HEAD = struct.Struct(">5sHBHHBB")  # what Pillow reads of it


def plain_image(data: bytes, wanted: Wanted) -> Image.Image | None:
    """Decode a PNG or JPEG that holds only pixels by Pillow's decoders, without its readers.

    Of a small file the readers, which are Python, take more time than the decoders, which are C. A
    file of 8 bits of grey or colour without transparency, orientation, frames or interlacing needs
    only the decoder. Of any other file, and of a damaged one, the answer is None: `Image.open` then
    gives the pixels or the error. wanted: whether a picture of this width and height is to be
    decoded here.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        return None
    try:
        if data.startswith(_PNG):
            return _png(data, wanted)
        return _jpeg(data, wanted) if data.startswith(_JPEG) else None
    except DAMAGE:
        return None


def _png(data: bytes, wanted: Wanted) -> Image.Image | None:
    width, height, depth, colour, *methods = _HEADER.unpack_from(data, len(_PNG))
    mode = _PNG_MODES.get((depth, colour))
    if mode is None or any(methods) or not (width and height and wanted(width, height)):
        return None
    view = memoryview(data)
    place = len(_PNG) + _HEADER.size
    if not _is_whole(view, 8, place):
        return None
    place += 4
    parts: list[memoryview] = []
    while True:
        length, kind = _CHUNK.unpack_from(data, place)
        end = place + _CHUNK.size + length
        if not _is_whole(view, place, end):
            return None
        if kind == b"IDAT":
            parts.append(view[place + _CHUNK.size : end])
        elif kind == b"IEND":
            pixels = parts[0] if len(parts) == 1 else b"".join(parts)
            return Image.frombytes(mode, (width, height), pixels, "zip", mode)
        elif parts or length != _PNG_BEFORE.get(kind):
            return None
        place = end + 4


def _is_whole(view: memoryview, start: int, end: int) -> bool:
    """Say whether the chunk from `start` to `end` is followed by its checksum."""
    return zlib.crc32(view[start + 4 : end]) == int.from_bytes(view[end : end + 4], "big")


def _jpeg(data: bytes, wanted: Wanted) -> Image.Image | None:
    mode, size, place = None, (0, 0), 2
    while True:
        mark, marker, length = _SEGMENT.unpack_from(data, place)
        start, end = place + _SEGMENT.size, place + 2 + length
        if mark != b"\xff" or length < 2 or end > len(data):
            return None
        if marker == _SCAN:
            return None if mode is None else Image.frombytes(mode, size, data, "jpeg", mode, "")
        if marker in _FRAMES:
            bits, height, width, components = _FRAME.unpack_from(data, start)
            again, mode = mode is not None, _JPEG_MODES.get((bits, components))
            size = width, height
            good = mode is not None and end - start == _FRAME.size + 3 * components
            if again or not good or not (width and height and wanted(width, height)):
                return None
        elif marker == _QUANTISATION:
            numbers = data[start:end:_TABLE_BYTES]
            if (end - start) % _TABLE_BYTES or not _TABLES.issuperset(numbers):
                return None
        elif marker == _JFIF:
            if end - start < _JFIF_HEAD.size or data[start : start + 5] != b"JFIF\0":
                return None
        elif marker not in _OTHERS:
            return None
        place = end
