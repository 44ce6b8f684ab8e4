"""What every command shares: where to print, how to show progress, how to stop in good order."""

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["Stop", "bar", "console", "prepare", "print_json", "say"]

SECONDS_BETWEEN_LINES = 10.0


def prepare() -> None:
    """Set this process up: Python warnings reach the user as one plain line."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")


def console() -> Console:
    """Return the console for everything that is not a result: standard error."""
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line on standard error."""
    console().print(text, markup=False, soft_wrap=True)


def print_json(fields: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(fields, indent=2, allow_nan=False) + "\n")


@contextmanager
def bar(what: str, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error while the block runs, or now and then a line.

    Yields `update(done, total, text="")`. On a terminal that is a bar; elsewhere a line every ten
    seconds.
    """
    terminal = console()
    if terminal.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=terminal) as progress:
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
        say("stopping: saving a checkpoint (press again to stop at once)")
