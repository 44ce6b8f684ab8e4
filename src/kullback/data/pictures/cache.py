"""Decoded folders of pictures, kept in the user's cache folder: read again, they are not decoded.

Which to use: `key_of` for the name of what is read; `fetch` and `Entry` for the decoded examples,
and `finish` before they may change. A key covers the path, size and times of every file, the
options of reading and the versions of the decoder, so a changed file is decoded again. An entry is
one file: a `.npy` array, then names and notes as JSON, then the SHA-256 of values, JSON and header;
a damaged one is removed and made again. The oldest entries go when all together exceed
`limits.MAX_CACHE_BYTES`. `KULLBACK_CACHE=off` switches it off.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from kullback.core import KullbackError, __version__, compiling, open_atomic, remove_temporaries

from .. import limits
from ..examples import Examples, Fitting, Reading
from ..quantisation import Grid

__all__ = ["Entry", "fetch", "finish", "key_of"]

_writers: list[threading.Thread] = []


def key_of(folder: Path, paths: list[str], fitting: Fitting, how: Reading) -> str | None:
    """Return the name under which the decoded files are kept; None where they are not to be.

    That is for few files, which are quickly decoded, and for files changed so recently that a
    second change could have the same time.
    """
    if len(paths) < limits.CACHED_FILES or os.environ.get("KULLBACK_CACHE") == "off":
        return None
    settings = (__version__, PIL.__version__, str(folder.resolve()), fitting, how)
    digest = hashlib.sha256(repr(settings).encode())
    newest, parts = 0, []
    for path in paths:
        parts.append(path)
        try:
            about = os.stat(path)  # noqa: PTH116 - 100,000 of them
        except OSError:  # a link to nothing: skipped by name when it is read
            continue
        newest = max(newest, about.st_mtime_ns, about.st_ctime_ns)
        parts.append(f"\0{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\0")
    digest.update(os.fsencode("".join(parts)))
    settled = newest < time.time_ns() - limits.SETTLED_SECONDS * 1e9
    return digest.hexdigest() if settled else None


def fetch(key: str) -> Examples | None:
    """Return the examples kept under a key, or None; a damaged entry is removed."""
    finish()
    try:
        path = _path(key)
        with path.open("rb") as file:
            return _read(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, KullbackError, MemoryError):
        with contextlib.suppress(OSError):
            _path(key).unlink()
        return None


class Entry:
    """One entry that is written beside the decoding, by a thread; a full disk is no failure.

    `add` gives it pixels as they come, which must then stay as they are until `finish` returns;
    `close` what else is kept, and `discard` leaves nothing behind. Rows in another shape than the
    first, and examples that are no longer the rows that were given, are written anew by `close`.

    Args:
        key: As `key_of` returns it.
        rows: How many are expected, for the room they take.
    """

    def __init__(self, key: str, rows: int) -> None:
        self.key, self.expected, self.rows = key, rows, 0
        self.layout: tuple[Any, ...] = ()
        self.waiting: queue.Queue[NDArray[Any] | bytes | None] = queue.Queue(limits.WAITING_PARTS)
        self.thread: threading.Thread | None = None
        self.ended = False

    def add(self, pixels: NDArray[Any]) -> None:
        """Give it more rows."""
        layout = (*pixels.shape[1:], pixels.dtype.str)
        if not self.layout:
            self.layout = layout
            if max(self.expected, len(pixels)) * pixels[0].nbytes <= limits.MAX_CACHE_BYTES:
                self.thread = threading.Thread(target=self._write)
                self.thread.start()
                _writers.append(self.thread)
        if layout != self.layout:
            self.discard()
        if self.thread is not None:
            self.rows += len(pixels)
            self.waiting.put(pixels)

    def close(self, examples: Examples, *, given: bool) -> None:
        """Complete it; given: whether the values are the rows that were added."""
        words = _words(examples)
        if given and self.rows == len(examples.values):
            self.waiting.put(words)
            return
        self.discard()
        again = Entry(self.key, len(examples.values))
        again.add(examples.values)
        again.waiting.put(words)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self.thread is not None:
            self.waiting.put(None)
        self.thread, self.rows = None, -1

    def _write(self) -> None:
        try:
            path = _path(self.key)
            with open_atomic(path, sync=False) as file:  # what a power cut damages, its hash shows
                self._write_into(file, path.parent)
        except (OSError, KullbackError, _Dropped):
            while not self.ended:  # so that no one waits for room in the queue
                self._next()

    def _write_into(self, file: Any, folder: Path) -> None:
        file.seek(limits.NPY_HEADER)
        digest, rows = hashlib.sha256(), 0
        while isinstance(part := self._next(), np.ndarray):
            content = np.ascontiguousarray(part).data
            digest.update(content)
            file.write(content)
            rows += len(part)
        header = _header((rows, *self.layout[:-1]), self.layout[-1])
        if part is None or len(header) != limits.NPY_HEADER:
            raise _Dropped
        _make_room(folder, file.tell() + len(part) + digest.digest_size)
        digest.update(part)
        digest.update(header)
        file.write(part)
        file.write(digest.digest())
        file.seek(0)
        file.write(header)

    def _next(self) -> NDArray[Any] | bytes | None:
        part = self.waiting.get()
        self.ended = not isinstance(part, np.ndarray)
        return part


class _Dropped(Exception):
    """An entry that is not to be kept after all."""


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the first bytes of a `.npy` file."""
    file = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def _words(examples: Examples) -> bytes:
    """Return all but the values as JSON."""
    fields = {
        "names": examples.names,
        "digests": [digest.hex() for digest in examples.digests],
        "split": examples.split,
        "notes": examples.notes,
        "skipped": examples.skipped,
        "grid": None if examples.grid is None else examples.grid.to_dict(),
    }
    return json.dumps(fields).encode()


def finish() -> None:
    """Wait until everything that is to be kept is written."""
    while _writers:
        _writers.pop().join()


def _path(key: str) -> Path:
    folder = compiling.cache_folder() / "pictures"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{key}.npy"


def _read(file: Any) -> Examples:
    """Read an entry whose hash is right; ValueError for any other."""
    length = file.seek(0, os.SEEK_END) - hashlib.sha256().digest_size
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    start, count = file.tell(), math.prod(shape)
    if by_columns or dtype.hasobject or start + count * dtype.itemsize > length:
        raise ValueError("damaged")
    values = np.fromfile(file, dtype, count)
    words = file.read(length - file.tell())
    digest, hashed = hashlib.sha256(), file.read()
    file.seek(0)
    for part in (values.data, words, file.read(start)):
        digest.update(part)
    if hashed != digest.digest():
        raise ValueError("damaged")
    fields = json.loads(words)
    os.utime(file.fileno())  # used now: the oldest go first
    return Examples(
        values.reshape(shape),
        fields["names"],
        [bytes.fromhex(digest) for digest in fields["digests"]],
        own=True,
        split=fields["split"],
        notes=fields["notes"],
        skipped=[(name, why) for name, why in fields["skipped"]],
        grid=None if fields["grid"] is None else Grid.from_dict(fields["grid"]),
    )


def _make_room(folder: Path, size: int) -> None:
    """Remove the entries used least recently until `size` more bytes fit the limit, if they can."""
    if size > limits.MAX_CACHE_BYTES:
        raise _Dropped
    remove_temporaries(folder)
    entries = sorted((entry.stat().st_mtime, entry) for entry in folder.glob("*.npy"))
    total = size + sum(entry.stat().st_size for _, entry in entries)
    for _, entry in entries:
        if total <= limits.MAX_CACHE_BYTES:
            return
        total -= entry.stat().st_size
        entry.unlink()
