"""NumPy's files, read without ever unpickling; what is wrong with one is said without such advice.

Which to use: `read_npy` for the bytes of one array; `why` for an error of `numpy.load`. Apart from
`files`, because the modules whose errors are listed here are not needed to start the command.
"""

import io
import struct
import tokenize
import zipfile
import zlib
from typing import Any

from .errors import DataError

__all__ = ["DAMAGE", "read_npy", "why"]

DAMAGE = (
    *(OSError, EOFError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)  # what NumPy's reader has been seen to raise on bad bytes


def why(error: BaseException) -> str:
    """Say in words why NumPy could not read a file; never with the advice to load pickles.

    >>> why(ValueError("Object arrays cannot be loaded when allow_pickle=False"))
    'it holds Python objects, which are never loaded'
    """
    text = str(error)
    if "pickle" not in text:
        return text or type(error).__name__
    objects = "Object arrays" in text
    return "it holds Python objects, which are never loaded" if objects else "not NumPy's format"


def read_npy(content: bytes, name: str) -> Any:
    """Return the array in the bytes of a `.npy` file.

    Raises: `DataError` for damage, an archive of several arrays, or Python objects.

    >>> read_npy(b"nonsense", "p.npy")
    Traceback (most recent call last):
        ...
    kullback.core.errors.DataError: p.npy: not an array of numbers: not NumPy's format
    """
    import numpy as np

    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except DAMAGE as error:
        raise DataError(f"{name}: not an array of numbers: {why(error)}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name}: an archive (.npz), not an array. Try: numpy.save of one array")
    return array
