"""Bounds on log p(x) by annealed importance sampling from q(z|x) to the posterior p(z|x).

`anneal` gives a stochastic lower bound for any x, and with an exact posterior draw (z of an x that
the model itself made) an upper bound: bidirectional Monte Carlo. Chains move by Hamiltonian
transitions. Schedule and step sizes are adapted on pilot chains and then frozen: the chains that
make the bounds never change them, or they would bound nothing.

References: Neal (2001), "Annealed importance sampling"; Neal (2011), "MCMC using Hamiltonian
dynamics"; Shahbaba, Lan, Johnson and Neal (2014), "Split Hamiltonian Monte Carlo"; Grosse,
Ghahramani and Adams (2015), "Sandwiching the marginal likelihood using bidirectional Monte Carlo";
Wu, Burda, Salakhutdinov and Grosse (2017), "On the quantitative analysis of decoder-based models".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import Estimate, describe, require
from kullback.sampled import effective_sample_size, log_evidence, log_mean_exp

from ..evidence import LatentVariableModel, outputs_of
from ..latents import Codes, Posterior, Prior, fixed, log_ratio, numbers_of
from ..limits import ANNEALED_OUTPUTS, SETTLED_LOG_VARIANCE
from ..model import names_own_parts
from ..networks import weights_held

__all__ = ["Annealed", "Annealing", "anneal"]

ACCEPTANCE = 0.8  # of proposals, at which adaptation aims: Hoffman and Gelman (2014), section 3.2
GAIN = 0.6  # of log step size by acceptance: a factor 1.6 a temperature where nothing is accepted
JITTER = 0.2  # of step sizes, so that no trajectory is periodic: Neal (2011), section 3.2
UNIFORM = 0.2  # share of the schedule that is even, so that no gap rests on a few pilot chains


@dataclass(frozen=True, slots=True)
class Annealing:
    """Settings of annealed importance sampling; every figure is a function of them and the seed.

    Args:
        chains: Independent chains per image, at least 2.
        temperatures: Steps of β from 0 (q) to 1 (the posterior), at least 2.
        leapfrog: Steps of one Hamiltonian trajectory.
        pilots: Chains per image that adapt schedule and step sizes and are then thrown away.

    Raises:
        ArgumentValueError: A value below these.

    Example:
        >>> Annealing(chains=4).temperatures
        100
    """

    chains: int = 16
    temperatures: int = 100
    leapfrog: int = 4
    pilots: int = 8

    def __post_init__(self) -> None:
        require(self.chains >= 2, "chains", "at least 2", self.chains)
        require(self.temperatures >= 2, "temperatures", "at least 2", self.temperatures)
        require(self.leapfrog >= 1, "leapfrog", "at least 1", self.leapfrog)
        require(self.pilots >= 2, "pilots", "at least 2", self.pilots)

    def evaluations(self, *, backward: bool = False) -> int:
        """Return how often log p(x, z) and its gradient are evaluated for one image.

        Args:
            backward: Whether chains run back from an exact posterior draw too.

        Returns:
            The count: of pilots, twice over half of the temperatures, and of the chains.

        Example:
            >>> Annealing(chains=2, temperatures=4, leapfrog=1, pilots=2).evaluations()
            20
        """
        pilots = 2 * (1 + self.leapfrog * max(2, self.temperatures // 2))
        chains = self.chains * (1 + self.leapfrog * (self.temperatures - 1))
        return self.pilots * pilots + (2 if backward else 1) * chains


@dataclass(frozen=True, slots=True)
class Annealed:
    """What the chains gave, for every image, in nats.

    Args:
        log_weights: `[n, chains]`, float64; E[w] = p(x).
        reverse_log_weights: `[n, chains]` of the chains that began at an exact posterior draw, with
            E[1/w] = 1/p(x); None without such draws. Chains of one image share their first point.
        acceptance: `[n]`, the share of proposals accepted.
    """

    log_weights: Tensor
    reverse_log_weights: Tensor | None
    acceptance: Tensor

    @property
    def lower(self) -> Tensor:
        """Return log mean w, `[n]`: log p(x) or less in expectation."""
        return log_mean_exp(self.log_weights, dim=-1)

    @property
    def upper(self) -> Tensor | None:
        """Return −log mean 1/w of the reverse chains, `[n]`: log p(x) or more in expectation."""
        reverse = self.reverse_log_weights
        return None if reverse is None else -log_mean_exp(-reverse, dim=-1)

    @property
    def effective_chains(self) -> Tensor:
        """Kong's effective sample size of the forward weights, `[n]`, of `chains`."""
        return effective_sample_size(self.log_weights, dim=-1)

    @property
    def settled(self) -> Tensor:
        """Whether the variance of log w over chains is below 1, bool `[n]`.

        Log-normal weights of variance s² have single chains s²/2 nats low, and the mean of K chains
        about (e^s² − 1)/(2K): 0.5 and, at 16 chains, 0.05 nats at s² = 1. Chains that all miss the
        same part of the posterior agree and are low: only the upper bound of `anneal` tells.
        """
        return self.log_weights.var(-1) <= SETTLED_LOG_VARIANCE

    def log_evidence(self) -> Estimate:
        """Return log p(x) of every image with its error over chains, `[n]`; biased low."""
        return log_evidence(self.log_weights)


@names_own_parts
def anneal(
    model: LatentVariableModel,
    x: Tensor,
    *,
    settings: Annealing | None = None,
    exact: Tensor | None = None,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> Annealed:
    """Return annealed importance weights w of every x, `E[w] = p(x)`, and their reverse.

    The path is q(z|x)^(1−β) p(x, z)^β. In ε with z = mean + sd·ε, where q is standard normal, it is
    N(ε; 0, I) w(ε)^β with w = p(x, z)/q(z|x): a trajectory rotates (ε, momentum), which is exact
    for the first factor, and is kicked by β ∇ log w. A Metropolis step corrects what is left.

    Args:
        model: With an encoder, a decoder, a likelihood and a prior; its weights are not changed.
        x: `[n, *event]` as `model.check` returns it.
        settings: By default `Annealing()`.
        exact: `[n, latent]`, for each x a draw from p(z|x): the z that x was drawn from.
        generator: Source of all draws.
        progress: Called with (images done, n).

    Returns:
        The weights.

    Raises:
        ArgumentValueError: No images, a quantised posterior, or `exact` of another shape.

    Example:
        >>> from ..model import build
        >>> model = build((4,), "binary")
        >>> found = anneal(model, torch.ones(3, 4), generator=torch.Generator())
        >>> found.lower.shape, found.upper is None
        (torch.Size([3]), True)
    """
    settings = settings or Annealing()
    require(len(x) >= 1, "x", "at least 1 image", len(x))
    with weights_held(model), torch.no_grad():
        q, prior = model.approximate_posterior(x), fixed(model.prior)
        continuous = not isinstance(q, Codes)
        why = "a density q(z|x), from which chains can move to p(z|x)"
        require(continuous, "posterior", why, "quantised: one code for each x")
        if exact is not None:
            fits = exact.shape == q.centre.shape
            require(fits, "exact", f"[{len(x)}, {q.centre.shape[1]}]", describe(exact))
        outputs = max(numbers_of(prior), outputs_of(model, q))
        images = max(1, ANNEALED_OUTPUTS // (settings.chains * outputs))
        parts = []
        for start in range(0, len(x), images):
            part = slice(start, start + images)
            path = _Path(model, prior, x[part], q[part], settings.leapfrog, generator)
            parts.append(_annealed(path, settings, None if exact is None else exact[part]))
            if progress is not None:
                progress(min(start + images, len(x)), len(x))
    backward = [one.reverse_log_weights for one in parts if one.reverse_log_weights is not None]
    return Annealed(
        torch.cat([one.log_weights for one in parts]),
        torch.cat(backward) if backward else None,
        torch.cat([one.acceptance for one in parts]),
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """Where chains stand: ε `[chains, n, latent]`, log w `[chains, n]` and its gradient by ε."""

    noise: Tensor
    log_weight: Tensor
    gradient: Tensor


@dataclass(frozen=True, slots=True)
class _Kernels:
    """What is frozen after the pilots: β `[T + 1]` and a step size for each β and image."""

    betas: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True)
class _Path:
    """The distributions from q(z|x) to p(z|x) of a few images, and moves that keep each of them."""

    model: LatentVariableModel
    prior: Prior
    x: Tensor
    q: Posterior
    leapfrog: int
    generator: torch.Generator

    def normal(self, chains: int) -> Tensor:
        shape = (chains, *self.q.centre.shape)
        drawn = torch.randn(shape, generator=self.generator, device=self.q.centre.device)
        return drawn.to(self.q.centre.dtype)

    def at(self, noise: Tensor) -> _Point:
        """Evaluate log w = log p(x|z) + log p(z) − log q(z|x) and its gradient by ε."""
        with torch.enable_grad():
            noise = noise.detach().requires_grad_()
            drawn = self.q.draw(noise)
            value = self.model.likelihood.log_prob(self.model.parameters_of(drawn.z), self.x)
            value = value + log_ratio(self.prior, self.q, drawn)
            (gradient,) = torch.autograd.grad(value.sum(), noise)
        return _Point(noise.detach(), value.detach(), gradient)

    def move(self, point: _Point, beta: Tensor, step: Tensor) -> tuple[_Point, Tensor]:
        """Make one Hamiltonian transition that keeps N(ε; 0, I) w(ε)^β; return acceptance too.

        beta: scalar; step: `[n]`, the angle of one leapfrog step.
        """
        chains = len(point.noise)
        spread = torch.rand(chains, len(self.x), generator=self.generator, device=step.device)
        angle = (step * (1 + JITTER * (2 * spread.to(step) - 1)))[..., None]
        cosine, sine, half = angle.cos(), angle.sin(), 0.5 * angle * beta
        momentum = self.normal(chains)
        before = _energy(point, momentum, beta)
        proposal, speed = point, momentum
        for _ in range(self.leapfrog):
            speed = speed + half * proposal.gradient
            noise = cosine * proposal.noise + sine * speed
            speed = cosine * speed - sine * proposal.noise
            proposal = self.at(noise)
            speed = speed + half * proposal.gradient
        change = before - _energy(proposal, speed, beta)
        accept = torch.where(change.isnan(), 0.0, change.clamp(max=0).exp())
        lot = torch.rand(accept.shape, generator=self.generator, device=accept.device)
        taken = lot < accept
        return _chosen(taken, proposal, point), accept.mean(0)


def _energy(point: _Point, momentum: Tensor, beta: Tensor) -> Tensor:
    kinetic = 0.5 * (point.noise.double().square() + momentum.double().square()).sum(-1)
    return kinetic - beta * point.log_weight.double()


def _chosen(taken: Tensor, new: _Point, old: _Point) -> _Point:
    wide = taken[..., None]
    return _Point(
        torch.where(wide, new.noise, old.noise),
        torch.where(taken, new.log_weight, old.log_weight),
        torch.where(wide, new.gradient, old.gradient),
    )


def _annealed(path: _Path, settings: Annealing, exact: Tensor | None) -> Annealed:
    """Adapt on pilots, freeze, then run the chains that count, forward and from `exact` back."""
    kernels = _adapted(path, settings)
    forward, acceptance = _forward(path, kernels, settings.chains)
    backward = None
    if exact is not None:
        noise = path.q.noise_of(exact)
        backward = _backward(path, kernels, noise.expand(settings.chains, *noise.shape)).T
    return Annealed(forward.T, backward, acceptance)


def _forward(path: _Path, kernels: _Kernels, chains: int) -> tuple[Tensor, Tensor]:
    """Return log w = Σ_t (β_t − β_{t−1}) log w(ε_{t−1}), `[chains, n]`, and the acceptance."""
    point = path.at(path.normal(chains))
    total = point.log_weight.new_zeros(point.log_weight.shape, dtype=torch.float64)
    accepted = torch.zeros_like(kernels.steps[0])
    last = len(kernels.betas) - 1
    for t in range(1, last + 1):
        total += (kernels.betas[t] - kernels.betas[t - 1]) * point.log_weight.double()
        if t < last:
            point, share = path.move(point, kernels.betas[t], kernels.steps[t])
            accepted += share / (last - 1)
    return total, accepted


def _backward(path: _Path, kernels: _Kernels, noise: Tensor) -> Tensor:
    """Return the same sum along chains that start at the posterior, every move in reverse order.

    Each move satisfies detailed balance, so it is its own reverse.
    """
    point = path.at(noise)
    total = point.log_weight.new_zeros(point.log_weight.shape, dtype=torch.float64)
    for t in range(len(kernels.betas) - 1, 0, -1):
        total += (kernels.betas[t] - kernels.betas[t - 1]) * point.log_weight.double()
        if t > 1:
            point, _ = path.move(point, kernels.betas[t - 1], kernels.steps[t - 1])
    return total


def _adapted(path: _Path, settings: Annealing) -> _Kernels:
    """Find schedule and step sizes with pilot chains: twice, the second time from the first's."""
    count = max(2, settings.temperatures // 2)
    betas = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=path.x.device).square()
    largest = math.pi / (2 * settings.leapfrog)  # a trajectory of a quarter turn forgets its start
    steps = path.q.centre.new_full((count + 1, len(path.x)), largest, dtype=torch.float64)
    kernels = _Kernels(betas, steps)
    for wanted in (count, settings.temperatures):
        found, spread = _pilot(path, kernels, settings.pilots, largest)
        kernels = _rescheduled(found, spread, wanted)
    return kernels


def _pilot(path: _Path, kernels: _Kernels, chains: int, largest: float) -> tuple[_Kernels, Tensor]:
    """Run chains that adapt their step sizes; return those and sd(log w) at every β, `[T + 1]`."""
    point = path.at(path.normal(chains))
    spread, steps = [_spread(point)], [kernels.steps[0]]
    factor = torch.zeros_like(kernels.steps[0])  # log of what this pilot found to kernels' steps
    for beta, planned in zip(kernels.betas[1:], kernels.steps[1:], strict=True):
        step = (planned.log() + factor).exp().clamp(max=largest)
        point, share = path.move(point, beta, step)
        factor = step.log() - planned.log() + GAIN * (share - ACCEPTANCE)
        spread.append(_spread(point))
        steps.append((planned.log() + factor).exp().clamp(max=largest))
    return _Kernels(kernels.betas, torch.stack(steps)), torch.stack(spread)


def _spread(point: _Point) -> Tensor:
    """Return the standard deviation of log w over chains, root mean square over images."""
    return point.log_weight.double().var(0).mean().sqrt()


def _rescheduled(kernels: _Kernels, spread: Tensor, count: int) -> _Kernels:
    """Place `count` steps of β so that each adds as much sd(log w) dβ, for a share UNIFORM evenly.

    That spacing minimises the variance of the weights where chains mix (Grosse, Maddison and
    Salakhutdinov 2013, "Annealing between distributions by averaging moments", section 3).
    """
    gaps = kernels.betas.diff()
    length = 0.5 * (spread[1:] + spread[:-1]) * gaps
    length = length.nan_to_num(0.0, 0.0) + 1e-12 * gaps
    share = (1 - UNIFORM) * length / length.sum() + UNIFORM * gaps
    grid = torch.cat([share.new_zeros(1), share.cumsum(0)])
    wanted = torch.linspace(0, 1, count + 1, dtype=grid.dtype, device=grid.device) * grid[-1]
    right = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
    weight = (wanted - grid[right - 1]) / (grid[right] - grid[right - 1])
    betas = torch.lerp(kernels.betas[right - 1], kernels.betas[right], weight)
    betas[0], betas[-1] = 0.0, 1.0
    steps = torch.lerp(kernels.steps[right - 1], kernels.steps[right], weight[:, None])
    return _Kernels(betas, steps)
