"""What to fit and how, where the user left it open: by dimension, by data, by the starts.

Which to use: none of this directly; `fit` asks here and repeats the answer in `Fit.chosen`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kullback.core import require

from .families import NAMED, Family, Flow, FullRank, LowRank, Mixture
from .families.family import Frame
from .optimise.losses import Gradient, Objective
from .optimise.starts import Start
from .target.density import Target

__all__ = ["Direction", "Make", "Plan", "Settings", "distinct", "maker", "mixture_of", "plan"]

Direction = Literal["reverse", "forward"]
Make = Callable[[Frame], Family]

DENSE = 300  # dimensions up to which a full covariance is the default
WIDE = 64  # dimensions from which a low-rank Gaussian is fitted by fresh draws
REFINED = 50  # dimensions up to which a mixture is tried where a Gaussian falls short
METHODS = ("auto", "deterministic", "batch_and_match", "stochastic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user may say about a fit; see `fit`."""

    family: str | Make = "auto"
    direction: Direction = "reverse"
    method: str = "auto"
    objective: Objective = "elbo"
    gradient: Gradient | Literal["auto"] = "auto"
    alpha: float = 0.5
    group: int = 8
    samples: Tensor | None = None
    starts: int = 4
    draws: int | None = None
    evaluation_draws: int = 4000

    @property
    def maximised(self) -> str:
        """The name of what is maximised."""
        return self.objective if self.direction == "reverse" else "log likelihood"


@dataclass(frozen=True, slots=True)
class Plan:
    """A family to make in a frame, a method, numbers of draws, and whether to refine by itself.

    automatic: whether the family was left open. why: what decided the method, "" where the user
    did; "family" stands for the family's name.
    """

    make: Make
    method: str
    draws: int
    max_draws: int
    refine: bool
    automatic: bool
    why: str

    def chosen(self, family: Family) -> str:
        """Say what was left open and how it was decided, given the family that was returned."""
        words = [f"family {family.name} ({family.dim} dimensions)"] if self.automatic else []
        if isinstance(family, Mixture) and family.covariance == "diagonal":
            words.append(f"diagonal covariances ({family.dim} dimensions)")
        if self.why:
            why = family.name if self.why == "family" else self.why
            words.append(f"method {self.method} ({why})")
        return "; ".join(words)


def plan(target: Target, settings: Settings) -> Plan:
    """Choose what is "auto" and check the names of what is not."""
    family, method = settings.family, settings.method
    require(method in METHODS, "method", ", ".join(METHODS), repr(method))
    dim, why = target.dim, ""
    automatic = family == "auto"
    if automatic:
        family = FullRank.name if dim <= DENSE else LowRank.name
    make = maker(family)
    some = make(Frame.identity(dim))
    kind = type(some)
    if method == "auto":
        noisy = target.rows is not None and target.rows.count > target.rows.batch_size
        wide = kind is LowRank and dim > WIDE  # more noise than fixed draws could hold
        sampled = noisy or wide or kind is Flow or settings.gradient in ("stl", "dreg", "score")
        method = "stochastic" if sampled else "deterministic"
        why = "mini-batches" if noisy else "family"
    if method == "batch_and_match":
        full = kind is FullRank
        require(full, "family", "full_rank for batch_and_match", kind.name, "another method")
    few, many = _draws(some, dim, method)
    few = few if settings.draws is None else settings.draws
    refine = automatic and method == "deterministic" and dim <= REFINED and target.rows is None
    many = few if settings.draws is not None else many
    most = max(few, min(many, 1024) if refine else many)  # 1,024 will do, or a Gaussian will not
    return Plan(
        make=make,
        method=method,
        draws=few,
        max_draws=most,
        refine=refine,
        automatic=automatic,
        why=why,
    )


def _draws(family: Family, dim: int, method: str) -> tuple[int, int]:
    """Return the draws to begin with and the most there may be."""
    if method == "stochastic" and isinstance(family, Flow):
        return max(64, min(256, 25_600 // dim)), 0
    if method == "stochastic":
        return min(128, max(16, dim // 2)), 0
    if method == "batch_and_match":
        return max(32, 4 * dim), 0
    mixed = isinstance(family, Mixture)
    if not family.dense or (mixed and family.covariance == "diagonal"):
        return 256, 1024
    power = 1 << (4 * dim - 1).bit_length()
    return max(1024 if mixed else 256, power), max(4096, power)


def maker(family: str | Make) -> Make:
    """Turn a family's name, its class or a function of a frame into a function of a frame."""
    if isinstance(family, str):
        known = ", ".join(("auto", *NAMED))
        require(family in NAMED, "family", f"one of {known}, a class or a function", repr(family))
        return NAMED[family]
    hint = "functools.partial(Mixture, components=3)"
    require(callable(family), "family", "a name, or a function of a frame", repr(family), hint)
    return family


def distinct(starts: Sequence[Start], *, within: float = 15.0) -> list[Start]:
    """Keep the starts that lie on peaks of their own, the best first.

    A start is another's double where it lies within 4 of its standard deviations, √d more in d
    dimensions; one whose ELBO is more than `within` nats below the best carries no mass worth
    having.
    """
    kept: list[Start] = []
    for start in starts:
        if start.elbo < starts[0].elbo - within:
            continue
        reach = 4.0 + len(start.frame.shift) ** 0.5
        gaps = [float(k.frame.inwards(start.frame.shift).norm()) for k in kept]
        if all(gap > reach for gap in gaps):
            kept.append(start)
    return kept


def mixture_of(starts: Sequence[Start], *, components: int = 4, covariance: str = "auto") -> Family:
    """Make a mixture that begins on every distinct start, at least `components` in all.

    What is left over is placed about the best start, half a standard deviation out.
    """
    frames = [start.frame for start in distinct(starts)]
    best = frames[0]
    dim = len(best.shift)
    peaks = frames if len(frames) > 1 else []
    spare = max(0, components - len(peaks))
    grid = torch.arange(1, spare * dim + 1, dtype=torch.float64)
    around = best.outwards(0.5 * torch.sin(grid * grid).reshape(spare, dim))
    every = [*peaks, *(Frame(shift, best.scale) for shift in around)]
    return Mixture(best, covariance=covariance, starts=every)
