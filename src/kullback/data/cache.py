"""Decoded folders of pictures, kept in the user's cache folder: read again, they are not decoded.

Which to use: `key_of` for the name of what is read; `fetch` and `keep` for the decoded examples,
and `finish` before they may change. A key covers the path, size and times of every file, the
options of reading and the versions of the decoder, so a changed file is decoded again. An entry is
one file: a `.npy` array, then names and notes as JSON, then the SHA-256 of both; a damaged one is
removed and made again. The oldest entries go when all together exceed `limits.MAX_CACHE_BYTES`.
`KULLBACK_CACHE=off` switches it off.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from kullback.core import KullbackError, __version__, compiling, open_atomic, remove_temporaries

from . import limits
from .examples import Examples, Fitting, Reading
from .quantisation import Grid

__all__ = ["fetch", "finish", "keep", "key_of"]

_writers: list[threading.Thread] = []
FRAME_BYTES = 128 + 32  # the header of a `.npy` before, the hash after


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


def keep(key: str, examples: Examples) -> None:
    """Begin to keep examples under a key, where there is room; a disk that refuses is no failure.

    They are written by a thread beside what follows, a sixth of the time of reading them. Their
    values must stay as they are until `finish` returns.
    """
    fields = {
        "names": examples.names,
        "digests": [digest.hex() for digest in examples.digests],
        "split": examples.split,
        "notes": examples.notes,
        "skipped": examples.skipped,
        "grid": None if examples.grid is None else examples.grid.to_dict(),
    }
    words = json.dumps(fields).encode()
    size = examples.values.nbytes + len(words) + FRAME_BYTES
    if size > limits.MAX_CACHE_BYTES:
        return
    thread = threading.Thread(target=_write, args=(key, examples.values, words, size))
    thread.start()
    _writers.append(thread)


def finish() -> None:
    """Wait until everything that is to be kept is written."""
    while _writers:
        _writers.pop().join()


def _write(key: str, values: NDArray[Any], words: bytes, size: int) -> None:
    with contextlib.suppress(OSError, KullbackError):
        path = _path(key)
        _make_room(path.parent, size)
        with open_atomic(path, sync=False) as file:  # what a power cut damages, its hash shows
            writer = _Hashing(file)
            np.lib.format.write_array(writer, np.ascontiguousarray(values))
            writer.write(words)
            file.write(writer.digest.digest())


class _Hashing:
    """A file to write to that hashes what passes."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return int(self.file.write(data))


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
    for part in (file.read(start), values.data, words):
        digest.update(part)
    if hashed != digest.digest():
        raise ValueError("damaged")
    fields = json.loads(words)
    os.utime(file.fileno())  # used now: the oldest go first
    return Examples(
        values.reshape(shape),
        fields["names"],
        [bytes.fromhex(digest) for digest in fields["digests"]],
        split=fields["split"],
        notes=fields["notes"],
        skipped=[(name, why) for name, why in fields["skipped"]],
        grid=None if fields["grid"] is None else Grid.from_dict(fields["grid"]),
    )


def _make_room(folder: Path, size: int) -> None:
    """Remove the entries used least recently until `size` more bytes fit the limit."""
    remove_temporaries(folder)
    entries = sorted((entry.stat().st_mtime, entry) for entry in folder.glob("*.npy"))
    total = size + sum(entry.stat().st_size for _, entry in entries)
    for _, entry in entries:
        if total <= limits.MAX_CACHE_BYTES:
            return
        total -= entry.stat().st_size
        entry.unlink()
