"""PNG and JPEG files that hold only pixels, decoded by Pillow's decoders without its readers.

Which to use: `decode`. Of a small file Pillow's readers, which are Python, take more time than its
decoders, which are C. A file of 8 bits of grey or colour without transparency, orientation, frames
or interlacing needs only the decoder. Of any other file, and of a damaged one, the answer is None:
`Image.open` then gives the pixels or the error.
"""

import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageFile

__all__ = ["decode"]

_Wanted = Callable[[int, int], bool]
_DAMAGE = (ValueError, LookupError, OSError, MemoryError, struct.error)

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_MODES = {(8, 0): "L", (8, 2): "RGB"}  # of depth and colour type
_PNG_BEFORE = {b"gAMA": 4, b"pHYs": 9, b"sRGB": 1, b"cHRM": 32}  # lengths of what Pillow ignores
_HEADER = struct.Struct(">II5B")  # width, height, depth, colour type, three methods
_CHUNK = struct.Struct(">I4s")

_JPEG = b"\xff\xd8\xff"
_JPEG_MODES = {1: "L", 3: "RGB"}  # of the number of components
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")  # bits, height, width, components
_JFIF, _QUANTISATION, _SCAN = 0xE0, 0xDB, 0xDA
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; Huffman codes
_OTHERS = frozenset({0xC4, 0xDD, 0xFE})  # Huffman codes, restart interval, comment
_TABLE_BYTES = 65  # of 64 steps in 8 bits, and its number


def decode(data: bytes, wanted: _Wanted) -> Image.Image | None:
    """Return the decoded picture, mode "L" or "RGB"; None where it takes more than a decoder.

    wanted: whether a picture of this width and height is to be decoded here.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        return None
    try:
        if data.startswith(_PNG):
            return _png(data, wanted)
        return _jpeg(data, wanted) if data.startswith(_JPEG) else None
    except _DAMAGE:
        return None


def _png(data: bytes, wanted: _Wanted) -> Image.Image | None:
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


def _jpeg(data: bytes, wanted: _Wanted) -> Image.Image | None:
    mode, size, place = None, (0, 0), 2
    while True:
        mark, marker, length = _SEGMENT.unpack_from(data, place)
        start, end = place + _SEGMENT.size, place + 2 + length
        if mark != 0xFF or length < 2 or end > len(data):
            return None
        if marker == _SCAN:
            return None if mode is None else Image.frombytes(mode, size, data, "jpeg", mode, "")
        if marker in _FRAMES:
            bits, height, width, components = _FRAME.unpack_from(data, start)
            again, size, mode = mode is not None, (width, height), _JPEG_MODES.get(components)
            good = bits == 8 and mode is not None and length == 8 + 3 * components
            if again or not good or not (width and height and wanted(width, height)):
                return None
        elif marker == _QUANTISATION:
            numbers = data[start:end:_TABLE_BYTES]  # of 16 bits a step, from 16
            if (end - start) % _TABLE_BYTES or max(numbers, default=0) > 15:
                return None
        elif marker == _JFIF:
            if length < 16 or data[start : start + 5] != b"JFIF\0":
                return None
        elif marker not in _OTHERS:
            return None
        place = end
