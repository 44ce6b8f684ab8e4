"""The loader compiles once, keeps the result to itself, and gives None whenever it cannot."""

import ctypes
import shutil

import pytest

from kullback.core import compiling

SOURCE = "#include <stdint.h>\nint64_t twice(int64_t x) { return 2 * x; }\n"
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A source of its own, a cache folder of its own, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KULLBACK_NATIVE", raising=False)
    compiling.load.cache_clear()
    yield tmp_path
    compiling.load.cache_clear()


def write(folder, text, name="twice.c"):
    source = folder / name
    source.write_text(text)
    return source


@needs_compiler
def test_it_compiles_once_and_runs(world):
    source = write(world, SOURCE)
    library, _ = compiling.load(source)
    library.twice.restype = ctypes.c_int64
    assert library.twice(ctypes.c_int64(21)) == 42
    (kept,) = (world / "cache" / "kullback").iterdir()
    before = kept.stat().st_mtime_ns
    compiling.load.cache_clear()
    assert compiling.load(source)[0] is not None
    assert kept.stat().st_mtime_ns == before


@needs_compiler
def test_another_text_is_another_library(world):
    compiling.load(write(world, SOURCE))
    library, _ = compiling.load(write(world, SOURCE.replace("2 *", "3 *"), "thrice.c"))
    library.twice.restype = ctypes.c_int64
    assert library.twice(ctypes.c_int64(21)) == 63


def test_an_error_in_the_source_gives_none_and_leaves_nothing(world):
    library, reason = compiling.load(write(world, "int broken("))
    assert library is None
    assert "cannot be compiled" in reason or "no compiler" in reason
    folder = world / "cache" / "kullback"
    assert not folder.exists() or not list(folder.iterdir())


def test_no_compiler_gives_none(world, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    library, reason = compiling.load(write(world, SOURCE))
    assert library is None
    assert "no compiler" in reason


def test_it_can_be_switched_off(world, monkeypatch):
    monkeypatch.setenv("KULLBACK_NATIVE", "off")
    assert compiling.load(write(world, SOURCE)) == (None, "KULLBACK_NATIVE=off")


@needs_compiler
def test_a_folder_that_others_can_write_is_not_used(world):
    folder = world / "cache" / "kullback"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    library, _ = compiling.load(write(world, SOURCE))
    library.twice.restype = ctypes.c_int64
    assert library.twice(ctypes.c_int64(4)) == 8
    assert not list(folder.iterdir())


@needs_compiler
def test_cpp_too(world):
    text = 'extern "C" long four() { auto four = [] { return 4L; }; return four(); }'
    library, _ = compiling.load(write(world, text, "four.cpp"))
    assert library.four() == 4
