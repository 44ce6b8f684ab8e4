"""NumPy files and tables to levels, counts or continuous examples: names, layout, dtype, range.

Which to use: `read_arrays`. Nothing is ever unpickled.
"""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError, describe, numpy_error, numpy_errors

from . import limits
from .counts import (
    ANNDATA_SUFFIX,
    MATRICES,
    SIZE_NAMES,
    SPARSE_NAMES,
    as_counts,
    column_in,
    dense_of,
    read_anndata,
)
from .examples import Examples, Reading, digests_of, plural
from .limits import (
    BIT_DEPTH_FROM,
    BYTE_LEVELS,
    BYTE_MAX,
    COUNTING_RULES,
    FEW_VALUES,
    MOST_LEVELS,
)
from .quantisation import Grid, grid_of, is_shifted_grid, named, quantised
from .tables import heading_of, read_table

__all__ = [
    "ARRAY_SUFFIXES",
    "TABLE_SUFFIXES",
    "free_memory",
    "header_of",
    "label_in",
    "label_texts",
    "layout",
    "read_arrays",
    "read_given",
    "require_harmless",
    "to_levels",
]

TABLE_SUFFIXES = (".csv", ".tsv")
ARRAY_SUFFIXES = (".npy", ".npz", *TABLE_SUFFIXES, ANNDATA_SUFFIX)

_CHUNK = 1 << 20
Named = dict[str, NDArray[Any]]


def read_arrays(path: Path, how: Reading | None = None) -> Examples:
    """Read `.npy`, a table, AnnData, or `.npz` with x_train and x_test, x_train, or one array.

    `[N, H, W]`, `[N, H, W, C]` and `[N, C, H, W]` (C = 1 or 3; the second reading wins only when
    the third is impossible) become `[N, C, H, W]`; `[N, D]` stays. Values on a grid of at most
    65,536 equally spaced levels become those levels (uint8 for at most 256, else int32): bool,
    integers, and floats such as k/255, (k/255 − ½)/½ or channels less a mean over a deviation,
    to the rounding of their dtype. Other floats become float32. What was found is said in a note;
    `how` may ask for another reading. Raises `DataError`: damage, pickled objects, other names,
    dtypes, shapes or ranges, NaN or infinity (naming the row).
    """
    how = how or Reading()
    if path.suffix.lower() == ANNDATA_SUFFIX:
        wanted = how.levels in ("auto", "counts")
        arrays, said = read_anndata(path, how.label, _enough_memory(path), counts=wanted)
        return read_given(arrays, path, how, [said])
    arrays, notes = _load(path, how.label)
    return read_given(arrays, path, how, notes)


def read_given(arrays: Named, path: Path, how: Reading, notes: list[str] | None = None) -> Examples:
    """Read arrays in memory by their names as `read_arrays` does; `path` stands in messages."""
    notes = [] if notes is None else notes
    given = {name: arrays.pop(name) for name in SIZE_NAMES if name in arrays}
    labels = {name: arrays.pop(name) for name in _label_names(how.label) if name in arrays}
    laid_out = {name: layout(array, f"{path}: {name}") for name, array in arrays.items()}
    _require_same_events(laid_out, path)
    counted, sizes = _are_counts(laid_out, how, sparse=any(note in _COUNTED for note in notes)), ""
    if counted:
        values, sizes = as_counts(laid_out, given, path, how.size_factors, notes)
        grid = None
    else:
        notes += [f"arrays left out: {', '.join(given)}"] if given else []
        values, grid = to_levels(laid_out, path, notes, how)
    names = [f"{name}[{row}]" for name, array in arrays.items() for row in range(len(array))]
    examples = Examples(values, names, digests_of(values), notes=notes, split="rows by SHA-256")
    examples.labels = _labels_of(labels, arrays, f"{path}: {how.label}") if how.label else []
    examples.grid, examples.counted, examples.sizes = grid, counted, sizes
    if len(arrays) == 2:
        examples.split = "x_train and x_test"
        examples.is_test = np.arange(len(values)) >= len(arrays["x_train"])
    return examples


def label_in(path: Path, label: str) -> str:
    """Return the name of labels where a file has an array or a column of them, else ""."""
    if path.suffix.lower() == ANNDATA_SUFFIX:
        return label if column_in(path, label) else ""
    try:
        if path.suffix.lower() in TABLE_SUFFIXES:
            names = heading_of(path)
        else:
            with zipfile.ZipFile(path) as archive:
                names = [one.removesuffix(".npy") for one in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return ""  # a plain array, or the reader says why
    return label if any(one in names for one in _label_names(label)) else ""


def _label_names(label: str) -> list[str]:
    return [label, f"{label}_train", f"{label}_test"] if label else []


def _labels_of(labels: Named, arrays: Named, name: str) -> list[str]:
    """Return the label of every row as text, from one array or one for each of x."""
    both = [one for one in labels.values() if len(labels) == len(arrays)]
    wanted = [len(array) for array in arrays.values()]
    if not both:
        both, wanted = list(labels.values()), [sum(wanted)]
    if len(both) != len(wanted):
        given = ", ".join(labels) or "none"
        raise DataError(f"{name}: expected an array of labels, or one for each of x; got {given}")
    pairs = zip(both, wanted, strict=True)
    return [one for array, rows in pairs for one in label_texts(array, rows, name)]


def label_texts(array: NDArray[Any], rows: int, name: str) -> list[str]:
    """Return an array of labels as text, one a row; DataError where they are none."""
    whole = array.dtype.kind in "buiUS" or (
        array.dtype.kind == "f" and bool((array == np.rint(array)).all())
    )
    if array.shape != (rows,) or not whole:
        what = f"{rows:,} labels, integers or text, one a row"
        raise DataError(f"{name}: expected {what}; got {describe(array)}")
    every = [int(one) if isinstance(one, float) else one for one in array.tolist()]
    return [one.decode() if isinstance(one, bytes) else str(one).strip() for one in every]


def _load(path: Path, label: str = "") -> tuple[Named, list[str]]:
    """Read the arrays that are wanted and no others: labels may be anything."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        held = limits.TABLE_GROWTH * path.stat().st_size
        _require_memory(path, held, held)
        return read_table(path, label)
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                declared = _declared_bytes(file)
                _require_memory(path, declared, file.seek(0, 2))
                file.seek(0)
                return {path.stem: np.load(file, allow_pickle=False)}, []
            file.seek(0)
            loaded: Any = np.load(file, allow_pickle=False)
            names, notes = _choose(loaded, path, _label_names(label))
            require_harmless(path, loaded.zip, names)
            found = {name: np.asarray(loaded[name]) for name in names}
            return _without_zeros(found, path, notes, label), notes
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except numpy_errors() as error:
        hint = "arrays of plain numbers saved by numpy.save or numpy.savez are read"
        raise DataError(
            f"{path}: damaged or not a NumPy file ({numpy_error(error)}); {hint}"
        ) from error


_SPARSE = "a sparse matrix, held with its zeros"
_COUNTED = (_SPARSE, *MATRICES)  # notes on what holds counts where its numbers are whole


def _without_zeros(found: Named, path: Path, notes: list[str], label: str) -> Named:
    """Bring a sparse matrix, as SciPy saves it, to an array; leave other arrays as they are."""
    if any(name not in found for name in SPARSE_NAMES):
        return found
    notes.append(_SPARSE)
    dense = dense_of(found, path, _enough_memory(path))
    beside = (*SIZE_NAMES, *_label_names(label))
    return {"matrix": dense} | {name: found[name] for name in beside if name in found}


def _are_counts(arrays: Named, how: Reading, *, sparse: bool) -> bool:
    """Say whether values are counts: as asked, or as whole numbers that nothing else fits.

    Those of a sparse matrix, and vectors of integers from 0 with too many levels for a mixture.
    """
    if how.levels != "auto" or how.grid is not None or how.rules < COUNTING_RULES:
        return how.levels == "counts"
    parts = list(arrays.values())
    if any(part.ndim != 2 or part.min() < 0 for part in parts):
        return False
    if sparse:
        return all(bool((part == np.rint(part)).all()) for part in _pieces(parts))
    high = max(int(part.max()) for part in parts) if parts[0].dtype.kind in "iu" else 0
    if high < MOST_LEVELS:
        return False
    found = {int(value) for part in parts for value in np.unique(part)}
    low = min(found)
    return (high - low) // (math.gcd(*(value - low for value in found)) or 1) >= MOST_LEVELS


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a `.npy` file: shape, Fortran order, dtype."""
    version = np.lib.format.read_magic(file)
    one = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, bool(fortran), dtype


def _declared_bytes(file: IO[bytes]) -> int:
    """Return how many bytes the header of a `.npy` file says that its array has."""
    shape, _, dtype = header_of(file)
    return math.prod(shape) * dtype.itemsize


def require_harmless(path: Path, archive: zipfile.ZipFile, names: list[str]) -> None:
    """Refuse arrays of a `.npz` by their declared sizes, before they are inflated."""
    total = 0
    for name in names:
        known = archive.namelist()
        info = archive.getinfo(name if name in known else f"{name}.npy")
        if info.file_size > limits.INFLATION_FROM:
            times = info.file_size / max(1, info.compress_size)
            if times > limits.MAX_INFLATION:
                raise DataError(
                    f"{path}: {name}: {info.compress_size:,} bytes that inflate to "
                    f"{info.file_size:,}; at most {limits.MAX_INFLATION} times are taken "
                    "(limits.MAX_INFLATION). Try: if it is meant, numpy.save it as .npy"
                )
        with archive.open(info) as member:
            declared = _declared_bytes(member)
        if declared > info.file_size:
            raise ValueError(f"{name}: its header says {declared:,} bytes; got {info.file_size:,}")
        total += declared
    _require_memory(path, total, total)


def _require_memory(path: Path, declared: int, present: int) -> None:
    """Refuse an array that its header makes larger than its file, or than memory has room for."""
    if declared > present:
        raise ValueError(f"its header says {declared:,} bytes; the file has {present:,}")
    free = free_memory()
    if free is not None and declared * limits.MEMORY_COPIES > free:
        raise DataError(
            f"{path}: {declared / 2**30:.1f} GB, which take {limits.MEMORY_COPIES} times as much "
            f"while they are read; {free / 2**30:.1f} GB of memory are free. "
            "Try: fewer examples, or 8-bit levels"
        )


def _enough_memory(path: Path) -> Callable[[int], None]:
    """Return a check that memory has room for so many bytes of a file."""
    return lambda size: _require_memory(path, size, size)


def free_memory() -> int | None:
    """Return the bytes of memory that are free or can be freed; None where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(one.split()[1]) for one in lines if one.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None


def _choose(loaded: Any, path: Path, labels: list[str]) -> tuple[list[str], list[str]]:
    """Pick x_train and x_test, or x_train, or the only array; say what is left out."""
    names: list[str] = loaded.files
    beside = [name for name in names if name in SIZE_NAMES or name in labels]
    if all(name in names for name in SPARSE_NAMES):
        return names, []
    chosen: list[str] = [name for name in ("x_train", "x_test") if name in names]
    if "x_train" not in names:
        chosen = [name for name in names if name not in beside]
        if len(chosen) != 1:
            raise DataError(_several(_members(loaded.zip), path))
    chosen = [*chosen, *beside]
    left = [name for name in names if name not in chosen]
    return chosen, [f"arrays left out: {', '.join(left)}"] if left else []


def _members(archive: zipfile.ZipFile) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of every array of a `.npz`, by its name, from the headers."""
    found = {}
    for name in archive.namelist():
        with archive.open(name) as file:
            shape, _, dtype = header_of(file)
        found[name.removesuffix(".npy")] = shape, dtype
    return found


def _several(members: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], path: Path) -> str:
    """Say which arrays a `.npz` has where none of them is the examples by its name."""
    got = ", ".join(f"{n} {dtype} {list(shape)}" for n, (shape, dtype) in members.items())
    rows = [(n, shape[0]) for n, (shape, _) in members.items() if len(shape) > 1]
    one = {n: shape[0] for n, (shape, _) in members.items() if len(shape) == 1 == len(rows)}
    label = next((n for n, size in one.items() if size == rows[0][1]), "")
    hint = f"label={label!r}, or save {rows[0][0]} alone" if label else "those names"
    wanted = "x_train and x_test, or x_train, or exactly one array"
    return f"{path}: expected {wanted}; got {got or 'none'}. Try: {hint}"


def layout(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Bring `[N, H, W]` and `[N, H, W, C]` to `[N, C, H, W]`; leave `[N, D]` and `[N, C, H, W]`."""
    if array.dtype.kind not in "buif":
        hint = ". Try: x.real and x.imag side by side" if array.dtype.kind == "c" else ""
        wanted = "numbers (bool, integer or float)"
        raise DataError(f"{name}: expected {wanted}; got {array.dtype}{hint}")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        shapes = "[N, D], [N, H, W], [N, H, W, C] or [N, C, H, W], not empty"
        hint = ". Try: x.reshape(len(x), -1)" if array.ndim > 4 else ""
        hint = ". Try: x[:, None], vectors of one value" if array.ndim == 1 and array.size else hint
        raise DataError(f"{name}: expected {shapes}; got {list(array.shape)}{hint}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3):
        if array.shape[3] not in (1, 3):
            hint = "three of the channels, or vectors (x.reshape(len(x), -1))"
            got = f"{list(array.shape)}. Try: {hint}"
            raise DataError(f"{name}: expected images of 1 or 3 channels; got {got}")
        return array.transpose(0, 3, 1, 2)
    return array


def _require_same_events(arrays: Named, path: Path) -> None:
    shapes = {name: list(array.shape[1:]) for name, array in arrays.items()}
    kinds = {array.dtype.kind == "f" for array in arrays.values()}
    if len({str(shape) for shape in shapes.values()}) > 1 or len(kinds) > 1:
        found = ", ".join(f"{name} {describe(array)}" for name, array in arrays.items())
        raise DataError(f"{path}: expected x_train and x_test alike in shape and kind; got {found}")


def to_levels(
    arrays: Named, path: Path, notes: list[str], how: Reading
) -> tuple[NDArray[Any], Grid | None]:
    """Join the arrays and bring them to levels with their grid, or to float32 without one."""
    parts = list(arrays.values())
    if parts[0].dtype.kind == "f":
        for name, array in arrays.items():
            _require_finite(array, f"{path}: {name}")
    if how.grid is not None:
        return _on_known_grid(arrays, path, how.grid)
    if how.levels == "none":
        return _as_floats(arrays, path, notes, how), None
    if how.levels != "auto":
        return quantised(np.concatenate(parts), int(how.levels), notes)
    if parts[0].dtype.kind != "f":
        return _of_integers(arrays, path, notes, how)
    whole = all(_is_whole(part) for part in _pieces(parts))
    if whole and (how.rules == 1 or max(float(part.max()) for part in parts) >= BIT_DEPTH_FROM):
        notes.append("floats that are whole numbers 0..255 read as 8-bit")
        return np.concatenate([part.astype(np.uint8) for part in parts]), None
    fractions = all(_is_fraction(part) for part in _pieces(parts))
    if fractions and (how.rules == 1 or not (whole or _is_coarse(parts))):
        notes.append("floats that are k/255 read as 8-bit")
        grid = None if how.rules == 1 else Grid(256, (0.0,), (1 / 255,))
        return np.concatenate([_times_255(part) for part in parts]), grid
    if how.rules == 1:
        return _as_floats(arrays, path, [], how), None
    return _of_floats(arrays, path, notes, how)


def _of_integers(
    arrays: Named, path: Path, notes: list[str], how: Reading
) -> tuple[NDArray[Any], Grid | None]:
    """Bring integers to their levels: 0..255 as they are, others by the grid they lie on."""
    parts = list(arrays.values())
    low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    small = all(part.dtype in (np.uint8, np.bool_) for part in parts)
    if low >= 0 and high <= BYTE_MAX and (how.rules == 1 or small or high >= BIT_DEPTH_FROM):
        return np.concatenate([part.astype(np.uint8) for part in parts]), None
    _refuse_marks(arrays, path, low, high)
    found = {int(value) for part in parts for value in np.unique(part)}
    step = math.gcd(*(value - low for value in found)) or 1
    if how.rules == 1 or (high - low) // step >= MOST_LEVELS:
        for name, array in arrays.items():
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > BYTE_MAX:
                hint = "scale to 0..255, or save as float for continuous values"
                raise DataError(
                    f"{path}: {name}: expected integers in 0..255; got {low} to {high}. Try: {hint}"
                )
    grid = named(float(low), float(step), (high - low) // step)
    notes.append(_said(grid))
    return _levels_of(parts, grid, path), grid


def _of_floats(
    arrays: Named, path: Path, notes: list[str], how: Reading
) -> tuple[NDArray[Any], Grid | None]:
    """Bring floats to the levels of the grid they lie on, or to float32 when there is none."""
    joined = np.concatenate(list(arrays.values()))
    grid = grid_of(joined)
    if (grid is None or grid.count > FEW_VALUES) and joined.ndim == 4:
        finer = 0.0 if grid is None else 1.5 * min(grid.step)
        if is_shifted_grid(joined, step=finer):
            raise DataError(
                f"{path}: expected levels or continuous values; got pixels whose levels are "
                "equally spaced but begin elsewhere in every pixel, as after subtracting a mean "
                "picture. Try: the pictures before that; or --levels none for a density anyway"
            )
    if grid is None:
        return _as_floats(arrays, path, notes, how), None
    if joined.min() == -1 and all((piece == np.rint(piece)).all() for piece in _pieces([joined])):
        _refuse_marks(arrays, path, -1, int(joined.max()))
    notes.append(_said(grid))
    return _levels_of([joined], grid, path), grid


def _levels_of(parts: list[NDArray[Any]], grid: Grid, path: Path) -> NDArray[Any]:
    try:
        return np.concatenate([grid.levels_of(part) for part in parts])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _on_known_grid(arrays: Named, path: Path, grid: Grid) -> tuple[NDArray[Any], Grid | None]:
    """Bring values to the levels that a model knows; integers that fit may be levels already."""
    parts = list(arrays.values())
    try:
        return np.concatenate([grid.levels_of(part) for part in parts]), grid
    except DataError:
        whole = all(part.dtype.kind in "bui" for part in parts)
        if whole and all(part.min() >= 0 and part.max() < grid.count for part in parts):
            return np.concatenate([part.astype(grid.dtype) for part in parts]), grid
        return _levels_of(parts, grid, path), grid


def _refuse_marks(arrays: Named, path: Path, low: int, high: int) -> None:
    """Refuse −1 below counts or levels: the usual mark of a missing value."""
    if low == -1 and high > 3:
        marked = sum(int((array == -1).sum()) for array in arrays.values())
        raise DataError(
            f"{path}: {next(iter(arrays))}: expected integers in 0..255; got -1 to {high}; -1 "
            f"stands in {plural(marked, 'place')}, which looks like a mark for missing values. "
            f"Try: fill them in or leave those rows out; or --levels {high + 2} if -1 is a level"
        )


def _said(grid: Grid) -> str:
    bits = (grid.count - 1).bit_length()
    depth = f"{bits}-bit" if grid.count == 1 << bits >= BYTE_LEVELS else f"{grid.count:,} levels"
    depth = "bits" if grid.count == 2 else depth
    return f"values are {grid.describe()}: modelled as {depth}"


def _as_floats(arrays: Named, path: Path, notes: list[str], how: Reading) -> NDArray[Any]:
    """Join arrays as float32; of columns that this rounds to few values a note, or a DataError."""
    parts = list(arrays.values())
    _check_rounding(parts, path, notes)
    if parts[0].dtype.kind != "f" and how.rules > 1:
        notes.append("integers read as continuous values, as asked: figures are densities")
    return np.concatenate([part.astype(np.float32) for part in parts])


def _check_rounding(parts: list[NDArray[Any]], path: Path, notes: list[str]) -> None:
    """Compare the range of every column with the steps of float32 at its largest value."""
    if any(part.ndim != 2 for part in parts):
        return
    low = np.min([part.min(0) for part in parts], axis=0).astype(np.float64)
    high = np.max([part.max(0) for part in parts], axis=0).astype(np.float64)
    width = high - low
    step = np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32)).astype(np.float64)
    few = (width > 0) & (width < limits.FLOAT32_STEPS * step)
    if not few.any():
        return
    first = int(few.argmax())
    hint = "subtract the mean of such columns and divide by their deviation, in float64"
    said = (
        f"column {first} lies in {low[first]:.10g} to {high[first]:.10g}, where float32 has "
        f"steps of {step[first]:.3g}"
    )
    more = f" ({plural(int(few.sum()), 'column')} like that)" if few.sum() > 1 else ""
    if (width < step)[few].any():
        raise DataError(f"{path}: {said}{more}. Try: {hint}")
    notes.append(f"{said}{more}: rounded to so few values they have no density; {hint}")


def _require_finite(array: NDArray[Any], name: str) -> None:
    """Refuse NaN, infinity and what float32 cannot hold, with the first row."""
    flat = array.reshape(len(array), -1)
    limit = np.finfo(np.float32).max
    # NaN fails every comparison
    bad = np.array([not (abs(row) <= limit).all() for row in flat])
    if bad.any():
        first = int(bad.argmax())
        large = bool(np.isfinite(flat[first]).all())
        hint = (
            "scale the values, or take logarithms" if large else "leave them out, or fill them in"
        )
        raise DataError(
            f"{name}: NaN, infinity or beyond float32 in {plural(int(bad.sum()), 'row')} of "
            f"{len(array):,}, the first is row {first}. Try: {hint}"
        )


def _pieces(parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Cut into pieces of bounded memory, so that most continuous data are known from the first."""
    rows = [max(1, _CHUNK // max(1, part[0].size)) for part in parts]
    return [
        part[i : i + n] for part, n in zip(parts, rows, strict=True) for i in range(0, len(part), n)
    ]


def _is_whole(piece: NDArray[Any]) -> bool:
    return bool(((piece >= 0) & (piece <= BYTE_MAX) & (piece == np.floor(piece))).all())


def _is_fraction(piece: NDArray[Any]) -> bool:
    """Whether every value is k/255 for a whole k, to two roundings of its own dtype."""
    levels = np.rint(piece.astype(np.float64) * 255)
    near = abs(piece - levels / 255) <= 2 * np.finfo(piece.dtype).eps * piece
    return bool((near & (levels <= BYTE_MAX)).all())


def _is_coarse(parts: list[NDArray[Any]]) -> bool:
    """Whether all k of k/255 are multiples of a divisor of 255: thirds, fifths, 4 bits (k/15)."""
    found = {int(k) for part in _pieces(parts) for k in np.unique(_times_255(part))}
    step = math.gcd(*found)
    return step > 1 and 255 % step == 0


def _times_255(part: NDArray[Any]) -> NDArray[np.uint8]:
    return np.concatenate(
        [np.rint(p.astype(np.float64) * 255).astype(np.uint8) for p in _pieces([part])]
    )
