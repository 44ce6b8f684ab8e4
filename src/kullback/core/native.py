"""Small C files, compiled at first use where the machine has a compiler.

`load` gives the library or None; whoever calls it has a plain form to fall back on, which the tests
hold the C to. Compiling takes about half a second, once for each source, compiler and processor;
the result is kept in the user's cache folder (`~/.cache/kullback`, or `$XDG_CACHE_HOME/kullback`).
Setting the environment variable `KULLBACK_NATIVE=off` keeps to the plain forms.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["load"]

_FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared"),
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_OF_THIS_PROCESSOR = ("-march=native", "-mcpu=native", "")  # whichever the compiler knows
_SECONDS = 60  # a compiler that takes longer is given up


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """Return the library compiled from a C file, or None where that cannot be had.

    Reasons for None: no compiler (`$CC`, cc, gcc or clang), one that fails, no folder to keep the
    result in that is this user's own, `KULLBACK_NATIVE=off`. Calls into the library release the
    interpreter's lock.

    >>> load(Path("no such file.c")) is None
    True
    """
    compiler = _compiler()
    if compiler is None or os.environ.get("KULLBACK_NATIVE") == "off":
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        folder = _folder()
        library = folder / f"{source.stem}-{_key(source, compiler)}.so"
        if not library.exists():
            _compile(source, library, compiler)
        return ctypes.CDLL(str(library))
    return None


def _compiler() -> str | None:
    named = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in named if name and (path := shutil.which(name))), None)


def _folder() -> Path:
    """Return the cache folder, made if need be; OSError when it is not this user's own."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "kullback"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        raise PermissionError(f"{folder} can be written by others")
    return folder


def _key(source: Path, compiler: str) -> str:
    """Hash all that the library depends on: text, compiler, flags and processor."""
    about = Path(compiler).resolve()
    parts = [source.read_text(), str(about), str(about.stat().st_mtime_ns), *_FLAGS]
    parts += [platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def _compile(source: Path, library: Path, compiler: str) -> None:
    temporary = library.with_name(f".{library.stem}.{secrets.token_hex(4)}.so")
    try:
        for processor in _OF_THIS_PROCESSOR:
            flags = [flag for flag in (*_FLAGS, processor) if flag]
            command = [compiler, *flags, "-o", str(temporary), str(source), "-lm"]
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
            if done.returncode == 0:
                temporary.replace(library)
                return
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
