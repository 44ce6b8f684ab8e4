"""How q is brought to p: where a fit starts, and the optimisers.

Which file answers which question:

- `starts`: where does a fit begin, and on which peaks? `deterministic`: L-BFGS on fixed draws;
- `stochastic`: Adam's steps, averaged, or in rounds of cosine annealing (flows); the control
  variate for mini-batches;
- `hamiltonian`: a short run of many chains, for moments that no Gaussian has;
- `natural_gradient`: hundreds of dimensions, and kinks; `edges`: −inf beyond an edge;
- `batch_and_match`: scores matched in closed form; `forward_kl`: KL(p‖q) from weighted draws;
  `moment_shift`: q moved and scaled to p's moments, by draws that have weights already;
- `grid`: both directions by quadrature in one or two dimensions.

All of them yield a `Progress` after each iteration; `shown` prints it, `until_done` returns the
last.
"""

import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from kullback.variational import limits
from kullback.variational.diagnostics.missed_modes import Probed
from kullback.variational.families import Family

__all__ = ["IMPROPER", "Progress", "shown", "until_done"]

IMPROPER = "improper target"  # how the reason begins when it is


@dataclass(frozen=True, slots=True)
class Progress:
    """q so far, the loss in nats, the gradient, and whether and why the fit is over.

    gradient_norm: the largest entry of the objective's gradient in the frame's coordinates, about
    the distance to the optimum in posterior standard deviations. disagreement: how far fresh draws
    would move an optimum on fixed ones, as that. bounded: whether p has hard edges, so that q may
    have draws where p has no mass. searched: the q from which other peaks were last searched for,
    and what was found. improper: whether the fit was given up because p has no finite mass.
    declare: which constraints would remove the edges beyond which log p is −inf, "" without any.
    """

    family: Family
    loss: float
    gradient_norm: float
    done: bool = False
    converged: bool = False
    reason: str = ""
    disagreement: float = 0.0
    bounded: bool = False
    searched: tuple[Family, Probed] | None = None
    improper: bool = False
    declare: str = ""


def until_done(steps: Iterator[Progress]) -> Generator[Progress, None, Progress]:
    """Pass the steps on but for the last, which is returned."""
    for now in steps:
        if not now.done:
            yield now
    return now


def shown(
    steps: Iterator[Progress], title: str, *, seconds: float, progress: bool
) -> Iterator[Progress]:
    """Pass the steps on, with one line on stderr where that is a terminal and `progress` is set.

    seconds: the most that all of it may take, which the line shows beside what it took.
    """
    if not progress or not sys.stderr.isatty():
        yield from steps
        return
    last, begin = 0.0, time.monotonic()
    for count, step in enumerate(steps, 1):
        now = time.monotonic()
        if now - last > limits.PROGRESS_SECONDS:
            text = f"{title}: step {count}, objective {-step.loss:.3f}, gradient"
            spent = f"{now - begin:.0f} of at most {seconds:.0f} s"
            sys.stderr.write(f"\r\x1b[K{text} {step.gradient_norm:.1e}, {spent}")
            last = now
        yield step
    sys.stderr.write("\r\x1b[K")
