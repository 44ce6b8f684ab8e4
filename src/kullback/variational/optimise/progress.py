"""What a fitter shows after an iteration, and a line on a terminal that shows it."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kullback.variational.families import Family

__all__ = ["IMPROPER", "Progress", "shown"]

IMPROPER = "improper target"  # how the reason begins when it is


@dataclass(frozen=True, slots=True)
class Progress:
    """q so far, the loss in nats, the gradient, and whether and why the fit is over.

    gradient_norm: the largest entry of the objective's gradient in the frame's coordinates, about
    the distance to the optimum in posterior standard deviations. disagreement: how far fresh draws
    would move an optimum on fixed ones, as that.
    """

    family: Family
    loss: float
    gradient_norm: float
    done: bool = False
    converged: bool = False
    reason: str = ""
    disagreement: float = 0.0


def shown(steps: Iterator[Progress], title: str, *, progress: bool) -> Iterator[Progress]:
    """Pass the steps on, with one line on stderr where that is a terminal and `progress` is set."""
    if not progress or not sys.stderr.isatty():
        yield from steps
        return
    last = 0.0
    for count, step in enumerate(steps, 1):
        now = time.monotonic()
        if now - last > 0.1:
            text = f"{title}: step {count}, objective {-step.loss:.3f}, gradient"
            sys.stderr.write(f"\r\x1b[K{text} {step.gradient_norm:.1e}")
            last = now
        yield step
    sys.stderr.write("\r\x1b[K")
