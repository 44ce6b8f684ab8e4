"""Fit q(z) to a log density: `fit`, and the `Fit` that it returns.

Which to use: `fit(log_density, parameters)` and nothing else, for a start: it finds where to begin,
chooses family and method by dimension, says what it chose, and stops when it has converged.
"""

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kullback.core import Estimate

from .families import Family
from .target import Target

__all__ = ["Fit"]


@dataclass(frozen=True)
class Fit:
    """A fitted q(z), how it was fitted, and draws to judge it by.

    target, family: p and q. objective, direction, method: what was optimised ("elbo"; "reverse",
    KL(q‖p), or "forward", KL(p‖q)) and how. trace: the objective after every iteration, in nats,
    higher is better. converged, reason: whether the method's own test was met, and why it stopped,
    in words. gradient_norm: the largest entry of the objective's gradient at the end, in about
    posterior standard deviations. seconds: of wall time. chosen: what was chosen by default.
    draws: `[n, d]` independent draws of q on the unconstrained space, made at the end; log_p, log_q:
    `[n]` at them, in nats; scores: `∂ log p/∂z` at them, `[n, d]`.
    """

    target: Target
    family: Family
    objective: str
    direction: str
    method: str
    trace: tuple[float, ...]
    converged: bool
    reason: str
    gradient_norm: float
    seconds: float
    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: Tensor
    chosen: str = ""

    @cached_property
    def elbo(self) -> Estimate:
        """The evidence lower bound `E_q[log p − log q]` with its error, from the final draws."""
        why = "a lower bound on the log evidence (Jensen)"
        return Estimate.from_terms(self.log_p - self.log_q, bias="low", why=why)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of q on the unconstrained space, `[n, d]`."""
        return self.family.sample(n, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) on the unconstrained space, `[n, d]` → `[n]`, in nats."""
        with torch.no_grad():
            return self.family.log_prob(z)
