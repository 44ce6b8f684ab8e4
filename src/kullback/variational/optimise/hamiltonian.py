"""A short Hamiltonian Monte Carlo run from q's draws, for moments that no Gaussian q reaches.

Many chains move at once, so that a step of all of them is one call of the density. They begin at
independent draws (of q, or of p by importance weights) and are independent of each other, so that
the error of a mean is known from the means of the chains. Momenta are drawn in q's frame, in which
p is about round. Step sizes follow the acceptance rate in a first part, which is not kept;
trajectories have random lengths (Neal 2011, section 5.4.2).

Which to use: `hamiltonian`, through `fit`: above 50 dimensions, where the scores of p at q's draws
are not linear, a Gaussian q gets means and sds of the run (its correlations stay). `from_narrow`
where q may be much narrower than p, as one of kinks in ten dimensions is: its draws are what a
mixture is fitted to where importance weights leave too few. Approximate: a
run this short does not cross between peaks, and keeps part of the error of where it began;
`Chains.moving` says how much it still moves. Own code: kept implementations (BlackJAX, NumPyro)
need JAX.

Reference: Neal (2011), "MCMC using Hamiltonian dynamics"; Hoffman, Radul and Sountsov (2021), "An
adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo", for many chains and
the acceptance rate that they aim at.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import require
from kullback.variational import limits
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

__all__ = ["Chains", "from_narrow", "hamiltonian"]


@dataclass(frozen=True, slots=True)
class Chains:
    """What was kept: draws `[iterations, chains, d]` of z, the mean acceptance, all gradients."""

    draws: Tensor
    acceptance: float
    gradients: int

    @property
    def pooled(self) -> Tensor:
        """All draws, `[iterations × chains, d]`."""
        return self.draws.flatten(0, 1)

    @property
    def error(self) -> float:
        """Largest standard error of a mean, in sd: 1/√chains where no chain moves."""
        spread = self.draws.mean(0).std(0) / self.pooled.std(0).clamp_min(1e-300)
        return float(spread.max()) / math.sqrt(self.draws.shape[1])

    @property
    def moving(self) -> float:
        """Largest change of a mean (sd) or log sd between the run's halves, less 4 errors; ≥ 0.

        The errors are those of the means over independent chains of each chain's own change.
        """
        half = len(self.draws) // 2
        early, late = self.draws[:half], self.draws[half:]
        centre, sd = self.pooled.mean(0), self.pooled.std(0).clamp_min(1e-300)
        changes = []
        for power in (1, 2):
            parts = [((x - centre) / sd).pow(power).mean(0) / power for x in (early, late)]
            change = parts[1] - parts[0]
            error = change.std(0) / math.sqrt(change.shape[0])
            changes.append(change.mean(0).abs() - limits.CHAIN_ERRORS * error)
        return max(0.0, float(torch.cat(changes).max()))


def hamiltonian(
    target: Target,
    frame: Frame,
    begin: Tensor,
    generator: torch.Generator,
    *,
    warm_up: int = limits.CHAIN_WARM_UP,
    kept: int = limits.CHAIN_KEPT,
) -> Chains:
    """Run a chain from each point `[chains, d]` of z, and keep the last `kept` iterations.

    frame: in which momenta are N(0, I), such as q's. Errors: `ArgumentValueError` where log p is
    not finite at a point.

    >>> target = Target.of(lambda z: -0.5 * z.square().sum(), 2)
    >>> noise = torch.Generator().manual_seed(0)
    >>> begin = torch.randn(64, 2, generator=noise, dtype=torch.float64)
    >>> found = hamiltonian(target, Frame.identity(2), begin, noise, warm_up=5, kept=8)
    >>> list(found.pooled.shape), found.acceptance > 0.5, found.moving
    ([512, 2], True, 0.0)
    """
    state = _State.at(target, frame, frame.inwards(begin))
    finite = bool(state.log_p.isfinite().all())
    require(finite, "begin", "points of finite log p", f"{int((~state.log_p.isfinite()).sum())}")
    log_step = math.log(limits.CHAIN_FIRST_STEP) - 0.25 * math.log(target.dim)
    kept_draws, accepted, gradients = [], 0.0, len(begin)
    for number in range(warm_up + kept):
        step = math.exp(log_step)
        length = 2 * limits.CHAIN_LENGTH * float(torch.rand((), generator=generator))
        leaps = max(1, min(limits.MAX_LEAPS, math.ceil(length / step)))
        state, rate = _moved(target, frame, state, step, leaps, generator)
        gradients += leaps * len(begin)
        if number < warm_up:
            gain = limits.CHAIN_ADAPTATION / math.sqrt(1 + number)
            log_step += gain * (rate - limits.CHAIN_ACCEPTANCE)
        else:
            kept_draws.append(frame.outwards(state.u))
            accepted += rate / kept
    return Chains(torch.stack(kept_draws), accepted, gradients)


def from_narrow(target: Target, draws: Tensor, begin: Tensor, generator: torch.Generator) -> Chains:
    """Run chains from draws of a q that may be much narrower than p; return those of a second run.

    draws: `[n, d]` of q, n > 2 d, in whose frame the first run moves; begin: `[chains, d]`. The
    second goes on from where the first ends, in the frame of its draws: trajectories that are a
    quarter of a turn in a q of half p's width are too short in p.

    >>> target = Target.of(lambda z: -0.5 * z.square().sum(), 2)
    >>> noise = torch.Generator().manual_seed(0)
    >>> narrow = 0.3 * torch.randn(256, 2, generator=noise, dtype=torch.float64)
    >>> found = from_narrow(target, narrow, narrow, noise)
    >>> bool((found.pooled.std(0) - 1).abs().max() < 0.1)
    True
    """
    first = hamiltonian(target, Frame.of_draws(draws), begin, generator, kept=limits.CHAIN_SHORT)
    wider = Frame.of_draws(first.pooled)
    return hamiltonian(target, wider, first.draws[-1], generator, warm_up=limits.CHAIN_AGAIN)


@dataclass(frozen=True, slots=True)
class _State:
    """Points u `[chains, d]` in the frame, log p `[chains]` and its gradient in u there."""

    u: Tensor
    log_p: Tensor
    slope: Tensor

    @classmethod
    def at(cls, target: Target, frame: Frame, u: Tensor) -> "_State":
        log_p, slope = target.score(frame.outwards(u))
        pushed = slope @ frame.scale if frame.is_dense else slope * frame.scale
        return cls(u, log_p, pushed.nan_to_num(0.0, 0.0, 0.0))


def _moved(
    target: Target,
    frame: Frame,
    state: _State,
    step: float,
    leaps: int,
    generator: torch.Generator,
) -> tuple[_State, float]:
    """Make one trajectory of every chain; return where they are, and the mean acceptance."""
    count = len(state.u)
    momentum = torch.randn(state.u.shape, generator=generator, dtype=torch.float64)
    jitter = 1 + limits.CHAIN_JITTER * (
        2 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1
    )
    pace, before = step * jitter, state.log_p - 0.5 * momentum.square().sum(1)
    new = state
    for _ in range(leaps):
        momentum = momentum + 0.5 * pace * new.slope
        new = _State.at(target, frame, new.u + pace * momentum)
        momentum = momentum + 0.5 * pace * new.slope
    change = new.log_p - 0.5 * momentum.square().sum(1) - before
    chance = change.nan_to_num(-math.inf, -math.inf, -math.inf).clamp(max=0.0).exp()
    goes = torch.rand(count, generator=generator, dtype=torch.float64) < chance
    parts = zip((new.u, new.slope), (state.u, state.slope), strict=True)
    u, slope = (torch.where(goes[:, None], a, b) for a, b in parts)
    return _State(u, torch.where(goes, new.log_p, state.log_p), slope), float(chance.mean())
