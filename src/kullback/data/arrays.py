"""NumPy files to 8-bit or continuous examples: names, layout, dtype, range.

Which to use: `read_arrays`. Nothing is ever unpickled.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError
from kullback.core.checks import describe
from kullback.core.numpy_files import DAMAGE, why

from .examples import Examples, digests_of, plural

__all__ = ["read_arrays"]

_CHUNK = 1 << 20
Named = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Examples:
    """Read `.npy`, or `.npz` with x_train and x_test, or x_train alone, or exactly one array.

    `[N, H, W]`, `[N, H, W, C]` and `[N, C, H, W]` (C = 1 or 3; the second reading wins only when
    the third is impossible) become `[N, C, H, W]`; `[N, D]` stays. bool and integers in 0..255
    become uint8. Floats become uint8 when all are whole numbers 0..255 or all k/255 to rounding,
    said in a note, and float32 otherwise. Raises `DataError`: damage, pickled objects, other
    names, dtypes, shapes or ranges, NaN or infinity (naming the row).
    """
    arrays, notes = _load(path)
    laid_out = {name: _layout(array, f"{path}: {name}") for name, array in arrays.items()}
    _require_same_events(laid_out, path)
    values = _to_levels(laid_out, path, notes)
    names = [f"{name}[{row}]" for name, array in arrays.items() for row in range(len(array))]
    examples = Examples(values, names, digests_of(values), notes=notes, split="rows by SHA-256")
    if len(arrays) == 2:
        examples.split = "x_train and x_test"
        examples.is_test = np.arange(len(values)) >= len(arrays["x_train"])
    return examples


def _load(path: Path) -> tuple[Named, list[str]]:
    """Read the arrays that are wanted and no others: labels may be anything."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {path.stem: loaded}, []
            names, notes = _choose(loaded.files, path)
            return {name: np.asarray(loaded[name]) for name in names}, notes
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        hint = "arrays of plain numbers saved by numpy.save or numpy.savez are read"
        raise DataError(f"{path}: damaged or not a NumPy file ({why(error)}); {hint}") from error


def _choose(names: list[str], path: Path) -> tuple[list[str], list[str]]:
    """Pick x_train and x_test, or x_train, or the only array; say what is left out."""
    chosen: list[str] = [name for name in ("x_train", "x_test") if name in names]
    if "x_train" not in names:
        chosen = names
        if len(names) != 1:
            wanted = "x_train and x_test, or x_train, or exactly one array"
            raise DataError(f"{path}: expected {wanted}; got {', '.join(names) or 'none'}")
    left = [name for name in names if name not in chosen]
    return chosen, [f"arrays left out: {', '.join(left)}"] if left else []


def _layout(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.dtype.kind not in "buif":
        raise DataError(f"{name}: expected numbers (bool, integer or float); got {array.dtype}")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        shapes = "[N, D], [N, H, W], [N, H, W, C] or [N, C, H, W], not empty"
        raise DataError(f"{name}: expected {shapes}; got {list(array.shape)}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3):
        if array.shape[3] not in (1, 3):
            raise DataError(f"{name}: expected images of 1 or 3 channels; got {list(array.shape)}")
        return array.transpose(0, 3, 1, 2)
    return array


def _require_same_events(arrays: Named, path: Path) -> None:
    shapes = {name: list(array.shape[1:]) for name, array in arrays.items()}
    kinds = {array.dtype.kind == "f" for array in arrays.values()}
    if len({str(shape) for shape in shapes.values()}) > 1 or len(kinds) > 1:
        found = ", ".join(f"{name} {describe(array)}" for name, array in arrays.items())
        raise DataError(f"{path}: expected x_train and x_test alike in shape and kind; got {found}")


def _to_levels(arrays: Named, path: Path, notes: list[str]) -> NDArray[Any]:
    """Join the arrays and bring them to uint8, or to float32 when they are continuous."""
    parts = list(arrays.values())
    if parts[0].dtype.kind != "f":
        for name, array in arrays.items():
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > 255:
                hint = "scale to 0..255, or save as float for continuous values"
                raise DataError(
                    f"{path}: {name}: expected integers in 0..255; got {low} to {high}. Try: {hint}"
                )
        return np.concatenate([part.astype(np.uint8) for part in parts])
    for name, array in arrays.items():
        _require_finite(array, f"{path}: {name}")
    if all(_is_whole(part) for part in _pieces(parts)):
        notes.append("floats that are whole numbers 0..255 read as 8-bit")
        return np.concatenate([part.astype(np.uint8) for part in parts])
    if all(_is_fraction(part) for part in _pieces(parts)):
        notes.append("floats that are k/255 read as 8-bit")
        return np.concatenate([_times_255(part) for part in parts])
    return np.concatenate([part.astype(np.float32) for part in parts])


def _require_finite(array: NDArray[Any], name: str) -> None:
    flat = array.reshape(len(array), -1)
    limit = np.finfo(np.float32).max
    # NaN fails every comparison
    bad = np.array([not (abs(row) <= limit).all() for row in flat])
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"{name}: NaN, infinity or beyond float32 in {plural(int(bad.sum()), 'row')} of "
            f"{len(array):,}, the first is row {first}"
        )


def _pieces(parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Cut into pieces of bounded memory, so that most continuous data are known from the first."""
    rows = [max(1, _CHUNK // max(1, part[0].size)) for part in parts]
    return [
        part[i : i + n] for part, n in zip(parts, rows, strict=True) for i in range(0, len(part), n)
    ]


def _is_whole(piece: NDArray[Any]) -> bool:
    return bool(((piece >= 0) & (piece <= 255) & (piece == np.floor(piece))).all())


def _is_fraction(piece: NDArray[Any]) -> bool:
    """Whether every value is k/255 for a whole k, to two roundings of its own dtype."""
    levels = np.rint(piece.astype(np.float64) * 255)
    near = abs(piece - levels / 255) <= 2 * np.finfo(piece.dtype).eps * piece
    return bool((near & (levels <= 255)).all())


def _times_255(part: NDArray[Any]) -> NDArray[np.uint8]:
    return np.concatenate(
        [np.rint(p.astype(np.float64) * 255).astype(np.uint8) for p in _pieces([part])]
    )
