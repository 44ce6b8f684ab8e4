"""Pictures and image arrays brought to another size or number of channels.

Which to use: `fit_to` for one Pillow image, `fit_images` for the examples of an array, with a note
of what was done.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kullback.core import DataError

from .. import limits
from ..examples import Channels, Examples, Fit, plural

__all__ = [
    "ITU_601",
    "fit_images",
    "fit_to",
    "is_grey",
]

ITU_601 = (0.299, 0.587, 0.114)  # of red, green and blue in a grey level


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
        deep = np.rint(np.tensordot(np.asarray(ITU_601), deep, 1))[None].astype(np.int32)
    parts = [fit_to(Image.fromarray(channel), target, fit=fit) for channel in deep]
    return np.stack([np.asarray(part) for part, _ in parts]), parts[0][1]


def is_grey(pixels: NDArray[Any]) -> bool:
    """Say whether red, green and blue agree in every pixel of `[H, W, 3]`."""
    red, green, blue = pixels[len(pixels) // 2, pixels.shape[1] // 2].tolist()
    if not red == green == blue:
        return False
    step = limits.PIXELS_BETWEEN_LOOKS  # colour shows in a few pixels; grey has to be looked for
    return all(
        bool((part[..., :1] == part[..., 1:]).all()) for part in (pixels[::step, ::step], pixels)
    )
