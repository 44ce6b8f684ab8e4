"""One picture file to its pixels, 8-bit or deep grey: orientation, alpha, depth, size, channels.

Which to use: `header_size` looks without decoding; `read_picture` decodes and fits; `fit_to`
brings a decoded picture to a size. Only Pillow's PNG, JPEG, WebP and BMP readers are used.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kullback.core import DataError

from .examples import Channels, Fit

__all__ = ["Picture", "fit_to", "header_size", "read_picture"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ORIENTATION = 0x0112
_NEARLY_EMPTY = 32  # of 256: the upper byte of values of at most 13 bits
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, AttributeError),
)  # what Pillow's readers have been seen to raise on bad bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels, uint8 `[H, W]` when grey and `[H, W, 3]` when not, and what was done.

    Grey pictures of 16 bits have uint16 pixels where that was asked for.
    fitted: "", or the words "shrunk and centre-cropped" and the like.
    transparent: some pixel was not opaque and was laid over black.
    recoloured: colour was turned to grey because grey was asked for.
    alpha: an alpha channel or transparent colour was left out that changed no pixel, or could not
    be applied (16-bit grey). turned: by its EXIF orientation. frames: left out after the first.
    cut: 16 bits a colour, of which the upper 8 were kept.
    """

    pixels: NDArray[Any]
    fitted: str = ""
    transparent: bool = False
    recoloured: bool = False
    alpha: bool = False
    turned: bool = False
    frames: int = 0
    cut: bool = False


def header_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as a viewer shows it, orientation included, without decoding.

    Raises `DataError` with the reason when the bytes are not a picture.
    """
    with _open(data) as image:
        return _shown_size(image)


def read_picture(
    data: bytes,
    *,
    size: tuple[int, int] | None,
    fit: Fit = "crop",
    channels: Channels = "auto",
    deep: bool = False,
) -> Picture:
    """Decode one picture and bring it to `size` (height, width), or leave its size when None.

    EXIF orientation is obeyed, transparency laid over black, 16 bits of grey scaled to 8 (kept as
    uint16 when `deep`), and of a moving picture the first frame is taken; the result says what was
    done. With "auto" a picture whose red, green and blue agree everywhere is grey. A JPEG much
    larger than `size` is decoded at a reduced scale.
    Raises `DataError` with the reason (damaged, not a picture, too many pixels, 16 bits a colour
    with nothing in the upper 8).
    """
    with _open(data) as opened:
        frames = int(getattr(opened, "n_frames", 1)) - 1
        if size is not None:
            opened.draft(None, (2 * max(size), 2 * max(size)))
        opened.load()
        turned = opened.getexif().get(_ORIENTATION, 1) in range(2, 9)
        ImageOps.exif_transpose(opened, in_place=True)
        image, transparent, alpha = _plain(opened, deep=deep)
    cut = _is_deep_colour(data)
    if cut and max(high for _, high in _extrema(image)) < _NEARLY_EMPTY:
        raise DataError(
            "16 bits a colour, of which the upper 8 are read, and those are nearly empty "
            "(values of 12 bits?). Try: scale the values to 16 bits, or save them as .npy"
        )
    recoloured = False
    if channels == "grey" and image.mode == "RGB":
        recoloured = not _is_grey(np.asarray(image))
        image = image.convert("L")
    fitted = ""
    if size is not None:
        image, fitted = fit_to(image, size, fit=fit)
    pixels = np.asarray(image)
    if image.mode == "I":
        pixels = pixels.clip(0, 65535).astype(np.uint16)
    if pixels.ndim == 3 and _is_grey(pixels):
        pixels = pixels[..., 0]
    return Picture(
        pixels.copy(),
        fitted,
        transparent,
        recoloured,
        alpha=alpha,
        turned=turned,
        frames=frames,
        cut=cut,
    )


def fit_to(image: Image.Image, size: tuple[int, int], *, fit: Fit) -> tuple[Image.Image, str]:
    """Bring a picture to (height, width) and say in words what that took ("" for nothing).

    "crop" scales it until it covers the size and cuts the middle out; "pad" shrinks it (never
    enlarges) until it fits inside and puts black around. Lanczos resampling.

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
def _open(data: bytes) -> Iterator[Image.Image]:
    """Open bytes as a picture; whatever its damage makes Pillow raise becomes a `DataError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if not data:
                raise DataError("the file is empty")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError("more pixels than the safety limit for one picture") from error
        except UnidentifiedImageError as error:
            raise DataError("not a PNG, JPEG, WebP or BMP picture") from error
        except _DAMAGE as error:
            raise DataError(f"damaged: {error or type(error).__name__}") from error


def _shown_size(image: Image.Image) -> tuple[int, int]:
    told = "exif" in image.info or "xmp" in image.info  # else asking would decode a PNG
    turned = told and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _plain(image: Image.Image, *, deep: bool) -> tuple[Image.Image, bool, bool]:
    """Return the picture as "L", "RGB" or "I" (deep), and what became of its transparency.

    That is whether it was laid over black, and whether an alpha that does nothing was left out.
    """
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it
        wide, alpha = np.asarray(image).astype(np.int32), "transparency" in image.info
        if deep:
            return Image.fromarray(wide), False, alpha
        levels = (wide.astype(np.int64) * 255 + 32767) // 65535
        return Image.fromarray(levels.astype(np.uint8)), False, alpha
    if not image.has_transparency_data:
        return image.convert("L" if image.mode in ("1", "L") else "RGB"), False, False
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return layered.convert("RGB"), False, True
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layered).convert("RGB"), True, False


def _is_deep_colour(data: bytes) -> bool:
    """Say whether a PNG stores 16 bits a sample of colour or of grey with alpha (its IHDR)."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 16 and data[25] in (2, 4, 6)


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    found: Any = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _is_grey(pixels: NDArray[Any]) -> bool:
    red = pixels[..., :1]
    return bool((pixels[..., 1:] == red).all())
