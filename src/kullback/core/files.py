"""Files written whole or not at all; JSON and NumPy's files, checked as they are read.

Which to use: `write_atomic` for bytes or text, `open_atomic` for a file too large for memory,
`write_json` and `read_json` for what a run remembers, `read_npy` for the bytes of one array,
`numpy_error` for an error of `numpy.load`. A reader never sees half a file: either the old one is
there, or the new one. Nothing is unpickled.

`make_folder`, and `not_written` for the error of a file that the system refuses.

`write_hashed` and `check_file_hash`: a file that holds its own SHA-256, so that no damage loads
silently. `only_writer`: a lock, so that a folder has one writing process. `remove_temporaries`:
what killed processes left.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from .errors import DataError, RunError

__all__ = [
    "NO_HASH",
    "check_file_hash",
    "make_folder",
    "not_written",
    "numpy_error",
    "numpy_errors",
    "only_writer",
    "open_atomic",
    "parse_json",
    "read_json",
    "read_npy",
    "remove_temporaries",
    "write_atomic",
    "write_hashed",
    "write_json",
]

NO_HASH = "0" * 64  # in the place of a file's hash while that is made
FILE_HASH = re.compile(rb'"file_sha256": ?"([0-9a-f]{64})"')
TEMPORARY = re.compile(r"\..+?(?:\.(\d+))?\.[0-9a-f]{8}\.tmp")
LOCK = ".lock"
_FULL = "free some space there, or write to another disk"
_CLOSED = "a folder that you may write to, or its permissions"
_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CLOSED),
    errno.ENOENT: "make the folder that it lies in first",
    errno.ENOTDIR: "another place: a part of this one is a file",
    errno.EEXIST: "another name: there is a file of this one",
    errno.EISDIR: "another name: there is a folder of this one",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EFBIG: "another disk, or a higher limit of file sizes (ulimit -f)",
    errno.EIO: "another disk: this one fails",
}


def not_written(
    path: str | Path, error: OSError, done: str = "written", *, hint: str = ""
) -> RunError:
    """Return the error of a file or folder that the system refuses: what happened, what to try.

    Args:
        path: The file or folder, or what else was to be written.
        error: What the system raised.
        done: What it cannot be: "written", "made".
        hint: What to try, where it is not what the reason suggests.

    Returns:
        The error, to be raised.

    Example:
        >>> not_written("run", OSError(errno.ENOSPC, "No space left on device")).args[0]
        'run: cannot be written: No space left on device. Try: free some space there, or write ...'
    """
    text = f"{path}: cannot be {done}: {error.strerror or error}"
    hint = hint or _HINTS.get(error.errno or 0, "")
    return RunError(f"{text}. Try: {hint}" if hint else text)


def make_folder(path: str | Path, *, new: bool = False) -> None:
    """Make a folder, and those that it lies in.

    Args:
        path: The folder.
        new: Whether one that exists is refused.

    Raises:
        FileExistsError: It exists, and is to be new.
        RunError: The system refuses.

    Example:
        >>> make_folder("a/b")
        >>> Path("a/b").is_dir()
        True
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=not new)
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            raise
        hint = "another place" if error.errno == errno.ENOENT else ""
        raise not_written(path, error, "made", hint=hint) from error


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a half.

    Args:
        path: The file.
        data: Its new content; text is written as UTF-8.

    Raises:
        RunError: The system refuses (no space, no permission, no such folder).

    Example:
        >>> write_atomic("note.txt", "12 nats")
        >>> Path("note.txt").read_text()
        '12 nats'
    """
    with open_atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def open_atomic(path: str | Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends without an error.

    The bytes go to a file without a name (where the system has such: Linux's `O_TMPFILE`) or with
    a temporary one, are forced to the disk (`fsync`) and take the name in one step (`os.replace`).
    On failure nothing is left.

    Args:
        path: The file.
        sync: Whether to wait until the bytes are on the disk. Without, a power cut may leave a file
            of other bytes: for one that holds its own hash and can be made again.

    Yields:
        A binary file, open for writing.

    Raises:
        RunError: The system refuses (no space, no permission, no such folder).

    Example:
        >>> with open_atomic("rows.txt") as file:
        ...     for row in range(3):
        ...         _ = file.write(f"{row} ".encode())
        >>> Path("rows.txt").read_text()
        '0 1 2 '
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        nameless = _open_nameless(path.parent)
        with nameless or temporary.open("xb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            if nameless is not None:
                handle = file.fileno()  # src_dir_fd makes link() follow the link in /proc
                os.link(f"/proc/self/fd/{handle}", temporary, src_dir_fd=handle)
        temporary.replace(path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # gone already when all went well
            temporary.unlink()
    if sync:
        _sync_folder(path.parent)


def _open_nameless(folder: Path) -> BinaryIO | None:
    """Open a file that has no name yet and vanishes with this process; None where that fails."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.fdopen(os.open(folder, flag | os.O_RDWR, 0o666), "w+b")
    except OSError:  # a file system without it; other reasons recur where the file has a name
        return None


def remove_temporaries(folder: Path) -> int:
    """Remove the temporary files of killed processes from a folder, and return how many.

    Those of processes that still run stay.

    Args:
        folder: The folder; its sub-folders are left alone.

    Returns:
        The count of files removed.

    Example:
        >>> Path(".weights.0123abcd.tmp").write_bytes(b"half")
        4
        >>> remove_temporaries(Path("."))
        1
    """
    removed = 0
    for entry in folder.glob(".*.tmp"):
        found = TEMPORARY.fullmatch(entry.name)
        if found and not (found[1] and _runs(int(found[1]))):
            with contextlib.suppress(OSError):
                entry.unlink()
                removed += 1
    return removed


def _runs(process: int) -> bool:
    """Say whether a process of this machine runs; False where the system cannot tell."""
    if os.name != "posix":
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs and belongs to another user
        return True
    return True


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock inside a `with` block, so that one process at a time writes to it.

    The system releases the lock when its process ends, however it ends; a lock file that a killed
    process left does no harm. The file `.lock` names the process that holds it. Where a file system
    knows no locks the block runs without one.

    Args:
        folder: The folder.

    Yields:
        Nothing.

    Raises:
        RunError: Another process holds the lock, or the folder cannot be written.

    Example:
        >>> with only_writer(Path(".")):
        ...     Path(".lock").exists()
        True
    """
    path = folder / LOCK
    try:
        handle = _take_lock(path)
    except OSError as error:
        raise not_written(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _take_lock(path: Path) -> int:
    """Open and lock a lock file and write the owner into it."""
    import socket  # here, as it is not needed to start the command

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle):
            owner = os.read(handle, 200).decode(errors="replace") or "its name is not known"
            os.close(handle)
            hint = "wait until it ends, or stop it"
            raise RunError(f"{path.parent}: another process writes here ({owner}). Try: {hint}")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        os.close(handle)  # its owner removed the file between our opening and locking it


def _lock(handle: int) -> bool:
    """Lock an open file, without waiting; False when another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text, which others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_hashed(path: str | Path, head: bytes, rest: Iterable[memoryview] = ()) -> None:
    """Write a file that holds its own SHA-256 in the place of 64 zeros, as `write_atomic` does.

    Args:
        path: The file.
        head: Its first bytes, with `"file_sha256": "000…"`, whose zeros become the hash of all
            bytes as they are with them.
        rest: What comes after them, part by part.

    Raises:
        RunError: There is no such place, or the system refuses.

    Example:
        >>> write_hashed("note.json", b'{"file_sha256": "' + b"0" * 64 + b'"}')
        >>> Path("note.json").read_bytes()[17:25]
        b'a9f46e08'
    """
    place = FILE_HASH.search(head)
    if place is None:
        raise RunError("file_sha256: expected a place for the hash; got none")
    digest = hashlib.sha256(head)
    with open_atomic(path) as file:
        file.write(head)
        for part in rest:
            digest.update(part)
            file.write(part)
        file.seek(place.start(1))
        file.write(digest.hexdigest().encode())


def check_file_hash(content: bytes, name: str | Path, *, required: bool = False) -> None:
    """Raise RunError when bytes are not those that `write_hashed` wrote.

    Args:
        content: The bytes of a file.
        name: The file, for messages.
        required: Whether bytes without a hash, as files written before had none, are refused too.

    Raises:
        RunError: The hash differs, or there is none and it is required.

    Example:
        >>> check_file_hash(b'{"a": 1}', "config.json", required=True)
        Traceback (most recent call last):
            ...
        kullback.core.errors.RunError: config.json: damaged: it has lost its hash (file_sha256)
    """
    found = FILE_HASH.search(content)
    if found is None:
        if required:
            raise RunError(f"{name}: damaged: it has lost its hash (file_sha256)")
        return
    view = memoryview(content)
    digest = hashlib.sha256(view[: found.start(1)])
    digest.update(NO_HASH.encode())
    digest.update(view[found.end(1) :])
    if digest.hexdigest().encode() != found[1]:
        raise RunError(
            f"{name}: damaged or changed since it was written: its hash (file_sha256) differs"
        )


def write_json(path: str | Path, obj: Any, *, hashed: bool = False) -> None:
    """Write `obj` as JSON, indented by two, in the order it has, through `write_atomic`.

    File names that are not valid UTF-8 survive as escapes.

    Args:
        path: The file.
        obj: Dictionaries, lists, strings, finite numbers, booleans and None.
        hashed: Whether the object, a dictionary, gets a last entry `file_sha256`, which `read_json`
            checks: the SHA-256 of the file with 64 zeros in its place.

    Raises:
        RunError: `obj` holds NaN or an infinity, which JSON lacks, or the system refuses.

    Example:
        >>> write_json("metrics.json", {"elbo": -89.4})
        >>> read_json("metrics.json")
        {'elbo': -89.4}
    """
    obj = obj | {"file_sha256": NO_HASH} if hashed else obj
    try:
        text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise RunError(f"{path}: cannot be written as JSON: {error}") from error
    content = (text + "\n").encode("utf-8", "backslashreplace")
    (write_hashed if hashed else write_atomic)(path, content)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        What it holds, as Python objects.

    Raises:
        RunError: The file is missing, unreadable, not UTF-8, not JSON (NaN and Infinity are not),
            nested too deeply, or its hash differs; the text holds its name and, where there is
            one, the position.

    Example:
        >>> write_atomic("broken.json", '{"elbo": }')
        >>> read_json("broken.json")
        Traceback (most recent call last):
            ...
        kullback.core.errors.RunError: broken.json: not valid JSON: Expecting value at line 1 ...
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not valid JSON: byte {error.start} is not UTF-8") from error
    found = parse_json(text, path)
    if isinstance(found, dict) and "file_sha256" in found:
        check_file_hash(content, path, required=True)
    return found


def parse_json(text: str, name: str | Path, *, pairs: type | None = None) -> Any:
    """Read JSON text.

    Args:
        text: The JSON.
        name: Its source, for messages.
        pairs: A class made from the (name, value) pairs of each object, instead of a dictionary.

    Returns:
        What the text holds, as Python objects.

    Raises:
        RunError: As `read_json`.

    Example:
        >>> parse_json("[1, 2]", "standard input")
        [1, 2]
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno} column {error.colno}"
        raise RunError(f"{name}: not valid JSON: {where}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name}: not valid JSON: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _sync_folder(folder: Path) -> None:
    """Make the new name durable where the system can do that; the file itself already is."""
    with contextlib.suppress(OSError):  # Windows and some network disks cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@functools.cache
def numpy_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that NumPy's reader raises on damaged bytes.

    Their modules are imported here, since they are not needed to start the command.
    """
    import struct
    import tokenize
    import zipfile
    import zlib

    return (
        *(OSError, EOFError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError),
        *(RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
        tokenize.TokenError,
    )


def numpy_error(error: BaseException) -> str:
    """Return in words why NumPy could not read a file; never with the advice to load pickles.

    Args:
        error: What `numpy.load` raised.

    Returns:
        The reason in a few words: NumPy's own text, unless it mentions pickles.

    Example:
        >>> numpy_error(ValueError("Object arrays cannot be loaded when allow_pickle=False"))
        'it holds Python objects, which are never loaded'
    """
    text = str(error)
    if "pickle" not in text:
        return text or type(error).__name__
    objects = "Object arrays" in text
    return "it holds Python objects, which are never loaded" if objects else "not NumPy's format"


def read_npy(content: bytes, name: str) -> Any:
    """Return the array in the bytes of a `.npy` file.

    Args:
        content: The bytes.
        name: The file, for messages.

    Returns:
        The NumPy array.

    Raises:
        DataError: Damage, an archive of several arrays, or Python objects.

    Example:
        >>> read_npy(b"nonsense", "p.npy")
        Traceback (most recent call last):
            ...
        kullback.core.errors.DataError: p.npy: not an array of numbers: not NumPy's format
    """
    import numpy as np

    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except numpy_errors() as error:
        raise DataError(f"{name}: not an array of numbers: {numpy_error(error)}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name}: an archive (.npz), not an array. Try: numpy.save of one array")
    return array
