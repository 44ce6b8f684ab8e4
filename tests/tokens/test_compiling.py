"""Compiling on the user's machine: once, kept, mended, and done without where it cannot be."""

import shutil

import pytest
import torch

from kullback import tokens
from kullback.tokens import compiling

SOURCE = 'extern "C" int answer() { return 42; }\n'
compiler = pytest.mark.skipif(compiling._compiler() is None, reason="no C++ compiler here")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small source in it, and an empty cache."""
    (tmp_path / "small.cpp").write_text(SOURCE)
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "compiling.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiling.load.cache_clear()
    yield tmp_path
    compiling.load.cache_clear()


def libraries(place):
    return sorted((place / "cache" / "kullback").glob("*.so"))


@compiler
def test_it_compiles_once_and_keeps_the_result(place, monkeypatch):
    assert compiling.load("small.cpp")[0].answer() == 42
    (kept,) = libraries(place)
    compiling.load.cache_clear()
    monkeypatch.setattr(compiling, "_compile", None)  # it need not compile again
    assert compiling.load("small.cpp")[0].answer() == 42
    monkeypatch.undo()
    assert kept.parent.stat().st_mode & 0o077 == 0


@compiler
def test_another_source_is_another_library(place):
    compiling.load("small.cpp")
    compiling.load.cache_clear()
    (place / "small.cpp").write_text(SOURCE.replace("42", "43"))
    assert compiling.load("small.cpp")[0].answer() == 43
    assert len(libraries(place)) == 2


@compiler
def test_a_damaged_library_or_a_cache_that_cannot_be_written_does_not_matter(place):
    compiling.load("small.cpp")
    libraries(place)[0].unlink()
    (place / "cache" / "kullback").rmdir()
    (place / "cache" / "kullback").write_text("in the way")
    compiling.load.cache_clear()
    assert compiling.load("small.cpp")[0].answer() == 42
    (place / "cache" / "kullback").unlink()
    compiling.load.cache_clear()
    compiling.load("small.cpp")
    compiling.load.cache_clear()
    (place / "small.cpp").write_text(SOURCE + "// changed\n")
    name = f"small-{compiling._key(place / 'small.cpp', compiling._compiler())}.so"
    (place / "cache" / "kullback" / name).write_bytes(b"not a library")
    assert compiling.load("small.cpp")[0].answer() == 42


@compiler
def test_what_does_not_compile_says_why(place):
    (place / "small.cpp").write_text("this is not C++")
    library, reason = compiling.load("small.cpp")
    assert library is None and "cannot be compiled" in reason and "error" in reason


def test_without_a_compiler_the_rest_still_works(place, monkeypatch):
    (place / "native.cpp").write_text(SOURCE)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    p = torch.zeros(2, 1 << 17)
    assert "no C++ compiler" in tokens.usable(p, p)["native"]
    assert tokens.kl(p, p).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="'native' cannot be used here: no C\\+\\+ compiler"):
        tokens.kl(p, p, backend="native")
