"""Forward KL(p‖q): maximum likelihood on samples of p, or on importance-weighted draws.

Which to use: `maximum_likelihood` where samples of p exist; `adaptive` where only log p does: it
draws from a wide proposal, weighs, fits, and draws again from what it has fitted.
Both make `E_p[log q]` large (MATH 4.1): q covers every mode, and is moment-matched if Gaussian.
Reference: Cappé et al. (2008), "Adaptive importance sampling in general mixture classes".
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kullback.core import describe, require
from kullback.sampled import MAX_PARETO_K, effective_sample_size, pareto_smooth
from kullback.variational import limits
from kullback.variational.families import Family, StudentT
from kullback.variational.families.family import Frame, Make, ridged_cholesky
from kullback.variational.target.density import Target

from . import Progress
from .deterministic import deterministic
from .starts import Start
from .stochastic import one_round

__all__ = ["adaptive", "by_steps", "maximum_likelihood"]


def maximum_likelihood(
    samples: Tensor,
    make: Make,
    generator: torch.Generator,
    *,
    log_weights: Tensor | None = None,
    iterations: int = 300,
) -> Iterator[Progress]:
    """Fit q by maximising `Σ w log q(z)` over samples of p, yielding `Progress` each iteration.

    samples: `[n, d]` on the unconstrained space; log_weights: `[n]` or None for equal ones. The
    frame is given by the samples' mean and covariance, where a full-rank Gaussian already is at its
    optimum. Errors: `ArgumentValueError` for fewer than d + 1 samples or ones that are not finite.
    """
    flat = samples.ndim == 2 and samples.is_floating_point()
    require(flat, "samples", "floating-point [n, d]", describe(samples))
    n, d = samples.shape
    require(n > d, "samples", f"more than {d} of them", n)
    require(bool(samples.isfinite().all()), "samples", "finite numbers", "NaN or infinity")
    z = samples.detach().double()
    _check_varies(z)
    weights = torch.full((n,), 1 / n).double() if log_weights is None else log_weights.softmax(0)
    family = make(moments(z, weights))

    def loss(family: Family, noise: Tensor) -> Tensor:
        return -(weights * family.log_prob(z)).sum()

    yield from deterministic(family, loss, generator, draws=2, max_draws=2, iterations=iterations)


def _check_varies(z: Tensor) -> None:
    """Refuse samples `[n, d]` of which an entry is one number in all: log q has no maximum."""
    still = ((z == z[0]).all(0).nonzero().flatten() + 1).tolist()
    shown = ", ".join(f"z[{j}]" for j in still[: limits.SHOWN_ENTRIES])
    more = ", …" if len(still) > limits.SHOWN_ENTRIES else ""
    found = f"{len(z):,} samples that are all equal in {shown}{more}"
    hint = "independent samples of p, without entries that do not vary"
    require(not still, "samples", "samples that differ in every entry", found, hint)


def by_steps(samples: Tensor, family: Family, generator: torch.Generator) -> Iterator[Progress]:
    """Fit q by maximising `E_p[log q]` over mini-batches of samples `[n, d]`, for networks.

    One fall of Adam's step size. There is no test of convergence: what q misses is measured by
    weights p/q.
    """

    def loss(family: Family, noise: Tensor) -> Tensor:
        some = torch.randint(len(samples), (limits.FITTED_BATCH,), generator=generator)
        return -family.log_prob(samples[some]).mean()

    steps = one_round(
        family, loss, generator, draws=2, steps=limits.FITTED_STEPS, rate=limits.FITTED_RATE
    )
    now = Progress(family, math.nan, math.nan)
    for now in steps:
        if now.done:
            yield now
            return
        yield now
    yield replace(now, done=True, converged=True, reason=f"{limits.FITTED_STEPS} steps of Adam")


def moments(z: Tensor, weights: Tensor) -> Frame:
    """Return the frame in which weighted points `[n, d]` have mean 0 and covariance I.

    >>> moments(torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 0.5])).shift
    tensor([2.])
    """
    mean = weights @ z
    off = (z - mean) * weights.sqrt()[:, None]
    covariance = off.mT @ off
    return Frame.dense(mean, ridged_cholesky(covariance, limits.MOMENTS_RIDGE))


def adaptive(
    target: Target,
    starts: list[Start],
    make: Make,
    generator: torch.Generator,
    *,
    draws: int,
    rounds: int = 12,
    iterations: int = 300,
    defensive: bool = False,
) -> Iterator[Progress]:
    """Fit q by importance sampling from what was fitted before, until its moments settle.

    The first proposal is a mixture of heavy-tailed versions of every start, so that each peak that
    a start found is covered; later ones share their draws between q and a heavy-tailed distribution
    with q's moments. Weights are Pareto-smoothed. Each round fits by `maximum_likelihood`.
    defensive: whether the first proposals keep their share of the draws. Without them a small
    region far from a large one has the largest weights, and smoothing takes some of it every round.
    """
    first: list[Family] = [StudentT(_inflated(start.frame)) for start in starts]
    proposals = first
    before, used = None, 0
    for number in range(rounds):
        z, log_proposal = _propose(proposals, draws, generator)
        with torch.no_grad():
            log_p = target.log_density(z)
        logs, k_hat = pareto_smooth(log_p - log_proposal)
        frame = moments(z, logs.softmax(0))
        for now in maximum_likelihood(z, make, generator, log_weights=logs, iterations=iterations):
            used += 1
            if not now.done:
                yield now
        moved = math.inf if before is None else _moved(before, frame)
        size = float(effective_sample_size(logs))
        allowed = max(limits.MOMENTS_AGREE, 4 / math.sqrt(size))
        settled = moved < allowed and float(k_hat) < MAX_PARETO_K and now.converged
        if settled or number == rounds - 1 or not math.isfinite(size):
            state = "converged" if settled else f"stopped after {rounds} rounds"
            text = f"{state}: moments last moved by {moved:.3f} of a standard deviation; effective "
            text += f"sample size {size:.0f} of {draws}, k-hat {float(k_hat):.2f}"
            now = replace(now, done=True, converged=settled, reason=text, improper=False)
            yield replace(now, gradient_norm=moved)
            return
        before = frame
        proposals = [now.family, StudentT(_inflated(frame)), *(first if defensive else ())]


def _inflated(frame: Frame) -> Frame:
    return Frame(frame.shift, 1.2 * frame.scale)


def _moved(old: Frame, new: Frame) -> float:
    shift = old.inwards(new.shift).abs().max()
    stretch = torch.linalg.solve_triangular(old.factor, new.factor, upper=False)
    return float(torch.maximum(shift, (stretch.diagonal().log()).abs().max()))


def _propose(
    proposals: list[Family], draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw equally from every proposal; return the points and the mixture's log density."""
    each = -(-draws // len(proposals))
    z = torch.cat([q.sample(each, generator) for q in proposals])
    with torch.no_grad():
        logs = torch.stack([q.log_prob(z) for q in proposals])
    return z, torch.logsumexp(logs, 0) - math.log(len(proposals))
