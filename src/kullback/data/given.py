"""What a user has besides one file: objects in memory, and folders or lists of shards.

Which to use: `arrays_of` turns tensors, arrays, PyTorch data sets and iterables into arrays by
name, as an `.npz` holds them; `shards_in` finds the shards that a source stands for, if any.
"""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.core import ArgumentTypeError, DataError, describe, numpy_errors

from . import limits
from .arrays import free_memory, header_of
from .stored import Shard, read_shards

__all__ = ["Given", "Shards", "arrays_of", "shards_in"]

SUFFIXES = (".npy", ".npz")
KNOWN = (
    "'fashion', a path, a list of shards, a tensor or array, arrays by name, a map-style Dataset "
    "or an iterable of examples"
)


@dataclass(frozen=True, slots=True)
class Given:
    """Arrays in memory by the names of an `.npz`, and what they are called in a protocol.

    rows: the names of all rows of x, where they have names of their own.
    """

    arrays: dict[str, NDArray[Any]]
    name: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shards:
    """Files of rows: those of a folder, those of a list, or one file.

    root: the folder, None for a list or one file.
    """

    source: str
    paths: tuple[Path, ...]
    root: Path | None = None
    listed: bool = False

    def asked(self) -> dict[str, Any]:
        """Return what a protocol holds besides the source: paths of a list, names in a folder."""
        if self.listed:
            return {"paths": [str(path) for path in self.paths]}
        return {} if self.root is None else {"shards": self.names()}

    def names(self) -> list[str]:
        """Return the paths of the files below their folder."""
        return [path.relative_to(self.root or path.parent).as_posix() for path in self.paths]

    def require(self, names: Sequence[str]) -> None:
        """Raise a DataError where a file of these names is missing."""
        missing = sorted(set(names) - set(self.names()))
        if missing:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(f"{self.source}: a shard is missing: {missing[0]}{more}")

    def has_split(self) -> bool:
        """Say whether the folder has train/ and test/."""
        return self.root is not None and _divided(self.root)

    def headers(self, label: str = "") -> tuple[Shard, ...]:
        """Read the headers of all files, held to one shape and dtype."""
        return read_shards(self.paths, self.root, label)

    def in_memory(self, label: str = "") -> Given:
        """Read all rows at once."""
        shards = self.headers(label)
        total = sum(one.rows * one.row_bytes for one in shards)
        free = free_memory()
        if free is not None and total * limits.MEMORY_COPIES > free:
            raise DataError(f"{self.source}: {total / 2**30:.1f} GB. Try: storage disk")
        split = {"x": shards}
        if self.has_split():
            split = {
                f"x_{part}": tuple(s for s in shards if s.name.startswith(f"{part}/"))
                for part in ("train", "test")
            }
        found: dict[str, NDArray[Any]] = {}
        for name, some in split.items():
            found[name] = np.concatenate([_whole(one) for one in some])
            if label:
                each = [one for shard in some for one in shard.labels]
                found[label + name.removeprefix("x")] = np.array(each)
        rows = [f"{s.name}[{k}]" for some in split.values() for s in some for k in range(s.rows)]
        return Given(found, self.source, tuple(rows))


def _whole(shard: Shard) -> NDArray[Any]:
    array = np.fromfile(shard.path, shard.dtype, -1, offset=shard.offset)
    size = shard.rows * (shard.row_bytes // shard.dtype.itemsize)
    return array[:size].reshape(shard.rows, *shard.event)


def _divided(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def shards_in(source: Any, storage: str) -> Shards | None:
    """Return the shards that a source stands for; None where it is something else."""
    if isinstance(source, list | tuple) and source and all(_is_path(one) for one in source):
        paths = tuple(Path(one) for one in source)
        return Shards(f"{paths[0].parent or '.'} ({len(paths)} shards)", paths, listed=True)
    if (file := _mapped_file(source)) is not None:
        return Shards(str(file), (file,))
    if not _is_path(source) or source == "fashion":
        return None
    path = Path(source)
    try:
        if path.is_dir():
            return _of_folder(path)
        one_file = path.suffix.lower() in SUFFIXES and path.is_file()
    except (OSError, ValueError):
        return None  # the reader says why
    if storage == "disk":
        if not one_file:
            raise DataError(f"{path}: expected .npy or .npz files to read from disk; got another")
        return Shards(str(path), (path,))
    large = one_file and storage == "auto" and path.suffix.lower() == ".npy" and _is_large(path)
    return Shards(str(path), (path,)) if large else None


def _is_path(one: Any) -> bool:
    return isinstance(one, str | Path)


def _of_folder(folder: Path) -> Shards | None:
    """Return the shards of a folder in which they are the commonest files."""
    inside = [folder / "train", folder / "test"] if _divided(folder) else [folder]
    files = [one for part in inside for one in part.iterdir() if one.is_file()]
    arrays = sum(one.suffix.lower() in SUFFIXES for one in files)
    hidden = sum(one.name.startswith(".") for one in files)
    if not arrays or 2 * arrays < len(files) - hidden:
        return None
    paths = sorted(
        one
        for part in inside
        for one in part.rglob("*")
        if one.suffix.lower() in SUFFIXES and not one.name.startswith(".") and one.is_file()
    )
    return Shards(str(folder), tuple(paths), root=folder)


def _is_large(path: Path) -> bool:
    """Say whether memory has no room for an array while it is read."""
    free = free_memory()
    if free is None or path.stat().st_size * limits.MEMORY_COPIES <= free:
        return False
    try:
        with path.open("rb") as file:
            header_of(file)
    except OSError:
        return False  # the reader says why
    except numpy_errors():
        return False
    return True


def _mapped_file(array: Any) -> Path | None:
    """Return the file of a whole memory-mapped array, None for any other array."""
    whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
    return Path(str(array.filename)) if whole and array.filename is not None else None


def arrays_of(source: Any, label: str = "") -> Given:
    """Return arrays by the names of an `.npz` for anything in memory that has examples.

    Args:
        source: A tensor or array `[N, *event]`; a mapping of names to such; a map-style PyTorch
            data set; or an iterable of examples, or of (example, label).
        label: The name under which labels of (example, label) go; "" leaves them out.

    Returns:
        The arrays and a name for the protocol.

    Raises:
        ArgumentTypeError: Something else.
        DataError: Examples of different shapes, or none.

    Example:
        >>> arrays_of([torch.zeros(3), torch.ones(3)]).arrays["x"].shape
        (2, 3)
    """
    if isinstance(source, Tensor | np.ndarray):
        array = _as_array(source)
        return Given({"x": array}, f"{type(source).__name__.lower()} {describe(array)}")
    if isinstance(source, Mapping):
        arrays = {str(name): _as_array(one) for name, one in source.items()}
        if "x_train" not in arrays and len([n for n in arrays if n != label]) != 1:
            got = ", ".join(arrays) or "none"
            raise DataError(f"data: expected x_train and x_test, or one array; got {got}")
        return Given(arrays, "arrays " + ", ".join(arrays))
    examples = _examples_of(source)
    name = type(source).__name__
    return _stacked(examples, name, label)


def _examples_of(source: Any) -> Iterable[Any]:
    """Return the examples of a map-style data set in order, or an iterable itself."""
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if isinstance(source, torch.utils.data.DataLoader):
        raise ArgumentTypeError(
            "data: expected a data set; got a DataLoader, which makes batches of its own. "
            "Try: loader.dataset"
        )
    if isinstance(source, torch.utils.data.Dataset) and sized:
        return (source[k] for k in range(len(source)))  # type: ignore[arg-type]
    if isinstance(source, Iterable) and not isinstance(source, str | bytes):
        return source
    raise ArgumentTypeError(f"data: expected {KNOWN}; got {type(source).__name__}")


def _stacked(examples: Iterable[Any], name: str, label: str) -> Given:
    """Stack examples, and the labels beside them where they are asked for."""
    rows: list[NDArray[Any]] = []
    labels: list[Any] = []
    held, free = 0, free_memory()
    for k, item in enumerate(examples):
        one = item[0] if isinstance(item, tuple) and len(item) == 1 else item
        pair = isinstance(one, tuple | list) and len(one) == 2
        pair = pair and not isinstance(one[0], int | float | list | tuple)  # those are an example
        row = _as_array(one[0] if pair else one)
        if label:
            if not pair:
                raise DataError(f"data: expected (example, label) in item {k}; got one example")
            labels.append(_label_of(one[1]))
        if rows and (row.shape != rows[0].shape or row.dtype != rows[0].dtype):
            raise DataError(
                f"data: expected examples like the first, {describe(rows[0])}; got "
                f"{describe(row)} in item {k:,}"
            )
        rows.append(row)
        held += row.nbytes
        if free is not None and held * limits.MEMORY_COPIES > free:
            hint = "numpy.save blocks of rows into a folder and pass the folder"
            raise DataError(f"data: more than memory has room for after item {k:,}. Try: {hint}")
    if not rows:
        raise DataError("data: expected examples; got none")
    arrays = {"x": np.stack(rows)} | ({label: np.array(labels)} if label else {})
    return Given(arrays, f"{name} of {describe(arrays['x'])}")


def _label_of(one: Any) -> Any:
    return one.item() if isinstance(one, Tensor | np.ndarray) else one


def _no_array(one: Any) -> str:
    """Say of an example that is no array what it is, and how to name the part that is one."""
    got, hint = type(one).__name__, "examples that are tensors or arrays of one shape"
    if isinstance(one, Mapping):
        parts = [repr(key) for key in one]
        got = f"dict of {', '.join(parts[: limits.NAMED_SIZES])}"
        hint = f"(one[{parts[0]}] for one in data)" if parts else hint
    elif isinstance(one, tuple | list):
        kinds = [type(part).__name__ for part in one[: limits.NAMED_SIZES]]
        got += f" of {len(one)}: {', '.join(kinds)}"
        hint = "(one[0] for one in data), or pairs (example, label) with label="
    return f"data: expected numbers; got {got}. Try: {hint}"


def _as_array(one: Any) -> NDArray[Any]:
    """Return a NumPy array of a tensor, an array, a picture or a nested list of numbers."""
    if isinstance(one, Tensor):
        if one.layout != torch.strided or one.is_quantized or one.is_meta:
            kind = one.layout if one.layout != torch.strided else f"{one.dtype} on {one.device}"
            hint = "data.to_dense(), or data.dequantize()"
            raise DataError(
                f"data: expected a tensor with all its numbers; got {kind}. Try: {hint}"
            )
        plain = one.detach().cpu()
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    try:
        found = np.asarray(one)
    except numpy_errors() as error:
        raise DataError(_no_array(one)) from error
    if found.dtype.kind == "O":
        raise DataError(_no_array(one))
    return found
