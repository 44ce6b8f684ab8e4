"""C and C++ files of this package, compiled at first use where the machine has a compiler.

`load` gives the library, or None and the reason; whoever calls it has a plain form to fall back on,
which the tests hold the compiled one to. The result is kept in the user's cache folder
(`$XDG_CACHE_HOME/kullback`, else `~/.cache/kullback`, on a Mac `~/Library/Caches/kullback`) under a
hash of the source, the flags, the compiler and the processor, so that nothing stale or foreign is
loaded. The environment variable `KULLBACK_NATIVE=off` keeps to the plain forms; `portable`, `avx2`
and `avx512` compile for such a processor instead of for this one.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["compiled", "load"]

_STANDARD = {".c": "-std=gnu11", ".cpp": "-std=c++17"}
_COMPILERS = {".c": ("CC", "cc", "gcc", "clang"), ".cpp": ("CXX", "c++", "g++", "clang++")}
_FLAGS = ("-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_LINK = ("-fPIC", "-shared", "-pthread")
_TUNED = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
_LEVELS = {  # instead, where KULLBACK_NATIVE names one
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"),
}
_LOADED: set[Path] = set()  # sources whose library this process has loaded
_SECONDS = 300  # a compiler that takes longer is given up


@cache
def load(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """Return the library compiled from a `.c` or `.cpp` file and "", or None and the reason.

    The first call on a machine compiles, which takes seconds; the first in a process loads, which
    takes milliseconds; every other one returns the same. Calls into the library release the
    interpreter's lock. A cache folder that others can write to, or none at all, is not used: then
    every process compiles for itself.

    >>> load(Path("no such file.c"))
    (None, 'no such file.c is missing')
    """
    if os.environ.get("KULLBACK_NATIVE") == "off":
        return None, "KULLBACK_NATIVE=off"
    if not source.exists():
        return None, f"{source.name} is missing"
    variable, *names = _COMPILERS[source.suffix]
    compiler = find_compiler(source.suffix)
    if compiler is None:
        return None, f"no compiler: none in ${variable}, and no {', '.join(names)} on the path"
    file = _file(source, compiler)
    with contextlib.suppress(OSError):  # no home, a full or read-only disk, a damaged file
        return _cached(compiler, source, cache_folder() / file), ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _cached(compiler, source, Path(folder) / file), ""
    except OSError as error:
        return None, f"cannot be compiled: {error}"


def compiled(source: Path) -> bool:
    """Say whether `load` need not compile: the library is loaded, or in the cache folder.

    Args:
        source: The file of C or C++.

    Returns:
        Whether it is ready.

    Example:
        >>> compiled(Path("no such file.c"))
        False
    """
    return source in _LOADED or _is_kept(source)


@cache
def _is_kept(source: Path) -> bool:
    """Say whether the cache folder had the library when this was first asked."""
    if os.environ.get("KULLBACK_NATIVE") == "off" or not source.exists():
        return False
    compiler = find_compiler(source.suffix)
    with contextlib.suppress(OSError):
        return compiler is not None and (cache_folder() / _file(source, compiler)).exists()
    return False


def _file(source: Path, compiler: str) -> str:
    return f"{source.stem}-{_key(source, compiler)}.so"


def find_compiler(suffix: str) -> str | None:
    """Return the path of a compiler of `.c` or `.cpp` files, or None where there is none."""
    if os.name != "posix":
        return None
    variable, *names = _COMPILERS[suffix]
    names = [os.environ.get(variable, ""), *names]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Return the cache folder, made if need be; OSError when it is not this user's own."""
    base = os.environ.get("XDG_CACHE_HOME")
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    home = os.path.expanduser("~")  # noqa: PTH111 - never raises
    folder = (Path(base) if base else Path(home) / caches) / "kullback"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if os.name == "posix" and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        raise PermissionError(f"{folder} can be written by others")
    return folder


def _tuned() -> tuple[tuple[str, ...], ...]:
    """Return flags that choose instructions, to be tried in this order."""
    level = os.environ.get("KULLBACK_NATIVE", "")
    return (_LEVELS[level],) if level in _LEVELS else _TUNED


def _key(source: Path, compiler: str) -> str:
    about = Path(compiler).stat()
    parts = (compiler, about.st_size, about.st_mtime_ns, _FLAGS, _LINK, _tuned(), _processor())
    return hashlib.sha256(source.read_bytes() + repr(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """Name what -march=native depends on: a home folder may be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU"))}
    return repr((platform.machine(), sorted(kept or lines[:1])))


def _cached(compiler: str, source: Path, library: Path) -> ctypes.CDLL:
    """Load the library, compiling it first if it is not there; OSError if that cannot be done."""
    if not library.exists():
        _compile(compiler, source, library)
    found = ctypes.CDLL(str(library))
    _LOADED.add(source)
    return found


def _compile(compiler: str, source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made, said = Path(folder) / library.name, ""
        for tuned in _tuned():
            flags = (_STANDARD[source.suffix], *_FLAGS, *tuned, *_LINK)
            command = [compiler, *flags, str(source), "-o", str(made), "-lm"]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise OSError(f"{compiler} took more than {error.timeout:.0f} s") from error
            if done.returncode == 0:
                made.replace(library)
                return
            said = done.stderr.strip()[-500:]
    raise OSError(f"{compiler} says: {said}")
