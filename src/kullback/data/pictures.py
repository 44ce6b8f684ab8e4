"""One picture file to its pixels, 8-bit or deep grey: orientation, alpha, depth, size, channels.

Which to use: `header_size` looks without decoding; `read_picture` decodes and fits, `read_frames`
all frames of a file; `fit_to` brings a decoded picture to a size. Only Pillow's PNG, JPEG, WebP and
BMP readers are used, and those of GIF and TIFF where frames are asked for.

Image arrays brought to another size or number of channels, with a note of what was done.

A folder of pictures, nested as it likes, to one array; what cannot be read is named, not fatal.

Which to use: `read_folder` for a data set, `read_file` for a single picture.
"""

import hashlib
import io
import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from kullback.core import DataError, require

from . import cache, limits, workers
from .examples import Channels, Examples, Fit, Fitting, Progress, Reading, plural
from .quantisation import Grid, named

__all__ = [
    "ARCHIVES",
    "SUFFIXES",
    "Picture",
    "as_asked",
    "fit_images",
    "fit_to",
    "header_size",
    "is_background",
    "picture_files",
    "read_file",
    "read_folder",
    "read_frames",
    "read_picture",
]

_DEEP_COLOUR = (b"\x10\x02", b"\x10\x04", b"\x10\x06")  # IHDR: depth 16, colour type
_NO_FILE = "not a regular file, or a link to nothing"
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_FRAME_FORMATS = (*_FORMATS, "GIF", "TIFF")
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_SAY_ORIENTATION = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
_ITU_601 = (0.299, 0.587, 0.114)  # of red, green and blue in a grey level
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, AttributeError),
)  # what Pillow's readers have been seen to raise on bad bytes


_Wanted = Callable[[int, int], bool]

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


class Picture(NamedTuple):
    """Decoded pixels, uint8 `[H, W]` when grey and `[H, W, 3]` when not, and what was done.

    Grey pictures of 16 bits have uint16 pixels where that was asked for.
    fitted: "", or the words "shrunk and centre-cropped" and the like.
    transparent: some pixel was not opaque. background: what it was then laid over.
    recoloured: colour was turned to grey because grey was asked for.
    alpha: an alpha channel or transparent colour was left out that changed no pixel, or could not
    be applied (16-bit grey). turned: by its EXIF orientation. frames: left out after the first.
    cut: 16 bits a colour, of which the upper 8 were kept. shown: (height, width) before fitting.
    step, largest: of grey pixels of 16 bits before fitting, their greatest common divisor and
    maximum.
    """

    pixels: NDArray[Any]
    fitted: str = ""
    transparent: bool = False
    recoloured: bool = False
    alpha: bool = False
    turned: bool = False
    frames: int = 0
    cut: bool = False
    background: str = ""
    shown: tuple[int, int] = (0, 0)
    step: int = 0
    largest: int = 0


_NO_PIXELS = {2: np.empty((0, 0), np.uint8), 3: np.empty((0, 0, 0), np.uint8)}  # of so many axes


def header_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as a viewer shows it, orientation included, without decoding.

    Raises `DataError` with the reason when the bytes are not a picture.
    """
    with _silent():
        return _header_size(data, _FORMATS)


def _header_size(data: bytes, formats: tuple[str, ...]) -> tuple[int, int]:
    with _open(data, formats) as image:
        return _shown_size(image)


def read_picture(
    data: bytes,
    *,
    size: tuple[int, int] | None,
    fit: Fit = "crop",
    channels: Channels = "auto",
    deep: bool = False,
    background: str = "black",
) -> Picture:
    """Decode one picture and bring it to `size` (height, width), or leave its size when None.

    EXIF orientation is obeyed, transparency laid over a background, 16 bits of grey scaled to 8
    (kept as uint16 when `deep`), and of a moving picture the first frame is taken; the result says
    what was done. With "auto" a picture whose red, green and blue agree everywhere is grey. A JPEG
    much larger than `size` is decoded at a reduced scale.
    Raises `DataError` with the reason (damaged, not a picture, too many pixels, 16 bits a colour
    with nothing in the upper 8).
    """
    how = Reading(rules=2 if deep else 1, background=background)
    with _silent():
        return _read_frames(data, Fitting(size, fit, channels), how)[0]


def read_frames(data: bytes, fitting: Fitting, how: Reading) -> list[Picture]:
    """Decode the frames of one file that are asked for, each as `read_picture` does.

    Raises `DataError` with the reason, also for more frames than `limits` allows.
    """
    with _silent():
        return _read_frames(data, fitting, how)


def _read_frames(data: bytes, fitting: Fitting, how: Reading) -> list[Picture]:
    """`read_frames`, with warnings left to the caller, so that threads can use it."""
    plain = _plain_image(data, partial(_is_decoded_whole, fitting.size))
    if plain is not None:
        return [
            _fitted_to(plain, fitting, Picture(_NO_PIXELS[2], shown=(plain.height, plain.width)))
        ]
    with _open(data, _FRAME_FORMATS if how.frames else _FORMATS) as opened:
        count = int(getattr(opened, "n_frames", 1))
        if how.frames != "all" or count == 1:
            return [_decode(opened, data, fitting, how, left=count - 1)]
        pixels = 0 if fitting.size else count * opened.width * opened.height
        if count > limits.MAX_FRAMES or pixels > limits.MAX_FRAME_PIXELS:
            hint = "the frames as files of their own, or frames first"
            raise DataError(f"{count:,} frames, more than the safety limit. Try: {hint}")
        pictures = []
        for number in range(count):
            opened.seek(number)
            _require_few_pixels(opened)
            pictures.append(_decode(opened.copy(), data, fitting, how, left=0))
        if len({picture.pixels.shape[:2] for picture in pictures}) > 1:
            raise DataError("frames of different sizes. Try: a size, for instance --size 64")
        return pictures


def _plain_image(data: bytes, wanted: _Wanted) -> Image.Image | None:
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


def _is_decoded_whole(size: tuple[int, int] | None, width: int, height: int) -> bool:
    """Say whether a picture is neither too large nor, if a JPEG, decoded at a reduced scale."""
    most = Image.MAX_IMAGE_PIXELS
    small = most is None or width * height <= most
    return small and (size is None or min(width, height) < 4 * max(size))


def _decode(
    image: Image.Image, data: bytes, fitting: Fitting, how: Reading, *, left: int
) -> Picture:
    """Decode one frame; `left`: frames of the file that are left out."""
    size, shown = fitting.size, _shown_size(image)
    if size is not None and min(image.size) >= 4 * max(size):  # else no scale is small enough
        image.draft(None, (2 * max(size), 2 * max(size)))
    image.load()
    cut = _is_deep_colour(image, data)
    turned = _orientation(image) in range(2, 9)
    if turned:
        ImageOps.exif_transpose(image, in_place=True)
    image, background, alpha = _plain(image, deep=how.rules > 1, background=how.background)
    if cut and max(high for _, high in _extrema(image)) < limits.NEARLY_EMPTY_BYTE:
        raise DataError(
            "16 bits a colour, of which the upper 8 are read, and those are nearly empty "
            "(values of 12 bits?). Try: scale the values to 16 bits, or save them as .npy"
        )
    step = largest = 0
    if image.mode == "I":  # Lanczos resampling mixes the levels: they are looked for before it
        stored = np.asarray(image)
        step, largest = int(np.gcd.reduce(stored, axis=None)), int(stored.max())
    told = Picture(
        _NO_PIXELS[2],
        transparent=bool(background),
        alpha=alpha,
        turned=turned,
        frames=left,
        cut=cut,
        background=background,
        shown=shown,
        step=step,
        largest=largest,
    )
    return _fitted_to(image, fitting, told)


def _fitted_to(image: Image.Image, fitting: Fitting, told: Picture) -> Picture:
    """Bring a decoded picture, mode "L", "RGB" or "I", to size and channels; `told`: the rest."""
    size, recoloured, fitted = fitting.size, False, ""
    if fitting.channels == "grey" and image.mode == "RGB":
        recoloured = not _is_grey(np.asarray(image))
        image = image.convert("L")
    if size is not None and (image.height, image.width) != size:
        image, fitted = fit_to(image, size, fit=fitting.fit)
    pixels: NDArray[Any]
    if image.mode == "I":
        pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
    elif image.mode == "RGB":  # np.asarray(image), with rows of one colour: faster to stack
        rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8)
        pixels = rows.reshape(image.height, 3, image.width).transpose(0, 2, 1)
    else:
        pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width)
    if pixels.ndim == 3 and _is_grey(pixels):
        pixels = pixels[..., 0].copy()
    return told._replace(pixels=pixels, fitted=fitted, recoloured=recoloured)


def fit_to(image: Image.Image, size: tuple[int, int], *, fit: Fit) -> tuple[Image.Image, str]:
    """Bring a picture to (height, width) and say in words what that took ("" for nothing).

    "crop" scales it until it covers the size and cuts the middle out; "pad" shrinks it (never
    enlarges) until it fits inside and puts black around. Lanczos resampling.

    Example:
        >>> fit_to(Image.new("L", (28, 20)), (32, 32), fit="pad")[1]
        'padded with black'
    """
    height, width = size
    across, down = width / image.width, height / image.height
    scale = max(across, down) if fit == "crop" else min(across, down, 1.0)
    words = "" if scale == 1 else "shrunk" if scale < 1 else "enlarged"
    if fit == "crop" and scale != 1:
        kept = (min(width / scale, image.width), min(height / scale, image.height))
        left, top = (image.width - kept[0]) / 2, (image.height - kept[1]) / 2
        cut = (image.width - kept[0]) * scale >= 1 or (image.height - kept[1]) * scale >= 1
        box = (left, top, left + kept[0], top + kept[1])
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        return image, f"{words} and centre-cropped" if cut else words
    if scale != 1:
        shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(shape, Image.Resampling.LANCZOS)
    if (image.height, image.width) != size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))  # black where it is outside
        framed = "centre-cropped" if fit == "crop" else "padded with black"
        words = f"{words} and {framed}" if words else framed
    return image, words


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Pillow's warnings in; not for threads, which share the filters of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _open(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open bytes as a picture; whatever its damage makes Pillow raise becomes a `DataError`."""
    try:
        if not data:
            raise DataError("the file is empty")
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _require_few_pixels(image)
            yield image
    except Image.DecompressionBombError as error:
        raise DataError("more pixels than the safety limit for one picture") from error
    except UnidentifiedImageError as error:
        also = "PNG, JPEG, WebP, BMP, GIF or TIFF" if len(formats) > len(_FORMATS) else ""
        raise DataError(f"not a {also or 'PNG, JPEG, WebP or BMP'} picture") from error
    except _DAMAGE as error:
        raise DataError(f"damaged: {error or type(error).__name__}") from error


def _require_few_pixels(image: Image.Image) -> None:
    """Refuse a picture of more pixels than Pillow's limit, of which it only warns."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise DataError("more pixels than the safety limit for one picture")


def _shown_size(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) in range(5, 9)
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where none is told; a PNG is not decoded to find out."""
    told = not _SAY_ORIENTATION.isdisjoint(image.info) or "tag_v2" in vars(image)
    return int(image.getexif().get(ExifTags.Base.Orientation, 1)) if told else 1


def _plain(image: Image.Image, *, deep: bool, background: str) -> tuple[Image.Image, str, bool]:
    """Return the picture as "L", "RGB" or "I" (deep), and what became of its transparency.

    That is what it was laid over, and whether an alpha that does nothing was left out.
    """
    if image.mode == "F":
        raise DataError("floating-point pixels of an unknown range. Try: save them as .npy")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it
        wide, alpha = np.asarray(image).astype(np.int64), "transparency" in image.info
        if wide.min() < 0 or wide.max() >= limits.MOST_LEVELS:
            raise DataError("grey of more than 16 bits. Try: save the values as .npy")
        if deep:
            return Image.fromarray(wide.astype(np.int32)), "", alpha
        levels = (wide * 255 + 32767) // 65535
        return Image.fromarray(levels.astype(np.uint8)), "", alpha
    if not image.has_transparency_data:
        wanted = "L" if image.mode in ("1", "L") else "RGB"
        return image if image.mode == wanted else image.convert(wanted), "", False
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return layered.convert("RGB"), "", True
    if background == "auto":
        background = _contrasting(np.asarray(layered))
    below = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(below, layered).convert("RGB"), background, False


def _contrasting(pixels: NDArray[Any]) -> str:
    """Return the background, white or black, from which what is seen of `[H, W, 4]` differs more.

    What is seen: the mean grey level, weighted by alpha.
    """
    alpha = pixels[..., 3].astype(np.float64)
    grey = pixels[..., :3] @ np.asarray(_ITU_601)
    dark = float((alpha * grey).sum()) <= float(alpha.sum()) * limits.BYTE_MAX / 2
    return "white" if dark else "black"


def is_background(name: object) -> bool:
    """Say whether a background can be used: auto, white, black or #rrggbb.

    Example:
        >>> [is_background(one) for one in ("auto", "#ff8000", "teal", None)]
        [True, True, False, False]
    """
    text = str(name)
    return text in ("auto", "white", "black") or bool(re.fullmatch("#[0-9a-fA-F]{6}", text))


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Say whether a file stores 16 bits a sample of colour or of grey with alpha."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[24:26] in _DEEP_COLOUR  # its IHDR
    bits = vars(image).get("tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    several = isinstance(bits, tuple) and len(bits) > 1
    return several and max(bits) >= limits.DEEP_SAMPLE_BITS


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    found: Any = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _is_grey(pixels: NDArray[Any]) -> bool:
    red, green, blue = pixels[len(pixels) // 2, pixels.shape[1] // 2].tolist()
    if not red == green == blue:
        return False
    step = limits.PIXELS_BETWEEN_LOOKS  # colour shows in a few pixels; grey has to be looked for
    return all(
        bool((part[..., :1] == part[..., 1:]).all()) for part in (pixels[::step, ::step], pixels)
    )


def fit_images(
    examples: Examples, size: tuple[int, int] | None, *, fit: Fit, channels: Channels
) -> None:
    """Bring `examples.values` `[N, C, H, W]` to `size` and `channels`, in place, noting it.

    Raises `DataError` for vectors, for continuous images, and for values 0 and 1 that would have
    to be resampled.
    """
    if size is None and channels == "auto":
        return
    if examples.values.ndim != 4:
        length = examples.values.shape[1]
        raise DataError(f"expected images [N, C, H, W]; got vectors of {length:,} values")
    count, depth, height, width = examples.values.shape
    target = size or (height, width)
    wanted = {"auto": depth, "grey": 1, "rgb": 3}[channels]
    if target == (height, width) and wanted == depth:
        return
    if examples.values.dtype == np.float32:
        found = f"continuous images [{depth}, {height}, {width}]"
        raise DataError(f"expected 8-bit images to resize or recolour; got {found}")
    grid = examples.grid
    if grid is not None and (grid.values or (wanted < depth and len(grid.offset) > 1)):
        raise DataError(f"expected levels of one grid to resize or recolour; got {grid.describe()}")
    top = int(examples.values.max())
    plain = examples.values.dtype == np.uint8 and examples.levels == limits.BYTE_LEVELS
    fitted = np.empty((count, wanted, *target), examples.values.dtype)
    words = ""
    for row, image in zip(fitted, examples.values, strict=True):
        picture, words = _fitted(image, wanted, target, fit=fit, plain=plain)
        if top <= 1 and words.startswith(("shrunk", "enlarged")):
            raise DataError("images of values 0 and 1 cannot be resampled. Try: multiply by 255")
        row[...] = picture if plain else picture.clip(0, examples.levels - 1)
    examples.values = fitted
    if words:
        examples.notes.append(f"{plural(count, 'image')} {words} to {target[0]}x{target[1]}")
    if wanted != depth:
        done = "turned from colour to grey" if wanted == 1 else "grey, repeated in three channels"
        examples.notes.append(f"{plural(count, 'image')} {done}")


def _fitted(
    image: NDArray[Any], wanted: int, target: tuple[int, int], *, fit: Fit, plain: bool
) -> tuple[NDArray[Any], str]:
    """Bring one image `[C, H, W]` to a size and number of channels, and say what that took."""
    if plain:
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        picture, words = fit_to(picture.convert("L") if wanted == 1 else picture, target, fit=fit)
        pixels = np.asarray(picture)
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None], words
    deep = image.astype(np.int32)
    if wanted < len(image):  # ITU-R 601, as Pillow's
        deep = np.rint(np.tensordot(np.asarray(_ITU_601), deep, 1))[None].astype(np.int32)
    parts = [fit_to(Image.fromarray(channel), target, fit=fit) for channel in deep]
    return np.stack([np.asarray(part) for part, _ in parts]), parts[0][1]


SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"})
_OTHER_KINDS = "heic heif avif jp2 j2k jpx jxl svg ico ppm pgm pbm pnm tga "
_OTHER_KINDS += "psd exr hdr pcx dcm nii raw cr2 nef arw dng"
OTHER_PICTURES = frozenset(f".{kind}" for kind in _OTHER_KINDS.split())
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
SPLIT_NAMES = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
)
FRAME_SUFFIXES = SUFFIXES | {".gif", ".tif", ".tiff", ".apng"}


def read_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: Channels = "auto",
    progress: Progress | None = None,
    how: Reading | None = None,
) -> Examples:
    """Read every picture under `folder` as levels `[N, C, H, W]`, in the order of their paths.

    Levels are uint8, or int32 with a grid where all pictures are grey with 16 bits and use more
    than 256 levels of them: a depth of 12 bits is found whether the values end at 4,095 or are
    multiples of 16.

    C is 1 when every picture is grey, else 3 ("auto"). Without `size` all must have one size,
    which is kept while its shorter side is at most 64 and shrunk to that beyond. `train/` and
    `test/` sub-folders, where both exist, are the split; pictures beside them are left out.
    Raises `DataError`: no pictures, none readable, several sizes.
    """
    notes: list[str] = []
    how = how or Reading(frames="first", background="auto")
    paths, others = _listed(folder, FRAME_SUFFIXES if how.frames else SUFFIXES)
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    if divided:
        inside = [p for p in paths if _name_in(folder, p).startswith(("train/", "test/"))]
        if beside := len(paths) - len(inside):
            notes.append(f"{plural(beside, 'image')} outside train/ and test/ left out")
        paths = inside
    if not paths:
        raise DataError(_nothing_in(folder, others))
    notes += _left_out(others)
    if not divided:
        notes += _no_split(folder, paths)
    if not size:
        size = _size_of_first(paths, how, notes)
        examples = _read(folder, paths, Fitting(size, fit, channels), progress, how, alike=True)
    else:
        examples = _read(folder, paths, Fitting(size, fit, channels), progress, how)
    examples.notes[:0] = notes
    if divided:
        examples.split = "train/ and test/ folders"
        examples.is_test = np.array([name.startswith("test/") for name in examples.names])
    return examples


def read_file(
    path: Path,
    *,
    size: tuple[int, int],
    fit: Fit = "crop",
    channels: Channels = "auto",
    how: Reading | None = None,
) -> Examples:
    """Read a single picture as levels `[1, C, H, W]`. Raises `DataError` when it cannot be read."""
    how = how or Reading(frames="first", background="auto")
    return _read(path.parent, [str(path)], Fitting(size, fit, channels), None, how)


def picture_files(
    folder: Path, suffixes: frozenset[str] = SUFFIXES
) -> tuple[list[Path], Counter[str]]:
    """Return the picture files under `folder`, sorted, and a count of the other file types.

    Hidden files and folders are passed over. Linked folders are followed, each real folder once,
    so circles of links end; a link to a folder above is one. Raises `DataError` when a folder
    cannot be listed.
    """
    pictures, others = _listed(folder, suffixes)
    return [Path(path) for path in pictures], others


def _listed(folder: Path, suffixes: frozenset[str]) -> tuple[list[str], Counter[str]]:
    """`picture_files`, as strings: to make 100,000 paths takes as long as to list them."""
    pictures: list[str] = []
    others: Counter[str] = Counter()
    seen = _folders_above(folder)  # a link to one of them is a circle, not more pictures
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    if _is_folder(entry):
                        waiting.append(entry.path)
                    elif suffix in suffixes:
                        pictures.append(entry.path)
                    else:
                        others[suffix or "no suffix"] += 1
        except OSError as error:
            raise DataError(f"{here}: cannot be listed: {error.strerror or error}") from error
    pictures.sort(key=lambda path: path.replace(os.sep, "/"))
    return pictures, others


def _folders_above(folder: Path) -> set[tuple[int, int]]:
    """Return device and number of every folder that this one lies in."""
    found = set()
    for above in folder.absolute().resolve().parents:
        with suppress(OSError):
            status = above.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder; a link to itself, which cannot be asked, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class _File(NamedTuple):
    """What one file gave: its frames and digest, or the reason why it is skipped."""

    name: str
    frames: list[Picture]
    digest: bytes = b""
    skipped: str = ""


class _Packed(NamedTuple):
    """Files with all their pixels in one array, which is sent to another process at once.

    pixels: `[frames, C, H, W]` of 8 bits, which are then no longer in the files; None where not all
    have 8 bits and one size.
    """

    files: list[_File]
    pixels: NDArray[np.uint8] | None


class _Stacked:
    """The pixels of many pictures as they come, `[rows, C, H, W]`, in one array from the start."""

    def __init__(self, expected: int, *, coloured: bool) -> None:
        self.expected, self.rows, self.array = expected, 0, np.empty((0, 1, 0, 0), np.uint8)
        self.coloured = coloured

    def add(self, pixels: NDArray[np.uint8]) -> None:
        end = self.rows + len(pixels)
        self.coloured |= pixels.shape[1] == 3
        shape = (3 if self.coloured else 1, *pixels.shape[2:])
        if end > len(self.array) or shape != self.array.shape[1:]:
            larger = max(self.expected, len(self.array), end if end <= self.expected else 2 * end)
            before, self.array = self.array, _room(larger, shape)
            if self.rows:
                self.array[: self.rows] = before[: self.rows]
        self.array[self.rows : end] = pixels
        self.rows = end

    def values(self) -> NDArray[np.uint8]:
        return self.array[: self.rows]


def _room(rows: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Reserve memory for so many pictures; it is used as they are written into it."""
    try:
        return np.empty((rows, *shape), np.uint8)
    except MemoryError as error:
        need = f"{rows * math.prod(shape) / 2**30:,.1f} GB"
        found = f"{plural(rows, 'image')} of {shape[1]}x{shape[2]}, which take {need}"
        raise DataError(f"not enough memory for {found}. Try: a smaller --size") from error


def _read(
    folder: Path,
    paths: list[str],
    fitting: Fitting,
    progress: Progress | None,
    how: Reading,
    *,
    alike: bool = False,
) -> Examples:
    """Decode every file, or take them from the cache; name what cannot be read.

    alike: whether pictures of several sizes are refused.
    """
    key = cache.key_of(folder, paths, fitting, how)
    kept = None if key is None else cache.fetch(key)
    if kept is not None:
        if progress is not None:
            progress(len(paths), len(paths))
        return kept
    files: list[_File] = []
    sizes: set[tuple[int, int]] = set()
    stacked = _Stacked(len(paths), coloured=fitting.channels == "rgb")
    entry = None if key is None else cache.Entry(key, len(paths))
    try:
        for part in _decoded(folder, paths, fitting, how):
            for file in part.files:
                files.append(file)
                sizes |= {frame.shown for frame in file.frames}
                if alike and len(sizes) > 1:
                    raise _of_several_sizes(folder, paths, how)
                if progress is not None:
                    progress(len(files), len(paths))
            if part.pixels is not None:
                stacked.add(part.pixels)
                if entry is not None:
                    entry.add(part.pixels)
        pixels = stacked.values()
        examples = _examples_of(folder, files, pixels, fitting.channels, how)
        if entry is not None:
            entry.close(examples, given=examples.values is pixels)
    except BaseException:
        if entry is not None:
            entry.discard()
        raise
    return examples


def _decoded(folder: Path, paths: list[str], fitting: Fitting, how: Reading) -> Iterator[_Packed]:
    """Decode files in the order of their paths: many in processes, few in threads."""
    cores = workers.available_cores()
    state = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode = partial(_decode_files, folder, fitting, how, state)
    step = limits.FILES_PER_TASK
    tasks = [paths[start : start + step] for start in range(0, len(paths), step)]
    if len(paths) >= limits.FILES_FOR_PROCESSES and cores > 1:
        yield from workers.in_processes(decode, tasks, min(limits.READING_PROCESSES, cores))
        return
    threads = min(limits.READING_THREADS, len(tasks), cores)
    with _silent():
        if threads == 1:
            yield from map(decode, tasks)
            return
        with ThreadPoolExecutor(threads) as pool:
            try:
                yield from pool.map(decode, tasks)
            except BaseException:  # Ctrl-C, or sizes that differ: what is not begun is left
                pool.shutdown(cancel_futures=True)
                raise


def _decode_files(
    folder: Path,
    fitting: Fitting,
    how: Reading,
    state: tuple[int | None, bool],
    paths: Sequence[str],
) -> _Packed:
    """Decode files under Pillow's settings `state`, which a process does not share."""
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = state
    return _packed([_decode_file(folder, path, fitting, how) for path in paths])


def _packed(files: list[_File]) -> _Packed:
    """Move the pixels of files into one array; of pictures that are then equal one is kept."""
    pictures = [picture for file in files for picture in file.frames]
    if len({(one.pixels.shape[:2], one.pixels.dtype == np.uint8) for one in pictures}) != 1:
        return _Packed(files, None)
    if pictures[0].pixels.dtype != np.uint8:
        return _Packed(files, None)
    pixels = _stack(pictures, coloured=any(one.pixels.ndim == 3 for one in pictures))
    told: dict[tuple[Any, ...], Picture] = {}

    def bare(picture: Picture) -> Picture:
        axes = picture.pixels.ndim
        key = (axes, *picture[1:])
        if key not in told:
            told[key] = picture._replace(pixels=_NO_PIXELS[axes])
        return told[key]

    return _Packed([file._replace(frames=[bare(f) for f in file.frames]) for file in files], pixels)


def _with_pixels(pictures: list[Picture], stacked: NDArray[np.uint8]) -> list[Picture]:
    """Give pictures their pixels back, those whose pixels were packed."""
    rows = iter(stacked)

    def whole(picture: Picture) -> Picture:
        if picture.pixels.size:
            return picture
        row = next(rows)
        return picture._replace(
            pixels=row[0] if picture.pixels.ndim == 2 else np.moveaxis(row, 0, 2)
        )

    return [whole(picture) for picture in pictures]


def _decode_file(folder: Path, path: str, fitting: Fitting, how: Reading) -> _File:
    name = _name_in(folder, path)
    try:
        data = bytes_of(path)
        frames = _read_frames(data, fitting, how)
    except DataError as error:
        return _File(name, [], skipped=str(error))
    return _File(name, frames, hashlib.sha256(data).digest())


def _name_in(folder: Path, path: str) -> str:
    """Return `Path(path).relative_to(folder).as_posix()`, which takes a tenth of the decoding."""
    start = f"{folder}{os.sep}"
    if not path.startswith(start):
        return Path(path).relative_to(folder).as_posix()
    return path[len(start) :].replace(os.sep, "/")


def _examples_of(
    folder: Path,
    files: list[_File],
    stacked: NDArray[np.uint8],
    channels: Channels,
    how: Reading,
) -> Examples:
    """Describe the frames of all files; those of one file share its digest, and so its side.

    stacked: the pixels that are no longer in the files.
    """
    skipped = [(file.name, file.skipped) for file in files if not file.frames]
    pictures = [picture for file in files for picture in file.frames]
    if not pictures:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise DataError(f"{folder}: no image of {len(files):,} can be read. {reasons}")
    names, digests = [], []
    for file in files:
        several = len(file.frames) > 1
        names += [f"{file.name}[{k}]" if several else file.name for k in range(len(file.frames))]
        digests += [file.digest] * len(file.frames)
    notes: list[str] = []
    values: NDArray[Any] = stacked
    grid = None
    if len(stacked) < len(pictures):  # some have 16 bits
        pictures, grid = _depth_of(_with_pixels(pictures, stacked), channels, notes, how)
        coloured = channels == "rgb" or any(picture.pixels.ndim == 3 for picture in pictures)
        values = _stack(pictures, coloured=coloured)
    notes = _what_was_done(pictures, values, how) + notes
    moving = [len(file.frames) for file in files if len(file.frames) > 1]
    if moving:
        notes.append(f"{plural(len(moving), 'animation')}: all {sum(moving):,} frames taken")
    how_split = "files by SHA-256"
    examples = Examples(values, names, digests, None, how_split, notes, skipped, grid, own=True)
    return as_asked(examples, how)


def bytes_of(path: Path | str) -> bytes:
    try:
        about = os.stat(path)  # noqa: PTH116 - a Path made of each of 100,000 takes seconds
        if not stat.S_ISREG(about.st_mode):
            raise DataError(_NO_FILE)
        if about.st_size > limits.MAX_FILE_BYTES:
            raise DataError(f"larger than {limits.MAX_FILE_BYTES // 2**20} MB")
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError as error:
        raise DataError(_NO_FILE) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def _of_several_sizes(folder: Path, paths: list[str], how: Reading) -> DataError:
    """Return the error that names the sizes of all pictures, from their headers."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        with suppress(DataError), _silent():  # what cannot be read is no size
            sizes[_header_size(bytes_of(path), _FRAME_FORMATS if how.frames else _FORMATS)] += 1
    common = sizes.most_common(limits.NAMED_SIZES)
    left = len(sizes) - limits.NAMED_SIZES
    found = ", ".join(f"{h}x{w} ({plural(n, 'image')})" for (h, w), n in common)
    more = f" and {left} more" if left > 0 else ""
    advice = "Try: a size, for instance --size 64 (fit='crop' or 'pad')"
    return DataError(
        f"{folder}: images of different sizes (height x width): {found}{more}. {advice}"
    )


def _size_of_first(paths: list[str], how: Reading, notes: list[str]) -> tuple[int, int] | None:
    """Return the size of the first picture that can be opened, at most 64 on the shorter side."""
    for path in paths:
        with suppress(DataError), _silent():
            formats = _FRAME_FORMATS if how.frames else _FORMATS
            height, width = _header_size(bytes_of(path), formats)
            if min(height, width) <= limits.SHORTER_SIDE:
                return height, width
            scale = limits.SHORTER_SIDE / min(height, width)
            small = (round(height * scale), round(width * scale))
            notes.append(f"no size was given: {height}x{width} became {small[0]}x{small[1]}")
            return small
    return None


def _depth_of(
    pictures: list[Picture], channels: Channels, notes: list[str], how: Reading
) -> tuple[list[Picture], Grid | None]:
    """Find the levels that 16-bit pictures use; where others have 8 bits, cut them to 8 bits."""
    deep = [picture for picture in pictures if picture.pixels.dtype == np.uint16]
    if not deep:
        return pictures, None
    step, largest = _step_of(deep, how)
    grid = how.grid or named(0.0, float(step), max(1, largest // step))
    bits = (grid.count - 1).bit_length()
    if len(deep) == len(pictures) and channels != "rgb":
        if how.grid is None:
            said = (
                "8-bit"
                if grid.count == limits.BYTE_LEVELS
                else f"{bits}-bit ({grid.count:,} levels)"
            )
            every = "" if step == 1 else f", all multiples of {step},"
            notes.append(
                f"{plural(len(deep), 'image')} of 16 bits with values up to {largest:,}{every} "
                f"modelled as {said}"
            )
        return [p._replace(pixels=_levels_in(grid, p, how)) for p in pictures], grid
    top = grid.count - 1
    notes.append(
        f"{plural(len(deep), 'image')} of 16 bits, with {bits} bits in use, cut to 8 bits "
        "like the others"
    )

    def cut(picture: Picture) -> Picture:
        if picture.pixels.dtype != np.uint16:
            return picture
        level = _levels_in(grid, picture, how).astype(np.int64)
        return picture._replace(pixels=((level * 510 + top) // (2 * top)).astype(np.uint8))

    return [cut(picture) for picture in pictures], None


def _step_of(deep: list[Picture], how: Reading) -> tuple[int, int]:
    """Return the step between the levels of 16-bit pictures and their largest value.

    Pictures are looked at as stored. Resampled ones have values between the levels of a mask or
    of few labels: those get at least as many levels as 8 bits have, of which their own are some.
    """
    if how.rules < limits.DEPTH_AS_STORED_RULES:
        values = [np.unique(picture.pixels) for picture in deep]
        largest = max(int(one[-1]) for one in values)
        return math.gcd(*(int(v) for one in values for v in one)) or 1, largest
    step, largest = math.gcd(*(p.step for p in deep)) or 1, max(p.largest for p in deep)
    few = largest // step < limits.FEW_STORED_LEVELS
    if few and any(_is_resampled(picture) for picture in deep):
        finest = max(1, largest // limits.BYTE_MAX)
        step = max(one for one in range(1, min(step, finest) + 1) if step % one == 0)
    return step, largest


def _is_resampled(picture: Picture) -> bool:
    return picture.fitted.startswith(("shrunk", "enlarged"))


def _levels_in(grid: Grid, picture: Picture, how: Reading) -> NDArray[Any]:
    """Return the levels of one 16-bit picture; of a resampled one the nearest."""
    if how.rules < limits.DEPTH_AS_STORED_RULES or not _is_resampled(picture):
        if how.grid is not None:
            return _known(grid, picture.pixels)
        return picture.pixels // int(grid.step[0])
    if how.grid is not None:
        _known(grid, np.array([[picture.step, picture.largest]]))  # the stored values are on it
    levels = np.rint((picture.pixels - grid.offset[0]) / grid.step[0])
    return levels.clip(0, grid.count - 1).astype(grid.dtype)


def _known(grid: Grid, pixels: NDArray[Any]) -> NDArray[Any]:
    levels: NDArray[Any] = grid.levels_of(pixels[None, None].astype(np.float64))[0, 0]
    return levels


def as_asked(examples: Examples, how: Reading) -> Examples:
    """Bring pictures to a model's levels, or to as many as were asked for, in place."""
    if how.grid is not None and examples.levels != how.grid.count:
        raise DataError(
            f"expected pictures of {how.grid.count:,} levels, as the model was trained on; "
            f"got {examples.levels:,}"
        )
    require(how.levels != "none", "levels", "auto or a number for pictures", "none")
    if how.levels == "auto":
        return examples
    before, count = examples.levels, int(how.levels)
    require(count <= before, "levels", f"at most the pictures' own {before:,}", count)
    grid = Grid(count, (0.0,), ((before - 1) / max(1, count - 1),))
    levels = examples.values.astype(np.int64) * count // before
    examples.values, examples.grid = levels.astype(grid.dtype), grid
    examples.notes.append(
        f"{before:,} levels cut to {count:,}, as asked: floor(k·{count}/{before})"
    )
    return examples


def _stack(pictures: list[Picture], *, coloured: bool) -> NDArray[Any]:
    """Stack to `[N, C, H, W]`, with three channels if coloured."""
    height, width = pictures[0].pixels.shape[:2]
    wide = any(p.pixels.dtype != np.uint8 and p.pixels.max() > limits.BYTE_MAX for p in pictures)
    shape = (len(pictures), 3 if coloured else 1, height, width)
    values = np.empty(shape, np.int32 if wide else np.uint8)
    for row, picture in zip(values, pictures, strict=True):
        pixels = picture.pixels
        row[...] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    return values


def _what_was_done(pictures: list[Picture], values: NDArray[Any], how: Reading) -> list[str]:
    height, width = values.shape[2:]
    fitted = Counter(picture.fitted for picture in pictures if picture.fitted)
    notes = [f"{plural(n, 'image')} {words} to {height}x{width}" for words, n in fitted.items()]
    laid = Counter(picture.background for picture in pictures if picture.transparent)
    counts = {
        **{f"with transparency laid over {name}": count for name, count in sorted(laid.items())},
        "turned from colour to grey": sum(p.recoloured for p in pictures),
    }
    if values.shape[1] == 3:
        counts["grey, repeated in three channels"] = sum(p.pixels.ndim == 2 for p in pictures)
    if how.rules > 1:
        counts |= {
            "with an alpha channel that was left out": sum(p.alpha for p in pictures),
            "turned or mirrored as their EXIF orientation says": sum(p.turned for p in pictures),
            "of 16 bits a colour cut to 8 bits": sum(p.cut for p in pictures),
        }
    notes += [f"{plural(n, 'image')} {words}" for words, n in counts.items() if n]
    moving, left = sum(p.frames > 0 for p in pictures), sum(p.frames for p in pictures)
    if moving and how.rules > 1:
        notes.append(f"{plural(moving, 'animation')}: first frames taken, {left:,} others left out")
    return notes


def _nothing_in(folder: Path, others: Counter[str]) -> str:
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common(5))
    instead = f"; it holds other files: {kinds}" if others else ""
    sounds = "" if not others else ", and no WAV, FLAC, OGG or MP3 sounds"
    hints = ["convert them to PNG"] if any(one in OTHER_PICTURES for one in others) else []
    hints += ["unpack the archives"] if any(one in ARCHIVES for one in others) else []
    hint = f". Try: {', '.join(hints)}" if hints else ""
    return f"{folder}: no PNG, JPEG, WebP or BMP images found{sounds}{instead}{hint}"


def _left_out(others: Counter[str]) -> list[str]:
    """Return a note on files beside the pictures that are pictures of other kinds, or archives."""
    known = {one: n for one, n in sorted(others.items()) if one in OTHER_PICTURES | ARCHIVES}
    if not known:
        return []
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in known.items())
    return [f"left out, since files of these kinds are not read: {kinds}; PNG files are"]


def _no_split(folder: Path, paths: list[str]) -> list[str]:
    """Return a note where folders look like a split but are not called train/ and test/."""
    tops = {_name_in(folder, path).partition("/")[0] for path in paths if os.sep in path}
    like = sorted(one for one in tops if one.lower() in SPLIT_NAMES and (folder / one).is_dir())
    if not like:
        return []
    named = " and ".join(f"{one}/" for one in like)
    split = "a split of your own is a folder train/ and a folder test/"
    return [f"{named} read as one set with what lies beside and split by SHA-256; {split}"]
