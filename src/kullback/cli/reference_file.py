"""Reading `--reference`: draws of the truth in a .csv file with a heading, or a .npy array."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.core import DataError
from kullback.core.checks import message
from kullback.core.numpy_files import read_npy
from kullback.variational.target import Target

from .reading import decoded, read_bytes

__all__ = ["read_reference"]


def read_reference(path: Path, target: Target) -> dict[str, Tensor]:
    r"""Read draws of the target's parameters, `{name: [n, *shape]}`, float64.

    A .csv file has one column an entry, named as the table of a fit names it (`mu`, `theta[3]`) or
    as Stan does (`theta.3`), in any order; other columns are left out. A .npy file is an array
    `[n, entries]` in the table's order, or `[chains, n, entries]`.
    Errors: `DataError` for a file that cannot be read, lacks an entry or holds what is no number.

    >>> target = Target.of(lambda mu, tau: -mu * mu - tau * tau, {"mu": (), "tau": ()})
    >>> _ = Path("draws.csv").write_text("tau,mu,lp__\n1,2,-3\n4,5,-6\n")
    >>> read_reference(Path("draws.csv"), target)["mu"]
    tensor([2., 5.], dtype=torch.float64)
    """
    content = read_bytes(path)
    names = target.layout.value_names
    reader = {".csv": _from_csv, ".npy": _from_npy}.get(path.suffix.lower())
    if reader is None:
        raise DataError(message(str(path), "a .csv or .npy file", repr(path.suffix)))
    columns = torch.from_numpy(reader(path, content, names))
    if len(columns) < 2 or not bool(columns.isfinite().all()):
        got = f"{len(columns)} draws" if len(columns) < 2 else "NaN or infinity"
        raise DataError(message(str(path), "at least 2 draws of finite numbers", got))
    found, start = {}, 0
    for name, part in target.layout.parts.items():
        size = math.prod(part.shape)
        found[name] = columns[:, start : start + size].reshape(len(columns), *part.shape)
        start += size
    return found


def _from_npy(path: Path, content: bytes, names: tuple[str, ...]) -> NDArray[np.float64]:
    array = read_npy(content, str(path))
    good = array.ndim in (2, 3) and array.dtype.kind in "fiu"
    if not good or array.shape[-1] != len(names):
        got = f"{array.dtype} {list(array.shape)}"
        raise DataError(message(str(path), f"numbers [n, {len(names)}]: {_some(names)}", got))
    flat: NDArray[np.float64] = array.reshape(-1, len(names)).astype(np.float64)
    return flat


def _from_csv(path: Path, content: bytes, names: tuple[str, ...]) -> NDArray[np.float64]:
    try:
        rows = [row for row in csv.reader(io.StringIO(decoded(content, str(path)))) if row]
    except csv.Error as error:
        raise DataError(f"{path}: not a table of text: {error}") from error
    rows = [row for row in rows if not row[0].startswith("#")]  # as Stan comments
    heads = [_plain(cell) for cell in rows[0]] if rows else []
    missing = [name for name in names if heads.count(_plain(name)) != 1]
    if missing:
        got = f"{_some(tuple(heads))}; {_some(tuple(missing))} not once among them"
        raise DataError(message(str(path), f"a heading with {_some(names)}", got))
    places = [heads.index(_plain(name)) for name in names]
    try:
        numbers = [[float(row[place]) for place in places] for row in rows[1:]]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: a row without its numbers: {error}") from error
    return np.array(numbers, dtype=np.float64).reshape(-1, len(names))


def _plain(name: str) -> str:
    """Write `theta[1,2]`, `theta.1.2` and `theta[1, 2]` alike."""
    return name.strip().replace(" ", "").replace("[", ".").replace(",", ".").replace("]", "")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
