"""Which files lie under a folder, and the bytes of one file.

Which to use: `files_under` for the files of some kinds as paths, `paths_under` for the same as
strings, `bytes_of` for what one of them holds.
"""

import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path

from kullback.core import DataError

from . import limits

__all__ = [
    "bytes_of",
    "files_under",
    "name_in",
    "paths_under",
]

_NO_FILE = "not a regular file, or a link to nothing"


def files_under(folder: Path, suffixes: frozenset[str]) -> tuple[list[Path], Counter[str]]:
    """Return the files of these kinds under `folder`, sorted, and a count of the other kinds.

    Hidden files and folders are passed over. Linked folders are followed, each real folder once,
    so circles of links end; a link to a folder above is one. Raises `DataError` when a folder
    cannot be listed.
    """
    paths, others = paths_under(folder, suffixes)
    return [Path(path) for path in paths], others


def paths_under(folder: Path, suffixes: frozenset[str]) -> tuple[list[str], Counter[str]]:
    """`files_under`, as strings: to make 100,000 paths takes as long as to list them."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    seen = _folders_above(folder)  # a link to one of them is a circle, not more files
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    if _is_folder(entry):
                        waiting.append(entry.path)
                    elif suffix in suffixes:
                        paths.append(entry.path)
                    else:
                        others[suffix or "no suffix"] += 1
        except OSError as error:
            raise DataError(f"{here}: cannot be listed: {error.strerror or error}") from error
    paths.sort(key=lambda path: path.replace(os.sep, "/"))
    return paths, others


def _folders_above(folder: Path) -> set[tuple[int, int]]:
    """Return device and number of every folder that this one lies in."""
    found = set()
    for above in folder.absolute().resolve().parents:
        with suppress(OSError):
            status = above.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder; a link to itself, which cannot be asked, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def name_in(folder: Path, path: str) -> str:
    """Return `Path(path).relative_to(folder).as_posix()`, which takes a tenth of the decoding."""
    start = f"{folder}{os.sep}"
    if not path.startswith(start):
        return Path(path).relative_to(folder).as_posix()
    return path[len(start) :].replace(os.sep, "/")


def bytes_of(path: Path | str) -> bytes:
    """Return what a file holds. Raises `DataError` with the reason where it cannot be read."""
    try:
        about = os.stat(path)  # noqa: PTH116 - a Path made of each of 100,000 takes seconds
        if not stat.S_ISREG(about.st_mode):
            raise DataError(_NO_FILE)
        if about.st_size > limits.MAX_FILE_BYTES:
            raise DataError(f"larger than {limits.MAX_FILE_BYTES // 2**20} MB")
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError as error:
        raise DataError(_NO_FILE) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
