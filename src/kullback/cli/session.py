"""What every command shares: where to print, how to show progress, how to stop in good order.

Which to use: `prepare` first; `write` and `print_json` for results, on standard output; `say` for
notes and warnings, `log` for what `--verbose` shows, `bar` and `ticking` for progress, all on
standard error. `plain_letters` and `whole_imports` are around a whole command, `abandon` for an
output that is gone.
"""

import codecs
import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from kullback.core import RunError, printable, processes, require

from .limits import SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LOOKS, SECONDS_TO_FIRST_LINE

__all__ = [
    "FULL",
    "GATE_FAILED",
    "INTERRUPTED",
    "Session",
    "Stop",
    "abandon",
    "bar",
    "check_new",
    "console",
    "expected_bar",
    "log",
    "plain_letters",
    "prepare",
    "print_json",
    "quiet",
    "say",
    "ticking",
    "whole_imports",
    "write",
]

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


GATE_FAILED = 4  # the exit code of a gate that failed
INTERRUPTED = 130  # the exit code: 128 + SIGINT


@dataclass(kw_only=True)
class Session:
    """What every command takes: where options are read from, and how much is said."""

    config: Annotated[
        Path | None, Parameter(help="Read options from this TOML file; typed ones go first.")
    ] = None
    quiet: Annotated[
        bool,
        Parameter(
            name=("--quiet", "-q"), help="No progress, notes or warnings; errors only.", negative=""
        ),
    ] = False
    verbose: Annotated[
        bool,
        Parameter(
            name=("--verbose", "-v"), help="Say what is chosen and how long it took.", negative=""
        ),
    ] = False


@dataclass
class _Voice:
    """How much this command says, and since when it runs."""

    quiet: bool = False
    verbose: bool = False
    start: float = 0.0


_voice = _Voice()


def prepare(shared: Session | None = None) -> None:
    """Set this process up: how much is said; Python warnings reach the user as one plain line."""
    quiet, verbose = (shared.quiet, shared.verbose) if shared else (False, False)
    require(not (quiet and verbose), "--quiet", "one of --quiet and --verbose", "both")
    _voice.quiet, _voice.verbose, _voice.start = quiet, verbose, time.perf_counter()
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")


def quiet() -> bool:
    """Say whether `--quiet` was given."""
    return _voice.quiet


def log(text: str) -> None:
    """Print one line with the seconds since the start on standard error, if `--verbose` is on."""
    if _voice.verbose:
        say(f"[{time.perf_counter() - _voice.start:7.2f} s] {text}")


def console() -> Console:
    """Return the console for everything that is not a result: standard error."""
    return Console(stderr=True, highlight=False)


def say(text: str, *, always: bool = False) -> None:
    """Print one line on standard error; with `--quiet` only what is said always.

    Of several processes the first one says it.
    """
    if (always or not _voice.quiet) and processes.speaks():
        console().print(printable(text), markup=False, soft_wrap=True)


def print_json(fields: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    write(json.dumps(fields, indent=2, allow_nan=False) + "\n")


def check_new(flag: str, path: Path, *suffixes: str, force: bool) -> None:
    """Check before the work that a file can be written after it: its kind, its name, its folder."""
    kinds = " or ".join(suffixes)
    require(path.suffix.lower() in suffixes, flag, f"a {kinds} file", str(path))
    new = not path.is_dir() and (force or not path.exists())
    require(new, flag, "a file that does not exist", str(path), "--force")
    if not path.parent.is_dir():
        raise RunError(f"{path}: cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        hint = "a folder that you may write to"
        raise RunError(f"{path}: {path.parent} cannot be written to. Try: {hint}")


@contextmanager
def bar(what: str, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error while the block runs, or now and then a line.

    Yields `update(done, total, text="")`. On a terminal that is a bar; elsewhere a line every ten
    seconds.
    """
    terminal = console()
    if terminal.is_terminal and not _voice.quiet and processes.speaks():
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=terminal,
        ) as progress:
            task = progress.add_task(what, total=None, text="")

            def update(done: float, total: float, text: str = "") -> None:
                progress.update(task, completed=done, total=total, text=text)

            yield update
        return
    last = time.monotonic()

    def line(done: float, total: float, text: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {done / total:.0%} {text}".rstrip())

    yield line


@contextmanager
def expected_bar(what: str, seconds: float) -> Iterator[None]:
    """Show the time that a block without steps still takes, from what it is expected to take."""
    over = threading.Event()

    def tick(update: Callable[..., None]) -> None:
        start = time.monotonic()
        while not over.wait(0.2):
            passed = time.monotonic() - start
            update(min(passed, 0.99 * seconds), seconds)

    with bar(what) as update:
        thread = threading.Thread(target=tick, args=(update,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def ticking(what: str) -> Iterator[Callable[[str], None]]:
    """Say every few seconds what runs and for how long, where standard error is no terminal.

    Yields `now(text)`, which says what is done at present.
    """
    if console().is_terminal or _voice.quiet:
        yield lambda text: None
        return
    over, doing, start = threading.Event(), [""], time.monotonic()

    def tick() -> None:
        wait = SECONDS_TO_FIRST_LINE
        while not over.wait(wait):
            wait = SECONDS_BETWEEN_LINES
            now = f" ({doing[0]})" if doing[0] else ""
            say(f"{what}{now}: {time.monotonic() - start:.0f} s so far")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield lambda text: doing.__setitem__(0, text)
    finally:
        over.set()
        thread.join()


@contextmanager
def whole_imports() -> Iterator[None]:
    """Let the first Ctrl-C wait for the end of an import, where one is running.

    Compiled modules such as torch's can swallow it, or stay half imported. A second one interrupts
    at once.
    """
    usual = signal.default_int_handler
    in_main_thread = threading.current_thread() is threading.main_thread()
    if signal.getsignal(signal.SIGINT) is not usual or not in_main_thread:
        yield
        return
    waiting = _Waiting()
    signal.signal(signal.SIGINT, waiting.interrupt)
    try:
        yield
    finally:
        waiting.cancel()
        signal.signal(signal.SIGINT, usual)


class _Waiting:
    """A Ctrl-C that is sent again, by a timer, until no import is running."""

    def __init__(self) -> None:
        self.sent = False  # by the timer, not by the user
        self.timer: threading.Timer | None = None

    def interrupt(self, _number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, or come back later."""
        by_user, self.sent = not self.sent, False
        if (by_user and self.timer is not None) or not _is_importing(frame):
            self.cancel()
            raise KeyboardInterrupt
        self.timer = threading.Timer(SECONDS_BETWEEN_LOOKS, self._send)
        self.timer.daemon = True
        self.timer.start()

    def cancel(self) -> None:
        """Send nothing any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()

    def _send(self) -> None:
        self.sent = True
        if hasattr(signal, "pthread_kill"):  # wakes the main thread where it waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class Stop:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop after the current step.

    The second one interrupts at once. Use as a context manager; call it to ask.
    """

    def __init__(self) -> None:
        self.requested = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Say whether a stop was asked for."""
        return self.requested

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("stopping: saving a checkpoint (press again to stop at once)", always=True)
