"""The cooled fit: Adam whose steps shrink to nothing, in rounds, until a longer one gains nothing.

Which to use: `cooled`, then `widened`, through `fit`: for flows, whose parameters have no scale of
their own, so that how far they still travel says little. A round's step size falls along half a
cosine; its end, where steps are small, is an average in all but name. The next round is twice as
long and starts half as high. When it raises the objective by less than 0.02 nats, or by less than
the error of that, the fit is over.
Reference: Loshchilov and Hutter (2017), "SGDR: stochastic gradient descent with warm restarts";
Agrawal, Sheldon and Domke (2020), "Advances in black-box VI", for the path gradient in flows.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kullback.sampled import pareto_k
from kullback.variational.families import Family, Flow
from kullback.variational.target.density import Target

from .progress import Progress

__all__ = ["cooled", "widened"]

FIRST, ROUNDS = 500, 3  # steps of the first round, and rounds
RATE = 0.01
GAIN = 0.02  # nats
END = 0.2  # of a round, over which the objective is averaged
LOST = 20  # steps in a row without a finite gradient
LIGHT = 0.45  # k-hat that the tail of a flow's weights should stay below
BENDS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
SETS, SIZE = 4, 4000  # draws for each

Loss = Callable[[Family, Tensor], Tensor]


def cooled(
    family: Family, loss: Loss, generator: torch.Generator, *, draws: int
) -> Iterator[Progress]:
    """Minimise the expectation of `loss(family, noise)`, yielding `Progress` each step.

    draws: fresh antithetic normals a step. A step whose loss or gradient is not finite is left out;
    when 20 in a row are, the fit stops and says so.
    """
    best, gain = math.inf, math.inf
    for number in range(ROUNDS):
        ends: list[float] = []
        steps = FIRST << number
        for now in _round(family, loss, generator, draws, steps, RATE * 0.5**number):
            if now.done:
                yield now
                return
            ends.append(now.loss)
            yield now
        tail = torch.tensor(ends[-int(END * steps) :], dtype=torch.float64)
        gain, best = best - float(tail.mean()), min(best, float(tail.mean()))
        error = 2 * float(tail.std()) / math.sqrt(len(tail))
        if gain < max(GAIN, error):
            reason = f"converged: twice the steps raised the objective by {max(gain, 0.0):.3f} nats"
            yield Progress(family, best, gain, done=True, converged=True, reason=reason)
            return
    reason = f"stopped: the last {steps} steps still raised the objective by {gain:.3f} nats"
    yield Progress(family, best, gain, done=True, reason=reason)


def widened(flow: Flow, target: Target, generator: torch.Generator) -> float:
    """Widen a fitted flow's base as little as makes the weights p/q light-tailed; return how much.

    KL(q‖p) hardly notices a tail that is missing. Here k-hat, averaged over four sets of 4,000
    draws, decides: the first of eight widths with k-hat below 0.45 is taken, else the best of them.
    """
    found: dict[float, float] = {}
    for h in BENDS:
        flow.widen(h)
        found[h] = sum(_k_hat(flow, target, generator) for _ in range(SETS)) / SETS
        if found[h] < LIGHT:
            return h
    best = min(found, key=lambda h: found[h] if math.isfinite(found[h]) else math.inf)
    flow.widen(best)
    return best


def _k_hat(flow: Flow, target: Target, generator: torch.Generator) -> float:
    z = flow.sample(SIZE, generator)
    with torch.no_grad():
        return float(pareto_k(target.log_density(z) - flow.log_prob(z)))


def _round(
    family: Family,
    loss: Loss,
    generator: torch.Generator,
    draws: int,
    steps: int,
    rate: float,
) -> Iterator[Progress]:
    """Run Adam over one fall of the step size."""
    parameters = list(family.parameters())
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    lost = 0
    for _ in range(steps):
        half = family.noise((draws + 1) // 2, generator)
        value = loss(family, torch.cat([half, -half]))
        gradients = torch.autograd.grad(value, parameters)
        norm = max(float(g.abs().max()) for g in gradients)
        good = math.isfinite(norm) and math.isfinite(float(value.detach()))
        lost = 0 if good else lost + 1
        if lost == LOST:
            reason = "stopped: the loss or its gradient is not finite, step after step"
            yield Progress(family, math.nan, norm, done=True, reason=reason)
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if good else None
        optimiser.step()
        fall.step()
        if good:
            yield Progress(family, float(value.detach()), norm)
