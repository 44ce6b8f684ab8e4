"""A C++ file of this folder, compiled once on this machine and loaded.

Which to use: `load`. The library is kept in the user's cache folder (`$XDG_CACHE_HOME/kullback`,
else `~/.cache/kullback`, on a Mac `~/Library/Caches/kullback`) under a name that is a hash of the
source, the flags, the compiler and the processor, so that nothing stale or foreign is ever loaded.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["load"]

FLAGS = ("-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
LINK = ("-fPIC", "-shared", "-pthread")
TUNED = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts


@functools.cache
def load(name: str) -> tuple[ctypes.CDLL | None, str]:
    """Return the compiled library of the file `name`, or None and the reason why there is none.

    The first call on a machine compiles, which takes seconds; the first in a process loads, which
    takes milliseconds; every other one returns the same.

    >>> load("no such file.cpp")
    (None, 'no such file.cpp is missing')
    """
    source = Path(__file__).with_name(name)
    if not source.exists():
        return None, f"{name} is missing"
    compiler = _compiler()
    if compiler is None:
        return None, "no C++ compiler: none in $CXX, and no c++, g++ or clang++ on the path"
    file = f"{source.stem}-{_key(source, compiler)}.so"
    try:
        return _cached(compiler, source, _folder() / file), ""
    except OSError:  # no home, a full or read-only disk, a damaged file: compile for this process
        try:
            with tempfile.TemporaryDirectory() as folder:
                return _cached(compiler, source, Path(folder) / file), ""
        except OSError as error:
            return None, f"cannot be compiled: {error}"


def _compiler() -> str | None:
    if os.name != "posix":
        return None
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _key(source: Path, compiler: str) -> str:
    stat = Path(compiler).stat()
    parts = (compiler, stat.st_size, stat.st_mtime_ns, FLAGS, LINK, TUNED, _processor())
    return hashlib.sha256(source.read_bytes() + repr(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """Name what -march=native depends on: a home folder may be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU"))}
    return repr((platform.machine(), sorted(kept or lines[:1])))


def _folder() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "kullback"
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path(os.path.expanduser("~")) / caches / "kullback"  # noqa: PTH111 - never raises


def _cached(compiler: str, source: Path, library: Path) -> ctypes.CDLL:
    """Load the library, compiling it first if it is not there; OSError if that cannot be done."""
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _compile(compiler, source, library)
    return ctypes.CDLL(str(library))


def _compile(compiler: str, source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for tuned in TUNED:
            command = [compiler, *FLAGS, *tuned, *LINK, str(source), "-o", str(made)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            except subprocess.TimeoutExpired as error:
                raise OSError(f"{compiler} took more than {error.timeout:.0f} s") from error
            if done.returncode == 0:
                made.replace(library)
                return
    raise OSError(f"{compiler} says: {done.stderr.strip()[-500:]}")
