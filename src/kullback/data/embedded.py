"""The embedded data set: 12,000 images of Fashion-MNIST, checked before they are used.

Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST"; MIT licence, kept beside the file. The first
1,000 images of each class for training and 200 for testing, as one grey PNG that can be looked at.
"""

import hashlib
from importlib import resources

import numpy as np

from kullback.core import DataError

from .examples import Examples
from .pictures import read_picture

__all__ = ["TEST_COUNT", "TRAIN_COUNT", "read_fashion"]

TRAIN_COUNT, TEST_COUNT = 10_000, 2_000
_SHA256 = "67ac0de77cb2a9b5a6a638c2663b7e4f6cb555664a0cfd1063d3cb7b5eb6177f"
_REPAIR = "reinstall the package: pip install --force-reinstall --no-deps kullback"


def read_fashion() -> Examples:
    """Read the 10,000 training and 2,000 test images, uint8 `[12000, 1, 28, 28]`.

    Raises `DataError` when the file is missing or its pixels are not the ones that were shipped.

    >>> read_fashion().values.shape
    (12000, 1, 28, 28)
    """
    file = resources.files("kullback.data") / "fashion" / "fashion.png"
    try:
        mosaic = read_picture(file.read_bytes(), size=None).pixels
    except (OSError, DataError) as error:
        raise DataError(f"the embedded data set cannot be read ({error}); {_REPAIR}") from error
    count = TRAIN_COUNT + TEST_COUNT
    if mosaic.shape != (count // 100 * 28, 2800):
        raise DataError(f"the embedded data set is damaged; {_REPAIR}")
    images = np.ascontiguousarray(mosaic.reshape(count // 100, 28, 100, 28).swapaxes(1, 2))
    if hashlib.sha256(images.data).hexdigest() != _SHA256:
        raise DataError(f"the embedded data set is damaged; {_REPAIR}")
    names = [f"train[{row}]" for row in range(TRAIN_COUNT)]
    names += [f"test[{row}]" for row in range(TEST_COUNT)]
    is_test = np.arange(count) >= TRAIN_COUNT
    values = images.reshape(count, 1, 28, 28)
    return Examples(values, names, is_test=is_test, split="embedded")
