"""One picture file to its pixels, 8-bit or deep grey: orientation, alpha, depth, size, channels.

Which to use: `header_size` looks without decoding; `read_picture` decodes and fits, `read_frames`
all frames of a file. Only Pillow's PNG, JPEG, WebP and BMP readers are used, and those of GIF and
TIFF where frames are asked for.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kullback.core import DataError

from .. import limits
from ..examples import Channels, Fit, Fitting, Reading
from .direct_decoding import DAMAGE, plain_image
from .resizing import ITU_601, fit_to, is_grey

__all__ = [
    "FORMATS",
    "FRAME_FORMATS",
    "NO_PIXELS",
    "Picture",
    "frames_of",
    "header_size",
    "header_size_of",
    "is_background",
    "read_frames",
    "read_picture",
    "silent",
]

_DEEP_COLOUR = (b"\x10\x02", b"\x10\x04", b"\x10\x06")  # IHDR: depth 16, colour type
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
FRAME_FORMATS = (*FORMATS, "GIF", "TIFF")
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_SAY_ORIENTATION = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})


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


NO_PIXELS = {2: np.empty((0, 0), np.uint8), 3: np.empty((0, 0, 0), np.uint8)}  # of so many axes


def header_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as a viewer shows it, orientation included, without decoding.

    Raises `DataError` with the reason when the bytes are not a picture.
    """
    with silent():
        return header_size_of(data, FORMATS)


def header_size_of(data: bytes, formats: tuple[str, ...]) -> tuple[int, int]:
    """`header_size` by these of Pillow's readers, with warnings left to the caller."""
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
    with silent():
        return frames_of(data, Fitting(size, fit, channels), how)[0]


def read_frames(data: bytes, fitting: Fitting, how: Reading) -> list[Picture]:
    """Decode the frames of one file that are asked for, each as `read_picture` does.

    Raises `DataError` with the reason, also for more frames than `limits` allows.
    """
    with silent():
        return frames_of(data, fitting, how)


def frames_of(data: bytes, fitting: Fitting, how: Reading) -> list[Picture]:
    """`read_frames`, with warnings left to the caller, so that threads can use it."""
    plain = plain_image(data, partial(_is_decoded_whole, fitting.size))
    if plain is not None:
        return [
            _fitted_to(plain, fitting, Picture(NO_PIXELS[2], shown=(plain.height, plain.width)))
        ]
    with _open(data, FRAME_FORMATS if how.frames else FORMATS) as opened:
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
        NO_PIXELS[2],
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
        recoloured = not is_grey(np.asarray(image))
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
    if pixels.ndim == 3 and is_grey(pixels):
        pixels = pixels[..., 0].copy()
    return told._replace(pixels=pixels, fitted=fitted, recoloured=recoloured)


@contextmanager
def silent() -> Iterator[None]:
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
        also = "PNG, JPEG, WebP, BMP, GIF or TIFF" if len(formats) > len(FORMATS) else ""
        raise DataError(f"not a {also or 'PNG, JPEG, WebP or BMP'} picture") from error
    except DAMAGE as error:
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
    grey = pixels[..., :3] @ np.asarray(ITU_601)
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
