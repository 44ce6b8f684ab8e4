"""Errors of the library in the words of the command: `--draws` where Python has `draws=`.

Which to use: `in_flags`, at the one place where errors are printed.
"""

import re
from collections.abc import Callable, Iterable

__all__ = ["in_flags"]

# arguments whose option has another name
OTHER = {
    "generator": "seed",
    "evaluation_draws": "draws",
    "overwrite": "force",
    "names": "name",
}
NAMED = re.compile(r"names?=\{'(\w+)': '(\w+)'\}")


def in_flags(text: str, flags: Iterable[str]) -> str:
    """Write an error's argument names as options: those before its colon and those in its hint.

    flags: the options of the command, such as `--draws`. Other text stays as it is.

    >>> in_flags("free_bits: expected nats; got -1. Try: free_bits=0", ["--free-bits"])
    '--free-bits: expected nats; got -1. Try: --free-bits 0'
    >>> in_flags("fit.json exists. Try: another folder, or force=True", ["--force"])
    'fit.json exists. Try: another folder, or --force'
    """
    known = set(flags)
    if "--name" in known:
        text = re.sub(r"^names\['(\w+)'\]", r"--name \1=…", text)
    head, mark, hint = text.partition("Try: ")
    first, colon, rest = head.partition(":")
    names = first.split(" and ")
    if colon and all(name.isidentifier() for name in names):
        head = " and ".join(_flag(name, known) or name for name in names) + colon + rest
    hint = NAMED.sub(lambda m: f"--name {m[1]}={m[2]}" if "--name" in known else m[0], hint)
    return head + mark + re.sub(r"(?<![\w/.-])([a-z]\w*)=('[^']*'|[\w.…]*)", _option(known), hint)


def _flag(name: str, known: set[str]) -> str | None:
    """Return the option, or the argument in capitals, that stands for an argument in Python."""
    name = OTHER.get(name, name)
    flags = (f"--{name.replace('_', '-')}", f"-{name}", name.upper())
    return next((flag for flag in flags if flag in known), None)


def _option(known: set[str]) -> Callable[[re.Match[str]], str]:
    def written(found: re.Match[str]) -> str:
        flag = _flag(found[1], known)
        value = found[2].strip("'")
        if flag is None or not flag.startswith("-") or flag == "--name":
            return found[0]
        return flag if value in ("True", "") else f"{flag} {value}"

    return written
