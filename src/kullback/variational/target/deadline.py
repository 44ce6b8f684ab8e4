"""When must a fit stop? Evaluations of the density raise `OutOfTime` after that.

Which to use: `Target.deadline.within(seconds)`.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Deadline", "OutOfTime"]


class OutOfTime(Exception):
    """The time that a fit may take is over; raised where the density is evaluated."""


@dataclass(slots=True)
class Deadline:
    """When a fit must stop, on the clock of `time.monotonic`, and how long it was given."""

    ends: float = math.inf
    seconds: float = math.inf

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let evaluations raise `OutOfTime` after so many seconds."""
        before = (self.ends, self.seconds)
        self.ends, self.seconds = time.monotonic() + seconds, seconds
        try:
            yield
        finally:
            self.ends, self.seconds = before

    @property
    def left(self) -> float:
        """Seconds until then."""
        return math.inf if self.ends == math.inf else self.ends - time.monotonic()

    def check(self) -> None:
        """Raise `OutOfTime` where the time is over."""
        if self.ends < math.inf and time.monotonic() > self.ends:
            raise OutOfTime(f"stopped after {self.seconds:g} s, the most that it was given")
