"""The deterministic fit: fixed draws make the objective a function, L-BFGS finds its optimum.

Which to use: `deterministic`, through `fit`. With fixed draws (more of them than dimensions) the
average over draws is a smooth function of q's parameters, so that "converged" has a meaning: in the
frame's coordinates, where one unit is about one posterior standard deviation, no entry of the
gradient exceeds a tolerance. Then fresh draws are asked whether they agree; if not, the number of
draws is doubled.
Reference: Giordano, Ingram and Broderick (2024), "Black box variational inference with a
deterministic objective"; Burroni, Domke and Sheldon (2024), "Sample average approximation".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kullback.variational.families import Family
from kullback.variational.families.family import Frame

from .lbfgs import Step, minimise
from .progress import IMPROPER, Progress
from .starts import fixed_normals

__all__ = ["deterministic"]

TOLERANCE = 1e-3  # of a posterior standard deviation
ROUND = 20  # iterations before a Gaussian is looked at anew
FAR = math.log(1e6)  # growth or drift that no proper posterior should need
SHRUNK = math.log(1e16)  # and shrinkage: at a kink the start sees no curvature, and is too wide
ENDLESS = 1e15  # nats: differences of one drown in rounding
AGREEMENT = 0.03  # standard deviations by which fresh draws may move an optimum that needs no more
OVERFITTED = 0.3  # and one that is called converged


def deterministic(
    family: Family,
    loss: Callable[[Family, Tensor], Tensor],
    generator: torch.Generator,
    *,
    draws: int,
    max_draws: int,
    agreement: float = AGREEMENT,
    tolerance: float = TOLERANCE,
    iterations: int = 500,
    names: Sequence[str] = (),
) -> Iterator[Progress]:
    """Minimise `loss(family, noise)` over q's parameters, yielding `Progress` each iteration.

    draws: fixed normals to begin with, doubled up to max_draws while fresh ones disagree with the
    optimum by more than `agreement`, the largest entry of their gradient there. tolerance: the
    largest entry of the gradient at which it has converged. names: of z's coordinates, for what is
    said about an improper target.
    """
    size, used = draws, 0
    while True:
        noise = family.balanced(fixed_normals(size, family.noise_dim, generator))
        for now in _rounds(family, loss, noise, iterations - used, names, tolerance):
            used += 1
            if not now.done:
                yield now
        family = now.family
        if not now.converged or used >= iterations:
            yield now
            return
        fresh = family.balanced(fixed_normals(size, family.noise_dim, generator))
        off = float(_value_and_gradient(family, loss, fresh)[1].abs().max())
        if off <= agreement or 2 * size > max_draws:
            fits = off <= OVERFITTED
            reason = now.reason if fits else "stopped: q is fitted to too few draws"
            text = f"{reason}; {len(fresh)} fresh draws move the optimum by {off:.3f}"
            yield replace(now, converged=fits, reason=text, disagreement=off)
            return
        size *= 2


def _rounds(
    family: Family,
    loss: Callable[[Family, Tensor], Tensor],
    noise: Tensor,
    iterations: int,
    names: Sequence[str],
    tolerance: float,
) -> Iterator[Progress]:
    """Minimise with fixed noise; a Gaussian is looked at anew, as N(0, I), every few iterations."""
    used, first = 0, family.frame
    gaussian = family.absorb() is not None
    while True:
        start = parameters_to_vector(family.parameters()).detach()
        for count, step in enumerate(minimise(_objective(family, loss, noise), start)):
            used += 1
            norm, moved = (float(v.abs().max()) for v in (step.gradient, step.x - start))
            vector_to_parameters(step.x, family.parameters())
            settled = (
                norm <= tolerance and abs(step.loss) < ENDLESS and (moved <= 1.0 or not gaussian)
            )
            reason = _verdict(step, norm, used, iterations, settled=settled)
            yield Progress(family, step.loss, norm, bool(reason), settled, reason)
            if reason:
                return
            if gaussian and (count >= ROUND or moved > 1.0 or norm <= tolerance):
                break
        frame = family.absorb()
        if frame is not None:
            family = type(family)(frame)
            lost = improper(first, frame, names)
            if lost:
                yield Progress(family, step.loss, norm, done=True, reason=lost)
                return


def improper(first: Frame, now: Frame, names: Sequence[str] = ()) -> str:
    """Say which coordinates of a Gaussian run away from where it began; nothing if none does."""
    before, after = (f.sd for f in (first, now))
    growth = (after / before).log()
    drift = (now.shift - first.shift).abs() / torch.maximum(before, after)
    words = {
        "spreads without end: is the prior proper?": ~(growth < FAR),
        "shrinks without end: the density is unbounded": growth < -SHRUNK,
        "runs away: the density keeps rising": ~(drift < math.exp(FAR)),
    }
    for text, bad in words.items():
        if bool(bad.any()):
            places = bad.nonzero().flatten().tolist()[:5]
            which = ", ".join(names[i] if names else f"z[{i + 1}]" for i in places)
            return f"{IMPROPER}: q({which}) {text}"
    return ""


def _verdict(step: Step, norm: float, used: int, iterations: int, *, settled: bool) -> str:
    """Say why to stop, or nothing."""
    if abs(step.loss) > ENDLESS:
        return f"{IMPROPER}: the objective passes 1e15 nats, so the density has no bound"
    if settled:
        return f"converged: largest gradient entry {norm:.1e}, in posterior standard deviations"
    if step.stuck:
        return f"stopped: no lower objective within reach, largest gradient entry {norm:.1e}"
    if used >= iterations:
        return f"stopped after {used} iterations, largest gradient entry {norm:.1e}"
    return ""


def _objective(
    family: Family, loss: Callable[[Family, Tensor], Tensor], noise: Tensor
) -> Callable[[Tensor], tuple[float, Tensor]]:
    def objective(x: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(x, family.parameters())
        return _value_and_gradient(family, loss, noise)

    return objective


def _value_and_gradient(
    family: Family, loss: Callable[[Family, Tensor], Tensor], noise: Tensor
) -> tuple[float, Tensor]:
    value = loss(family, noise)
    gradients = torch.autograd.grad(value, list(family.parameters()))
    return float(value.detach()), torch.cat([g.reshape(-1) for g in gradients])
