"""Image arrays brought to another size or number of channels, with a note of what was done."""

import numpy as np
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
    if examples.values.dtype != np.uint8:
        found = f"continuous images [{depth}, {height}, {width}]"
        raise DataError(f"expected 8-bit images to resize or recolour; got {found}")
    two_valued = int(examples.values.max()) <= 1
    fitted = np.empty((count, wanted, *target), np.uint8)
    words = ""
    for row, image in zip(fitted, examples.values, strict=True):
        picture = Image.fromarray(image[0] if depth == 1 else image.transpose(1, 2, 0))
        picture, words = fit_to(picture.convert("L") if wanted == 1 else picture, target, fit=fit)
        if two_valued and words.startswith(("shrunk", "enlarged")):
            raise DataError("images of values 0 and 1 cannot be resampled. Try: multiply by 255")
        pixels = np.asarray(picture)
        row[...] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    examples.values = fitted
    if words:
        examples.notes.append(f"{plural(count, 'image')} {words} to {target[0]}x{target[1]}")
    if wanted != depth:
        done = "turned from colour to grey" if wanted == 1 else "grey, repeated in three channels"
        examples.notes.append(f"{plural(count, 'image')} {done}")
