"""Files written whole or not at all, and JSON that is read with suspicion.

Which to use: `write_atomic` for bytes or text, `write_json` and `read_json` for what a run
remembers. A reader never sees half a file: either the old one is there, or the new one.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, NoReturn

from .errors import RunError

__all__ = ["parse_json", "read_json", "write_atomic", "write_json"]


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a half.

    The bytes go to a temporary file in the same folder, are forced to the disk (`fsync`) and take
    the name in one step (`os.replace`); text is UTF-8. On failure the temporary file is removed
    and `RunError` says why (no space, no permission, no such folder).

    >>> write_atomic("note.txt", "12 nats")
    >>> Path("note.txt").read_text()
    '12 nats'
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already when all went well
            temporary.unlink()
    _sync_folder(path.parent)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as JSON, indented by two, in the order it has, through `write_atomic`.

    Strict JSON: NaN and infinities, which JSON lacks, raise `RunError`. File names that are not
    valid UTF-8 survive as escapes.

    >>> write_json("metrics.json", {"elbo": -89.4})
    >>> read_json("metrics.json")
    {'elbo': -89.4}
    """
    try:
        text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise RunError(f"{path}: cannot be written as JSON: {error}") from error
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    A file that is missing, unreadable, not UTF-8, not JSON (NaN and Infinity are not) or nested
    beyond reason raises `RunError` with the file's name and, where there is one, the position.

    >>> write_atomic("broken.json", '{"elbo": }')
    >>> read_json("broken.json")
    Traceback (most recent call last):
        ...
    kullback.core.errors.RunError: broken.json: not valid JSON: Expecting value at line 1 column 10
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not valid JSON: byte {error.start} is not UTF-8") from error
    return parse_json(text, path)


def parse_json(text: str, name: str | Path, *, pairs: type | None = None) -> Any:
    """Read JSON text; the same `RunError` as `read_json`, which begins with `name`.

    pairs: a class made from the (name, value) pairs of each object, where a dictionary will not do.

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
