"""Image arrays brought to another size or number of channels, with a note of what was done."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kullback.core import DataError

from .examples import Channels, Examples, Fit, plural
from .picture import fit_to

__all__ = ["fit_images"]


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
    plain = examples.values.dtype == np.uint8 and examples.levels == 256
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
        weights = np.asarray([0.299, 0.587, 0.114])
        deep = np.rint(np.tensordot(weights, deep, 1))[None].astype(np.int32)
    parts = [fit_to(Image.fromarray(channel), target, fit=fit) for channel in deep]
    return np.stack([np.asarray(part) for part, _ in parts]), parts[0][1]
