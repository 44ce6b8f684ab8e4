"""What is fitted, and how: the family, the method and the numbers of draws.

Which to use: `plan` chooses what the user left open (`Settings`), and its answer is repeated in
`Fit.chosen`. A `Problem` is both with p and the source of randomness: what every stage takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kullback.core import require
from kullback.variational import limits
from kullback.variational.families import NAMED, Family, Flow, FullRank, LowRank, Mixture
from kullback.variational.families.family import Frame, Make
from kullback.variational.objectives import Gradient, Objective, loss_of
from kullback.variational.target.density import Target

__all__ = ["COMPONENTS", "Direction", "Make", "Plan", "Problem", "Settings", "maker", "plan"]

Direction = Literal["reverse", "forward"]

METHODS = ("auto", "deterministic", "batch_and_match", "natural_gradient", "stochastic")
COMPONENTS = 3  # Gaussians of a mixture that a fit tries by itself


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
    init: Tensor | None = None
    starts: int = 4
    draws: int | None = None
    evaluation_draws: int = 4000
    max_seconds: float = limits.MAX_FIT_SECONDS

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
    whole = target.rows is None and settings.objective == "elbo"
    if automatic:
        most = limits.MAX_NATURAL_DIMENSIONS if whole else limits.MAX_DENSE_DIMENSIONS
        family = FullRank.name if dim <= most else LowRank.name
    make = maker(family)
    some = make(Frame.identity(dim))
    kind = type(some)
    if method == "auto":
        noisy = target.rows is not None and target.rows.count > target.rows.batch_size
        # more noise than fixed draws could hold
        wide = kind is LowRank and dim > limits.MAX_LOW_RANK_FIXED_DIMENSIONS
        sampled = noisy or wide or kind is Flow or settings.gradient in ("stl", "dreg", "score")
        method = "stochastic" if sampled else "deterministic"
        why = "mini-batches" if noisy else "family"
        large = kind is FullRank and dim > limits.MAX_DENSE_DIMENSIONS
        if large and whole and not sampled and settings.draws is None:
            method, why = "natural_gradient", f"{dim} dimensions"
    if method in ("batch_and_match", "natural_gradient"):
        full = kind is FullRank
        require(full, "family", f"full_rank for {method}", kind.name, "another method")
    few, many = _draws(some, dim, method)
    few = few if settings.draws is None else settings.draws
    if target.looped and settings.draws is None and method == "deterministic":
        few = many = max(limits.LOOPED_DRAWS, 1 << (4 * dim - 1).bit_length())
    refine = (
        automatic
        and not target.looped
        and method == "deterministic"
        and dim <= limits.MAX_REFINED_DIMENSIONS
        and target.rows is None
    )
    many = few if settings.draws is not None else many
    most = max(few, min(many, limits.MAX_REFINED_DRAWS) if refine else many)
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


@dataclass(frozen=True, slots=True)
class Problem:
    """What every stage of one minimisation of KL(q‖p) needs: p, what was asked, how, randomness."""

    target: Target
    settings: Settings
    how: Plan
    generator: torch.Generator

    def loss(self, **density: object) -> Callable[..., Tensor]:
        """Return the loss; raises for names of objective or gradient that do not exist."""
        settings, gradient = self.settings, self.settings.gradient
        if gradient == "auto":
            landing = self.how.method == "stochastic" and settings.objective == "elbo"
            gradient = "stl" if landing else "reparameterised"
        return loss_of(
            self.target,
            objective=settings.objective,
            gradient=gradient,
            alpha=settings.alpha,
            group=settings.group,
            **density,  # type: ignore[arg-type]
        )

    def log_weights(self, family: Family, draws: int = limits.CHECK_DRAWS) -> Tensor:
        """Return log weights at independent draws of a family."""
        z = family.sample(draws, self.generator)
        with torch.no_grad():
            return self.target.log_density(z) - family.log_prob(z)
