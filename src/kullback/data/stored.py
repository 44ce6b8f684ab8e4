"""Training examples that stay on disk: `.npy` files and shards larger than memory.

Which to use: `read_shards` reads the headers of the files; `Pass` goes over all rows once for
everything that must be known of the values (the split, hashes, mean and deviation); `Rows` then
reads the rows of each batch and no others.

Rows are read by position with plain file reads, not through a memory map: memory stays flat, and a
file that is cut short meanwhile is an error that names it instead of a killed process.
"""

import bisect
import hashlib
import itertools
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.core import DataError, numpy_error, numpy_errors

from . import limits
from .arrays import free_memory, header_of, label_texts, layout, to_levels
from .examples import Progress, Reading, plural
from .moments import Moments, Summing
from .quantisation import Grid

__all__ = ["Pass", "RowNames", "Rows", "Shard", "read_shards"]


@dataclass(frozen=True, slots=True)
class Shard:
    """One array of rows in a file: where its numbers begin, their dtype and the shape of a row.

    size, modified: of the file when it was first looked at. labels: one a row, where there are any.
    """

    path: Path
    name: str
    offset: int
    rows: int
    event: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int
    modified: int
    labels: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.event) * self.dtype.itemsize

    @property
    def laid_out(self) -> tuple[int, ...]:
        """The shape of a row as a value: `(C, H, W)` of images."""
        return layout(np.empty((1, *self.event), self.dtype), str(self.path)).shape[1:]


@dataclass(frozen=True, slots=True)
class Values:
    """How stored numbers become values: levels of a grid, bytes as they are, or float32."""

    form: str
    grid: Grid | None = None

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bring rows as stored to values; DataError where one does not fit."""
        if self.grid is not None:
            return self.grid.levels_of(array)
        if self.form == "floats":
            return array.astype(np.float32)
        if array.dtype not in (np.uint8, np.bool_):
            low, high = array.min(), array.max()
            whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
            if low < 0 or high > limits.BYTE_MAX or not whole:
                raise DataError(
                    f"expected whole numbers from 0 to 255; got {low:.6g} to {high:.6g}"
                )
        return array.astype(np.uint8)

    @property
    def count(self) -> int:
        """How many levels there are, where the values are levels."""
        return limits.BYTE_LEVELS if self.grid is None else self.grid.count

    def describe(self) -> str:
        """Say what the values are."""
        floats = self.form == "floats"
        return "continuous values" if floats else f"{self.count:,} levels"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        if self.form == "floats":
            return torch.float32
        many = self.grid is not None and self.grid.dtype == np.int32
        return torch.int32 if many else torch.uint8


class RowNames(Sequence[str]):
    """Names of rows, `shard[row]`, made when they are asked for.

    Example:
        >>> shard = Shard(Path("a.npy"), "a", 0, 3, (2,), np.dtype("u1"), 0, 0)
        >>> RowNames((shard,), torch.tensor([2]))[0]
        'a[2]'
    """

    def __init__(self, shards: tuple[Shard, ...], numbers: Tensor) -> None:
        self.shards, self.numbers = shards, numbers
        self.starts = [0, *itertools.accumulate(shard.rows for shard in shards)]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        """Return one name, or a tuple of them for a slice."""
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        number = int(self.numbers[place])
        k = bisect.bisect_right(self.starts, number) - 1
        return f"{self.shards[k].name}[{number - self.starts[k]}]"


class Rows:
    """Rows of shards on disk that are read when they are asked for; stands for a tensor of them.

    Args:
        shards: In their order.
        numbers: Which rows of all the shards together, int64 `[N]`, ascending.
        values: How stored numbers become values.
        moments: Of these rows; None where they are still to be found.
        device: Where what is read goes.
    """

    def __init__(
        self,
        shards: tuple[Shard, ...],
        numbers: Tensor,
        values: Values,
        *,
        moments: Moments | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shards, self.numbers, self.values = shards, numbers, values
        self.moments, self.device = moments, torch.device(device)
        self._starts = np.cumsum([0, *(shard.rows for shard in shards[:-1])])
        self._offsets = np.array([shard.offset for shard in shards])
        self.shape = torch.Size((len(numbers), *shards[0].laid_out))
        # files that memory has room for are in the system's cache since the pass over them
        free, total = free_memory(), sum(shard.rows * shard.row_bytes for shard in shards)
        roomy = free is not None and 2 * total < free
        self.ahead = hasattr(os, "posix_fadvise") and not roomy
        self.dtype = values.dtype
        self.ndim = len(self.shape)
        self._open: dict[int, IO[bytes]] = {}

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.numbers)

    def __getitem__(self, rows: slice) -> Tensor:
        """Read a run of rows."""
        return self._read(self.numbers[rows])

    def __repr__(self) -> str:
        """Say what there is in one line."""
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)} on disk"

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out of a copy."""
        return self.__dict__ | {"_open": {}}

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """Read rows by their places, `[B]` to `[B, *event]`, as a tensor's method of this name."""
        return self._read(self.numbers[indices.cpu()])

    def keep(self, flags: Tensor) -> "Rows":
        """Return the rows that are flagged, `[N]`, still on disk."""
        return Rows(self.shards, self.numbers[flags], self.values, device=self.device)

    def to(self, device: torch.device | str) -> "Rows":
        """Return the same rows, read to another device."""
        return Rows(self.shards, self.numbers, self.values, moments=self.moments, device=device)

    def blocks(self) -> Iterator[Tensor]:
        """Read all rows in their order, in blocks of bounded memory."""
        step = max(1, limits.STORED_BLOCK_BYTES // max(1, self.shards[0].row_bytes))
        for start in range(0, len(self), step):
            yield self[start : start + step]

    def summed(self) -> Moments:
        """Return the moments of these rows, reading them all where they are not known yet."""
        if self.moments is None:
            sums = Summing()
            for block in self.blocks():
                sums.add(block.cpu())
            self.moments = sums.result()
        return self.moments

    def expect(self, indices: Tensor) -> None:
        """Let the system read rows ahead that are asked for next, where it can."""
        if not self.ahead:
            return
        advise, size = os.posix_fadvise, self.shards[0].row_bytes
        for k, place in self._places(self.numbers[indices.cpu()]):
            advise(self._file(k), place, size, os.POSIX_FADV_WILLNEED)

    def _places(self, numbers: Tensor) -> Iterator[tuple[int, int]]:
        """Yield, for rows of all the shards together, the shard and the place in its file."""
        rows = numbers.numpy()
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        places = self._offsets[shard] + (rows - self._starts[shard]) * self.shards[0].row_bytes
        return zip(shard.tolist(), places.tolist(), strict=True)

    def _read(self, numbers: Tensor) -> Tensor:
        values = self.values.of(self.stored(numbers))
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def stored(self, numbers: Tensor) -> NDArray[Any]:
        """Read rows of all the shards together, `[n]`, as they are stored."""
        first, size, last, file = self.shards[0], self.shards[0].row_bytes, -1, -1
        parts = list[bytes]()
        places = list(self._places(numbers))
        for k, place in places:
            if k != last:
                last, file = k, self._file(k)
            parts.append(read_at(file, size, place))
        found = bytearray().join(parts)
        if len(found) != size * len(parts):
            short = next(n for n, part in enumerate(parts) if len(part) != size)
            shard, place = self.shards[places[short][0]], places[short][1]
            row = (place - shard.offset) // size
            raise DataError(f"{shard.path}: ends before row {row:,}: it was cut short")
        for k in {k for k, _ in places}:  # after reading: a file may be written over while open
            _require_unchanged(self.shards[k], self._file(k))
        array = np.frombuffer(found, first.dtype).reshape(len(parts), *first.event)
        return layout(array, str(first.path))

    def _file(self, k: int) -> int:
        """Return the descriptor of shard k's file; of many the one opened first is closed."""
        file = self._open.get(k)
        if file is None:
            if len(self._open) >= limits.OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            file = self._open[k] = opened(self.shards[k])
        return file.fileno()

    def __del__(self) -> None:
        """Close what is open."""
        for file in getattr(self, "_open", {}).values():
            file.close()


def _read_at(file: int, size: int, place: int) -> bytes:
    """Read bytes of a file from a place on, where the system has no `pread`."""
    os.lseek(file, place, os.SEEK_SET)
    return os.read(file, size)


read_at = getattr(os, "pread", _read_at)


def opened(shard: Shard) -> IO[bytes]:
    """Open a shard's file, or raise a DataError where it is gone or was changed."""
    try:
        file = shard.path.open("rb", buffering=0)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{shard.path}: a shard is missing or cannot be read: {reason}") from error
    try:
        _require_unchanged(shard, file.fileno())
    except DataError:
        file.close()
        raise
    return cast(IO[bytes], file)


def _require_unchanged(shard: Shard, descriptor: int) -> None:
    """Refuse an open file whose size or time is another than when it was first looked at."""
    about = os.fstat(descriptor)
    if (about.st_size, about.st_mtime_ns) != (shard.size, shard.modified):
        raise DataError(f"{shard.path}: changed since its rows were first read")


def read_shards(paths: Sequence[Path], root: Path | None, label: str = "") -> tuple[Shard, ...]:
    """Read the headers of shards and hold them to one shape and dtype."""
    if not paths:
        raise DataError("shards: expected at least one .npy or .npz file; got none")
    found = [_shard(path, root, label) for path in paths]
    first = found[0]
    for one in found[1:]:
        if one.event != first.event or one.dtype != first.dtype:
            raise DataError(
                f"{one.path}: expected rows as in {first.path.name}, {first.dtype} "
                f"{list(first.event)}; got {one.dtype} {list(one.event)}"
            )
    return tuple(found)


def _shard(path: Path, root: Path | None, label: str) -> Shard:
    """Read one header; `.npz` archives must hold their array uncompressed."""
    name = path.stem if root is None else path.relative_to(root).with_suffix("").as_posix()
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            named: NDArray[Any] | None = None
            if path.suffix.lower() == ".npz":
                start, named = _member(path, file, label)
                file.seek(start)
            elif label:
                raise DataError(f"{path}: expected .npz shards with an array {label!r}; got .npy")
            shape, fortran, dtype = header_of(file)
            place = (name, file.tell(), about.st_size, about.st_mtime_ns)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: a shard is missing or cannot be read: {reason}") from error
    except numpy_errors() as error:
        raise DataError(f"{path}: damaged or not a NumPy file ({numpy_error(error)})") from error
    layout(np.broadcast_to(np.zeros((), dtype), shape), str(path))
    if fortran:
        raise DataError(f"{path}: expected rows one after another (C order); got Fortran order")
    name, offset, size, modified = place
    labels: tuple[str, ...] = ()
    if named is not None:
        labels = tuple(label_texts(named, shape[0], f"{path}: {label}"))
    shard = Shard(path, name, offset, shape[0], shape[1:], dtype, size, modified, labels)
    if offset + shard.rows * shard.row_bytes > size:
        raise DataError(f"{path}: its header says {shard.rows:,} rows; the file is shorter")
    return shard


def _member(path: Path, file: IO[bytes], label: str) -> tuple[int, NDArray[Any] | None]:
    """Return where the array of a `.npz` begins in its file, and its labels."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name != f"{label}.npy"]
        if len(names) != 1:
            beside = f" beside {label}" if label else ""
            got = ", ".join(n.removesuffix(".npy") for n in names) or "none"
            whole = {"x_train.npy", "offset.npy"} & {*names}  # images, or clips of sound
            hint = "one array a file, and label with the name of an array of labels beside it"
            hint = "that file, not its folder" if whole else hint
            wanted = f"one array in a shard{beside}"
            raise DataError(f"{path}: expected {wanted}; got {got}. Try: {hint}")
        info = archive.getinfo(names[0])
        if info.compress_type != zipfile.ZIP_STORED:
            hint = "numpy.savez or numpy.save; or storage memory"
            raise DataError(f"{path}: compressed, so its rows cannot be read alone. Try: {hint}")
        labels: NDArray[Any] | None = None
        if label:
            if f"{label}.npy" not in archive.namelist():
                raise DataError(f"{path}: expected an array {label!r} of labels; got none")
            with archive.open(f"{label}.npy") as member:
                labels = np.lib.format.read_array(member, allow_pickle=False)
    file.seek(info.header_offset + 26)  # lengths of the name and of the extra field
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra, labels


@dataclass(slots=True)
class Pass:
    """What one pass over all rows finds.

    is_test: `[N]`. test: those rows. train_hash: SHA-256 of the training rows. high: the largest
    value. extreme: whether all values are 0 or 255.
    """

    shards: tuple[Shard, ...]
    values: Values
    notes: list[str] = field(default_factory=list)
    is_test: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    test: list[NDArray[Any]] = field(default_factory=list)
    train_hash: str = ""
    moments: Moments | None = None
    high: float = -math.inf
    extreme: bool = True

    @classmethod
    def over(
        cls,
        shards: tuple[Shard, ...],
        how: Reading,
        *,
        fraction: float,
        own_split: bool,
        progress: Progress | None = None,
    ) -> "Pass":
        """Read every row once: decide how values are read, split by digest, hash and sum."""
        values, notes = decide(shards, how)
        found = cls(shards, values, notes)
        total = sum(shard.rows for shard in shards)
        digest, sums, flags, done = hashlib.sha256(), Summing(), list[NDArray[np.bool_]](), 0
        for shard, block in blocks(shards, values):
            own = shard.name.startswith("test/") if own_split else None
            test = _held_out(block, fraction, own=own)
            train = block[~test]
            digest.update(np.ascontiguousarray(train).data)
            sums.add(torch.from_numpy(np.ascontiguousarray(train)))
            found.test.append(block[test])
            flags.append(test)
            found.high = max(found.high, float(block.max()))
            if found.extreme:
                found.extreme = bool(((block == 0) | (block == limits.BYTE_MAX)).all())
            done += len(block)
            if progress is not None:
                progress(done, total)
        found.is_test = np.concatenate(flags)
        found.train_hash = digest.hexdigest()
        if not found.is_test.all():
            found.moments = sums.result()
        return found

    def kind(self, binarize: Any, notes: list[str]) -> tuple[Any, Any]:
        """Say what the values are, and what is left to binarise; as of data in memory."""
        if self.values.form == "floats":
            return "continuous", binarize
        if self.values.count not in (2, limits.BYTE_LEVELS):
            return "levels", binarize
        if self.high <= 1:
            if binarize != "none":
                notes.append("values are 0 and 1 already: nothing to binarise")
            return "binary", "none"
        if binarize == "none" and self.extreme:
            notes.append("values are only 0 and 255: binarize dynamic makes them 0 and 1")
        return "8-bit", binarize

    def train(self) -> Rows:
        """Return the rows to train on."""
        numbers = torch.from_numpy(np.flatnonzero(~self.is_test))
        return Rows(self.shards, numbers, self.values, moments=self.moments)


def _held_out(block: NDArray[Any], fraction: float, *, own: bool | None) -> NDArray[np.bool_]:
    """Flag the rows to test on: all or none of a shard, or by their digests."""
    if own is not None:
        return np.full(len(block), own)
    rows, limit = np.ascontiguousarray(block).reshape(len(block), -1), fraction * 2**64
    keys = (int.from_bytes(hashlib.sha256(row.data).digest()[:8], "big") for row in rows)
    return np.fromiter((key < limit for key in keys), bool, len(block))


def blocks(shards: tuple[Shard, ...], values: Values) -> Iterator[tuple[Shard, NDArray[Any]]]:
    """Yield the values of every row once, in blocks, with their shard."""
    for shard in shards:
        step = max(1, limits.STORED_BLOCK_BYTES // max(1, shard.row_bytes))
        with opened(shard) as file:
            file.seek(shard.offset)
            for start in range(0, shard.rows, step):
                count = min(step, shard.rows - start)
                array = _next_rows(file, shard, count)
                bad = _first_bad(array)
                if bad is not None:
                    where = f"{shard.path}: row {start + bad:,}"
                    raise DataError(f"{where}: NaN, infinity or beyond float32")
                try:
                    yield shard, values.of(array)
                except DataError as error:
                    where = f"{shard.path}: rows {start:,} to {start + count - 1:,}"
                    hint = "levels none for a density, or numpy.uint8; or storage memory"
                    text = f"{where}: {error}; what values are is decided from "
                    text += f"{limits.STORED_LOOK:,} rows. Try: {hint}"
                    raise DataError(text) from error


def _first_bad(array: NDArray[Any]) -> int | None:
    """Return the first row that float32 cannot hold, None where there is none."""
    if array.dtype.kind != "f":
        return None
    largest = np.abs(array.reshape(len(array), -1)).max(1)  # NaN where a row holds one
    bad = ~(largest <= np.finfo(np.float32).max)
    return int(bad.argmax()) if bad.any() else None


def _next_rows(file: IO[bytes], shard: Shard, count: int) -> NDArray[Any]:
    stored = bytearray(count * shard.row_bytes)
    view, got = memoryview(stored), 0
    while got < len(stored):
        more = cast(Any, file).readinto(view[got:])
        if not more:
            raise DataError(f"{shard.path}: ends early: it was cut short")
        got += more
    array = np.frombuffer(stored, shard.dtype).reshape(count, *shard.event)
    return layout(array, str(shard.path))


def decide(shards: tuple[Shard, ...], how: Reading) -> tuple[Values, list[str]]:
    """Decide how values are read from rows spread evenly over the shards."""
    if how.levels not in ("auto", "none"):
        got = "counts" if how.levels == "counts" else f"{how.levels} levels"
        raise DataError(f"levels: expected auto or none for rows on disk; got {got}")
    total, first = sum(shard.rows for shard in shards), shards[0]
    most = max(2, limits.STORED_LOOK_BYTES // max(1, first.row_bytes))
    count = min(total, limits.STORED_LOOK, most)
    numbers = torch.from_numpy(np.linspace(0, total - 1, count).astype(np.int64))
    sample, notes = Rows(shards, numbers, Values("bytes")).stored(numbers), list[str]()
    name, bad = str(first.path), _first_bad(sample)
    if bad is not None:
        starts = [0, *itertools.accumulate(shard.rows for shard in shards)]
        k = bisect.bisect_right(starts, int(numbers[bad])) - 1
        where = f"{shards[k].path}: row {int(numbers[bad]) - starts[k]:,}"
        raise DataError(f"{where}: NaN, infinity or beyond float32")
    values, grid = to_levels({plural(count, "row"): sample}, Path(name), notes, how)
    form = "floats" if values.dtype == np.float32 else "bytes"
    return Values(form, grid), notes
