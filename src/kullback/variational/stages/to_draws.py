"""Fits to draws of p, weighted ones or those of a Hamiltonian run: a mixture, else a flow.

Which to use: `fit_to_draws` for draws that are there; `fit_to_chains` where weighted draws are too
few, which makes them.
"""

import functools
import importlib.util
import time
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kullback.variational import limits
from kullback.variational.families import Flow, Mixture
from kullback.variational.families.family import Frame
from kullback.variational.optimise import Progress, forward_kl, until_done
from kullback.variational.optimise.hamiltonian import from_narrow
from kullback.variational.optimise.moment_shift import to_draws

from .plan import COMPONENTS, Problem
from .weighted_draws import Pooled, pool_of

__all__ = ["fit_to_chains", "fit_to_draws"]


def fit_to_chains(
    problem: Problem, last: Progress, seen: Pooled
) -> Generator[Progress, None, tuple[Progress, Pooled]]:
    """Fit to draws of a Hamiltonian run where weighted draws are too few to know p's moments.

    Beyond some ten dimensions a q without p's shape leaves few effective draws of any number, and
    is far too narrow itself. What is fitted is kept where less of p is missed.
    """
    few = seen.size < limits.MIN_MATCHED_DRAWS and seen.missed > limits.LIMITS.unreached
    begin, first = time.perf_counter(), seen.draws[seen.sample.log_p.isfinite()]
    first = first[: limits.MANY_CHAINS]
    if not few or len(first) <= 2 * problem.target.dim:
        return last, seen
    chains = from_narrow(problem.target, seen.draws, first, problem.generator)
    best, kept = last, seen
    if chains.moving <= limits.MAX_CHAIN_MOVING and chains.error <= limits.MAX_CHAIN_ERROR:
        best, kept = yield from fit_to_draws(problem, last, seen, chains.pooled)
    words = f"fitted to a Hamiltonian run, {time.perf_counter() - begin:.1f} s"
    if best is last:
        tried = replace(last, reason=f"{last.reason}; a mixture {words}, was tried and not kept")
        return tried, seen
    text = f"converged: q had next to no draws where {seen.missed:.0%} of p is, now "
    text += f"{kept.missed:.1%}, by a {best.family.name} {words}; {last.reason}"
    return replace(best, loss=last.loss, converged=True, reason=text, improper=False), kept


def fit_to_draws(
    problem: Problem, last: Progress, seen: Pooled, draws: Tensor
) -> Generator[Progress, None, tuple[Progress, Pooled]]:
    """Return what is fitted to draws `[n, d]` of p and misses less of p than `last`, and its pool.

    A mixture is asked first, a flow where that misses too much. They get the draws' means and sds.
    """
    best, kept = last, seen
    for fitted in _fits_to(problem, draws):
        now = yield from until_done(fitted)
        family = to_draws(now.family, draws, problem.generator)
        after = pool_of(problem, family)
        off = (after.draws.std(0) / draws.std(0)).log().abs().max()
        steady = float(off) < limits.REACHED_SHIFT  # far draws of a flow may carry its sd
        if steady and after.missed < limits.MIN_MATCHED_GAIN * kept.missed:
            best, kept = replace(now, family=family), after
        if kept.missed <= limits.LIMITS.unreached:
            break
    return best, kept


def _fits_to(problem: Problem, draws: Tensor) -> Iterator[Iterator[Progress]]:
    """Give fits to draws by KL(p‖q), the cheaper first: of a mixture, and of a flow with zuko."""
    generator = problem.generator
    some = torch.randperm(len(draws), generator=generator)[: limits.RESAMPLED_DRAWS]
    make = functools.partial(Mixture, components=COMPONENTS)
    yield forward_kl.maximum_likelihood(
        draws[some], make, generator, iterations=limits.MATCHED_ITERATIONS
    )
    if importlib.util.find_spec("zuko") is not None and problem.target.dim > 1:
        yield forward_kl.by_steps(draws, Flow(Frame.of_draws(draws)), generator)
