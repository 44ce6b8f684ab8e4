"""Counts `[n, genes]`: sparse matrices as SciPy saves them, AnnData, size factors.

Which to use: `dense_of` for the arrays of a sparse matrix, `read_anndata` for an AnnData file
(extra `h5ad`), `as_counts` to bring matrices to whole numbers with a size factor for each row. Of
AnnData `layers/counts` is read where there is one, else `X`; size factors and labels are columns of
`obs` (the on-disk format of anndata 0.8 and later).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError, describe, import_extra

from .examples import plural
from .limits import MOST_COUNT

__all__ = [
    "ANNDATA_SUFFIX",
    "MATRICES",
    "SIZE_COLUMNS",
    "SIZE_NAMES",
    "SPARSE_NAMES",
    "as_counts",
    "column_in",
    "dense_of",
    "read_anndata",
]

SIZE_NAMES = ("size_factors", "size_factors_train", "size_factors_test")
SPARSE_NAMES = ("format", "shape", "data")  # of what scipy.sparse.save_npz writes
SIZE_COLUMNS = ("size_factor", "size_factors")  # columns
ANNDATA_SUFFIX = ".h5ad"
SPARSE_KINDS = {"csr_matrix": "csr", "csc_matrix": "csc"}
LAYER = "layers/counts"
MATRICES = (f"{LAYER} of an AnnData file", "X of an AnnData file")
DAMAGE = (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError)  # what h5py raises for it
Named = dict[str, NDArray[Any]]


def dense_of(
    arrays: Mapping[str, NDArray[Any]], path: Path, check: Callable[[int], None]
) -> NDArray[Any]:
    """Return the matrix `[n, D]` of the arrays of `scipy.sparse.save_npz`: csr, csc or coo.

    Entries that stand twice are added, as SciPy does. check: called with the bytes it will take.

    Raises:
        DataError: Another format, or arrays that are no such matrix.
    """
    kind, shape = arrays["format"].item(), arrays["shape"]
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind not in ("csr", "csc", "coo"):
        raise DataError(f"{path}: expected a csr, csc or coo matrix; got {kind!r}. Try: .tocsr()")
    data = arrays["data"]
    good = shape.shape == (2,) and shape.dtype.kind in "iu" and bool((shape > 0).all())
    if not good or data.ndim != 1 or data.dtype.kind not in "buif":
        raise DataError(f"{path}: not a sparse matrix of numbers: shape {shape.tolist()}")
    n, columns = (int(size) for size in shape)
    places = _places(arrays, kind, (n, columns), path)
    wide = data.astype(np.int64 if data.dtype.kind in "bui" else data.dtype)
    check(n * columns * wide.itemsize)
    dense = np.zeros((n, columns), wide.dtype)
    np.add.at(dense, places, wide)
    return dense


def _places(
    arrays: Mapping[str, NDArray[Any]], kind: str, shape: tuple[int, int], path: Path
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the row and the column of every entry, checked."""
    wanted = ("row", "col") if kind == "coo" else ("indices", "indptr")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(f"{path}: a {kind} matrix without {' and '.join(missing)}")
    one, other = arrays[wanted[0]], arrays[wanted[1]]
    entries = len(arrays["data"])
    if kind == "coo":
        places = one, other
    else:
        lines = shape[kind == "csc"]
        steps = np.diff(other)
        good = other.shape == (lines + 1,) and bool((steps >= 0).all()) and other[0] == 0
        if not good or int(other[-1]) != entries:
            raise DataError(f"{path}: its indptr does not fit {lines:,} lines, {entries:,} entries")
        line = np.repeat(np.arange(lines), steps)
        places = (line, one) if kind == "csr" else (one, line)
    for index, size in zip(places, shape, strict=True):
        fits = index.shape == (entries,) and index.dtype.kind in "iu"
        if not fits or (entries and (int(index.min()) < 0 or int(index.max()) >= size)):
            raise DataError(f"{path}: its indices do not fit a matrix of {list(shape)}")
    return places


def as_counts(
    arrays: Named, given: Named, path: Path, how: str, notes: list[str]
) -> tuple[NDArray[Any], str]:
    """Join matrices `[n, D]` as whole numbers, with the size factor of each row as a last column.

    Args:
        arrays: x_train and x_test, or one matrix.
        given: Size factors by name, `SIZE_NAMES`.
        path: Of the file.
        how: "auto" (given ones, if there are any), "none", "total" or "given".
        notes: To which what was done is added.

    Returns:
        `[N, D]`, or `[N, D + 1]` with size factors; and where those are from: "", "total", "given".

    Raises:
        DataError: A value is no count, or size factors are missing, not positive or too few.
    """
    for name, array in arrays.items():
        _require_counts(array, f"{path}: {name}")
    counts = np.concatenate([array.astype(np.int32) for array in arrays.values()])
    how = ("given" if given else "none") if how == "auto" else how
    if how == "none":
        return counts.astype(_least_dtype(counts)), ""
    totals = counts.sum(1, dtype=np.int64)
    sizes = totals if how == "total" else _given_sizes(arrays, given, path)
    single = np.finfo(np.float32)
    bad = ~((sizes >= single.tiny) & (sizes <= single.max))  # NaN fails every comparison
    if bad.any():
        row = int(bad.argmax())
        hint = "leave out rows without counts" if how == "total" else "leave those rows out"
        raise DataError(
            f"{path}: expected positive size factors; got {sizes[row]:g} in row {row}, the first "
            f"of {plural(int(bad.sum()), 'row')}. Try: {hint}"
        )
    source = "each row's total count" if how == "total" else "as given"
    notes.append(f"size factors: {source}; every log p(x) is conditional on them")
    whole = how == "total" and int(totals.max()) <= np.iinfo(np.int32).max
    column = sizes[:, None].astype(np.int64 if whole else np.float32)
    joined = np.concatenate([counts, column.astype(np.int32 if whole else np.float32)], axis=1)
    return joined.astype(_least_dtype(joined) if whole else np.float32), how


def _least_dtype(counts: NDArray[Any]) -> Any:
    """Return the smallest dtype that holds counts and that torch computes with."""
    most = int(counts.max())
    return next(t for t in (np.uint8, np.int16, np.int32) if most <= np.iinfo(t).max)


def _require_counts(array: NDArray[Any], name: str) -> None:
    if array.ndim != 2:
        shape = list(array.shape)
        raise DataError(
            f"{name}: expected counts as vectors [n, D]; got {shape}. Try: .reshape(len(x), -1)"
        )
    hint = "the raw counts: not normalised, no logarithms; or levels none, if they are no counts"
    for row, stored in enumerate(array):
        values = stored.astype(np.float64)  # float16 has no 2^24
        good = (values >= 0) & (values <= MOST_COUNT)
        good &= values == np.rint(values)
        if not good.all():
            found = values[~good][0]
            raise DataError(
                f"{name}: expected counts, whole numbers from 0 to {MOST_COUNT:,}; got {found:.6g} "
                f"in row {row}. Try: {hint}"
            )


def _given_sizes(arrays: Named, given: Named, path: Path) -> NDArray[Any]:
    """Return the size factors of all rows, or say which are missing."""
    apart = len(arrays) == 2 and "size_factors" not in given
    names = SIZE_NAMES[1:] if apart else SIZE_NAMES[:1]
    missing = [name for name in names if name not in given]
    if missing:
        raise DataError(
            f"{path}: expected size factors in an array {' and '.join(names)}; "
            f"got {', '.join(given) or 'none'}"
        )
    parts = [given[name] for name in names]
    wanted = [len(array) for array in arrays.values()]
    wanted = wanted if apart else [sum(wanted)]
    for name, part, rows in zip(names, parts, wanted, strict=True):
        if part.ndim > 2 or part.size != rows or part.dtype.kind not in "uif":
            raise DataError(
                f"{path}: {name}: expected {rows:,} numbers, one a row; got {describe(part)}"
            )
    return np.concatenate([part.reshape(-1).astype(np.float64) for part in parts])


def read_anndata(
    path: Path, label: str, check: Callable[[int], None], *, counts: bool = True
) -> tuple[Named, str]:
    """Read the matrix of a file, with size factors and labels where there are any.

    Args:
        path: The file.
        label: A column of `obs`, or "".
        check: Called with the bytes that the dense matrix will take.
        counts: Whether `layers/counts` goes before `X`.

    Returns:
        Arrays by name (`matrix` `[n, D]`, `size_factors` `[n]`, labels `[n]`), and which matrix
        that is, in words.

    Raises:
        DataError: No such file, another layout, or no column of that name.
        MissingExtraError: h5py is not installed.
    """
    h5py = import_extra("h5py", "h5ad")
    try:
        with h5py.File(path, "r") as file:
            place = LAYER if counts and LAYER in file else "X"
            if place not in file or "obs" not in file:
                raise DataError(f"{path}: expected X and obs, as AnnData writes them; got others")
            found = {"matrix": _matrix(file[place], path, check)}
            columns = _columns(file["obs"], path)
            size = next((name for name in columns if name in SIZE_COLUMNS), None)
            if size is not None:
                found["size_factors"] = _column(file["obs"][size], f"{path}: obs/{size}")
            if label and label not in columns:
                got = ", ".join(columns) or "no columns"
                raise DataError(f"{path}: expected a column {label!r} of obs; got {got}")
            if label:
                found[label] = _column(file["obs"][label], f"{path}: obs/{label}")
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error.args[0]).splitlines()[0]
        raise DataError(f"{path}: cannot be read as HDF5: {reason}") from error
    return found, MATRICES[place == "X"]


def column_in(path: Path, name: str) -> bool:
    """Say whether `obs` has a column; False for a file that cannot be read."""
    h5py = import_extra("h5py", "h5ad")
    try:
        with h5py.File(path, "r") as file:
            return "obs" in file and name in _columns(file["obs"], path)
    except DAMAGE:
        return False  # the reader says why


def _matrix(node: Any, path: Path, check: Callable[[int], None]) -> NDArray[Any]:
    """Return a dense matrix of a data set, or of a group with the arrays of a sparse one."""
    if hasattr(node, "dtype"):
        return _read(node, check)
    kind = SPARSE_KINDS.get(str(node.attrs.get("encoding-type")))
    missing = [name for name in ("data", "indices", "indptr") if name not in node]
    if kind is None or missing or "shape" not in node.attrs:
        got = node.attrs.get("encoding-type", "a group without encoding-type")
        hint = "anndata.read_h5ad(...).write_h5ad(...) with a current anndata"
        raise DataError(f"{path}: expected a dense, csr or csc matrix; got {got}. Try: {hint}")
    arrays = {name: _read(node[name], check) for name in ("data", "indices", "indptr")}
    arrays |= {"format": np.array(kind), "shape": np.asarray(node.attrs["shape"])}
    return dense_of(arrays, path, check)


def _read(node: Any, check: Callable[[int], None]) -> NDArray[Any]:
    check(int(node.size) * node.dtype.itemsize)
    return np.asarray(node[()])


def _columns(obs: Any, path: Path) -> list[str]:
    """Return the names of the columns of a data frame."""
    if hasattr(obs, "dtype"):
        hint = "anndata.read_h5ad(...).write_h5ad(...) with a current anndata"
        raise DataError(f"{path}: obs is a table of an old anndata. Try: {hint}")
    return [name for name in obs if name != obs.attrs.get("_index", "_index")]


def _column(node: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers or texts; a categorical one as its categories."""
    if hasattr(node, "dtype"):
        return _texts(np.asarray(node[()]))
    if "codes" in node and "categories" in node:
        codes = np.asarray(node["codes"][()])
        missing = codes < 0
        values = _column(node["categories"], name)[np.where(missing, 0, codes)]
    elif "values" in node and "mask" in node:
        values, missing = _column(node["values"], name), np.asarray(node["mask"][()])
    else:
        got = node.attrs.get("encoding-type", "a group")
        raise DataError(f"{name}: expected numbers, texts or categories; got {got}")
    if missing.any():
        raise DataError(f"{name}: {plural(int(missing.sum()), 'row')} without a value")
    return values


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    """Return texts, which HDF5 gives as bytes in an array of objects, as NumPy's own."""
    if values.dtype.kind != "O":
        return values
    return np.array([one.decode() if isinstance(one, bytes) else str(one) for one in values])
