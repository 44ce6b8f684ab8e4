"""Standard output and error that take every letter, and say in one line when they take nothing.

Which to use: `plain_letters` around a whole command, `write` for its results, `abandon` when the
reader of the output has gone or the disk under it is full.
"""

import codecs
import contextlib
import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

__all__ = ["FULL", "abandon", "plain_letters", "write"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a full or broken disk answers

LETTERS = "‖ ± − ≤ ≥ ≈ ≠ ∞ λ Σ · × √ ½ ∈ ∂ ∫ → ← … – — “ ” ‘ ’ │ ─ ╭ ╮ ╰ ╯ ━"
SPELT = "|| +- - <= >= ~ != inf lambda sum * x sqrt 1/2 in d int -> <- ..."
SPELT += """ - - " " ' ' | - + + + + -"""
PLAIN = dict(zip(LETTERS.split(), SPELT.split(), strict=True))


@contextlib.contextmanager
def plain_letters() -> Iterator[None]:
    """Write letters that an output's encoding lacks in plain ones: `||` for ‖, `+-` for ±."""
    codecs.register_error("kullback", _replace)
    changed: list[tuple[Any, Any]] = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="kullback")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError, OSError):  # closed, or what it held cannot go out
                stream.reconfigure(errors=errors)


def write(text: str) -> None:
    """Write a result on standard output, and see at once whether it arrived."""
    sys.stdout.write(text)
    sys.stdout.flush()


def abandon(stream: Any) -> None:
    """Let a stream that cannot be written end in silence, also when Python closes it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or _spelt(letter) for letter in letters), error.end


def _spelt(letter: str) -> str:
    """Write a letter without its marks, a Greek one by its name, another by its code."""
    words = unicodedata.name(letter, "").split()
    if words[:1] == ["GREEK"]:
        return words[3].lower() if len(words) > 3 else letter.encode("ascii", "replace").decode()
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return bare or letter.encode("ascii", "backslashreplace").decode()
